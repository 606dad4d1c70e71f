//! The machines of the other tests, proven themselves: they boot, obey, lose power, and boot again.

use std::{path::Path, time::Duration};

use anyhow::Result;
use holdfast_tests::guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source};
use tempfile::TempDir;

#[test]
fn a_machine_boots_on_either_bus_and_keeps_what_it_synced_over_a_power_cut() -> Result<()> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = TempDir::new()?;
    let path = folder.path().join("disk.qcow2");
    let image = Image::obtain()?;
    image.overlay(&path)?;
    let disk = |bus| vec![Disk::new(Source::Qcow2(path.clone()), bus, "root")];

    let bundle = Bundle::new()?;
    bundle.text("from the host", "/etc/holdfast-guest/greeting")?;
    bundle.program(Path::new("/bin/true"), "/usr/local/bin/holdfast-true")?;
    let spec = MachineSpec::new("a machine on virtio-blk", disk(Bus::VirtioBlk));
    let mut machine = Machine::boot(&spec.with_bundle(&bundle))?;
    assert_eq!(machine.run("findmnt --noheadings --output SOURCE /")?.trim(), "/dev/vda1");
    assert_eq!(machine.run("holdfast-true && cat /etc/holdfast-guest/greeting")?, "from the host");
    let failed = machine.run_for("echo out; echo err >&2; exit 7", Duration::from_secs(60))?;
    assert_eq!((failed.code, failed.output.as_str()), (7, "out\nerr\n"));
    machine.run("echo kept > /var/kept; sync")?;
    machine.wait_for_console("login:")?;
    machine.power_cut();

    let mut machine = Machine::boot(&MachineSpec::new("the same on NVMe", disk(Bus::Nvme)))?;
    assert_eq!(machine.run("findmnt --noheadings --output SOURCE /")?.trim(), "/dev/nvme0n1p1");
    assert_eq!(machine.run("cat /var/kept")?, "kept\n");
    // The kernel found a journal that nobody had closed.
    machine.run("dmesg | grep 'EXT4-fs.*recovery complete'")?;
    machine.shut_down()?;

    let spec = MachineSpec::new("the same with a kernel and nothing else", disk(Bus::VirtioBlk));
    let mut machine = Machine::boot(&spec.bare(&image).with_bundle(&bundle))?;
    assert_eq!(machine.run("cat /proc/1/comm /var/kept")?, "control\nkept\n");
    machine.run("test -d /sys/kernel/btf && findmnt /sys/fs/bpf && ip route | grep default")?;
    Ok(())
}
