//! Partitions as tracked devices: their own blocks and nothing of their neighbours', though the kernel names every
//! request by its place on the whole disk.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};
use holdfast_tests::{
    asked,
    file_system::run,
    loop_device::LoopDevice,
    raw_writers::{Load, RawWriters},
};

use super::{
    is_skipped,
    stress::{NO_FAULTS, stress},
};

const BLOCKS: u64 = 8 * 1024;
/// Where the partition begins, in sectors: not at a multiple of 64 blocks.
const START: u64 = 2056;

/// Two partitions of a loop device, one behind the other.
struct Partitioned(LoopDevice);

impl Partitioned {
    fn create() -> Result<Self> {
        let device = LoopDevice::create((2 * BLOCKS + 2048) * 4096)?;
        let second = START + BLOCKS * 8;
        let table = format!("start={START}, size={0}\nstart={second}, size={0}\n", BLOCKS * 8);
        let script = device.backing().with_extension("table");
        std::fs::write(&script, table)?;
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "sfdisk --quiet --no-reread --no-tell-kernel --label gpt \"$0\" < \"$1\" && partx --add \"$0\"",
        ]);
        run(command.arg(device.path()).arg(script))?;
        Ok(Self(device))
    }

    fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.0.path().display()))
    }
}

impl Drop for Partitioned {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("partx").arg("--delete").arg(self.0.path())) {
            eprintln!("partitions are left behind: {error:#}");
        }
    }
}

#[test]
fn a_partition_is_followed_beside_a_busy_neighbour() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let disk = Partitioned::create()?;
    let load = |seed| Load { writers: 4, seed, discard_every: 12 };
    let neighbour = RawWriters::start(&disk.partition(2), BLOCKS, load(asked::seed()));
    let differing = stress(&disk.partition(1), BLOCKS, load(asked::seed()), NO_FAULTS)?;
    ensure!(neighbour.finish()? > 0, "the neighbour was not busy");
    ensure!(differing == 0, "{differing} blocks differ");
    Ok(())
}
