//! Two writers that count by turns, each after the other has told it.
//!
//! Owns the writers, their files and where these lie on the disks. The counters grow only by one writer's write after the
//! other's: at any instant they are one apart.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};
use holdfast_tests::file_system::run;

const BLOCK_BYTES: usize = 4096;

/// The writers; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct PingPong {
    /// Where each counter lies on its disk, in bytes.
    offsets: Vec<u64>,
    count: Arc<AtomicU64>,
    stop: TcpStream,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl PingPong {
    /// Starts counting, in a file on each of two file systems.
    pub(crate) fn start(folders: &[&Path; 2]) -> Result<Self> {
        let mut files = Vec::new();
        let mut offsets = Vec::new();
        for (index, folder) in folders.iter().enumerate() {
            let path = folder.join("counter");
            // One block that is overwritten in place; the first is one ahead of the second, as ever after.
            let file = File::create_new(&path)?;
            file.write_all_at(&block(1 - index as u64), 0)?;
            file.sync_all()?;
            offsets.push(place(&path)?);
            files.push(file);
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let first = TcpStream::connect(listener.local_addr()?)?;
        let (second, _) = listener.accept()?;
        for stream in [&first, &second] {
            stream.set_nodelay(true)?;
        }
        let stop = first.try_clone()?;
        let count = Arc::new(AtomicU64::new(1));
        let mut threads = Vec::new();
        for (stream, file) in [first, second].into_iter().zip(files) {
            let count = Arc::clone(&count);
            threads.push(thread::spawn(move || play(stream, &file, &count)));
        }
        // The first has written 1: the second hears of it and goes on.
        let mut begin = stop.try_clone()?;
        begin.write_all(&1_u64.to_le_bytes())?;
        Ok(Self { offsets, count, stop, threads })
    }

    /// The newest number that was written.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// The counter in a copy of a disk.
    pub(crate) fn read(&self, index: usize, copy: &Path) -> Result<u64> {
        let mut bytes = [0; 8];
        File::open(copy)?.read_exact_at(&mut bytes, self.offsets[index])?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Hears a number, writes the next, tells it.
fn play(mut stream: TcpStream, file: &File, count: &AtomicU64) -> std::io::Result<()> {
    let mut bytes = [0; 8];
    while stream.read_exact(&mut bytes).is_ok() {
        let next = u64::from_le_bytes(bytes) + 1;
        file.write_all_at(&block(next), 0)?;
        // Now and then it is even on the disk before it is told.
        if next % 16 < 2 {
            file.sync_data()?;
        }
        count.store(next, Ordering::SeqCst);
        stream.write_all(&next.to_le_bytes())?;
    }
    Ok(())
}

fn block(number: u64) -> Vec<u8> {
    let mut block = vec![0x5a; BLOCK_BYTES];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// Where the only block of a file lies on its disk.
fn place(path: &Path) -> Result<u64> {
    let text = run(Command::new("filefrag").args(["-b1024", "-v"]).arg(path))?;
    let line = text.lines().find(|line| line.trim_start().starts_with("0:")).context("an extent")?;
    let physical = line.split(':').nth(2).and_then(|range| range.split("..").next()).context("its place")?;
    Ok(physical.trim().parse::<u64>()? * 1024)
}

impl Drop for PingPong {
    fn drop(&mut self) {
        let _ended_already = self.stop.shutdown(std::net::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _a_broken_connection_is_the_end = thread.join();
        }
    }
}
