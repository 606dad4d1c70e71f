//! Writers that count by turns over the network, each after the one before has told it.
//!
//! Owns the writers, their files and where these lie on the disks. The counters grow only by one writer's write after
//! another's, round and round: at any instant they are one apart, the newest and those before it.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{file_system::run, network::Namespace};

const BLOCK_BYTES: usize = 4096;

/// Where a writer lives.
pub(crate) struct Place<'a> {
    /// Its file system.
    pub(crate) folder: &'a Path,
    /// Its network.
    pub(crate) namespace: &'a Namespace,
}

/// The writers; they end when this is dropped.
#[derive(Debug)]
pub(crate) struct PingPong {
    /// Where each counter lies on its disk, in bytes.
    offsets: Vec<u64>,
    count: Arc<AtomicU64>,
    streams: Vec<TcpStream>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl PingPong {
    /// Starts counting, in a file of each file system; the numbers go from each network into the next.
    pub(crate) fn start(places: &[Place<'_>]) -> Result<Self> {
        let count = places.len() as u64;
        let mut files = Vec::new();
        let mut offsets = Vec::new();
        let mut listeners = Vec::new();
        for (place, first) in places.iter().zip(0..) {
            let path = place.folder.join("counter");
            // One block that is overwritten in place.
            let file = File::create_new(&path)?;
            file.write_all_at(&block(first), 0)?;
            file.sync_all()?;
            offsets.push(offset_of(&path)?);
            files.push(file);
            let address = place.namespace.inner_address();
            listeners.push(place.namespace.inside(|| Ok(TcpListener::bind((address.as_str(), 0))?))?);
        }
        // To each writer from the one before it.
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for (number, listener) in listeners.iter().enumerate() {
            let address = listener.local_addr()?;
            let before = places.get((number + places.len() - 1) % places.len()).context("a writer")?;
            to.push(before.namespace.inside(|| Ok(TcpStream::connect(address)?))?);
            from.push(listener.accept()?.0);
        }
        to.rotate_left(1);
        for stream in from.iter().chain(&to) {
            stream.set_nodelay(true)?;
        }
        let streams =
            from.iter().chain(&to).map(TcpStream::try_clone).collect::<std::io::Result<Vec<_>>>()?;
        // The last one has written the newest number.
        let mut begin = to.last().context("a writer")?.try_clone()?;
        let newest = Arc::new(AtomicU64::new(count - 1));
        let mut threads = Vec::new();
        for ((from, to), file) in from.into_iter().zip(to).zip(files) {
            let newest = Arc::clone(&newest);
            threads.push(thread::spawn(move || play(from, to, &file, &newest)));
        }
        begin.write_all(&(count - 1).to_le_bytes())?;
        Ok(Self { offsets, count: newest, streams, threads })
    }

    /// The newest number that was written.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Where a writer's counter lies on its disk, in bytes.
    pub(crate) fn offset(&self, index: usize) -> u64 {
        self.offsets[index]
    }

    /// The counter in a copy of a disk.
    pub(crate) fn read(&self, index: usize, copy: &Path) -> Result<u64> {
        let mut bytes = [0; 8];
        File::open(copy)?.read_exact_at(&mut bytes, self.offsets[index])?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Checks that no effect stands in these counters without its cause, and gives the newest.
pub(crate) fn check(counters: &[u64]) -> Result<u64> {
    let writers = counters.len() as u64;
    let newest = counters.iter().copied().max().context("counters")?;
    for (counter, place) in counters.iter().zip(0..) {
        let own = counter % writers == place;
        ensure!(own && counter + writers > newest, "an effect without its cause: {counters:?}");
    }
    Ok(newest)
}

/// Hears a number, writes the next, tells it.
fn play(mut from: TcpStream, mut to: TcpStream, file: &File, count: &AtomicU64) -> std::io::Result<()> {
    let mut bytes = [0; 8];
    while from.read_exact(&mut bytes).is_ok() {
        let next = u64::from_le_bytes(bytes) + 1;
        file.write_all_at(&block(next), 0)?;
        // Now and then it is even on the disk before it is told.
        if next % 16 < 2 {
            file.sync_data()?;
        }
        count.store(next, Ordering::SeqCst);
        to.write_all(&next.to_le_bytes())?;
    }
    Ok(())
}

fn block(number: u64) -> Vec<u8> {
    let mut block = vec![0x5a; BLOCK_BYTES];
    block[..8].copy_from_slice(&number.to_le_bytes());
    block
}

/// Where the only block of a file lies on its disk.
fn offset_of(path: &Path) -> Result<u64> {
    let text = run(Command::new("filefrag").args(["-b1024", "-v"]).arg(path))?;
    let line = text.lines().find(|line| line.trim_start().starts_with("0:")).context("an extent")?;
    let physical = line.split(':').nth(2).and_then(|range| range.split("..").next()).context("its place")?;
    Ok(physical.trim().parse::<u64>()? * 1024)
}

impl Drop for PingPong {
    fn drop(&mut self) {
        for stream in &self.streams {
            let _ended_already = stream.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _a_broken_connection_is_the_end = thread.join();
        }
    }
}
