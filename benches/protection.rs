//! RPO and memory of a protected machine under churn, with the real programs.
//!
//! Owns the scenery: a disk on a loop device, fio as the churn, a coordinator and an agent as processes.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use holdfast_common::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SeededEntropy},
};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    protected::{PATIENCE, Protected},
    site::Site,
};

use crate::{
    Run,
    machine::resident_bytes,
    report::{Row, percentile},
};

/// How long the points of one load are waited for.
const HOLD_PATIENCE: Duration = Duration::from_secs(60);
/// The file that is written all over.
const CHURN_MIB: u64 = 640;
const RPO_INTERVAL_SECONDS: f64 = 1.0;
const RPO_ALLOWANCE_SECONDS: f64 = 2.0;
/// Has the agent say what its holds are made of, in a form that can be read.
const LOG_OF_HOLDS: [&str; 3] =
    ["env", "HOLDFAST_LOG=info,holdfast_agent::engine::cut=debug", "HOLDFAST_LOG_FORMAT=json"];
const COORDINATOR_MIB_MAX: f64 = 256.0;
const AGENT_MIB_MAX: f64 = 128.0;

/// fio until dropped.
pub(crate) struct Churn(Child);

impl Churn {
    /// Random 4 KiB writes into a file of `size` at a rate ("50m"), direct or through the page cache.
    pub(crate) fn start(target: &Path, size: &str, rate: &str, direct: bool) -> Result<Self> {
        let mut command = Command::new("fio");
        command
            .args([
                "--name=churn",
                "--rw=randwrite",
                "--bs=4k",
                "--time_based",
                "--runtime=3600",
                "--norandommap",
                // No process of its own for the job: it would outlive the one that is killed.
                "--thread",
            ])
            .args([&format!("--size={size}"), &format!("--rate={rate}"), "--refill_buffers"])
            .args(["--buffer_compress_percentage=50", "--iodepth=16", "--randseed=11"])
            .arg(format!("--filename={}", target.display()))
            .args(if direct {
                ["--ioengine=libaio", "--direct=1"]
            } else {
                ["--ioengine=psync", "--direct=0"]
            });
        Ok(Self(command.stdout(Stdio::null()).spawn().context("starting fio (package fio)")?))
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Starts a coordinator and an agent that protects one disk with cuts every second, and waits for the first point.
pub(crate) fn protect(disk: &Path) -> Result<Protected> {
    let site = Site::start()?;
    let agent = site.add_agent_with(&LOG_OF_HOLDS, "")?;
    let protected = Protected::with(site, agent, &[disk])?;
    protected.wait_for_points(1)?;
    Ok(protected)
}

/// Age of the newest complete point, sampled over a minute of 50 MB/s churn.
pub(crate) fn rpo(run: Run) -> Result<Vec<Row>> {
    let seconds = if run.quick { 30 } else { 60 };
    let disk = MountedDisk::create(Kind::Ext4, 4 << 30)?;
    let protected = protect(disk.device.path())?;
    let _churn = Churn::start(&disk.folder().join("churn"), "2g", "50m", true)?;
    let clock = SystemClock::new();
    thread::sleep(Duration::from_secs(10));
    protected.site.wait_for_new_point(&protected.machine, PATIENCE)?;
    let mut ages = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        let points = protected.site.points(&protected.machine)?;
        let newest =
            points.iter().filter_map(|point| point.all["at_us"].as_i64()).max().context("a point")?;
        ages.push((clock.wall().0 - newest) as f64 / 1e6);
        thread::sleep(Duration::from_millis(150));
    }
    let note = format!(
        "50 MB/s of random 4 KiB direct writes for {seconds} s, cuts every {RPO_INTERVAL_SECONDS} s, {} samples; median {:.2} s",
        ages.len(),
        percentile(&ages, 50.0)
    );
    let limit = RPO_INTERVAL_SECONDS + RPO_ALLOWANCE_SECONDS;
    Ok(vec![
        Row::new("RPO under churn, p99", percentile(&ages, 99.0), "s")
            .against(limit, "target: interval + 2 s")
            .note(note),
    ])
}

/// Resident memory of both programs with one 64 GiB disk and 1 GiB of churn per minute.
pub(crate) fn memory(run: Run) -> Result<Vec<Row>> {
    let seconds = if run.quick { 45 } else { 180 };
    let disk = MountedDisk::create(Kind::Ext4, 64 << 30)?;
    let protected = protect(disk.device.path())?;
    let _churn = Churn::start(&disk.folder().join("churn"), "16g", "17895697", true)?;
    let (mut coordinator, mut agent) = (0, 0);
    for _ in 0..seconds {
        thread::sleep(Duration::from_secs(1));
        coordinator = coordinator.max(resident_bytes(protected.site.process_id())?);
        agent = agent.max(resident_bytes(protected.agent.process_id())?);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let note =
        format!("largest resident size over {seconds} s of 1 GiB/min random 4 KiB writes on a 64 GiB disk");
    Ok(vec![
        Row::new("memory, coordinator", mib(coordinator), "MiB")
            .against(COORDINATOR_MIB_MAX, "target")
            .note(&note),
        Row::new("memory, agent", mib(agent), "MiB").against(AGENT_MIB_MAX, "target").note(&note),
    ])
}

/// Writes a file through, so that writing over it changes no metadata but its times, as in a database. fio would only allocate
/// it, and every first write to a block of such a file changes the file's map as well.
fn lay_out(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create_new(path)?;
    let mut chunk = vec![0; 1 << 20];
    let entropy = SeededEntropy::new(12);
    for _ in 0..bytes / chunk.len() as u64 {
        entropy.fill(&mut chunk);
        file.write_all(&chunk)?;
    }
    Ok(file.sync_all()?)
}

/// How long writes are held per cut under three loads, 20 points each; and under the first of them into a file that was only
/// allocated.
pub(crate) fn hold(run: Run) -> Result<Vec<Row>> {
    let count = if run.quick { 10 } else { 20 };
    let loads = [
        ("20 MB/s direct", "20m", true, true, 10.0),
        ("20 MB/s direct, file allocated only", "20m", true, false, 10.0),
        ("100 MB/s direct", "100m", true, true, 25.0),
        ("100 MB/s buffered", "100m", false, true, 250.0),
    ];
    let mut rows = Vec::new();
    for (name, rate, direct, written, target) in loads.into_iter().filter(|(name, ..)| run.wants(name)) {
        let disk = MountedDisk::create(Kind::Ext4, 2 << 30)?;
        let path = disk.folder().join("churn");
        if written {
            lay_out(&path, CHURN_MIB << 20)?;
        }
        let protected = protect(disk.device.path())?;
        let _churn = Churn::start(&path, &format!("{CHURN_MIB}m"), rate, direct)?;
        thread::sleep(Duration::from_secs(8));
        let before = protected.site.points(&protected.machine)?.len();
        // A load under which no cut stands is a finding, not the end of the bench.
        let waited = Instant::now();
        let mut points = protected.site.points(&protected.machine)?;
        while points.len() < before + count && waited.elapsed() < HOLD_PATIENCE {
            thread::sleep(Duration::from_millis(500));
            points = protected.site.points(&protected.machine)?;
        }
        let held: Vec<_> =
            points.iter().skip(before).filter_map(|point| point.all["hold_us"].as_f64()).collect();
        let held: Vec<_> = held.into_iter().map(|micros| micros / 1000.0).collect();
        let at = |percent| percentile(&held, percent);
        let note = format!(
            "{} of {count} points in {:.0} s; p10 {:.1}, p90 {:.1}, max {:.1} ms; {}",
            held.len(),
            waited.elapsed().as_secs_f64(),
            at(10.0),
            at(90.0),
            at(100.0),
            phases(&protected.agent.log(), held.len())
        );
        let row = if held.is_empty() {
            Row::new(format!("hold per cut, {name}: no cut stood"), 0.0, "points").note(note)
        } else {
            let row = Row::new(format!("hold per cut, {name}, median"), at(50.0), "ms");
            row.against(target, "target").note(note)
        };
        rows.push(row);
    }
    Ok(rows)
}

/// Medians of what the last holds were made of, from the agent's log.
fn phases(log: &str, count: usize) -> String {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let holds: Vec<_> =
        lines.filter(|line| line.pointer("/fields/message").is_some_and(|m| m == "held")).collect();
    let last = holds.get(holds.len().saturating_sub(count)..).unwrap_or_default();
    let median = |name: &str| {
        let values = last.iter().filter_map(|hold| hold.pointer(&format!("/fields/{name}"))?.as_f64());
        percentile(&values.collect::<Vec<_>>(), 50.0)
    };
    format!(
        "medians: freeze and thaw {:.1}, takes {:.1}, reading {:.0} blocks {:.1}, verdict {:.1} ms",
        median("freezing_us") / 1000.0,
        median("taking_us") / 1000.0,
        median("blocks"),
        median("reading_us") / 1000.0,
        median("judging_us") / 1000.0
    )
}
