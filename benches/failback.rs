//! The way back: what is moved, and for how long the machine stands still, where both sides have written since the failover.
//!
//! Owns the scenery: a large disk with little on it, on this host, with the real programs.

use std::{fs::File, io::Read as _, os::unix::fs::FileExt as _, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    loop_device::LoopDevice,
    protected::{PATIENCE, Protected},
    site::wait_for,
};
use serde_json::Value;

use crate::{Run, report::Row};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// What the target asks for: bytes moved to bytes that differ.
const MOVED_MAX: f64 = 1.1;
/// A chunk whose digest is compared, and a digest.
const CHUNK_BYTES: u64 = 256 << 10;
const DIGEST_BYTES: u64 = 32;

/// Failover, both sides write, re-protection, failback.
pub(crate) fn failback(run_: Run) -> Result<Vec<Row>> {
    let (disk_bytes, changed_bytes) = if run_.quick { (8 * GIB, 128 * MIB) } else { (64 * GIB, GIB) };
    let device = LoopDevice::create(disk_bytes)?;
    let mut protected = Protected::start(&[device.path()])?;
    let machine = protected.machine.clone();
    fill(device.path(), 0, changed_bytes)?;
    protected.wait_for_points(1)?;
    protected.site.wait_for_new_point(&machine, PATIENCE)?;
    protected.agent.kill()?;
    let job = protected.site.cli(&["failover", &machine, "--point", "latest", "--attach", "--writable"])?;
    let uri = job["exports"][0]["uri"].as_str().context("an export")?.to_owned();
    // The source writes over the first half of what was there and as much behind it, the target somewhere else.
    fill(device.path(), changed_bytes / 2, changed_bytes)?;
    let folder = tempfile::TempDir::with_prefix("holdfast-failback-")?;
    let content = folder.path().join("content");
    File::create(&content)?.set_len(changed_bytes)?;
    fill(&content, 0, changed_bytes)?;
    let write = format!("write -s {} {} {changed_bytes}", content.display(), disk_bytes / 2);
    run(Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush", &uri]))?;
    protected.agent.start()?;
    protected.site.cli(&["commit", &machine])?;
    let started = Instant::now();
    succeeded(&protected.site.cli(&["reprotect", &machine])?)?;
    let reprotected = started.elapsed();
    protected.site.wait_for_new_point(&machine, PATIENCE)?;
    let started = Instant::now();
    let job = protected.site.cli(&["failback", &machine])?;
    let back = started.elapsed();
    succeeded(&job)?;
    let rounds = job["written_back"].as_array().context("rounds")?;
    let sum = |of: &str| rounds.iter().filter_map(|round| round[of].as_u64()).sum::<u64>();
    let (compared, written, sent) = (sum("compared_bytes"), sum("written_bytes"), sum("sent_bytes"));
    ensure!(written >= 2 * changed_bytes, "{written} bytes were written, and more differ");
    let moved = sent + compared / CHUNK_BYTES * DIGEST_BYTES + written / 4096 * 16;
    let stood_still = stood_still(&job)?;
    wait_for("the machine to be protected", PATIENCE, || {
        let status = protected.site.cli(&["status"])?["machines"][0].clone();
        Ok((status["lifecycle"]["stage"] == "protected").then_some(()))
    })?;
    let scenery = format!("{} GiB, {} MiB changed on each side", disk_bytes / GIB, changed_bytes / MIB);
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let ratio = moved as f64 / written as f64;
    Ok(vec![
        Row::new("failback: bytes moved, digests included, to bytes that differ", ratio, "x")
            .against(MOVED_MAX, "at most")
            .note(&scenery),
        Row::new("failback: re-protection to the first point", reprotected.as_secs_f64(), "s").note(&scenery),
        Row::new("failback: all of it", back.as_secs_f64(), "s").note(&scenery),
        Row::new("failback: the machine stands still for", stood_still, "s").note(&scenery),
    ])
}

/// What the steps took in which the machine runs nowhere, in seconds.
fn stood_still(job: &Value) -> Result<f64> {
    let steps = job["steps"].as_array().context("steps")?;
    let still = ["stop-target", "last-point", "write-back-rest", "switch-back"];
    let took = steps.iter().filter(|step| step["kind"].as_str().is_some_and(|kind| still.contains(&kind)));
    Ok(took.filter_map(|step| step["took_ms"].as_f64()).sum::<f64>() / 1000.0)
}

fn succeeded(job: &Value) -> Result<()> {
    ensure!(job["state"] == "succeeded", "{job}");
    Ok(())
}

/// Bytes that cannot be compressed.
fn fill(path: &Path, at: u64, bytes: u64) -> Result<()> {
    let (file, mut random) = (File::options().write(true).open(path)?, File::open("/dev/urandom")?);
    let mut buffer = vec![0; usize::try_from(MIB)?];
    for offset in (at..at + bytes).step_by(buffer.len()) {
        random.read_exact(&mut buffer)?;
        file.write_all_at(&buffer, offset)?;
    }
    file.sync_all().context("writing")
}
