//! A machine that was moved to images of its own is protected at its target, whoever is killed meanwhile, and goes back to its source
//! with all that it wrote there.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    boot_sector::{COUNTER_OFFSET, HARDWARE, counting_boot_sector},
    crowd::Crowd,
    guest, loop_device,
    protected::PATIENCE,
    site::wait_for,
};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    machine_images::write_as_guest,
    machine_vm::{Remains, processes},
};

const BLOCK: usize = 4096;

/// The machine at its target, and what its disk has to hold.
struct There {
    crowd: Crowd,
    machine: String,
    runtime: Runtime,
    control: PathBuf,
    truth: Vec<u8>,
    /// Blocks that were written to.
    written: u64,
}

impl There {
    /// Each time another block, with another byte; and one that is the same each time.
    fn write(&mut self) -> Result<()> {
        self.written += 1;
        let byte = u8::try_from(self.written % 250)? + 1;
        for block in [500, 600 + self.written * 3 % 1000] {
            self.runtime.block_on(write_as_guest(&self.control, 0, block, byte))?;
            let at = usize::try_from(block)? * BLOCK;
            self.truth[at..at + BLOCK].fill(byte);
        }
        Ok(())
    }

    /// It has been started once more.
    fn started(&mut self) -> Result<()> {
        let at = usize::try_from(COUNTER_OFFSET)?;
        let bytes = &mut self.truth[at..at + 4];
        let count = u32::from_le_bytes(bytes.try_into()?) + 1;
        bytes.copy_from_slice(&count.to_le_bytes());
        Ok(())
    }

    /// Points of the target hold what the machine has.
    fn points_are_right(&self) -> Result<()> {
        let site = &self.crowd.site;
        // One may have been under way.
        site.wait_for_new_point(&self.machine, PATIENCE)?;
        let point = site.wait_for_new_point(&self.machine, PATIENCE)?;
        let folder = tempfile::tempdir()?;
        let copies = site.copy_point(&self.machine, &point.id, folder.path())?;
        same(&fs::read(&copies[0].1)?, &self.truth)
    }
}

fn same(found: &[u8], truth: &[u8]) -> Result<()> {
    let differs =
        found.chunks(BLOCK).zip(truth.chunks(BLOCK)).enumerate().filter(|(_, (found, truth))| found != truth);
    let differs: Vec<usize> = differs.map(|(block, _)| block).collect();
    ensure!(found.len() == truth.len() && differs.is_empty(), "blocks {differs:?} differ");
    Ok(())
}

fn on_disk(path: &Path, bytes: usize) -> Result<Vec<u8>> {
    let mut found = vec![0; bytes];
    fs::File::open(path)?.read_exact_at(&mut found, 0)?;
    Ok(found)
}

fn all_started(job: &Value) -> Result<()> {
    let log = PathBuf::from(job["runs"]["console_log"].as_str().context("a console's log")?);
    wait_for("the machine to start", PATIENCE, || {
        Ok(fs::read_to_string(&log).unwrap_or_default().contains("up").then_some(()))
    })
}

/// Moved to images of its own, and protected there.
fn moved() -> Result<(There, Value)> {
    let crowd = Crowd::start(1, "1s", "")?;
    let machine = crowd.machines[0].clone();
    crowd.write(0, 0, &counting_boot_sector("up"))?;
    crowd.site.wait_for_new_point(&machine, PATIENCE)?;
    crowd.site.wait_for_new_point(&machine, PATIENCE)?;
    let truth = fs::read(crowd.disks[0].path())?;
    crowd.site.set_hardware(&machine, HARDWARE)?;
    // Behind the point it goes on, which is given up.
    let point = crowd.site.points(&machine)?.pop().context("a point")?.id;
    crowd.write(0, 300 * BLOCK as u64, &[7; 2 * BLOCK])?;
    crowd.site.wait_for_new_point(&machine, PATIENCE)?;
    let job = crowd.site.cli(&["failover", &machine, "--point", &point, "--vm", "--stream"])?;
    all_started(&job)?;
    let console = PathBuf::from(job["runs"]["console"].as_str().context("its console")?);
    let (control, runtime) = (console.with_extension("qmp"), Runtime::new()?);
    let mut there = There { crowd, machine, runtime, control, truth, written: 0 };
    there.started()?;
    there.write()?;
    Ok((there, job))
}

fn walked() -> Result<()> {
    let (mut there, job) = moved()?;
    let overlays = there.crowd.site.data().join("vm");
    let _remains = Remains(overlays.clone());
    let machine = there.machine.clone();
    there.crowd.site.cli(&["commit", &machine])?;
    let protected_there = there.crowd.site.cli(&["reprotect", &machine])?;
    ensure!(protected_there["state"] == "succeeded", "{protected_there}");
    there.points_are_right()?;
    let before = processes(&overlays)?;

    // The coordinator is killed at any moment, and the machine writes on.
    for round in 0..5 {
        there.write()?;
        thread::sleep(Duration::from_millis(290 * round));
        there.crowd.site.kill_coordinator()?;
        there.write()?;
        there.crowd.site.start_coordinator()?;
        there.write()?;
        there.points_are_right()?;
    }
    ensure!(processes(&overlays)? == before, "the machine was started anew");

    // The power of the target's host is lost.
    there.write()?;
    there.crowd.site.kill_coordinator()?;
    for id in processes(&overlays)? {
        Command::new("kill").args(["-9", &id.to_string()]).status()?;
    }
    wait_for("QEMU's end", PATIENCE, || Ok(processes(&overlays)?.is_empty().then_some(())))?;
    there.crowd.site.start_coordinator()?;
    wait_for("the machine to start again", PATIENCE, || {
        Ok((!processes(&overlays)?.is_empty()).then_some(()))
    })?;
    let log = PathBuf::from(job["runs"]["console_log"].as_str().context("a console's log")?);
    wait_for("the machine to be up again", PATIENCE, || {
        Ok((fs::read_to_string(&log)?.matches("up").count() == 2).then_some(()))
    })?;
    there.started()?;
    there.points_are_right()?;
    there.write()?;
    there.points_are_right()?;

    // The way back, on which the coordinator is killed too.
    there.write()?;
    let back = there.crowd.site.cli(&["failback", &machine, "--no-wait"])?;
    thread::sleep(Duration::from_millis(700));
    there.crowd.site.kill_coordinator()?;
    there.crowd.site.start_coordinator()?;
    let back = there.crowd.site.cli(&["job", "show", back["id"].as_str().context("its id")?, "--follow"])?;
    ensure!(back["state"] == "succeeded", "{back:#}");
    same(&on_disk(there.crowd.disks[0].path(), there.truth.len())?, &there.truth)?;
    ensure!(processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0, "something is left");
    there.crowd.wait_until_all_replicate()?;
    there.points_are_right()
}

#[test]
fn a_machine_in_images_of_its_own_is_followed_and_goes_back_whoever_is_killed() {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
