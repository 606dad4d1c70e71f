//! Which frames can be seen at a cut: those that have a block which no newer frame has.
//!
//! Owns the walk over sorted runs from the newest to the oldest. Does not read frames. Pure but for the pages of runs.
//! Invariant: a frame is named exactly if the state that the runs make takes a block from it. Cost: a step for each entry and
//! for what newer runs cover beside it; an entry that was overwritten costs one comparison, however often it was.
//! Limit: [`WINDOW_ENTRIES`] entries are looked at together by each thread, 16 bytes of memory for each, twice; at most
//! [`THREADS_MAX`](super::threads::THREADS_MAX) threads, which share the blocks.

use std::{panic, thread};

use holdfast_common::{ids::Sequence, units::BlockRange};

use super::{entry::IndexEntry, lookup::IndexError, run::Run, threads::threads_for};
use crate::store::FrameSet;

/// Entries of all runs that are looked at together, about.
const WINDOW_ENTRIES: u64 = 1 << 18;

/// Up to so many runs this is the fastest way: a window costs a lookup in each of them.
pub(super) const RUNS_MAX: usize = 64;

/// The frames behind `after` of entries that show at least one block. `runs` are newest first.
///
/// # Errors
/// A run is damaged or cannot be read.
pub(super) fn visible<R: AsRef<Run> + Sync>(runs: &[R], after: Sequence) -> Result<FrameSet, IndexError> {
    let entries: u64 = runs.iter().map(|run| run.as_ref().len()).sum();
    visible_on(threads_for(entries) as u64, runs, after)
}

/// Shares the blocks among so many threads, so that each has about as many entries of the largest run.
fn visible_on<R: AsRef<Run> + Sync>(
    threads: u64,
    runs: &[R],
    after: Sequence,
) -> Result<FrameSet, IndexError> {
    let largest = runs.iter().map(AsRef::as_ref).max_by_key(|run| run.len());
    let Some(largest) = largest else { return Ok(FrameSet::new(after)) };
    let (mut shares, mut from) = (Vec::new(), 0);
    for number in 1..threads {
        let entry = largest.entry(largest.len() * number / threads)?;
        let to = entry.map_or(from, |entry| entry.start);
        shares.push((from, to));
        from = to;
    }
    let work = |(from, to)| {
        let mut frames = FrameSet::new(after);
        visible_in(WINDOW_ENTRIES, (from, to), runs, &mut |sequence| frames.insert(sequence))?;
        Ok(frames)
    };
    thread::scope(|scope| {
        let begin = |share| {
            let thread = thread::Builder::new().name("index-visible".to_owned());
            // Where there is no thread to be had, the caller does it.
            thread.spawn_scoped(scope, move || work(share)).map_err(|_none| share)
        };
        let others: Vec<_> = shares.into_iter().map(begin).collect();
        let mut frames = work((from, u64::MAX));
        for other in others {
            let found = match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)),
                Err(share) => work(share),
            };
            frames = frames.and_then(|mut frames| {
                frames.unite(&found?);
                Ok(frames)
            });
        }
        frames
    })
}

/// Calls `found` with the frame of each entry that shows at least one of these blocks, newest runs first; with a frame again for
/// each of its entries.
fn visible_in<R: AsRef<Run>>(
    entries_max: u64,
    (first, end): (u64, u64),
    runs: &[R],
    found: &mut impl FnMut(Sequence),
) -> Result<(), IndexError> {
    let each = (entries_max / (runs.len() as u64).max(1)).max(1);
    let (mut covered, mut united) = (Vec::new(), Vec::new());
    let mut from = first;
    while from < end {
        let to = window_end(runs, from, each)?.min(end);
        covered.clear();
        for run in runs {
            let cover = Cover { covered: &covered, at: 0, adds: false, united: &mut united };
            if cover.with(run.as_ref(), from, to, found)? {
                std::mem::swap(&mut covered, &mut united);
                united.clear();
            }
        }
        from = to;
    }
    Ok(())
}

/// Where to stop, so that no run has more than `each` entries behind the first one from `from` on.
fn window_end<R: AsRef<Run>>(runs: &[R], from: u64, each: u64) -> Result<u64, IndexError> {
    let mut end = u64::MAX;
    for run in runs {
        let run = run.as_ref();
        let position = run.position(from)?;
        // The entry at the position itself may begin in front of the window.
        if let Some(entry) = run.entry(position + each)? {
            end = end.min(entry.start);
        }
    }
    Ok(end)
}

/// One run laid under what newer ones cover.
struct Cover<'a> {
    /// Ascending, apart from each other: first block, and first block behind.
    covered: &'a [(u64, u64)],
    /// Place of the first stretch that may still matter.
    at: usize,
    /// Whether the run has a block that no newer one has.
    adds: bool,
    /// If so, the same with the run's entries.
    united: &'a mut Vec<(u64, u64)>,
}

impl Cover<'_> {
    /// Calls `found` with what the run shows. Says whether it shows anything: otherwise `united` is not made.
    fn with(
        mut self,
        run: &Run,
        from: u64,
        to: u64,
        found: &mut impl FnMut(Sequence),
    ) -> Result<bool, IndexError> {
        run.overlapping(BlockRange::new(from, to - from), &mut |entry: IndexEntry| {
            let (start, end) = (entry.start.max(from), entry.end().min(to));
            if !self.is_covered(start, end) {
                found(entry.sequence);
            }
            if self.adds {
                self.unite(start, end);
            }
        })?;
        if self.adds {
            let rest = self.covered.get(self.at..).unwrap_or_default();
            rest.iter().for_each(|stretch| self.unite(stretch.0, stretch.1));
        }
        Ok(self.adds)
    }

    /// Whether newer runs have all of these blocks. Takes over the stretches in front of them.
    fn is_covered(&mut self, start: u64, end: u64) -> bool {
        while let Some(stretch) = self.covered.get(self.at).filter(|stretch| stretch.1 <= start) {
            if self.adds {
                self.unite(stretch.0, stretch.1);
            }
            self.at += 1;
        }
        // Stretches are apart, so several never cover what one does not.
        let covered = self.covered.get(self.at).is_some_and(|stretch| stretch.0 <= start && end <= stretch.1);
        if !covered && !self.adds {
            self.adds = true;
            self.united.extend_from_slice(self.covered.get(..self.at).unwrap_or_default());
        }
        if !self.adds {
            return covered;
        }
        // What begins in front of the entry must come before it.
        if let Some(stretch) = self.covered.get(self.at).filter(|stretch| stretch.0 <= start) {
            self.unite(stretch.0, stretch.1);
        }
        covered
    }

    /// Adds blocks that begin no earlier than any that were added.
    fn unite(&mut self, start: u64, end: u64) {
        match self.united.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => self.united.push((start, end)),
        }
    }
}

#[cfg(test)]
mod tests;
