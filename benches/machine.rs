//! What work costs on this machine: processor time of our processes and of the kernel's threads, memory of one process.
//!
//! Owns the reading of /proc. Kernel threads (loop devices, write-back, journal, network) do a good part of the work and belong to
//! no process of ours, so they are counted as a whole; what other programs of the machine use is told apart, and is not ours.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};

/// `PF_KTHREAD` of a task's flags.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Processor seconds since the machine or the processes started.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// This process, its threads, and the other processes asked for.
    own: f64,
    /// All kernel threads.
    kernel: f64,
    /// Everything that was not idle.
    busy: f64,
}

/// What some work took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Elapsed time.
    pub(crate) elapsed: Duration,
    /// Processor seconds of the processes that did it, and of the kernel's threads meanwhile.
    pub(crate) spent: f64,
    /// Processor seconds that other programs used meanwhile.
    pub(crate) others: f64,
}

impl Cost {
    /// Processors that were there for this work, on average.
    pub(crate) fn available(&self) -> f64 {
        (processors() - self.others / self.elapsed.as_secs_f64()).max(0.1)
    }
}

/// A measurement under way.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Vec<u32>,
    before: Spent,
    started: std::time::Instant,
}

impl Meter {
    /// Starts measuring this process and these others.
    pub(crate) fn start(processes: &[u32]) -> Result<Self> {
        let mut processes = processes.to_vec();
        processes.push(std::process::id());
        let before = spent(&processes)?;
        Ok(Self { processes, before, started: std::time::Instant::now() })
    }

    /// What was used since.
    pub(crate) fn stop(self) -> Result<Cost> {
        let elapsed = self.started.elapsed();
        let now = spent(&self.processes)?;
        let spent = now.own + now.kernel - self.before.own - self.before.kernel;
        let others = (now.busy - self.before.busy - spent).max(0.0);
        Ok(Cost { elapsed, spent, others })
    }
}

/// Number of processors.
pub(crate) fn processors() -> f64 {
    std::thread::available_parallelism().map_or(1.0, |count| count.get() as f64)
}

/// Runs some work of this process and says what it took.
pub(crate) fn measure<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    let meter = Meter::start(&[])?;
    let result = work()?;
    Ok((result, meter.stop()?))
}

fn spent(processes: &[u32]) -> Result<Spent> {
    let mut sum = Spent { busy: busy_seconds()?, ..Spent::default() };
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // A process may end while we look.
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((_, fields)) = stat.rsplit_once(") ") else { continue };
        let field = |index: usize| fields.split(' ').nth(index).and_then(|text| text.parse::<u64>().ok());
        // After the name: 0 state, 6 flags, 11 utime, 12 stime (proc(5)).
        let (Some(flags), Some(user), Some(system)) = (field(6), field(11), field(12)) else { continue };
        let seconds = (user + system) as f64 / 100.0;
        if flags & KERNEL_THREAD != 0 {
            sum.kernel += seconds;
        } else if processes.contains(&process) {
            sum.own += seconds;
        }
    }
    Ok(sum)
}

/// Processor seconds that were not idle, of all processors together, since the machine started.
fn busy_seconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // Fields: user nice system idle iowait irq softirq steal (proc(5)); stolen time was not ours to spend.
    let busy: f64 =
        ticks.iter().enumerate().filter(|(field, _)| !matches!(field, 3 | 4 | 7..)).map(|(_, t)| t).sum();
    Ok(busy / 100.0)
}

/// Resident memory of a process in bytes.
pub(crate) fn resident_bytes(process: u32) -> Result<u64> {
    memory_bytes(&process.to_string(), "VmRSS:")
}

/// Runs this program once more with these arguments, and gives the most memory that it has had resident.
pub(crate) fn peak_of(arguments: &[&std::ffi::OsStr]) -> Result<u64> {
    let output = std::process::Command::new(std::env::current_exe()?).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "a second process failed: {complaint}");
    text.trim().parse().with_context(|| format!("no number of bytes: {text:?}"))
}

/// Most memory that this process has had resident, in bytes.
pub(crate) fn own_peak_bytes() -> Result<u64> {
    memory_bytes("self", "VmHWM:")
}

fn memory_bytes(process: &str, field: &'static str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context(field)?;
    let kib: u64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).context(field)?;
    Ok(kib * 1024)
}
