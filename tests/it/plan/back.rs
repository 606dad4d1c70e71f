//! A plan whose machines run on both sides is brought wholly to one, and to the other: cancelled, and killed on the way.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{crowd::Crowd, file_system::run, loop_device, site::wait_for};
use serde_json::Value;

use super::{PATIENCE, Scripts, apply, continued, count, go_on, id, show, until};

const MIB: usize = 1 << 20;

fn plan(machines: &[String], scripts: &Scripts) -> String {
    let note = scripts.path("note").display().to_string();
    format!(
        r#"name = "shop"
target = "writable"

[[group]]
name = "databases"
machines = ["{}", "{}"]
[[group.before]]
script = ["{note}", "begins"]
[[group.before]]
manual = "Tell the users that the shop moves back."
direction = "to-source"

[[group]]
name = "front"
machines = ["{}"]
[[group.before]]
script = ["{note}", "moves the address"]
direction = "to-target"
[[group.after]]
script = ["{note}", "ends"]
"#,
        machines[0], machines[1], machines[2]
    )
}

/// Stages, in the order of the crowd's machines.
fn stages(crowd: &Crowd) -> Result<Vec<String>> {
    let status = crowd.site.cli(&["status"])?;
    let all = status["machines"].as_array().context("machines of the status")?;
    let stage = |id: &String| {
        let machine = all.iter().find(|machine| machine["id"] == **id).context("a machine")?;
        Ok(machine["lifecycle"]["stage"].as_str().unwrap_or_default().to_owned())
    };
    crowd.machines.iter().map(stage).collect()
}

