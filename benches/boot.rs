//! From an operator's wish to the first block that a machine's QEMU has read, with the source dead, over what is pending and over
//! the disk's size.
//!
//! Owns the scenery: a large disk on this host, with the real programs. The disk has a boot sector and nothing to boot: the first
//! block is the firmware's. Pending means that nothing of the history is indexed or verified: the coordinator has just been started
//! without an index and without the record of what it has checked, and what the trigger meets is a log. Times are taken around the
//! operator's command, which looks at its job in growing steps; whether they are flat is told from the job's own time.

use std::{fs, io, os::unix::fs::FileExt as _, time::Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_tests::{
    guest,
    loop_device::LoopDevice,
    protected::{PATIENCE, Protected},
};

use crate::{
    Run,
    report::{Row, percentile},
};

const GIB: u64 = 1 << 30;
/// What the targets ask for.
const FIRST_BLOCK_MS_MAX: f64 = 1000.0;
const CHANGE_MS_MAX: f64 = 2000.0;
const FLAT_MAX: f64 = 1.2;
/// Bytes written at a time; they do not compress, so that what is pending is stored and read in full.
const WRITE_BYTES: usize = 1 << 20;
/// The hardware: the inventory is this host's.
const HARDWARE: &str =
    "processors = 1\nmemory_mib = 256\ncpu = \"Westmere\"\ndisk_model = \"virtio\"\nfirmware = \"bios\"\n";

/// Trigger to QEMU's first block, and change of the point to it.
pub(crate) fn boot(run: Run) -> Result<Vec<Row>> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(Vec::new());
    }
    let (most, sizes) = if run.quick { (2, [8, 32]) } else { (10, [16, 64]) };
    let (mut rows, mut times) = (Vec::new(), Vec::new());
    for (pending, size) in [(0, sizes[0]), (most, sizes[0]), (most, sizes[1])] {
        let scene = scene(pending * GIB, size * GIB, if run.quick { 3 } else { 5 })?;
        let what = format!("{pending} GiB pending, a disk of {size} GiB");
        rows.push(row(
            format!("boot: trigger to QEMU's first block, {what}"),
            &scene.over,
            FIRST_BLOCK_MS_MAX,
        ));
        rows.push(row(format!("boot: change of the point to that, {what}"), &scene.changed, CHANGE_MS_MAX));
        times.push(median(&scene.over, |taken| taken.job_ms));
    }
    let flat = percentile(&times, 100.0) / percentile(&times, 0.0);
    rows.push(
        Row::new("boot: trigger to first block, the slowest of these over the fastest", flat, "times")
            .against(FLAT_MAX, "flat within a fifth")
            .note("of the medians of the jobs' own times"),
    );
    Ok(rows)
}

/// What one try took, in milliseconds.
struct Taken {
    /// The operator's command.
    command_ms: f64,
    /// The job until QEMU had read its first block.
    job_ms: f64,
    /// In it, processing the point.
    processing_ms: f64,
}

#[derive(Default)]
struct Scene {
    over: Vec<Taken>,
    changed: Vec<Taken>,
}

fn scene(pending: u64, size: u64, tries: usize) -> Result<Scene> {
    let device = LoopDevice::create(size)?;
    let mut protected = Protected::start(&[device.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    fill(&device, pending)?;
    let older = protected.site.wait_for_new_point(&machine, PATIENCE)?;
    protected.site.wait_for_new_point(&machine, PATIENCE)?;
    protected.site.set_hardware(&machine, HARDWARE)?;
    protected.agent.kill()?;
    let mut scene = Scene::default();
    for _ in 0..tries {
        protected.site.stop_coordinator()?;
        ensure!(forget_all_but_logs(&protected)? > 0, "no index was found");
        protected.site.start_coordinator()?;
        scene.over.push(taken(&protected, &["failover", &machine, "--point", "latest", "--vm"])?);
        scene.changed.push(taken(&protected, &["change-point", &machine, "--point", &older.id])?);
        protected.site.cli(&["cancel", &machine])?;
    }
    Ok(scene)
}

fn taken(protected: &Protected, command: &[&str]) -> Result<Taken> {
    let started = Instant::now();
    let job = protected.site.cli(command)?;
    let command_ms = started.elapsed().as_secs_f64() * 1000.0;
    ensure!(job["state"] == "holding" && job["runs"]["runs_as"].is_string(), "{job}");
    let steps = job["steps"].as_array().context("its steps")?;
    let processed = steps.iter().find(|step| step["kind"] == "process-point").context("processing")?;
    let processing_ms = processed["took_ms"].as_f64().context("how long it took")?;
    let job_ms = job["rto_us"].as_f64().context("the job's own time")? / 1000.0;
    Ok(Taken { command_ms, job_ms, processing_ms })
}

/// Removes the indexes of all disks, and the records of what was verified; says how many indexes there were.
fn forget_all_but_logs(protected: &Protected) -> Result<usize> {
    let mut removed = 0;
    for disk in fs::read_dir(protected.site.data().join("store/disks"))? {
        let disk = disk?.path();
        if disk.join("index").is_dir() {
            fs::remove_dir_all(disk.join("index"))?;
            removed += 1;
        }
        match fs::remove_file(disk.join("checks.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(removed)
}

fn fill(device: &LoopDevice, bytes: u64) -> Result<()> {
    let file = fs::File::options().write(true).open(device.path())?;
    let mut buffer = vec![0; WRITE_BYTES];
    // A boot sector, so that the firmware has a reason to read on.
    file.write_all_at(&[0x55, 0xaa], 510)?;
    let entropy = SeededEntropy::new(5);
    for at in (WRITE_BYTES as u64..=bytes).step_by(WRITE_BYTES) {
        entropy.fill(&mut buffer);
        file.write_all_at(&buffer, at)?;
    }
    file.sync_all().context("writing to the disk")
}

fn median(times: &[Taken], of: impl Fn(&Taken) -> f64) -> f64 {
    percentile(&times.iter().map(of).collect::<Vec<_>>(), 50.0)
}

fn row(name: String, times: &[Taken], most: f64) -> Row {
    let slowest = percentile(&times.iter().map(|taken| taken.command_ms).collect::<Vec<_>>(), 100.0);
    let note = format!(
        "slowest of {}; medians: {:.0} ms, the job alone {:.0} ms, of which processing {:.0} ms",
        times.len(),
        median(times, |taken| taken.command_ms),
        median(times, |taken| taken.job_ms),
        median(times, |taken| taken.processing_ms)
    );
    Row::new(name, slowest, "ms").against(most, "ms at most").note(note)
}
