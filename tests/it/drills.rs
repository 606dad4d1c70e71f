//! Drills by themselves: a machine whose policy wants one is booted, without anybody asking, and status tells what came of it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    crowd::Crowd,
    guest, loop_device,
    protected::PATIENCE,
    site::{BOOT, wait_for},
};
use serde_json::Value;

use crate::{
    machine_vm::{Remains, processes},
    plan::machines::make_bootable,
};

/// The machine in the status.
fn status(crowd: &Crowd, machine: &str) -> Result<Value> {
    let status = crowd.site.cli(&["status"])?;
    let all = status["machines"].as_array().context("machines of the status")?;
    all.iter().find(|found| found["id"] == machine).cloned().context("the machine")
}

/// The only drill of the machine, once it has ended.
fn drilled(crowd: &Crowd, machine: &str) -> Result<Value> {
    wait_for("a drill that nobody began", BOOT, || {
        let drills = crowd.site.cli(&["drill", machine, "--history"])?;
        let drills = drills.as_array().context("drills")?;
        ensure!(drills.len() <= 1, "a drill follows itself: {drills:?}");
        Ok(drills.first().cloned())
    })
}

fn walked() -> Result<()> {
    let crowd = Crowd::start(2, "2s", "")?;
    let overlays = crowd.site.data().join("vm");
    let _remains = Remains(overlays.clone());
    make_bootable(&crowd)?;
    let [good, bad] = crowd.machines.as_slice() else { anyhow::bail!("two machines") };
    crowd.site.cli(&["protect", good, "--drill", "daily"])?;
    let drill = drilled(&crowd, good)?;
    ensure!(drill["ok"] == true, "{drill}");
    let points = crowd.site.cli(&["points", good])?;
    let points = points["points"].as_array().context("points")?;
    let booted = points.iter().find(|point| point["id"] == drill["point"]).context("its point")?;
    ensure!(booted["booted_at"].is_string() && booted["booted_rto_us"].as_u64() > Some(0), "{booted}");
    ensure!(
        !status(&crowd, good)?["findings"].to_string().contains("drill"),
        "a good drill is held against it"
    );

    // One that does not say what it should say is told, and that it was tried is no reason to try at once again.
    let probe = ["--drill-probe", "never said", "--drill-time-limit", "5s"];
    crowd.site.cli(&[&["protect", bad, "--drill", "daily"], &probe[..]].concat())?;
    let drill = drilled(&crowd, bad)?;
    ensure!(drill["ok"] == false, "{drill}");
    wait_for("the health to say so", PATIENCE, || {
        Ok(status(&crowd, bad)?["findings"].to_string().contains("its last drill failed").then_some(()))
    })?;
    wait_for("what it made to be gone", PATIENCE, || {
        Ok((processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0).then_some(()))
    })?;
    // Two rounds of the schedule.
    std::thread::sleep(std::time::Duration::from_secs(11));
    for machine in [good, bad] {
        drilled(&crowd, machine)?;
    }
    let jobs = crowd.site.cli(&["jobs"])?;
    let begun = jobs.as_array().context("jobs")?.iter().filter(|job| job["kind"] == "drill");
    let by: Vec<&str> = begun.filter_map(|job| job["by"].as_str()).collect();
    ensure!(by == ["schedule", "schedule"], "{by:?}");
    Ok(())
}

#[test]
fn a_machine_is_drilled_by_itself_and_status_tells_what_came_of_it() {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
