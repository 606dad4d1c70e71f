//! What the machine spent: processor time of everything on it, memory of one process.
//!
//! Owns the reading of /proc. Processor time is taken for the whole machine, because kernel threads (loop devices, write-back,
//! network softirqs) do a good part of the work and belong to no process of ours. So nothing else may run beside a bench.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// Processor seconds that were not idle, of all processors together, since the machine started.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // Fields: user nice system idle iowait irq softirq steal (proc(5)); stolen time was not ours to spend.
    let busy: f64 =
        ticks.iter().enumerate().filter(|(field, _)| !matches!(field, 3 | 4 | 7..)).map(|(_, t)| t).sum();
    Ok(busy / 100.0)
}

/// Number of processors.
pub(crate) fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// What some work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Elapsed time.
    pub(crate) elapsed: Duration,
    /// Processor seconds of the whole machine.
    pub(crate) busy: f64,
}

/// Runs some work and says what it took.
pub(crate) fn measure<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    let busy = busy_seconds()?;
    let started = std::time::Instant::now();
    let result = work()?;
    let elapsed = started.elapsed();
    Ok((result, Cost { elapsed, busy: busy_seconds()? - busy }))
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_bytes(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|field| field.parse().ok()).context("VmRSS")?;
    Ok(kib * 1024)
}
