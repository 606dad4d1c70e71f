//! Bio-based devices: no requests, other programs.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result};
use holdfast_agent::capture::{ChangeSource as _, tracked::Faults};
use holdfast_common::{ids::Interval, units::BlockRange};
use holdfast_tests::{
    asked,
    raw_writers::{Load, RawWriters, Replica},
};

use super::{TestDisk, is_skipped, stress_time};

const BLOCKS: u64 = 8 * 1024;

/// A zram device of our own, removed on drop.
struct Zram(u32);

impl Zram {
    fn create() -> Result<Self> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add").context("adding a zram device")?;
        let zram = Self(number.trim().parse()?);
        fs::write(format!("/sys/block/zram{}/disksize", zram.0), (BLOCKS * 4096).to_string())?;
        Ok(zram)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/zram{}", self.0))
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let reset = fs::write(format!("/sys/block/zram{}/reset", self.0), "1");
        let removed =
            reset.and_then(|()| fs::write("/sys/class/zram-control/hot_remove", self.0.to_string()));
        if let Err(error) = removed {
            eprintln!("cannot remove zram{}: {error}", self.0);
        }
    }
}

fn follow(faults: Faults) -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    if !fs::exists("/sys/class/zram-control/hot_add")? {
        eprintln!("skipped: this kernel has no zram");
        return Ok(());
    }
    let (device, disk) = (Zram::create()?, TestDisk::new(faults));
    let (mut source, _) = disk.open(&device.path())?;
    let load = Load { writers: 4, seed: asked::seed(), discard_every: 20 };
    let writers = RawWriters::start(&device.path(), BLOCKS, load);
    let mut replica = Replica::copy(&device.path(), BLOCKS)?;
    let start = Instant::now();
    while start.elapsed() < stress_time() {
        replica.round(&mut source, Interval(1))?;
        source.guard()?;
    }
    let written = writers.finish()?;
    for _ in 0..3 {
        replica.round(&mut source, Interval(1))?;
    }
    if faults.drop_completion_every == 0 {
        replica.catch_up(&mut source, Interval(1))?;
    }
    source.guard()?;
    let wrong = replica.differences()?;
    eprintln!("{written} writes: {wrong} blocks differ");
    assert_eq!(wrong, 0);
    source.mark(BlockRange::new(0, 1));
    Ok(())
}

#[test]
fn zram_is_followed_bit_for_bit() -> Result<()> {
    follow(Faults::default())
}

#[test]
fn lost_completions_lose_no_change() -> Result<()> {
    follow(Faults { drop_completion_every: 50, ..Faults::default() })
}
