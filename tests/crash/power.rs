//! The store on a real ext4 whose disk loses power: what was written and not flushed is there, missing or torn at random.
//!
//! A writer appends, merges, gives up and reclaims without end; now and then a copy is taken of what the disk would hold if
//! power failed in that very moment, mounted, and opened. Nothing that was acknowledged may be missing there, every cut
//! that is kept must be right, and all must go on.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_tests::{
    asked,
    file_system::{MountPoint, run},
    journal::frame,
    loop_device::{self, LoopDevice},
    volatile_disk::VolatileDisk,
};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::{
    reclaim::{check, open, try_give_up},
    store::{close, runtime},
};

/// Names the folder to the child.
const FOLDER: &str = "HOLDFAST_TEST_CRASH_POWER";
/// Size of the disk.
const DISK_BYTES: usize = 48 << 20;
/// How many times power is lost; `HOLDFAST_TEST_ROUNDS` changes it.
const ROUNDS: u64 = 16;

/// Not a test of its own: the child of the next one. A process that serves a file system must not have files of it mapped: who
/// waits for a page holds what the server needs.
#[test]
#[ignore = "runs as a child until it is killed"]
fn child_that_writes_without_end() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (_store, log, index) = open(Path::new(&folder));
    let entropy = SeededEntropy::new(31);
    let sink = log.sink().unwrap();
    let runtime = runtime();
    let mut next = 1;
    loop {
        let count = entropy.next_u64() % 25 + 1;
        runtime.block_on(async {
            sink.append((next..next + count).map(frame).collect()).await.unwrap();
            println!("durable {}", sink.settle().await.unwrap());
        });
        next += count;
        index.catch_up().unwrap();
        while index.compact().unwrap() {}
        if entropy.next_u64().is_multiple_of(3) {
            try_give_up(&log, &index).unwrap();
        }
    }
}

/// The child, killed when dropped.
struct Writer(Child);

impl Writer {
    /// Stops it, or lets it go on: while the disk of one moment is looked at it must not fill the disk.
    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).context("its id")?;
        Ok(rustix::process::kill_process(id, signal)?)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Opens what a loss of power has left.
fn judge(left: &[u8], durable: u64) -> Result<()> {
    let folder = TempDir::new()?;
    let image = folder.path().join("disk.img");
    std::fs::write(&image, left)?;
    let device = LoopDevice::attach(&image)?;
    let mount =
        MountPoint::new(device.path(), &[]).context("the file system is broken: the simulation is wrong")?;
    let (store, log, index) = open(&mount.folder().join("store"));
    let last = log.tail().sequence.0;
    ensure!(last >= durable, "{durable} was acknowledged, {last} is there");
    check(&log, &index, last);
    runtime().block_on(async {
        let sink = log.sink()?;
        sink.append((last + 1..=last + 30).map(frame).collect()).await?;
        sink.settle().await
    })?;
    check(&log, &index, last + 30);
    try_give_up(&log, &index).map_err(|error| anyhow::anyhow!("{error}"))?;
    check(&log, &index, last + 30);
    drop(index);
    close(store, log);
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_with_power() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let seed = asked::seed();
    let rounds = asked::number("HOLDFAST_TEST_ROUNDS").unwrap_or(ROUNDS);
    let entropy = SeededEntropy::new(seed);
    let disk = VolatileDisk::create(DISK_BYTES)?;
    run(Command::new("mkfs.ext4").args(["-qF", "-J", "size=4"]).arg(disk.device().path()))?;
    let mount = MountPoint::new(disk.device().path(), &[])?;
    let mut writer = Writer(
        Command::new(std::env::current_exe()?)
            .args(["--exact", "power::child_that_writes_without_end", "--ignored", "--nocapture"])
            .env(FOLDER, mount.folder().join("store"))
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let lines = BufReader::new(writer.0.stdout.take().context("its output")?).lines();
    let durable = Arc::new(AtomicU64::new(0));
    let known = Arc::clone(&durable);
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let number = line.split_once("durable ").and_then(|(_, number)| number.parse().ok());
            number.into_iter().for_each(|number| known.store(number, Ordering::SeqCst));
        }
    });
    let mut cached_in_all = 0;
    // Its folders are made under the same rules, but there is nothing to judge before its first word.
    while durable.load(Ordering::SeqCst) == 0 {
        ensure!(writer.0.try_wait()?.is_none(), "the writer has ended at its start");
        thread::sleep(Duration::from_millis(1));
    }
    for round in 0..rounds {
        disk.lose_power_in(entropy.next_u64() % 40, &durable);
        let (left, cached, acknowledged) = loop {
            if let Some(lost) = disk.lost(&entropy) {
                break lost;
            }
            ensure!(writer.0.try_wait()?.is_none(), "the writer has ended in round {round}");
            thread::sleep(Duration::from_millis(1));
        };
        writer.signal(Signal::STOP)?;
        judge(&left, acknowledged).with_context(|| format!("round {round}, {cached} writes in the cache"))?;
        writer.signal(Signal::CONT)?;
        cached_in_all += cached;
    }
    eprintln!(
        "{rounds} losses of power, with {cached_in_all} writes in the cache, up to flush {}",
        disk.flushes()
    );
    ensure!(cached_in_all >= usize::try_from(rounds)?, "there was too little to lose");
    ensure!(durable.load(Ordering::SeqCst) > 0, "nothing was acknowledged");
    drop(writer);
    drop(mount);
    Ok(())
}
