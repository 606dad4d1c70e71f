//! From an operator's wish to the effect: failing over, changing the point, and a source that replicates again.
//!
//! Owns the scenery: a protected disk with some history, on this host, with the real programs. Times are taken outside of the
//! coordinator, around the operator's command, so they hold the start of that command too.

use std::{
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    loop_device::LoopDevice,
    protected::{PATIENCE, Protected},
    site::wait_for,
};

use crate::{
    Run,
    report::{Row, percentile},
};

const DISK_BYTES: u64 = 1 << 30;
/// What the targets ask for.
const FIRST_BLOCK_MS_MAX: f64 = 1000.0;
const CHANGE_MS_MAX: f64 = 2000.0;
const CANCEL_MS_MAX: f64 = 5000.0;

/// Failover, change of the point, cancel; a few times.
pub(crate) fn lifecycle(run: Run) -> Result<Vec<Row>> {
    let device = LoopDevice::create(DISK_BYTES)?;
    let protected = Protected::start(&[device.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());
    protected.wait_for_points(2)?;
    let (mut over, mut changed, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..if run.quick { 3_u8 } else { 10 } {
        fill(&device, round)?;
        let point = site.wait_for_new_point(machine, PATIENCE)?;
        let generation = generation(&protected)?;
        let started = Instant::now();
        let job = site.cli(&["failover", machine, "--point", "latest", "--attach"])?;
        over.push(millis(started));
        ensure!(job["state"] == "holding", "{job}");
        let started = Instant::now();
        let job = site.cli(&["change-point", machine, "--point", &point.id])?;
        changed.push(millis(started));
        ensure!(job["point"] == point.id.as_str(), "{job}");
        let started = Instant::now();
        site.cli(&["cancel", machine])?;
        wait_for("the source to replicate again", Duration::from_secs(60), || {
            let status = site.cli(&["status"])?["machines"][0].clone();
            Ok((status["connected"] == true && status["disks"][0]["state"] == "protected").then_some(()))
        })?;
        back.push(millis(started));
        site.wait_for_new_point(machine, PATIENCE)?;
        ensure!(self::generation(&protected)? == generation, "a cancel cost a comparison");
    }
    Ok(vec![
        worst(
            "lifecycle: trigger to first block, source alive, with its last cut",
            &over,
            FIRST_BLOCK_MS_MAX,
        ),
        worst("lifecycle: change of the point to first block", &changed, CHANGE_MS_MAX),
        worst("lifecycle: cancel to replicating again, without a comparison", &back, CANCEL_MS_MAX),
    ])
}

/// Some blocks with a content of their own.
fn fill(device: &LoopDevice, round: u8) -> Result<()> {
    let mut file = std::fs::File::options().read(true).write(true).open(device.path())?;
    file.seek(SeekFrom::Start(u64::from(round) << 24))?;
    let mut bytes = vec![0; 8 << 20];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    file.write_all(&bytes)?;
    file.sync_all().context("writing to the disk")
}

fn generation(protected: &Protected) -> Result<u64> {
    let status = protected.site.cli(&["status"])?;
    status["machines"][0]["disks"][0]["generation"].as_u64().context("a generation")
}

fn millis(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1000.0
}

fn worst(name: &str, times: &[f64], most: f64) -> Row {
    let median = percentile(times, 50.0);
    let note = format!("slowest of {}; median {median:.0} ms", times.len());
    Row::new(name, percentile(times, 100.0), "ms").against(most, "ms at most").note(note)
}
