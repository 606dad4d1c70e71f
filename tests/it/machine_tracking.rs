//! Tracked capture on a stock Debian kernel, on the buses that machines have: virtio-blk and NVMe.
//!
//! The kernel that runs these tests is one kernel; offsets, queues and the order of events differ elsewhere. The machine
//! runs this very test program, so that what is proven inside is what is proven outside.

use std::{fs::File, time::Duration};

use anyhow::{Result, ensure};
use holdfast_tests::guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source};
use tempfile::TempDir;

use crate::tracking::stress::{NAMED_DEVICE, NAMED_DEVICE_BLOCKS};

/// The stress inside the machine: two runs of a few seconds, on an emulated processor.
const STRESS_LIMIT: Duration = Duration::from_secs(240);

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
    let disks = vec![root, empty("on-virtio-blk", Bus::VirtioBlk)?, empty("on-nvme", Bus::Nvme)?];
    let bundle = Bundle::new()?;
    bundle.program(&std::env::current_exe()?, "/usr/local/bin/holdfast-it")?;
    let spec = MachineSpec::new("a machine with two disks to track", disks);
    let mut machine = Machine::boot(&spec.bare(&image).with_bundle(&bundle).with_processors(2))?;
    for device in ["/dev/vdb", "/dev/nvme0n1"] {
        let script = format!(
            "{NAMED_DEVICE}={device} holdfast-it --exact tracking::stress::a_named_device_is_followed --nocapture"
        );
        let outcome = machine.run_for(&script, STRESS_LIMIT)?;
        ensure!(outcome.code == 0, "on {device}:\n{}", outcome.output);
        ensure!(outcome.output.contains("1 passed"), "the stress did not run:\n{}", outcome.output);
        let told = outcome.output.lines().filter(|line| line.contains("blocks differ"));
        told.for_each(|line| eprintln!("{device}: {line}"));
    }
    Ok(())
}
