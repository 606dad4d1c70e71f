//! What the programs cost.
//!
//! Owns the figures and their differences. Does not know how they are read.

use std::os::fd::OwnedFd;

/// What the kernel and the programs counted since they were attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramStatistics {
    /// Time in all programs of this disk, in nanoseconds, for events of any disk and direction. Grows only while a
    /// [`StatisticsSwitch`] (or `kernel.bpf_stats_enabled`) is on.
    pub run_time_ns: u64,
    /// Runs of the programs in that time.
    pub runs: u64,
    /// Mutating requests of this disk, counted by the issue program.
    pub write_requests: u64,
    /// Runs that the kernel skipped because the program was already running on that processor. Not an alarm in itself:
    /// most are events of other disks, and the guard sees those that are not.
    pub recursion_misses: u64,
}

impl ProgramStatistics {
    /// What was added since `earlier`.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            run_time_ns: self.run_time_ns.saturating_sub(earlier.run_time_ns),
            runs: self.runs.saturating_sub(earlier.runs),
            write_requests: self.write_requests.saturating_sub(earlier.write_requests),
            recursion_misses: self.recursion_misses.saturating_sub(earlier.recursion_misses),
        }
    }

    /// Program time per mutating request in nanoseconds; zero without requests.
    #[must_use]
    pub const fn ns_per_write(&self) -> u64 {
        match self.run_time_ns.checked_div(self.write_requests) {
            Some(value) => value,
            None => 0,
        }
    }
}

/// Has the kernel measure the time of all its programs, until dropped. Measuring costs some 20 ns per run itself.
#[derive(Debug)]
pub struct StatisticsSwitch(#[expect(dead_code, reason = "holding it keeps the switch on")] OwnedFd);

impl StatisticsSwitch {
    /// Switches measuring on.
    ///
    /// # Errors
    /// Needs `CAP_SYS_ADMIN`.
    pub fn on() -> std::io::Result<Self> {
        super::kernel::enable_statistics().map(Self)
    }
}
