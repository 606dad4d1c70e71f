//! A guest whose disk is protected by an agent on its host is shut down over QEMU's control channel for a planned failover,
//! and switched on again when that is taken back.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    guest::{self, Bus, Disk, Image, Machine, MachineSpec, Source},
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{BOOT, Site, wait_for},
};

#[test]
fn a_guest_is_shut_down_by_its_power_button_and_switched_on_again() -> Result<()> {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("source.raw");
    run(Command::new("cp").arg("--sparse=always").arg(Image::obtain()?.path()).arg(&image))?;
    let device = LoopDevice::attach(&image)?;
    let socket = folder.path().join("qmp");
    let site = Site::start()?;
    let settings = format!("[source]\nqmp = \"{}\"\nshut_down_s = 60\n", socket.display());
    let agent = site.add_agent_with(&[], &settings)?;
    let protected = Protected::with(site, agent, &[device.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());

    // Without a guest there is nothing to shut down, and nothing fails over.
    protected.wait_for_points(1)?;
    let planned = ["planned-failover", machine, "--attach"];
    let refused = site.cli(&planned).unwrap_err().to_string();
    ensure!(refused.contains("QEMU cannot be reached"), "{refused}");

    let disk = Disk::new(Source::Raw(device.path().to_owned()), Bus::VirtioBlk, "root");
    let spec = MachineSpec::new("a guest with a power button", vec![disk]).with_qmp(socket);
    let mut guest = Machine::boot(&spec.and_stays())?;
    guest.run("echo written last > /var/written")?;
    guest.wait_for_console("login:")?;
    let job = site.cli(&planned)?;
    ensure!(job.to_string().contains("its guest was shut down in"), "{job}");
    // Not synced by anybody but its shutting down, and all of it is there.
    let point = job["point"].as_str().context("its point")?;
    let copies = site.copy_point(machine, point, folder.path())?;
    run(Command::new("cmp").args([&copies[0].1, &image]))
        .context("something was written behind the last point")?;

    site.cli(&["cancel", machine])?;
    guest.wait_until_ready()?;
    ensure!(guest.run("cat /var/written")? == "written last\n", "it has lost a file");
    wait_for("a point of the guest that goes on", BOOT, || {
        Ok(site.wait_for_new_point(machine, PATIENCE).ok())
    })?;
    Ok(())
}
