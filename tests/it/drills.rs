//! Drills by themselves: a machine whose policy wants one is booted, without anybody asking, and status tells what came of it.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    crowd::Crowd,
    guest, loop_device,
    protected::PATIENCE,
    site::{BOOT, wait_for},
    stepped_clock,
};
use serde_json::Value;

use crate::{
    machine_vm::{Remains, processes},
    plan::machines::make_bootable,
};

const HOUR: Duration = Duration::from_secs(3600);

/// The machine in the status.
fn status(crowd: &Crowd, machine: &str) -> Result<Value> {
    let status = crowd.site.cli(&["status"])?;
    let all = status["machines"].as_array().context("machines of the status")?;
    all.iter().find(|found| found["id"] == machine).cloned().context("the machine")
}

/// The machine's newest drill, once so many have ended; there are no more.
fn drilled(crowd: &Crowd, machine: &str, times: usize) -> Result<Value> {
    wait_for("a drill that nobody began", BOOT, || {
        let drills = crowd.site.cli(&["drill", machine, "--history"])?;
        let drills = drills.as_array().context("drills")?;
        ensure!(drills.len() <= times, "a drill follows itself: {drills:?}");
        Ok(drills.first().filter(|_| drills.len() == times).cloned())
    })
}

/// Who has begun the drills of all machines.
fn begun_by(crowd: &Crowd) -> Result<Vec<String>> {
    let jobs = crowd.site.cli(&["jobs"])?;
    let begun = jobs.as_array().context("jobs")?.iter().filter(|job| job["kind"] == "drill");
    Ok(begun.filter_map(|job| job["by"].as_str().map(str::to_owned)).collect())
}

/// Two rounds of the schedule go by, and nothing is begun.
fn no_more(crowd: &Crowd, times: usize) -> Result<()> {
    std::thread::sleep(Duration::from_secs(11));
    for machine in &crowd.machines {
        drilled(crowd, machine, times)?;
    }
    let by = begun_by(crowd)?;
    ensure!(by == vec!["schedule"; times * crowd.machines.len()], "{by:?}");
    Ok(())
}

fn walked() -> Result<()> {
    let mut crowd = Crowd::start(2, "2s", "")?;
    let overlays = crowd.site.data().join("vm");
    let _remains = Remains(overlays.clone());
    make_bootable(&crowd)?;
    let [good, bad] = crowd.machines.as_slice() else { anyhow::bail!("two machines") };
    crowd.site.cli(&["protect", good, "--drill", "daily"])?;
    let drill = drilled(&crowd, good, 1)?;
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
    let drill = drilled(&crowd, bad, 1)?;
    ensure!(drill["ok"] == false, "{drill}");
    wait_for("the health to say so", PATIENCE, || {
        Ok(status(&crowd, bad)?["findings"].to_string().contains("its last drill failed").then_some(()))
    })?;
    wait_for("what it made to be gone", PATIENCE, || {
        Ok((processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0).then_some(()))
    })?;
    no_more(&crowd, 1)?;

    // Their turn comes again when a day has gone by since, and not an hour before.
    if let Some(reason) = stepped_clock::unavailable() {
        eprintln!("skipped: the second turn: {reason}");
        return Ok(());
    }
    crowd.site.step_clock(HOUR * 23)?;
    no_more(&crowd, 1)?;
    crowd.site.step_clock(HOUR * 25)?;
    let (good, bad) = (crowd.machines[0].clone(), crowd.machines[1].clone());
    ensure!(drilled(&crowd, &good, 2)?["ok"] == true && drilled(&crowd, &bad, 2)?["ok"] == false);
    no_more(&crowd, 2)?;
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
