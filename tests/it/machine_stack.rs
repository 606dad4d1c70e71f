//! Stacked devices that only a kernel with their drivers has: LVM, md, dm-crypt, btrfs over several disks; and FAT, which
//! knows no freezing.
//!
//! From the whole disks that are protected, every file system above must be found and held, and nothing else; and a volume or
//! a mirror can be tracked itself.

use std::{fs::File, process::Command, time::Duration};

use anyhow::{Result, ensure};
use holdfast_tests::{
    file_system::run,
    guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source},
};
use tempfile::TempDir;

use crate::{
    freeze::named_disks::NAMED_DISKS,
    tracking::stress::{NAMED_DEVICE, NAMED_DEVICE_BLOCKS},
};

/// Makes the stacks: a volume group over two disks, one volume of it encrypted; a mirror of two disks; btrfs over two.
const SETUP: &str = include_str!("machine_stack/setup.sh");
/// A run of one test inside the machine.
const LIMIT: Duration = Duration::from_secs(240);
const DISKS: usize = 6;
const DISK_BYTES: u64 = 256 << 20;
const FAT_BYTES: u64 = 32 << 20;

struct Stacked {
    machine: Machine,
    _folder: TempDir,
}

impl Stacked {
    /// Boots a machine with six empty disks, `/dev/vdb` to `/dev/vdg`, and stacks devices on them. `/dev/vdh` is a FAT.
    fn boot() -> Result<Self> {
        let folder = TempDir::new()?;
        let image = Image::obtain()?;
        let root = Source::Raw(image.path().to_owned());
        let mut disks = vec![Disk::new(root, Bus::VirtioBlk, "root").with_snapshot()];
        for number in 0..DISKS {
            let path = folder.path().join(format!("{number}.raw"));
            File::create_new(&path)?.set_len(DISK_BYTES)?;
            disks.push(Disk::new(Source::Raw(path), Bus::VirtioBlk, &format!("disk{number}")));
        }
        let firmware = folder.path().join("firmware.raw");
        File::create_new(&firmware)?.set_len(FAT_BYTES)?;
        run(Command::new("mkfs.vfat").arg(&firmware))?;
        disks.push(Disk::new(Source::Raw(firmware), Bus::VirtioBlk, "firmware"));
        let bundle = Bundle::new()?;
        bundle.program(&std::env::current_exe()?, "/usr/local/bin/holdfast-it")?;
        bundle.text(SETUP, "/usr/local/lib/holdfast-guest/stack")?;
        let spec = MachineSpec::new("a machine with stacked devices", disks);
        let mut machine = Machine::boot(&spec.bare(&image).with_bundle(&bundle).with_processors(2))?;
        machine.run("bash /usr/local/lib/holdfast-guest/stack")?;
        Ok(Self { machine, _folder: folder })
    }

    /// Runs one test of this program inside, and gives what it printed.
    fn run(&mut self, variable: &str, value: &str, test: &str) -> Result<String> {
        let script = format!("{variable}={value} holdfast-it --exact {test} --nocapture --test-threads=1");
        let outcome = self.machine.run_for(&script, LIMIT)?;
        ensure!(outcome.code == 0, "{value}:\n{}", outcome.output);
        ensure!(outcome.output.contains("1 passed"), "{value}: it did not run:\n{}", outcome.output);
        Ok(outcome.output)
    }
}

#[test]
fn stacked_devices_are_found_held_and_tracked() -> Result<()> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let mut stacked = Stacked::boot()?;
    for (disks, expected) in [
        ("/dev/vdb:/dev/vdc", "/mnt/crypt /mnt/plain"),
        // A part of a volume group holds parts of both volumes.
        ("/dev/vdc", "/mnt/crypt /mnt/plain"),
        ("/dev/vdd", "/mnt/mirror"),
        ("/dev/vdf:/dev/vdg", "/mnt/btrfs"),
        ("/dev/vdg", "/mnt/btrfs"),
        ("/dev/vdd:/dev/vdh", "/media/firmware /mnt/mirror"),
    ] {
        let output = stacked.run(NAMED_DISKS, disks, "freeze::named_disks::named_disks_are_held")?;
        let said = |what: &str| {
            let mut paths: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix(what)).collect();
            paths.sort_unstable();
            paths.join(" ")
        };
        ensure!(said("holds ") == expected, "of {disks}: {}, not {expected}", said("holds "));
        let unfreezable = if expected.contains("firmware") { "/media/firmware" } else { "" };
        ensure!(said("left alone ") == unfreezable, "of {disks} were left alone: {}", said("left alone "));
    }
    // Stripes are smaller than the writes, so that bios are split.
    stacked.machine.run("kill $(cat /run/writers); rm /run/writers")?;
    for volume in ["/dev/mapper/volumes-linear", "/dev/mapper/volumes-striped", "/dev/md1"] {
        let size = stacked.machine.run(&format!("blockdev --getsize64 {volume}"))?;
        ensure!(size.trim().parse::<u64>()? >= NAMED_DEVICE_BLOCKS * 4096, "{volume} has {size} bytes");
        let output = stacked.run(NAMED_DEVICE, volume, "tracking::stress::a_named_device_is_followed")?;
        let told = output.lines().filter(|line| line.contains("blocks differ"));
        told.for_each(|line| eprintln!("{volume}: {line}"));
    }
    Ok(())
}
