//! Writers with sequence numbers against rounds of take and read.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use holdfast_agent::capture::{CaptureError, ChangeSource as _, tracked::Faults};
use holdfast_common::ids::Interval;
use holdfast_tests::{
    asked,
    delayed_disk::DelayedDisk,
    file_system::run,
    loop_device::LoopDevice,
    raw_writers::{Load, RawWriters, Replica},
};

use super::{TestDisk, is_skipped, stress_time};

const BLOCKS: u64 = 16 * 1024;
/// So many blocks that few are written again before the end, which would repair them.
const LATE_BLOCKS: u64 = 8 * 1024;
const ROUNDS_MIN: u64 = 20;
/// Names a device for [`a_named_device_is_followed`].
pub(crate) const NAMED_DEVICE: &str = "HOLDFAST_TEST_DEVICE";
/// Names one with XFS for [`discards_of_several_ranges_are_followed`].
pub(crate) const NAMED_XFS: &str = "HOLDFAST_TEST_XFS";
/// How large those devices are.
pub(crate) const NAMED_DEVICE_BLOCKS: u64 = 8 * 1024;
const DISCARD_ROUNDS: usize = 5;
const FILES: usize = 200;
const FILE_BYTES: usize = 16 << 10;
pub(super) const NO_FAULTS: Faults =
    Faults { drop_completion_every: 0, drop_issue_every: 0, ignore_slots: false };

/// Blocks that differ after the writers have ended and the replica has caught up.
pub(super) fn stress(device: &Path, blocks: u64, load: Load, faults: Faults) -> Result<usize> {
    let disk = TestDisk::new(faults);
    let (mut source, _) = disk.open(device)?;
    let writers = RawWriters::start(device, blocks, load);
    let mut replica = Replica::copy(device, blocks)?;
    let (start, mut rounds, mut in_flight, mut interval) = (Instant::now(), 0_u64, 0_u64, Interval(1));
    // On a busy machine a round may take long; without some rounds nothing is tested.
    while start.elapsed() < stress_time() || rounds < ROUNDS_MIN {
        in_flight += u64::from(replica.round(&mut source, interval)?.in_flight.0 > 0);
        rounds += 1;
        if rounds.is_multiple_of(8) {
            source.guard()?;
            source.acknowledged(Interval(interval.0.saturating_sub(1)));
            interval = interval.next();
        }
    }
    let written = writers.finish()?;
    replica.catch_up(&mut source, interval)?;
    source.guard()?;
    let wrong = replica.differences()?;
    eprintln!(
        "{written} writes, {rounds} rounds, {in_flight} with something in flight: {wrong} blocks differ"
    );
    Ok(wrong)
}

#[test]
fn a_loop_device_under_load_is_followed_bit_for_bit() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 8, seed: asked::seed(), discard_every: 0 };
    assert_eq!(stress(device.path(), BLOCKS, load, NO_FAULTS)?, 0);
    Ok(())
}

#[test]
fn discards_and_written_zeroes_are_followed() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 4, seed: asked::seed(), discard_every: 12 };
    assert_eq!(stress(device.path(), BLOCKS, load, NO_FAULTS)?, 0);
    Ok(())
}

#[test]
fn lost_completions_lose_no_change() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 8, seed: asked::seed(), discard_every: 40 };
    let faults = Faults { drop_completion_every: 50, ..NO_FAULTS };
    assert_eq!(stress(device.path(), BLOCKS, load, faults)?, 0);
    Ok(())
}

#[test]
fn writes_that_arrive_late_are_followed() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let disk = DelayedDisk::create(LATE_BLOCKS as usize * 4096, Duration::from_millis(5))?;
    let load = Load { writers: 16, seed: asked::seed(), discard_every: 0 };
    assert_eq!(stress(disk.device().path(), LATE_BLOCKS, load, NO_FAULTS)?, 0);
    Ok(())
}

/// The check of the check: marks at issue without slots lose changes on this disk.
#[test]
fn without_slots_late_writes_are_lost() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let disk = DelayedDisk::create(LATE_BLOCKS as usize * 4096, Duration::from_millis(5))?;
    let load = Load { writers: 8, seed: asked::seed(), discard_every: 0 };
    let faults = Faults { ignore_slots: true, ..NO_FAULTS };
    assert!(
        stress(disk.device().path(), LATE_BLOCKS, load, faults)? > 0,
        "the test cannot see what it is made to see"
    );
    Ok(())
}

#[test]
fn the_guard_notices_missed_writes() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 2, seed: asked::seed(), discard_every: 0 };
    let error = stress(device.path(), BLOCKS, load, Faults { drop_issue_every: 1000, ..NO_FAULTS });
    let error = error.expect_err("missed writes must not stay unnoticed");
    let found = error.downcast_ref::<CaptureError>();
    assert!(matches!(found, Some(CaptureError::Untrusted { .. })), "{error:#}");
    assert!(error.to_string().contains("sectors"), "{error:#}");
    Ok(())
}

/// Not a test of its own: what `machine_tracking` runs inside a machine, on the device that the environment names.
#[test]
fn a_named_device_is_followed() -> Result<()> {
    let Some(device) = std::env::var_os(NAMED_DEVICE) else { return Ok(()) };
    let device = Path::new(&device);
    let load = Load { writers: 4, seed: asked::seed(), discard_every: 12 };
    assert_eq!(stress(device, NAMED_DEVICE_BLOCKS, load, NO_FAULTS)?, 0);
    // The statistics of bio-based devices do not show on every kernel that nothing is in flight; what has lost its completion is
    // copied by every round there.
    let path = std::fs::canonicalize(device)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if Path::new(&format!("/sys/block/{name}/mq")).is_dir() {
        let faults = Faults { drop_completion_every: 100, ..NO_FAULTS };
        assert_eq!(stress(device, NAMED_DEVICE_BLOCKS, load, faults)?, 0);
    }
    Ok(())
}

/// Not a test of its own: what `machine_tracking` runs inside a machine, on a disk with XFS that the environment names. XFS
/// discards all that a transaction has freed under one plug, which a disk that can (NVMe) gets as one request of several ranges.
#[test]
fn discards_of_several_ranges_are_followed() -> Result<()> {
    let Some(device) = std::env::var_os(NAMED_XFS) else { return Ok(()) };
    let device = Path::new(&device);
    let folder = tempfile::tempdir()?;
    let disk = TestDisk::new(NO_FAULTS);
    let (mut source, _) = disk.open(device)?;
    let mut replica = Replica::copy(device, NAMED_DEVICE_BLOCKS)?;
    run(Command::new("mount").args(["-o", "discard"]).arg(device).arg(folder.path()))?;
    for round in 0..DISCARD_ROUNDS {
        for number in 0..FILES {
            let stamp = (round * FILES + number).to_le_bytes();
            std::fs::write(folder.path().join(number.to_string()), stamp.repeat(FILE_BYTES / stamp.len()))?;
        }
        rustix::fs::syncfs(std::fs::File::open(folder.path())?)?;
        replica.round(&mut source, Interval(1))?;
        // Every other one, so that what is freed does not lie together.
        for number in (0..FILES).step_by(2) {
            std::fs::remove_file(folder.path().join(number.to_string()))?;
        }
        rustix::fs::syncfs(std::fs::File::open(folder.path())?)?;
        replica.round(&mut source, Interval(1))?;
    }
    run(Command::new("umount").arg(folder.path()))?;
    replica.catch_up(&mut source, Interval(1))?;
    source.guard()?;
    assert_eq!(replica.differences()?, 0);
    Ok(())
}
