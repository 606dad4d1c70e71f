//! Writers with sequence numbers against rounds of take and read.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use holdfast_agent::capture::{CaptureError, ChangeSource as _, tracked::Faults};
use holdfast_common::ids::Interval;
use holdfast_tests::{
    delayed_disk::DelayedDisk,
    loop_device::LoopDevice,
    raw_writers::{Load, RawWriters, Replica},
};

use super::{TestDisk, is_skipped, seed, stress_time};

const BLOCKS: u64 = 16 * 1024;
/// So many blocks that few are written again before the end, which would repair them.
const LATE_BLOCKS: u64 = 8 * 1024;
const ROUNDS_MIN: u64 = 20;
/// Names a device for [`a_named_device_is_followed`].
pub(crate) const NAMED_DEVICE: &str = "HOLDFAST_TEST_DEVICE";
/// How large that device is.
pub(crate) const NAMED_DEVICE_BLOCKS: u64 = 8 * 1024;
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
    let load = Load { writers: 8, seed: seed(), discard_every: 0 };
    assert_eq!(stress(device.path(), BLOCKS, load, NO_FAULTS)?, 0);
    Ok(())
}

#[test]
fn discards_and_written_zeroes_are_followed() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 4, seed: seed(), discard_every: 12 };
    assert_eq!(stress(device.path(), BLOCKS, load, NO_FAULTS)?, 0);
    Ok(())
}

#[test]
fn lost_completions_lose_no_change() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(BLOCKS * 4096)?;
    let load = Load { writers: 8, seed: seed(), discard_every: 40 };
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
    let load = Load { writers: 16, seed: seed(), discard_every: 0 };
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
    let load = Load { writers: 8, seed: seed(), discard_every: 0 };
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
    let load = Load { writers: 2, seed: seed(), discard_every: 0 };
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
    let load = Load { writers: 4, seed: seed(), discard_every: 12 };
    for faults in [NO_FAULTS, Faults { drop_completion_every: 100, ..NO_FAULTS }] {
        assert_eq!(stress(Path::new(&device), NAMED_DEVICE_BLOCKS, load, faults)?, 0);
    }
    Ok(())
}
