//! Compares what the issue program counted with what the kernel's own statistics counted.
//!
//! Owns the arithmetic only: no files, no maps, no clock. It speaks of sectors, never of requests, because an empty flush
//! counts as a write request in the statistics of some kernels and is never issued as one.
//!
//! The statistics count sectors when they complete, the program counts them when they are issued. So with the
//! statistics read *first* and the program's count read *after*:
//!
//! - `completed <= issued` always holds, under any load; more completed than issued is certain proof of a miss;
//! - `completed == issued` means that every request issued so far is complete: nothing is in flight.
//!
//! The baseline, the difference of the two at a moment when nothing was in flight, removes what was written before the
//! program was attached. Without a baseline nothing is claimed.

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is no baseline yet.
    Unknown,
    /// Everything issued is complete, and nothing was missed.
    Complete,
    /// This many sectors are issued and not complete.
    Outstanding(u64),
    /// At least this many sectors were written without the program having seen them.
    Missed(u64),
}

/// One reading of everything that a baseline needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Sectors completed, by the kernel's statistics; read first.
    pub(super) completed: u64,
    /// Requests in flight, by the kernel's statistics.
    pub(super) in_flight: u64,
    /// In-flight slots in use.
    pub(super) slots_in_use: usize,
    /// Sectors issued, by the program; read last.
    pub(super) issued: u64,
}

/// Compares the two counts.
pub(super) fn compare(baseline: Option<u64>, completed: u64, issued: u64) -> Verdict {
    let Some(baseline) = baseline else { return Verdict::Unknown };
    // Both counters may wrap around; their distance stays small.
    let ahead = completed.wrapping_sub(baseline).wrapping_sub(issued).cast_signed();
    match ahead {
        0 => Verdict::Complete,
        1.. => Verdict::Missed(ahead.unsigned_abs()),
        _ => Verdict::Outstanding(ahead.unsigned_abs()),
    }
}

/// The baseline, if all readings (taken with pauses between them) show the same disk at rest.
pub(super) fn baseline(readings: &[Reading]) -> Option<u64> {
    let first = readings.first()?;
    let is_at_rest =
        first.in_flight == 0 && first.slots_in_use == 0 && readings.iter().all(|other| other == first);
    is_at_rest.then(|| first.completed.wrapping_sub(first.issued))
}

#[cfg(test)]
mod tests;
