//! Numbers of requests for points: the cut record carries them back.

use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_common::clock::Clock;

/// A number that no request had before, also before a restart: the time, made to grow.
#[must_use]
pub fn next_request(clock: &dyn Clock) -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(clock.wall().0).unwrap_or(1);
    let before = LAST.fetch_max(now, Ordering::Relaxed);
    if before < now { now } else { LAST.fetch_add(1, Ordering::Relaxed) + 1 }
}
