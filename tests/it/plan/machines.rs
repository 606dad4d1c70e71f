//! A plan makes machines in QEMU and images of its points: tried apart from the network, failed over for real while the coordinator
//! is killed, and taken back without a trace.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    boot_sector::{BOOT_SECTOR_BYTES, HARDWARE, boot_sector},
    crowd::Crowd,
    guest, loop_device,
    site::{Site, wait_for},
};
use serde_json::Value;

use super::{PATIENCE, Scripts, apply, count, id, show};
use crate::machine_vm::{Remains, processes};

/// What a machine says when it has booted.
fn greeting(number: usize) -> String {
    format!("machine {number} login: ")
}

/// The machines' disks have a system, and what it needs is said by hand: the inventory is that of this host.
pub(crate) fn make_bootable(crowd: &Crowd) -> Result<()> {
    make_bootable_as(crowd, boot_sector)
}

/// The same, with another system.
pub(super) fn make_bootable_as(
    crowd: &Crowd,
    system: impl Fn(&str) -> [u8; BOOT_SECTOR_BYTES],
) -> Result<()> {
    for number in 0..crowd.machines.len() {
        crowd.write(number, 0, &system(&greeting(number)))?;
    }
    for machine in &crowd.machines {
        crowd.site.wait_for_new_point(machine, PATIENCE)?;
        crowd.site.wait_for_new_point(machine, PATIENCE)?;
    }
    let name = crowd.site.cli(&["machines"])?[0]["name"].as_str().context("its name")?.to_owned();
    crowd.site.set_hardware(&name, HARDWARE)
}

pub(super) fn jobs(job: &Value) -> Result<Vec<&str>> {
    let machines = job["machines"].as_array().context("machines")?;
    machines.iter().map(|machine| machine["job"].as_str().context("a job")).collect()
}

/// Each machine says which one it is.
pub(super) fn all_booted(site: &Site, job: &Value) -> Result<()> {
    for (number, own) in jobs(job)?.into_iter().enumerate() {
        let own = show(site, own)?;
        let log = own["runs"]["console_log"].as_str().with_context(|| format!("a console in {own}"))?;
        wait_for(&greeting(number), PATIENCE, || {
            Ok(fs::read_to_string(log).unwrap_or_default().contains(&greeting(number)).then_some(()))
        })?;
    }
    Ok(())
}

pub(super) fn nothing_is_left(overlays: &Path) -> Result<()> {
    ensure!(processes(overlays)?.is_empty() && fs::read_dir(overlays)?.count() == 0, "something is left");
    Ok(())
}

fn walked() -> Result<()> {
    let scripts = Scripts::new()?;
    let mut crowd = Crowd::start(3, "2s", "")?;
    let overlays = crowd.site.data().join("vm");
    let _remains = Remains(overlays.clone());
    make_bootable(&crowd)?;
    let text = format!(
        "name = \"shop\"\ntarget = \"vm\"\n[networks]\n\"*\" = \"user\"\n[[group]]\nname = \"databases\"\nmachines = [\"{}\", \"{}\"]\n\
         [[group]]\nname = \"front\"\nmachines = [\"{}\"]\n",
        crowd.machines[0], crowd.machines[1], crowd.machines[2]
    );
    apply(&crowd.site, scripts.folder.path(), &text)?;

    // A test is apart from everything.
    let job = crowd.site.cli(&["plan", "test-failover", "shop"])?;
    ensure!(job["ok"] == true && count(&job, "holding") == 3, "{job:#}");
    all_booted(&crowd.site, &job)?;
    let running = processes(&overlays)?;
    ensure!(running.len() == 3, "{running:?}");
    for process in running {
        let arguments = fs::read(format!("/proc/{process}/cmdline"))?;
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        ensure!(arguments.contains("restrict=on"), "a test reaches the network: {arguments}");
    }
    crowd.site.cli(&["plan", "test-failover", "shop", "--cleanup"])?;
    nothing_is_left(&overlays)?;

    // Images, a folder for each machine.
    let images = scripts.folder.path().join("images");
    let into = images.display().to_string();
    let job = crowd.site.cli(&["plan", "test-failover", "shop", "--image", &into])?;
    ensure!(job["ok"] == true && count(&job, "succeeded") == 3, "{job:#}");
    for (number, own) in jobs(&job)?.into_iter().enumerate() {
        let own = show(&crowd.site, own)?;
        let file = own["images"][0]["file"].as_str().context("an image")?;
        ensure!(file.starts_with(&format!("{into}/{}/", crowd.machines[number])), "{file}");
        ensure!(fs::read(file)? == fs::read(crowd.disks[number].path())?, "{file} is not its source");
    }

    // The failover outlives the coordinator, and is taken back.
    let job = crowd.site.cli(&["plan", "failover", "shop"])?;
    let begun = processes(&overlays)?;
    ensure!(job["ok"] == true && begun.len() == 3, "{job:#}");
    crowd.site.kill_coordinator()?;
    crowd.site.start_coordinator()?;
    all_booted(&crowd.site, &show(&crowd.site, id(&job))?)?;
    ensure!(processes(&overlays)? == begun, "machines were started anew");
    crowd.site.cli(&["plan", "cancel", "shop"])?;
    nothing_is_left(&overlays)?;
    crowd.wait_until_all_replicate()
}

#[test]
fn a_plan_runs_machines_and_writes_images() {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
