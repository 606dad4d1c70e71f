//! What the quickstart found, as one JSON object or as a table.

use std::fmt;

use serde::Serialize;

/// The figures. The names are a stable interface of `holdfast quickstart --json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    /// Whether every checked point held exactly a prefix of the writer's history.
    pub(super) ok: bool,
    /// Capture in use: "tracked" or "scan".
    pub(super) capture: &'static str,
    /// Recovery points made.
    pub(super) points: usize,
    /// Recovery points attached, read and checked.
    pub(super) points_checked: usize,
    /// Recovery point objective: cut until durable at the coordinator, median, milliseconds.
    pub(super) rpo_ms_p50: f64,
    /// The same, 99th percentile.
    pub(super) rpo_ms_p99: f64,
    /// How long writes were held per cut, median, milliseconds.
    pub(super) hold_ms_p50: f64,
    /// From the trigger of the failover to the first byte of the attached disk, milliseconds.
    pub(super) rto_ms: f64,
    /// Bytes that the agent sent, resends included.
    pub(super) sent_bytes: u64,
    /// Bytes that the coordinator's store takes.
    pub(super) stored_bytes: u64,
    /// Duration of all this.
    pub(super) seconds: f64,
}

impl Report {
    pub(super) fn set_rpo(&mut self, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        self.rpo_ms_p50 = percentile(&samples, 50);
        self.rpo_ms_p99 = percentile(&samples, 99);
    }

    pub(super) fn set_hold(&mut self, mut samples: Vec<f64>) {
        samples.sort_by(f64::total_cmp);
        self.hold_ms_p50 = percentile(&samples, 50);
    }
}

/// Nearest-rank percentile of ascending samples; zero without samples.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        writeln!(
            f,
            "{} of {} recovery points checked: every one is exactly a prefix of the writer's history.",
            self.points_checked, self.points
        )?;
        writeln!(f, "  capture             {}", self.capture)?;
        writeln!(
            f,
            "  RPO (cut to durable)  median {:.0} ms, 99 % below {:.0} ms",
            self.rpo_ms_p50, self.rpo_ms_p99
        )?;
        writeln!(f, "  writes held per cut   median {:.1} ms", self.hold_ms_p50)?;
        writeln!(f, "  RTO (trigger to first byte)  {:.0} ms", self.rto_ms)?;
        writeln!(f, "  sent {:.1} MiB, stored {:.1} MiB", mib(self.sent_bytes), mib(self.stored_bytes))?;
        write!(f, "  {:.0} s in all; everything was cleaned up.", self.seconds)
    }
}
