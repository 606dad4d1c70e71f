//! The store on a real ext4 whose disk loses power: what was written and not flushed is there, missing or torn at random.
//!
//! A writer appends, merges, gives up and reclaims without end; now and then a copy is taken of what the disk would hold if
//! power failed in that very moment, mounted, and opened. Nothing that was acknowledged may be missing there, every cut
//! that is kept must be right, and all must go on.

mod coordinator;
mod ranges;
mod records;

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
/// Where it is, below the disk's root.
const WORK: &str = "work";
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

/// A child of this program, killed when dropped.
struct Writer {
    child: Child,
    /// What it last said to be durable.
    durable: Arc<AtomicU64>,
}

impl Writer {
    /// Starts one of the tests that are no tests; gives it the folder by the variable.
    fn start(name: &str, folder: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let durable = Arc::new(AtomicU64::new(0));
        let known = Arc::clone(&durable);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let number = line.split_once("durable ").and_then(|(_, number)| number.parse().ok());
                number.into_iter().for_each(|number| known.store(number, Ordering::SeqCst));
            }
        });
        Ok(Self { child, durable })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Stops a process, or lets it go on: while the disk of one moment is looked at it must not fill the disk.
fn signal(process: u32, signal: Signal) -> Result<()> {
    let id = i32::try_from(process).ok().and_then(Pid::from_raw).context("its id")?;
    Ok(rustix::process::kill_process(id, signal)?)
}

/// Loses power again and again under a process; `known` is what it has acknowledged, `check` fails when it does not go on. What
/// is left is mounted, and judged by what had been acknowledged.
fn lose_power(
    disk: &VolatileDisk,
    process: u32,
    known: &Arc<AtomicU64>,
    check: &mut dyn FnMut() -> Result<()>,
    judge: &dyn Fn(&Path, u64) -> Result<()>,
) -> Result<()> {
    let rounds = asked::number("HOLDFAST_TEST_ROUNDS").unwrap_or(ROUNDS);
    let entropy = SeededEntropy::new(asked::seed());
    let mut cached_in_all = 0;
    // Its folders are made under the same rules, but there is nothing to judge before its first word.
    while known.load(Ordering::SeqCst) == 0 {
        check().context("at its start")?;
        thread::sleep(Duration::from_millis(1));
    }
    for round in 0..rounds {
        disk.lose_power_in(entropy.next_u64() % 40, known);
        let (left, cached, acknowledged) = loop {
            if let Some(lost) = disk.lost(&entropy) {
                break lost;
            }
            check().with_context(|| format!("in round {round}"))?;
            thread::sleep(Duration::from_millis(1));
        };
        signal(process, Signal::STOP)?;
        let judged = judge_left(&left, &|folder| judge(folder, acknowledged));
        signal(process, Signal::CONT)?;
        judged.with_context(|| {
            format!("round {round}, {acknowledged} acknowledged, {cached} writes in the cache")
        })?;
        cached_in_all += cached;
    }
    let flushes = disk.flushes();
    eprintln!("{rounds} losses of power, with {cached_in_all} writes in the cache, up to flush {flushes}");
    ensure!(cached_in_all >= usize::try_from(rounds)?, "there was too little to lose");
    Ok(())
}

fn judge_left(left: &[u8], judge: &dyn Fn(&Path) -> Result<()>) -> Result<()> {
    let folder = TempDir::new()?;
    let image = folder.path().join("disk.img");
    std::fs::write(&image, left)?;
    let device = LoopDevice::attach(&image)?;
    let mount =
        MountPoint::new(device.path(), &[]).context("the file system is broken: the simulation is wrong")?;
    judge(&mount.join(WORK))
}

/// A disk that can lose power, with an ext4 on it; none where there are no loop devices.
fn disk() -> Result<Option<(MountPoint, VolatileDisk)>> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(None);
    }
    let disk = VolatileDisk::create(DISK_BYTES)?;
    run(Command::new("mkfs.ext4").args(["-qF", "-J", "size=4"]).arg(disk.device().path()))?;
    Ok(Some((MountPoint::new(disk.device().path(), &[])?, disk)))
}

/// Loses power under a child that is one of the tests that are no tests. `false` where there are no loop devices.
fn lose_power_under(child: &str, judge: &dyn Fn(&Path, u64) -> Result<()>) -> Result<bool> {
    let Some((mount, disk)) = disk()? else { return Ok(false) };
    let mut writer = Writer::start(child, &mount.join(WORK))?;
    let (process, durable) = (writer.child.id(), Arc::clone(&writer.durable));
    let mut check = || {
        ensure!(writer.child.try_wait()?.is_none(), "the writer has ended");
        Ok(())
    };
    let lost = lose_power(&disk, process, &durable, &mut check, judge);
    drop(writer);
    drop(mount);
    lost.map(|()| true)
}

/// Opens what a loss of power has left; adds to the frames that were given back.
fn judge(folder: &Path, durable: u64, given_back: &AtomicU64) -> Result<()> {
    let (store, log, index) = open(folder);
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
    given_back.fetch_add(check(&log, &index, last + 30), Ordering::SeqCst);
    drop(index);
    close(store, log);
    Ok(())
}

#[test]
fn nothing_acknowledged_is_lost_with_power() -> Result<()> {
    let given_back = AtomicU64::new(0);
    let lost = lose_power_under("power::child_that_writes_without_end", &|folder, durable| {
        judge(folder, durable, &given_back)
    })?;
    ensure!(!lost || given_back.into_inner() > 0, "there was nothing to reclaim");
    Ok(())
}
