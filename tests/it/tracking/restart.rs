//! The agent dies at any moment; tracking does not.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::{
    capture::{
        ChangeSource as _,
        tracked::{Attachment, Faults, TrackedOptions, TrackedSource},
    },
    forget::forget,
};
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy, SystemEntropy},
    ids::Interval,
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_tests::{
    asked,
    loop_device::LoopDevice,
    raw_writers::{AlignedBuffer, Load, RawWriters, open_direct},
};

use super::{TestDisk, is_skipped, stress_time};

const BLOCKS: u64 = 8 * 1024;
const DISK: &str = "HOLDFAST_TEST_CHILD_DISK";
const DEVICE: &str = "HOLDFAST_TEST_CHILD_DEVICE";
const REPLICA: &str = "HOLDFAST_TEST_CHILD_REPLICA";

/// Not a test of its own: the process that is killed. Follows the device until it dies.
#[test]
fn child_that_follows() -> Result<()> {
    let (Ok(disk), Ok(device), Ok(replica)) =
        (std::env::var(DISK), std::env::var(DEVICE), std::env::var(REPLICA))
    else {
        return Ok(());
    };
    let options = TrackedOptions::default();
    let (mut source, attachment) =
        TrackedSource::open(disk.parse()?, Path::new(&device), &options, &SystemEntropy::new())?;
    ensure!(matches!(attachment, Attachment::Resumed { .. }), "{attachment:?}");
    let mut copier = Copier::new(Path::new(&device), Path::new(&replica))?;
    let mut interval = Interval(1);
    loop {
        copier.round(&mut source, interval)?;
        // The interval before is durable only now: two are open at a time.
        source.acknowledged(Interval(interval.0 - 1));
        interval = interval.next();
    }
}

struct Copier {
    device: File,
    replica: File,
    buffer: AlignedBuffer,
}

impl Copier {
    fn new(device: &Path, replica: &Path) -> Result<Self> {
        let replica = File::options().read(true).write(true).open(replica).context("opening the replica")?;
        Ok(Self { device: open_direct(device)?, replica, buffer: AlignedBuffer::new(BLOCK_BYTES * 1024) })
    }

    fn copy(&mut self, range: BlockRange) -> Result<()> {
        let mut at = range.start.byte_offset();
        while at < range.end().byte_offset() {
            let length = (range.end().byte_offset() - at).min(BLOCK_BYTES as u64 * 1024) as usize;
            let bytes = self.buffer.first(length);
            self.device.read_exact_at(bytes, at)?;
            self.replica.write_all_at(bytes, at)?;
            at += length as u64;
        }
        Ok(())
    }

    /// Copies what is taken; whether anything was.
    fn round(&mut self, source: &mut TrackedSource, interval: Interval) -> Result<bool> {
        let mut ranges = vec![];
        let taken = source.take(interval, &mut |range| ranges.push(range))?;
        for range in ranges {
            self.copy(range)?;
        }
        Ok(taken.blocks.0 > 0 || taken.in_flight.0 > 0)
    }
}

#[test]
fn nothing_is_lost_when_the_process_is_killed() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk, seed) =
        (LoopDevice::create(BLOCKS * 4096)?, TestDisk::new(super::Faults::default()), asked::seed());
    let folder = tempfile::TempDir::with_prefix("holdfast-replica-")?;
    let replica: PathBuf = folder.path().join("replica.img");
    File::create_new(&replica)?.set_len(BLOCKS * 4096)?;
    let (source, attachment) = disk.open(device.path())?;
    assert!(matches!(attachment, Attachment::Fresh { .. }), "{attachment:?}");
    let cursor = source.cursor();
    let writers = RawWriters::start(device.path(), BLOCKS, Load { writers: 4, seed, discard_every: 30 });
    Copier::new(device.path(), &replica)?.copy(BlockRange::new(0, BLOCKS))?;
    drop(source);

    let (random, start, mut kills) = (SeededEntropy::new(seed), Instant::now(), 0);
    while start.elapsed() < stress_time() || kills < 5 {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "tracking::restart::child_that_follows", "--nocapture"])
            .env(DISK, disk.id.to_string())
            .env(DEVICE, device.path())
            .env(REPLICA, &replica)
            .stdout(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_millis(20 + random.next_u64() % 200));
        let ended = child.try_wait()?;
        child.kill()?;
        child.wait()?;
        ensure!(ended.is_none(), "the child ended by itself: {ended:?}");
        kills += 1;
    }
    let written = writers.finish()?;
    let (mut source, attachment) = disk.open(device.path())?;
    assert!(matches!(attachment, Attachment::Resumed { .. }), "{attachment:?}");
    let mut copier = Copier::new(device.path(), &replica)?;
    while copier.round(&mut source, Interval(1))? {}
    source.guard()?;
    assert_eq!(source.cursor().incarnation, cursor.incarnation);
    assert_eq!(source.cursor().trust, Ok(()));
    let wrong = differences(device.path(), &replica)?;
    eprintln!("{written} writes, {kills} kills: {wrong} blocks differ");
    assert_eq!(wrong, 0);
    Ok(())
}

fn differences(device: &Path, replica: &Path) -> Result<usize> {
    let (device, replica) = (open_direct(device)?, File::open(replica)?);
    let (mut left, mut right) = (AlignedBuffer::new(BLOCK_BYTES), vec![0; BLOCK_BYTES]);
    let mut wrong = 0;
    for block in 0..BLOCKS {
        device.read_exact_at(left.first(BLOCK_BYTES), block * BLOCK_BYTES as u64)?;
        replica.read_exact_at(&mut right, block * BLOCK_BYTES as u64)?;
        wrong += usize::from(left.first(BLOCK_BYTES) != right.as_slice());
    }
    Ok(wrong)
}

#[test]
fn what_an_agent_left_is_forgotten_and_what_one_uses_is_kept() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (used, left) = (LoopDevice::create(1 << 20)?, LoopDevice::create(1 << 20)?);
    let (mut running, mut gone) = (TestDisk::new(Faults::default()), TestDisk::new(Faults::default()));
    // Not the folder of the machine's agents: everything in it is forgotten.
    let pins = PathBuf::from(format!("/sys/fs/bpf/holdfast-test-{}", running.id));
    for disk in [&mut running, &mut gone] {
        disk.options.pins.clone_from(&pins);
    }
    let (source, _) = running.open(used.path())?;
    drop(gone.open(left.path())?);
    let refusal = forget(&[], false, &running.options).expect_err("nothing was chosen").to_string();
    ensure!(refusal.contains(&gone.id.to_string()), "{refusal}");
    let named = forget(&[running.id], false, &running.options)?;
    ensure!(
        !named[0].forgotten && named[0].reason.as_ref().is_some_and(|why| why.contains("in use")),
        "{named:?}"
    );
    let all = forget(&[], true, &running.options)?;
    ensure!(all.iter().all(|disk| disk.forgotten == (disk.disk == gone.id)) && all.len() == 2, "{all:?}");
    let unknown = forget(&[gone.id], false, &running.options).expect_err("it is forgotten already");
    ensure!(unknown.to_string().contains("is not tracked"), "{unknown:#}");
    drop(source);
    forget(&[], true, &running.options)?;
    std::fs::remove_dir(pins)?;
    Ok(())
}
