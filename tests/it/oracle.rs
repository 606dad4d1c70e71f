//! The write-order oracle over the whole path: every recovery point holds exactly a prefix of what a writer did.

use std::time::{Duration, Instant};

use anyhow::Result;
use holdfast_tests::{
    asked,
    file_system::{Kind, MountedDisk},
    load, loop_device,
    protected::Protected,
};

const DISK_BYTES: u64 = 512 << 20;

/// Seconds of load; `HOLDFAST_TEST_SECONDS` makes it longer.
fn seconds() -> u64 {
    asked::number("HOLDFAST_TEST_SECONDS").unwrap_or(20)
}

#[test]
fn every_point_is_a_prefix_over_two_disks() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disks = [MountedDisk::create(Kind::Ext4, DISK_BYTES)?, MountedDisk::create(Kind::Ext4, DISK_BYTES)?];
    let disks: Vec<_> = disks.iter().collect();
    let paths: Vec<_> = disks.iter().map(|disk| disk.device.path()).collect();
    let protected = Protected::start(&paths)?;
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut writer = load::start(&disks, seed, Duration::from_micros(300))?;
    let started = Instant::now();
    let mut checked = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds()) {
        checked.push(protected.next_point_holds(&disks, &writer)?);
    }
    let total = writer.finish()?;
    eprintln!("{} points checked over {total} operations: {checked:?}", checked.len());
    assert!(checked.len() >= 3, "too few points: {}", checked.len());
    // All points that were not looked at during the load are good as well.
    for point in protected.points()?.iter().rev().take(10) {
        protected.check(point, &disks, &writer)?;
    }
    Ok(())
}
