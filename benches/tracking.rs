//! What tracking costs: time in the programs per write request, and fio with tracking on against off.
//!
//! Owns the device and the pairs of runs. The device is a loop device on memory if there is any, so that the disk below does not
//! hide the cost; the runs alternate, because the machine's speed drifts.

use std::{fs::File, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::capture::tracked::{ProgramStatistics, StatisticsSwitch, TrackedOptions, TrackedSource};
use holdfast_common::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
    ids::DiskId,
};
use holdfast_tests::{
    loop_device::{self, LoopDevice},
    program::installed,
};

use crate::{
    Run,
    report::{Row, percentile},
};

const DEVICE_BYTES: u64 = 1 << 30;
/// Most time per write request that the programs may take.
const PROGRAM_NS_MAX: f64 = 200.0;
/// Least part of the untracked rate that must be left.
const RATE_MIN: f64 = 0.97;

/// A tracked device whose pins go with it.
struct Tracked<'a> {
    disk: DiskId,
    options: &'a TrackedOptions,
    source: Option<TrackedSource>,
}

impl<'a> Tracked<'a> {
    fn start(device: &Path, options: &'a TrackedOptions) -> Result<Self> {
        let disk = DiskId(SystemEntropy::new().uuid(SystemClock::new().wall()));
        let (source, _) = TrackedSource::open(disk, device, options, &SystemEntropy::new())?;
        Ok(Self { disk, options, source: Some(source) })
    }

    fn statistics(&self) -> Result<ProgramStatistics> {
        Ok(self.source.as_ref().context("still tracked")?.program_statistics()?)
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        drop(self.source.take());
        if let Err(error) = TrackedSource::remove(self.disk, self.options) {
            eprintln!("cannot remove the pins of {}: {error}", self.disk);
        }
    }
}

/// Program time per write, and the ratio of rates.
pub(crate) fn tracking(run: Run) -> Result<Vec<Row>> {
    if !installed(&["fio"]) {
        return Ok(Vec::new());
    }
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(Vec::new());
    }
    let (backing, place) = backing()?;
    let device = LoopDevice::attach(&backing)?;
    let (seconds, pairs) = if run.quick { (2, 9) } else { (4, 25) };
    // Fills the backing file, so that no run pays for that.
    fio(device.path(), seconds)?;
    let rows = measure(device.path(), seconds, pairs, place);
    drop(device);
    std::fs::remove_file(&backing)?;
    rows
}

fn measure(device: &Path, seconds: u32, pairs: usize, place: &str) -> Result<Vec<Row>> {
    let options = TrackedOptions::default();
    let mut ratios = Vec::new();
    let mut rates = Vec::new();
    for pair in 0..pairs {
        // The order within the pairs alternates too.
        let tracked_first = pair % 2 == 0;
        let mut on = 0.0;
        if tracked_first {
            let _tracked = Tracked::start(device, &options)?;
            on = fio(device, seconds)?;
        }
        let off = fio(device, seconds)?;
        if !tracked_first {
            let _tracked = Tracked::start(device, &options)?;
            on = fio(device, seconds)?;
        }
        ratios.push(on / off);
        rates.push(off);
    }
    let tracked = Tracked::start(device, &options)?;
    let cost = {
        let _on = StatisticsSwitch::on()?;
        let before = tracked.statistics()?;
        fio(device, seconds)?;
        tracked.statistics()?.since(&before)
    };
    let writes = cost.write_requests.max(1) as f64;
    let time = Row::new("tracking: program time per write request", cost.run_time_ns as f64 / writes, "ns")
        .against(PROGRAM_NS_MAX, "target")
        .note(format!("{:.2} program runs per write, {writes} writes, {place}", cost.runs as f64 / writes));
    let ratio = Row::new("tracking: 4 KiB random writes, on / off", percentile(&ratios, 50.0), "")
        .against(RATE_MIN, "target, least")
        .note(format!(
            "median of {pairs} alternating pairs, p10 {:.3}, p90 {:.3}; {:.0} writes/s untracked; fio, depth 32, {place}",
            percentile(&ratios, 10.0),
            percentile(&ratios, 90.0),
            percentile(&rates, 50.0)
        ));
    Ok(vec![time, ratio])
}

/// A backing file in memory, else in the temporary folder.
fn backing() -> Result<(std::path::PathBuf, &'static str)> {
    let memory = Path::new("/dev/shm");
    let (folder, place) = if memory.is_dir() {
        (memory.to_owned(), "loop device on memory")
    } else {
        (std::env::temp_dir(), "loop device on a file")
    };
    let path = folder.join(format!("holdfast-bench-tracking-{}", std::process::id()));
    File::create_new(&path)?.set_len(DEVICE_BYTES)?;
    Ok((path, place))
}

/// Random 4 KiB writes at depth 32; writes per second.
fn fio(device: &Path, seconds: u32) -> Result<f64> {
    let output = Command::new("fio")
        .args([
            "--name=writes",
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=32",
            "--ioengine=libaio",
            "--direct=1",
        ])
        .args(["--time_based", "--output-format=json", "--randrepeat=0", "--norandommap"])
        .arg(format!("--runtime={seconds}"))
        .arg(format!("--filename={}", device.display()))
        .output()
        .context("running fio")?;
    ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value =
        serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())?;
    json.pointer("/jobs/0/write/iops").and_then(serde_json::Value::as_f64).context("fio told no rate")
}
