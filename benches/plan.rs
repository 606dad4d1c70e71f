//! A recovery plan of many small machines: from the operator's command until all are attached.
//!
//! Owns the scenery: machines with a small disk each on this host, with the real programs. Time is taken around the operator's
//! command, so it holds the command's start too.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use holdfast_tests::crowd::Crowd;

use crate::{
    Run,
    report::{Row, percentile},
};

const MACHINES: usize = 50;
const GROUPS: usize = 5;
/// What the target asks for.
const SECONDS_MAX: f64 = 10.0;

/// A plan of 50 machines in 5 groups, attached; a few times, each taken back.
pub(crate) fn plan(run: Run) -> Result<Vec<Row>> {
    let crowd = Crowd::start(MACHINES, "10s", "")?;
    let folder = tempfile::TempDir::with_prefix("holdfast-plan-")?;
    let file = folder.path().join("all.toml");
    std::fs::write(&file, text(&crowd.machines))?;
    let file = file.display().to_string();
    crowd.site.cli(&["plan", "apply", &file])?;
    let rounds = if run.quick { 3 } else { 10 };
    let (mut tests, mut real, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        tests.push(timed(|| attached(&crowd, "test-failover"))?);
        crowd.site.cli(&["plan", "test-failover", "all", "--cleanup"])?;
        real.push(timed(|| attached(&crowd, "failover"))?);
        back.push(timed(|| {
            crowd.site.cli(&["plan", "cancel", "all"])?;
            crowd.wait_until_all_replicate()
        })?);
    }
    let row = |name: &str, times: &[f64]| {
        let note = format!(
            "slowest of {}; median {:.2} s; {GROUPS} groups of {}, 8 MiB disks, agents on this machine too",
            times.len(),
            percentile(times, 50.0),
            MACHINES / GROUPS
        );
        Row::new(name, percentile(times, 100.0), "s").note(note)
    };
    Ok(vec![
        row("plan: test failover of 50 machines, all attached", &tests).against(SECONDS_MAX, "s at most"),
        row("plan: failover of 50 machines, sources alive, all attached", &real)
            .against(SECONDS_MAX, "s at most"),
        row("plan: cancel of that, all replicating again", &back),
    ])
}

fn attached(crowd: &Crowd, verb: &str) -> Result<()> {
    let job = crowd.site.cli(&["plan", verb, "all"])?;
    let machines = job["machines"].as_array().map(Vec::as_slice).unwrap_or_default();
    let holding = machines.iter().filter(|machine| machine["state"] == "holding").count();
    ensure!(holding == MACHINES, "only {holding} are attached: {job}");
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    let took: Duration = started.elapsed();
    Ok(took.as_secs_f64())
}

fn text(machines: &[String]) -> String {
    let mut text = "name = \"all\"\n".to_owned();
    for (number, machines) in machines.chunks(MACHINES / GROUPS).enumerate() {
        let names: Vec<String> = machines.iter().map(|machine| format!("\"{machine}\"")).collect();
        text.push_str(&format!("[[group]]\nname = \"group {number}\"\nmachines = [{}]\n", names.join(", ")));
    }
    text
}