/// What would be done with each, in the plan's order.
fn turns(crowd: &Crowd, verb: &str) -> Result<Vec<String>> {
    let turns = crowd.site.cli(&["plan", verb, "shop", "--dry-run"])?;
    let turns = turns.as_array().context("turns")?.iter();
    Ok(turns.map(|turn| turn["turn"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Writes where machines run now that are at their targets.
fn write_there(crowd: &Crowd, job: &Value, number: usize, byte: u8) -> Result<()> {
    let machines = job["machines"].as_array().context("machines")?;
    let own = machines.iter().find(|machine| machine["name"] == *crowd.machines[number]);
    let own = show(&crowd.site, own.and_then(|own| own["job"].as_str()).context("its job")?)?;
    write(own["exports"][0]["uri"].as_str().context("an export")?, byte)
}

fn write(uri: &str, byte: u8) -> Result<()> {
    let write = format!("write -P {byte} {MIB} 4096");
    run(Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", uri])).map(drop)
}

/// What was written there is on the source's disk, and the rest is as it was.
fn is_back(crowd: &Crowd, number: usize, byte: u8) -> Result<()> {
    let disk = crowd.disks[number].path();
    crowd.check_copy(number, disk)?;
    let found = fs::read(disk)?;
    ensure!(found[MIB..MIB + 4096].iter().all(|found| *found == byte), "machine {number} lost {byte}");
    Ok(())
}

fn there(crowd: &Crowd, scripts: &Scripts) -> Result<Value> {
    let (site, machines) = (&crowd.site, &crowd.machines);
    let alone = site.cli(&["failover", &machines[0], "--point", "latest", "--attach", "--writable"])?;
    write(alone["exports"][0]["uri"].as_str().context("an export")?, 10)?;
    site.cli(&["commit", &machines[0]])?;
    ensure!(turns(crowd, "planned-failover")? == ["stays", "goes", "goes"]);
    let forecast = site.cli(&["plan", "failover", "shop", "--dry-run"])?;
    let left: Vec<bool> =
        forecast.as_array().context("all")?.iter().map(|one| one["left_alone"].is_string()).collect();
    ensure!(left == [false, false, true], "{forecast:#}");
    let job = site.cli(&["plan", "failover", "shop"])?;
    ensure!(job["ok"] == true && count(&job, "holding") == 2 && count(&job, "skipped") == 1, "{job:#}");
    ensure!(scripts.taken("notes").iter().all(|note| note.contains(" failover to-target ")), "the scripts");
    write_there(crowd, &job, 1, 11)?;
    write_there(crowd, &job, 2, 12)?;
    Ok(job)
}

fn protected_there(crowd: &Crowd, scripts: &Scripts) -> Result<()> {
    let site = &crowd.site;
    let early = site.cli(&["plan", "failback", "shop", "--no-wait"])?;
    let early = until(site, id(&early), "failed")?;
    ensure!(early["messages"].to_string().contains("3 of 3 machines cannot go back"), "{early:#}");
    site.cli(&["plan", "commit", "shop"])?;
    let job = site.cli(&["plan", "reprotect", "shop"])?;
    ensure!(job["state"] == "succeeded" && count(&job, "succeeded") == 3, "{job:#}");
    ensure!(stages(crowd)? == ["protected-reversed"; 3], "{:?}", stages(crowd)?);
    ensure!(scripts.taken("notes").is_empty(), "nothing has moved, and a script ran");
    Ok(())
}

fn back(crowd: &mut Crowd, scripts: &Scripts) -> Result<()> {
    // One goes alone: the plan's machines run on both sides.
    crowd.site.cli(&["failback", &crowd.machines[2]])?;
    is_back(crowd, 2, 12)?;
    ensure!(turns(crowd, "failback")? == ["goes", "goes", "stays"]);
    let begin = |crowd: &Crowd| -> Result<String> {
        let job = crowd.site.cli(&["plan", "failback", "shop", "--no-wait"])?;
        let waiting = until(&crowd.site, id(&job), "waiting")?;
        ensure!(waiting["messages"].to_string().contains("the shop moves back"), "{waiting:#}");
        Ok(id(&job).to_owned())
    };
    // Taken back, it leaves all as they were; the failover that they come from stands.
    let job = begin(crowd)?;
    ensure!(scripts.taken("notes") == ["before databases failback to-source begins"], "the first script");
    crowd.site.cli(&["plan", "cancel", "shop"])?;
    ensure!(show(&crowd.site, &job)?["state"] == "cancelled");
    ensure!(stages(crowd)? == ["protected-reversed", "protected-reversed", "protected"]);
    let job = begin(crowd)?;
    let mut follows = continued(&crowd.site, &job)?;
    wait_for("the machines to be begun", PATIENCE, || {
        Ok((count(&show(&crowd.site, &job)?, "not begun") == 0).then_some(()))
    })?;
    crowd.site.kill_coordinator()?;
    let _ended = follows.wait();
    crowd.site.start_coordinator()?;
    let done = until(&crowd.site, &job, "succeeded")?;
    ensure!(done["ok"] == true && count(&done, "skipped") == 1, "{done:#}");
    let notes = scripts.taken("notes");
    let expected = ["before databases failback to-source begins", "after front failback to-source ends"];
    ensure!(notes == expected, "{notes:?}");
    is_back(crowd, 0, 10)?;
    is_back(crowd, 1, 11)?;
    crowd.wait_until_all_replicate()
}

fn walked() -> Result<()> {
    let scripts = Scripts::new()?;
    let mut crowd = Crowd::start(3, "2s", "")?;
    apply(&crowd.site, &PathBuf::from(scripts.folder.path()), &plan(&crowd.machines, &scripts))?;
    there(&crowd, &scripts)?;
    protected_there(&crowd, &scripts)?;
    back(&mut crowd, &scripts)?;
    // And there again, of what was brought back.
    for machine in &crowd.machines {
        crowd.site.wait_for_new_point(machine, PATIENCE)?;
    }
    let job = crowd.site.cli(&["plan", "failover", "shop"])?;
    ensure!(job["ok"] == true && count(&job, "holding") == 3, "{job:#}");
    for (number, machine) in job["machines"].as_array().context("machines")?.iter().enumerate() {
        let own = show(&crowd.site, machine["job"].as_str().context("a job")?)?;
        let copy = scripts.path("copy.img");
        run(Command::new("nbdcopy").arg(own["exports"][0]["uri"].as_str().context("an export")?).arg(&copy))?;
        crowd.check_copy(number, &copy)?;
    }
    go_on(&crowd.site, id(&job), "cancel").map(drop)
}

#[test]
fn a_plan_with_machines_on_both_sides_comes_to_either() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
