//! A machine that boots by UEFI protects itself from inside, and boots so at its target because its agent has said it: nobody has
//! written down what hardware it needs. Takes minutes, so it runs only if it is asked for.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    asked,
    file_system::run,
    guest::{self, Bus, Disk, Image, Machine, MachineSpec, Source},
    inside,
    site::{Site, wait_for_login},
};

use crate::machine_vm::Remains;

#[test]
fn a_machine_that_boots_by_uefi_does_so_at_its_target_from_its_inventory_alone() -> Result<()> {
    if let Some(reason) = guest::unavailable().or_else(|| asked::not_for_full_life("three minutes")) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("source.raw");
    run(Command::new("cp").arg("--sparse=always").arg(Image::obtain()?.path()).arg(&disk))?;
    let site = Site::start()?;
    let overlays = site.data().join("vm");
    let _remains = Remains(overlays.clone());
    let bundle = inside::bundle()?;
    let disks = vec![Disk::new(Source::Raw(disk), Bus::VirtioBlk, "root")];
    let spec = MachineSpec::new("a machine with UEFI", disks).by_uefi();
    let mut source = Machine::boot(&spec.with_bundle(&bundle).with_processors(2))?;
    source.run("test -d /sys/firmware/efi")?;
    let machine = inside::protect(&site, &mut source, "/dev/vda", "10s")?;
    ensure!(!site.data().join("hardware").exists(), "somebody has said what hardware it needs");

    let ready = site.cli(&["readiness", &machine, "--now"])?;
    ensure!(ready["verdict"] == "ready", "{ready}");
    source.run("echo kept > /var/kept && sync")?;
    site.wait_for_new_point(&machine, inside::LIMIT).with_context(|| inside::log(&mut source))?;
    source.power_cut();
    let job = site.cli(&["failover", &machine, "--point", "latest", "--vm"])?;
    let runs_as = job["runs"]["runs_as"].as_str().context("what it runs as")?;
    ensure!(runs_as.contains("UEFI") && runs_as.contains("disks on virtio"), "{runs_as}");
    let own = overlays.join(job["id"].as_str().context("its id")?);
    let made = fs::read_to_string(own.join("machine.json"))?;
    ensure!(made.contains("\"processors\":2") || made.contains("\"processors\": 2"), "{made}");
    wait_for_login(&job)?;
    site.cli(&["cancel", &machine])?;
    ensure!(fs::read_dir(&overlays)?.count() == 0, "the cancel left something");
    Ok(())
}
