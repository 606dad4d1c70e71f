//! Tracked capture on a stock Debian kernel, on the buses that machines have: virtio-blk and NVMe.
//!
//! The kernel that runs these tests is one kernel; offsets, queues and the order of events differ elsewhere. The machine
//! runs this very test program, so that what is proven inside is what is proven outside.

use std::{fs::File, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source},
};
use tempfile::TempDir;

use crate::tracking::stress::{NAMED_DEVICE, NAMED_DEVICE_BLOCKS, NAMED_XFS};

/// The stress inside the machine: two runs of a few seconds, on an emulated processor.
const STRESS_LIMIT: Duration = Duration::from_secs(240);
/// Of a disk's `stat`, counted from zero: discards that were merged into others.
const DISCARDS_MERGED: usize = 12;

#[test]
fn a_stock_kernel_marks_every_change_on_virtio_blk_and_nvme() -> Result<()> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = TempDir::new()?;
    let image = Image::obtain()?;
    let root = Disk::new(Source::Raw(image.path().to_owned()), Bus::VirtioBlk, "root").with_snapshot();
    let empty = |name: &str, bus| -> Result<Disk> {
        let path = folder.path().join(name);
        File::create_new(&path)?.set_len(NAMED_DEVICE_BLOCKS * 4096)?;
        Ok(Disk::new(Source::Raw(path), bus, name))
    };
    let xfs = empty("with-xfs", Bus::Nvme)?;
    // Smaller than what is supported for use.
    run(Command::new("mkfs.xfs").args(["-q", "--unsupported"]).arg(folder.path().join("with-xfs")))?;
    let disks = vec![root, empty("on-virtio-blk", Bus::VirtioBlk)?, empty("on-nvme", Bus::Nvme)?, xfs];
    let bundle = Bundle::new()?;
    bundle.program(&std::env::current_exe()?, "/usr/local/bin/holdfast-it")?;
    let spec = MachineSpec::new("a machine with two disks to track", disks);
    let mut machine = Machine::boot(&spec.bare(&image).with_bundle(&bundle).with_processors(2))?;
    let mut passes = |variable: &str, device: &str, test: &str| -> Result<()> {
        let script = format!("{variable}={device} holdfast-it --exact tracking::stress::{test} --nocapture");
        let outcome = machine.run_for(&script, STRESS_LIMIT)?;
        ensure!(outcome.code == 0, "on {device}:\n{}", outcome.output);
        ensure!(outcome.output.contains("1 passed"), "the stress did not run:\n{}", outcome.output);
        let told = outcome.output.lines().filter(|line| line.contains("blocks differ"));
        told.for_each(|line| eprintln!("{device}: {line}"));
        Ok(())
    };
    for device in ["/dev/vdb", "/dev/nvme0n1"] {
        passes(NAMED_DEVICE, device, "a_named_device_is_followed")?;
    }
    passes(NAMED_XFS, "/dev/nvme1n1", "discards_of_several_ranges_are_followed")?;
    let statistics = machine.run("cat /sys/block/nvme1n1/stat")?;
    let merged = statistics.split_whitespace().nth(DISCARDS_MERGED).and_then(|field| field.parse().ok());
    let merged: u64 = merged.with_context(|| format!("no discards are counted: {statistics}"))?;
    eprintln!("{merged} discards were merged into requests of several ranges");
    ensure!(merged > 0, "no discard of several ranges was made");
    Ok(())
}
