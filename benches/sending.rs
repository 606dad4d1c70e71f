//! Sending: from the source's disk to the durable acknowledgement, held against what the stages cost by themselves.
//!
//! Owns the scenery. The limit is what the processors of this machine could do if every stage cost exactly what it costs
//! alone: processors / (sum of the stages' processor seconds per byte).

use std::{
    fs::File,
    io::Read as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::units::BLOCK_BYTES;
use holdfast_tests::{loop_device::LoopDevice, site::Site};
use tempfile::TempDir;

use crate::{
    Run,
    machine::{Cost, Meter, processors},
    quic,
    report::Row,
    stages,
};

/// Bytes for which the single stages are measured.
const SAMPLE_BYTES: usize = 512 << 20;
/// Compression level, on both sides of the comparison.
const LEVEL: i32 = 1;
/// Bytes between two syncs of the append pass; what a group commit gathers at full speed.
const GROUP_BYTES: u64 = 8 << 20;
const PATIENCE: Duration = Duration::from_secs(300);

/// Sustained sending of an initial copy.
pub(crate) fn sending(run: Run) -> Result<Vec<Row>> {
    let bytes: u64 = if run.quick { 3 << 29 } else { 4 << 30 };
    let device = LoopDevice::create(bytes)?;
    stages::fill_with_system_files(device.path(), bytes)?;
    // Twice, before and after, because the machine's speed drifts.
    let (_, before) = stage_costs(&device)?;
    let cost = first_copy(&device)?;
    let (stage_rows, after) = stage_costs(&device)?;
    let seconds_per_byte = f64::midpoint(before, after);
    let elapsed = cost.elapsed.as_secs_f64();
    let rate = bytes as f64 / elapsed / 1e6;
    let needed = seconds_per_byte * bytes as f64;
    let note = format!(
        "{:.1} GiB of system files, first copy to the first durable point, level {LEVEL}; {:.1} processor seconds, {:.2} of them \
         what the stages cost alone; {:.0} % of the processors were idle, {:.0} % busy with other programs",
        bytes as f64 / f64::from(1 << 30),
        cost.spent,
        needed / cost.spent,
        (1.0 - (cost.spent + cost.others) / elapsed / processors()).max(0.0) * 100.0,
        cost.others / elapsed / processors() * 100.0,
    );
    let mut rows = vec![
        Row::new("sending, agent to durable acknowledgement", rate, "MB/s")
            .against(
                cost.available() / seconds_per_byte / 1e6,
                "the stages' own costs, summed, on the processors that other programs left",
            )
            .note(note),
    ];
    rows.extend(stage_rows);
    Ok(rows)
}

/// From the order to protect an unknown disk to its first point.
fn first_copy(device: &LoopDevice) -> Result<Cost> {
    let site = Site::start()?;
    let settings = format!("[processor]\nsealing_threads = 2\nnice = 0\ncompression_level = {LEVEL}\n");
    let agent = site.add_agent_with(&[], &settings)?;
    let machine = site.only_machine()?;
    let meter = Meter::start(&[site.process_id(), agent.process_id()])?;
    let started = Instant::now();
    site.protect(&machine, &[device.path()], "1s")?;
    while site.points(&machine)?.is_empty() {
        ensure!(started.elapsed() < PATIENCE, "no point after {PATIENCE:?}; agent: {}", agent.log());
        thread::sleep(Duration::from_millis(100));
    }
    meter.stop()
}

/// Measures each stage alone; returns the rows and the sum in processor seconds per plain byte.
fn stage_costs(device: &LoopDevice) -> Result<(Vec<Row>, f64)> {
    let mut sample = vec![0; SAMPLE_BYTES];
    File::open(device.path())?.read_exact(&mut sample).context("reading the sample")?;
    let device_bytes = std::fs::metadata(device.backing())?.len() as f64;
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let read = stages::read_pass(device.path())?;
    let zero = stages::zero_pass(&sample)?;
    let (sealed, seal) = stages::seal_pass(&sample, Some(LEVEL))?;
    let quic = quic::pass(&sealed, folder.path())?;
    let verify = stages::verify_pass(&sealed)?;
    let append = stages::append_pass(&sealed, folder.path(), GROUP_BYTES)?;
    let plain = (SAMPLE_BYTES / BLOCK_BYTES * BLOCK_BYTES) as f64;
    let shrunk = plain / sealed.bytes as f64;
    let stages: [(&str, Cost, f64); 6] = [
        ("read (direct)", read, device_bytes),
        ("zero test", zero, plain),
        ("compress and hash", seal, plain),
        ("quinn, both ends", quic, plain),
        ("verify", verify, plain),
        ("append with fdatasync", append, plain),
    ];
    let mut rows = Vec::new();
    let mut sum = 0.0;
    for (name, cost, bytes) in stages {
        let nanos = cost.spent / bytes * 1e9;
        sum += cost.spent / bytes;
        let note = format!("alone: {:.0} MB/s of plain bytes", bytes / cost.elapsed.as_secs_f64() / 1e6);
        rows.push(
            Row::new(format!("  stage: {name}"), nanos, "ns of one processor per plain byte").note(note),
        );
    }
    rows.push(Row::new("  compression of the sample", shrunk, "x"));
    Ok((rows, sum))
}
