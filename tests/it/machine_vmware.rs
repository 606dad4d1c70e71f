//! A machine that was installed on hardware like VMware's protects itself from inside and boots at its target on
//! devices of the same kinds: its initramfs has drivers for no others.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    guest::{self, Bus, Disk, Image, Machine, MachineSpec, Source},
    inside,
    site::{Site, wait_for_login},
};

use crate::machine_vm::Remains;

#[test]
fn a_machine_without_virtio_boots_at_its_target_unconverted_and_readiness_knows() -> Result<()> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("source.qcow2");
    Image::obtain_of_vmware()?.overlay(&disk)?;
    let site = Site::start()?;
    let overlays = site.data().join("vm");
    let _remains = Remains(overlays.clone());
    let bundle = inside::bundle()?;
    let disks = vec![Disk::new(Source::Qcow2(disk), Bus::Pvscsi, "root")];
    let spec = MachineSpec::new("a machine as on VMware", disks).like_vmware();
    let mut source = Machine::boot(&spec.with_bundle(&bundle).with_processors(2))?;
    source.run("! lsmod | grep virtio && test -b /dev/sda15")?;
    let machine = inside::protect(&site, &mut source, "/dev/sda", "10s")?;

    // Told from the replica and the inventory.
    let ready = site.cli(&["readiness", &machine, "--now"])?;
    ensure!(ready["verdict"] == "ready", "{ready}");
    let told = ready.to_string();
    ensure!(told.contains("has no virtio driver") && told.contains("pvscsi"), "{told}");
    // With the hardware that others would give it, it is known not to boot.
    inside::set_hardware(&site, &machine, "disk_model = \"virtio\"\n")?;
    let unready = site.cli(&["readiness", &machine, "--now"])?;
    ensure!(unready["verdict"] == "not-ready" && unready.to_string().contains("lacks virtio"), "{unready}");
    inside::set_hardware(&site, &machine, "")?;

    site.wait_for_new_point(&machine, inside::LIMIT).with_context(|| inside::log(&mut source))?;
    source.power_cut();
    let job = site.cli(&["failover", &machine, "--point", "latest", "--vm"])?;
    let runs_as = job["runs"]["runs_as"].as_str().context("what it runs as")?;
    ensure!(runs_as.contains("BIOS") && runs_as.contains("disks on pvscsi"), "{runs_as}");
    let own = overlays.join(job["id"].as_str().context("its id")?);
    let made = fs::read_to_string(own.join("machine.json"))?;
    ensure!(made.contains("\"vmxnet3\"") && !made.contains("virtio"), "{made}");
    wait_for_login(&job)?;
    site.cli(&["cancel", &machine])?;
    ensure!(fs::read_dir(&overlays)?.count() == 0, "the cancel left something");
    Ok(())
}
