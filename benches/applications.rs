//! What app-consistent points cost PostgreSQL: how long it is frozen, what pgbench still does, how many group cuts are void.
//!
//! Owns the scenery: a server with data and WAL on two disks, pgbench, coordinator and agents as processes on the same processors.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    postgres::{self, Server},
    protected::PATIENCE,
    site::{Agent, Site, wait_for},
};
use serde_json::Value;

use crate::{
    Run,
    report::{Row, percentile},
};

const DISK_BYTES: u64 = 1 << 30;
/// Most that an app-consistent freeze may take, in seconds.
const FREEZE_SECONDS_MAX: f64 = 1.0;
/// What pgbench does with protection, at least, by what it does without.
const THROUGHPUT_MIN: f64 = 0.95;
/// Void group cuts, in percent, at most.
const VOID_PERCENT_MAX: f64 = 1.0;

pub(crate) fn applications(measured: Run<'_>) -> Result<Vec<Row>> {
    let programs = postgres::programs().context("PostgreSQL is not installed (package postgresql)")?;
    let folder = postgres::open_folder()?;
    let hooks = postgres::freeze_hooks(folder.path())?;
    let disks = [MountedDisk::create(Kind::Ext4, DISK_BYTES)?, MountedDisk::create(Kind::Ext4, DISK_BYTES)?];
    let (data, wal) = (disks[0].folder().join("data"), disks[1].folder().join("wal"));
    let server = Server::create(&programs, &data, &wal, folder.path())?;
    run(server.client("pgbench").args(["-q", "-i", "-s", "10", "postgres"]))?;
    let site = Site::start()?;
    let host = format!("PGHOST={}", folder.path().display());
    let mut agent = site.add_agent_with(&["env", &host], &format!("[hooks]\nfolder = {hooks:?}\n"))?;
    let machine = site.only_machine()?;
    let nodes = [disks[0].device.path(), disks[1].device.path()];
    site.protect(&machine, &nodes, "10s")?;
    site.wait_for_points(&machine, 1, PATIENCE)?;

    let mut rows = vec![throughput(measured, &server, &site, &machine, &mut agent)?];
    let bench = postgres::load(&server)?;
    rows.push(freezes(measured, &site, &machine)?);
    rows.push(void_cuts(measured, &site, &machine)?);
    drop(bench);
    Ok(rows)
}

/// Transactions per second over some seconds.
fn transactions(server: &Server, seconds: u64) -> Result<f64> {
    let mut bench = server.client("pgbench");
    bench.args(["-n", "-c", "4", "-j", "2", "-T", &seconds.to_string(), "postgres"]).stderr(Stdio::null());
    let said = run(&mut bench)?;
    let rate =
        said.lines().find_map(|line| line.strip_prefix("tps = ")).context("a rate in pgbench's words")?;
    Ok(rate.split_whitespace().next().unwrap_or_default().parse()?)
}

/// pgbench with points every 10 s and without tracking, by turns: the machine gets faster and slower by itself.
fn throughput(
    measured: Run<'_>,
    server: &Server,
    site: &Site,
    machine: &str,
    agent: &mut Agent,
) -> Result<Row> {
    let (pairs, seconds) = if measured.quick { (3, 12) } else { (7, 30) };
    let mut ratios = Vec::new();
    let mut rates = Vec::new();
    // Caches and the first checkpoint are no part of it.
    transactions(server, seconds / 2)?;
    for _ in 0..pairs {
        let with = transactions(server, seconds)?;
        agent.stop()?;
        agent.forget()?;
        let without = transactions(server, seconds)?;
        agent.start()?;
        site.wait_until_connected(PATIENCE)?;
        wait_for("the disks to be compared again", PATIENCE, || {
            let status = site.cli(&["status"])?;
            let disks = status["machines"][0]["disks"].as_array().cloned().unwrap_or_default();
            Ok(disks.iter().all(|disk| disk["state"] == "protected").then_some(()))
        })?;
        site.wait_for_new_point(machine, PATIENCE)?;
        ratios.push(with / without);
        rates.push(without);
    }
    let note = format!(
        "median of {pairs} pairs of {seconds} s, p10 {:.3}, p90 {:.3}; {:.0} transactions/s without; agent and coordinator \
         on the same processors as server and clients",
        percentile(&ratios, 10.0),
        percentile(&ratios, 90.0),
        percentile(&rates, 50.0)
    );
    let row = Row::new("pgbench with points every 10 s, over without", percentile(&ratios, 50.0), "");
    Ok(row.against(THROUGHPUT_MIN, "target, least").note(note))
}

/// How long the server was frozen for app-consistent points.
fn freezes(measured: Run<'_>, site: &Site, machine: &str) -> Result<Row> {
    let count = if measured.quick { 10 } else { 40 };
    let mut frozen = Vec::new();
    let mut void = 0;
    while frozen.len() < count {
        let made = site.cli(&["point", "create", machine, "--wait", "--app-consistent"]);
        let Ok(made) = made else {
            void += 1;
            ensure!(void <= count, "{void} void cuts, and {} points only", frozen.len());
            continue;
        };
        let point: &Value = &made["point"];
        ensure!(point["consistency"] == "app", "{point}");
        frozen.push(point["application_frozen_us"].as_f64().context("how long it was frozen")? / 1e6);
        thread::sleep(Duration::from_millis(500));
    }
    let note = format!(
        "{count} points under pgbench, {void} void; median {:.2}, max {:.2} s",
        percentile(&frozen, 50.0),
        percentile(&frozen, 100.0)
    );
    let row = Row::new("app-consistent freeze of PostgreSQL, p99", percentile(&frozen, 99.0), "s");
    Ok(row.against(FREEZE_SECONDS_MAX, "target").note(note))
}

/// How many cuts of a group with the server and an idle machine are void.
fn void_cuts(measured: Run<'_>, site: &Site, machine: &str) -> Result<Row> {
    let limit = Duration::from_secs(if measured.quick { 20 } else { 120 });
    let idle = MountedDisk::create(Kind::Ext4, 64 << 20)?;
    let _agent = site.add_agent()?;
    let machines = site.cli(&["machines"])?;
    let ids = machines.as_array().context("machines")?.iter().filter_map(|machine| machine["id"].as_str());
    let other = ids.map(str::to_owned).find(|id| id != machine).context("the other machine")?;
    site.protect(&other, &[idle.device.path()], "10s")?;
    site.wait_for_points(&other, 1, PATIENCE)?;
    site.cli(&["group", "create", "pair", machine, &other, "--interval", "1h"])?;
    let cut = || site.cli(&["group", "point", "create", "pair"]);
    wait_for("the first group point", PATIENCE, || Ok(cut().ok().map(drop)))?;
    let (mut made, mut void, started) = (0_u32, 0_u32, Instant::now());
    while started.elapsed() < limit {
        match cut() {
            Ok(_) => made += 1,
            Err(error) => {
                void += 1;
                eprintln!("{error:#}");
            }
        }
    }
    let percent = f64::from(void) * 100.0 / f64::from((made + void).max(1));
    let note =
        format!("{void} of {} in {} s, one after another, under pgbench", made + void, limit.as_secs());
    Ok(Row::new("group cuts void under PostgreSQL's load", percent, "%")
        .against(VOID_PERCENT_MAX, "target")
        .note(note))
}
