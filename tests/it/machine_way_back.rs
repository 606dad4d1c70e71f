//! A machine that was failed over into QEMU, and boots there by UEFI, is protected there, shut down, and goes back to its original disk, from which it
//! boots again.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    guest::{self, Image},
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::wait_for_login,
};

#[test]
fn a_machine_that_ran_at_its_target_boots_from_its_original_disk_with_what_it_wrote_there() -> Result<()> {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("source.raw");
    run(Command::new("cp").arg("--sparse=always").arg(Image::obtain()?.path()).arg(&disk))?;
    let device = LoopDevice::attach(&disk)?;
    let protected = Protected::start(&[device.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());
    let before = protected.wait_for_points(1)?.pop().context("a point")?;
    // The inventory is that of this host, and its disk is another machine's: what that one needs is said by hand.
    site.set_hardware(
        machine,
        "processors = 1\nmemory_mib = 512\ncpu = \"Westmere\"\ndisk_model = \"virtio\"\nfirmware = \"uefi\"\n",
    )?;

    let job = site.cli(&["failover", machine, "--point", "latest", "--vm"])?;
    wait_for_login(&job)?;
    let own = site.data().join("vm").join(job["id"].as_str().context("its id")?);
    ensure!(own.join("uefi-variables.fd").is_file(), "its UEFI has no variables of its own");
    site.cli(&["commit", machine])?;
    let protected_there = site.cli(&["reprotect", machine])?;
    ensure!(protected_there["state"] == "succeeded", "{protected_there}");
    let there = site.wait_for_new_point(machine, PATIENCE)?;
    let written = site.cli(&["points", "diff", machine, &before.id, &there.id])?;
    ensure!(written["changed_bytes"].as_u64() > Some(0), "a system that has booted has written: {written}");

    let back = site.cli(&["failback", machine])?;
    ensure!(back["state"] == "succeeded", "{back}");
    let status = site.cli(&["status"])?;
    ensure!(status["machines"][0]["lifecycle"]["stage"] == "protected", "{status}");
    ensure!(fs::read_dir(site.data().join("vm"))?.count() == 0, "the machine at the target is left");
    site.wait_until_connected(PATIENCE)?;
    let point = site.wait_for_new_point(machine, PATIENCE)?;
    let copies = site.copy_point(machine, &point.id, folder.path())?;
    ensure!(fs::read(&copies[0].1)? == fs::read(&disk)?, "the replica is not the source");
    let again = site.cli(&["test-failover", machine, "--point", &point.id, "--vm"])?;
    wait_for_login(&again)?;
    site.cli(&["test-failover", machine, "--cleanup"])?;
    Ok(())
}
