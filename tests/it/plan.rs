//! A recovery plan with real parts: eight machines in three groups, scripts of which one fails, something to do by hand, cancelled
//! in every phase, and a coordinator that is killed in the middle.

// The way back.
mod back;
// Machines that run, and images.
pub(crate) mod machines;
// Their way back.
mod machines_back;
// Programs on other agents.
mod agents;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    crowd::Crowd,
    file_system::run,
    loop_device,
    protected::PATIENCE,
    site::{Site, program, wait_for},
};
use serde_json::Value;
use tempfile::TempDir;

/// How soon all replicate again after a cancel.
const CANCEL_MAX: Duration = Duration::from_secs(5);

/// Scripts, what they write down, and flags that make them fail or take long.
struct Scripts {
    folder: TempDir,
}

impl Scripts {
    fn new() -> Result<Self> {
        let scripts = Self { folder: TempDir::with_prefix("holdfast-plan-")? };
        let place = scripts.folder.path().display();
        let note = format!(
            "echo \"$HOLDFAST_WHEN $HOLDFAST_GROUP $HOLDFAST_MODE $HOLDFAST_DIRECTION $1\" >> {place}/notes"
        );
        scripts.write("note", &format!("{note}\nenv | grep ^HOLDFAST_ | sort > {place}/environment"))?;
        scripts.write("drain", &format!("echo \"$HOLDFAST_MACHINE $1\" >> {place}/drained"))?;
        scripts.write(
            "slow",
            &format!("echo begun >> {place}/slow-notes\n[ -e {place}/be-slow ] && sleep 1000\n{note}"),
        )?;
        scripts.write(
            "flaky",
            &format!("if [ -e {place}/broken ]; then echo no route to the name server; exit 7; fi\n{note}"),
        )?;
        Ok(scripts)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The lines that were written since the last look.
    fn taken(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        let _none = fs::remove_file(self.path(name));
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn set(&self, flag: &str, set: bool) -> Result<()> {
        if set {
            fs::write(self.path(flag), "")?;
        } else {
            fs::remove_file(self.path(flag))?;
        }
        Ok(())
    }
}

fn plan(machines: &[String], scripts: &Scripts) -> String {
    let list = |machines: &[String]| {
        machines.iter().map(|machine| format!("\"{machine}\"")).collect::<Vec<_>>().join(", ")
    };
    let path = |name: &str| scripts.path(name).display().to_string();
    format!(
        r#"name = "shop"
description = "The shop, its data first"

[[group]]
name = "databases"
machines = [{}]
[[group.before]]
script = ["{}", "hello"]
[[group.after]]
manual = "Look at the databases."

[[group]]
name = "application"
machines = [{}]
[[group.before]]
script = ["drain", "60"]
on = "source"
[[group.before]]
script = ["{}"]
time_limit = "20m"
[[group.after]]
name = "tell the name server"
script = ["{}"]

[[group]]
name = "front"
machines = [{}]
[[group.after]]
script = ["{}", "bye"]
"#,
        list(&machines[..3]),
        path("note"),
        list(&machines[3..6]),
        path("slow"),
        path("flaky"),
        list(&machines[6..]),
        path("note"),
    )
}

fn apply(site: &Site, folder: &Path, text: &str) -> Result<Value> {
    let file = folder.join("shop.toml");
    fs::write(&file, text)?;
    site.cli(&["plan", "apply", &file.display().to_string()])
}

fn id(job: &Value) -> &str {
    job["id"].as_str().unwrap_or_default()
}

fn show(site: &Site, job: &str) -> Result<Value> {
    site.cli(&["job", "show", job])
}

/// Waits for the job to be in this state, and nothing else that it stays in.
fn until(site: &Site, job: &str, state: &str) -> Result<Value> {
    wait_for(&format!("job {job} to be {state}"), PATIENCE, || {
        let shown = show(site, job)?;
        let settled = shown["settled"] == true && shown["state"] != state;
        ensure!(!settled, "the job is {}: {shown:#}", shown["state"]);
        Ok((shown["state"] == state).then_some(shown))
    })
}

/// Waits until the script that takes long is under way.
fn until_slow(site: &Site, job: &str) -> Result<()> {
    wait_for("the slow script", PATIENCE, || {
        let shown = show(site, job)?;
        let steps = shown["steps"].as_array().context("steps")?;
        let running = |step: &&Value| step["kind"] == "plan-script" && step["state"] == "running";
        let title = steps.iter().find(running).and_then(|step| step["title"].as_str());
        Ok(title.filter(|title| title.contains("slow")).map(drop))
    })
}

/// The states of the machines, group by group.
fn states(job: &Value) -> Vec<(String, String)> {
    let of = |machine: &Value, name: &str| machine[name].as_str().unwrap_or_default().to_owned();
    let machines = job["machines"].as_array().map(Vec::as_slice).unwrap_or_default();
    machines.iter().map(|machine| (of(machine, "group"), of(machine, "state"))).collect()
}

fn count(job: &Value, state: &str) -> usize {
    states(job).iter().filter(|(_, found)| found == state).count()
}

/// Goes on with a job that waits or was held, and gives it as it is then, whether that is what was asked for or not.
fn go_on(site: &Site, job: &str, verb: &str) -> Result<Value> {
    // The command ends with a failure where the job stops again.
    let _said = site.cli(&["job", verb, job]);
    show(site, job)
}

/// The same for who does not wait for what comes of it.
fn continued(site: &Site, job: &str) -> Result<Child> {
    let mut command = Command::new(program("holdfast"));
    command.arg("--coordinator").arg(site.data().join("holdfast.sock")).args(["job", "continue", job]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// Takes the plan back, and checks that all replicate soon, on the line of history that they were on.
fn cancel(crowd: &Crowd, phase: &str) -> Result<()> {
    let begun = Instant::now();
    crowd.site.cli(&["plan", "cancel", "shop"]).with_context(|| format!("cancel {phase}"))?;
    crowd.wait_until_all_replicate()?;
    let took = begun.elapsed();
    eprintln!("replicating again {took:?} after the cancel {phase}");
    // A busy machine may need longer; far longer is a defect.
    ensure!(took < CANCEL_MAX * 4, "{took:?} after the cancel {phase}");
    let status = crowd.site.cli(&["status"])?;
    for machine in status["machines"].as_array().context("machines")? {
        ensure!(machine["disks"][0]["generation"] == 1, "compared anew after the cancel {phase}: {machine}");
    }
    Ok(())
}

fn mistakes_are_named(site: &Site, text: &str, folder: &Path) -> Result<()> {
    let wrong = text.replace("time_limit = \"20m\"", "time_limit = \"soon\"").replace("/flaky", "/gone");
    let said = apply(site, folder, &wrong).err().context("a wrong plan was taken")?.to_string();
    let line = |part: &str| wrong.lines().position(|line| line.contains(part)).map_or(0, |line| line + 1);
    // A program is named with its action.
    for part in [format!("line {}: `soon` is no time", line("soon")), format!("line {}: ", line("/gone") - 2)]
    {
        ensure!(said.contains(&part), "{part} is not in: {said}");
    }
    let file = folder.join("shop.toml").display().to_string();
    ensure!(site.cli(&["plan", "validate", &file]).is_err(), "a wrong plan is right");
    ensure!(site.cli(&["plan", "show", "shop"]).is_err(), "a wrong plan is kept");
    Ok(())
}

fn tested(crowd: &Crowd, scripts: &Scripts) -> Result<()> {
    let site = &crowd.site;
    let forecast = site.cli(&["plan", "failover", "shop", "--dry-run"])?;
    ensure!(
        forecast
            .as_array()
            .is_some_and(|all| all.len() == 8 && all.iter().all(|one| one["point"].is_object())),
        "{forecast}"
    );
    scripts.set("broken", true)?;
    let job = site.cli(&["plan", "test-failover", "shop", "--no-wait"])?;
    let job = id(&job).to_owned();
    let waiting = until(site, &job, "waiting")?;
    ensure!(waiting["messages"].to_string().contains("Look at the databases."), "{waiting:#}");
    ensure!((count(&waiting, "holding"), count(&waiting, "not begun")) == (3, 5), "{:?}", states(&waiting));
    ensure!(scripts.taken("notes") == ["before databases test-failover to-target hello"], "the first script");
    // A script fails: a test stops there, and goes on from there.
    let held = go_on(site, &job, "continue")?;
    ensure!(held["state"] == "held" && count(&held, "holding") == 6, "{held:#}");
    ensure!(
        held["messages"].to_string().contains("exit code 7; it printed: no route to the name server"),
        "{held:#}"
    );
    // The sources of the second group were told.
    let mut drained = scripts.taken("drained");
    drained.sort();
    let mut expected: Vec<_> = crowd.machines[3..6].iter().map(|machine| format!("{machine} 60")).collect();
    expected.sort();
    ensure!(drained == expected, "{drained:?}");
    scripts.set("broken", false)?;
    let done = go_on(site, &job, "retry")?;
    ensure!(done["state"] == "holding" && done["ok"] == true && count(&done, "holding") == 8, "{done:#}");
    let notes = scripts.taken("notes");
    let expected = ["before application", "after application", "after front"];
    ensure!(
        notes.len() == 3 && notes.iter().zip(expected).all(|(note, begins)| note.starts_with(begins)),
        "{notes:?}"
    );
    let environment = fs::read_to_string(scripts.path("environment"))?;
    for machine in &crowd.machines[6..] {
        for part in [format!("{machine}/"), format!("{machine}=")] {
            ensure!(environment.contains(&part), "{part} is not in {environment}");
        }
    }
    // Each machine's own job serves its own disk.
    for (number, machine) in done["machines"].as_array().context("machines")?.iter().enumerate() {
        let own = show(site, machine["job"].as_str().context("a job")?)?;
        ensure!(own["by"] == format!("plan job {job}"), "{own:#}");
        let copy = scripts.path("copy.img");
        run(Command::new("nbdcopy").arg(own["exports"][0]["uri"].as_str().context("an export")?).arg(&copy))?;
        crowd.check_copy(number, &copy)?;
    }
    site.cli(&["plan", "test-failover", "shop", "--cleanup"])?;
    ensure!(count(&show(site, &job)?, "cancelled") == 8, "{:?}", states(&show(site, &job)?));
    crowd.wait_until_all_replicate()
}

fn cancelled_in_every_phase(crowd: &Crowd, scripts: &Scripts) -> Result<()> {
    let site = &crowd.site;
    let begin = || -> Result<String> {
        let job = site.cli(&["plan", "failover", "shop", "--no-wait"])?;
        until(site, id(&job), "waiting")?;
        Ok(id(&job).to_owned())
    };
    begin()?;
    cancel(crowd, "while it waits for somebody")?;
    scripts.set("be-slow", true)?;
    let job = begin()?;
    let mut follows = continued(site, &job)?;
    until_slow(site, &job)?;
    cancel(crowd, "while a script runs")?;
    let _ended = follows.wait();
    ensure!(!is_running(&scripts.path("slow")), "the script of a plan that was cancelled goes on");
    scripts.set("be-slow", false)?;
    let job = begin()?;
    let done = go_on(site, &job, "continue")?;
    ensure!(done["state"] == "holding" && done["ok"] == true, "{done:#}");
    cancel(crowd, "at its end")
}

/// Whether a program of this path runs.
fn is_running(path: &Path) -> bool {
    let of = Command::new("pgrep").arg("-f").arg(path).output();
    of.is_ok_and(|found| found.status.success())
}

fn killed_in_the_middle(crowd: &mut Crowd, scripts: &Scripts) -> Result<()> {
    scripts.set("be-slow", true)?;
    scripts.set("broken", true)?;
    let job = crowd.site.cli(&["plan", "failover", "shop", "--no-wait"])?;
    let job = id(&job).to_owned();
    until(&crowd.site, &job, "waiting")?;
    // Killed while it waits for somebody: it waits on.
    crowd.site.kill_coordinator()?;
    crowd.site.start_coordinator()?;
    until(&crowd.site, &job, "waiting")?;
    for name in ["notes", "slow-notes"] {
        scripts.taken(name);
    }
    let mut follows = continued(&crowd.site, &job)?;
    until_slow(&crowd.site, &job)?;
    crowd.site.kill_coordinator()?;
    let _ended = follows.wait();
    ensure!(is_running(&scripts.path("slow")), "the script ended with the coordinator");
    scripts.set("be-slow", false)?;
    crowd.site.start_coordinator()?;
    // What was left of the script is ended, and it is run again. Another one fails, which stops no unplanned failover.
    let done = until(&crowd.site, &job, "holding")?;
    ensure!(!is_running(&scripts.path("slow")), "two runs of a script go side by side");
    ensure!(scripts.taken("slow-notes").len() == 2, "the script was not run again");
    ensure!(scripts.taken("notes").len() == 2, "the slow one and the last one");
    ensure!(done["ok"] == false && count(&done, "holding") == 8, "{done:#}");
    let said = done["messages"].to_string();
    ensure!(said.contains("flaky failed with exit code 7"), "{said}");
    for (number, machine) in done["machines"].as_array().context("machines")?.iter().enumerate() {
        let own = show(&crowd.site, machine["job"].as_str().context("a job")?)?;
        let copy = scripts.path("copy.img");
        run(Command::new("nbdcopy").arg(own["exports"][0]["uri"].as_str().context("an export")?).arg(&copy))?;
        crowd.check_copy(number, &copy)?;
    }
    Ok(())
}

fn walked() -> Result<()> {
    let scripts = Scripts::new()?;
    let actions = format!("actions = \"{}\"\n", scripts.folder.path().display());
    let mut crowd = Crowd::start(8, "2s", &actions)?;
    let text = plan(&crowd.machines, &scripts);
    mistakes_are_named(&crowd.site, &text, scripts.folder.path())?;
    let applied = apply(&crowd.site, scripts.folder.path(), &text)?;
    ensure!(applied["order"].as_array().is_some_and(|order| order.len() == 3), "{applied:#}");
    ensure!(crowd.site.cli(&["plan", "list"])?[0]["name"] == "shop");
    tested(&crowd, &scripts)?;
    cancelled_in_every_phase(&crowd, &scripts)?;
    killed_in_the_middle(&mut crowd, &scripts)?;
    committed(&crowd)
}

fn committed(crowd: &Crowd) -> Result<()> {
    let site = &crowd.site;
    let stages = site.cli(&["plan", "commit", "shop"])?;
    ensure!(stages["machines"].as_array().is_some_and(|all| all.len() == 8), "{stages:#}");
    let said = site.cli(&["plan", "cancel", "shop"]).err().context("what was committed was taken back")?;
    ensure!(
        said.to_string().contains("is committed") && said.to_string().contains("holdfast resume"),
        "{said:#}"
    );
    site.cli(&["plan", "remove", "shop"])?;
    ensure!(site.cli(&["plan", "list"])?.as_array().is_some_and(Vec::is_empty));
    Ok(())
}

#[test]
fn a_plan_of_eight_machines_is_tested_cancelled_killed_and_committed() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
