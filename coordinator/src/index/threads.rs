//! How many threads share a piece of work.
//!
//! Owns the rule. Pure but for the number of processors. Limit: [`THREADS_MAX`].

use std::{num::NonZero, thread};

/// Most threads that work.
pub(super) const THREADS_MAX: usize = 8;

/// Entries for which one more thread is worth it.
const THREAD_ENTRIES: u64 = 1 << 15;

/// Threads for work on so many entries, at least one.
pub(super) fn threads_for(entries: u64) -> usize {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let worth = usize::try_from(entries / THREAD_ENTRIES).unwrap_or(usize::MAX);
    processors.min(THREADS_MAX).min(worth).max(1)
}
