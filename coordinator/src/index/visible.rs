//! Which frames can be seen at a cut: those that have a block which no newer frame has.
//!
//! Owns the walk over sorted runs from the newest to the oldest. Does not read frames. Pure but for the pages of runs.
//! Invariant: a frame is named exactly if the state that the runs make takes a block from it. Cost: a step for each entry and
//! for what newer runs cover beside it; an entry that was overwritten costs one comparison, however often it was.
//! Limit: [`WINDOW_ENTRIES`] entries are looked at together, 16 bytes of memory for each, twice.

use holdfast_common::{ids::Sequence, units::BlockRange};

use super::{lookup::IndexError, run::Run};

/// Entries of all runs that are looked at together, about.
const WINDOW_ENTRIES: u64 = 1 << 18;

/// Up to so many runs this is the fastest way: a window costs a lookup in each of them.
pub(super) const RUNS_MAX: usize = 64;

/// Calls `found` with the frame of each entry that shows at least one block, newest runs first; with a frame again for each of its
/// entries. `runs` are newest first.
///
/// # Errors
/// A run is damaged or cannot be read; what was found so far is true.
pub(super) fn visible<R: AsRef<Run>>(runs: &[R], found: &mut impl FnMut(Sequence)) -> Result<(), IndexError> {
    visible_by(WINDOW_ENTRIES, runs, found)
}

fn visible_by<R: AsRef<Run>>(
    entries_max: u64,
    runs: &[R],
    found: &mut impl FnMut(Sequence),
) -> Result<(), IndexError> {
    let each = (entries_max / (runs.len() as u64).max(1)).max(1);
    let (mut covered, mut united) = (Vec::new(), Vec::new());
    let mut from = 0;
    while from < u64::MAX {
        let to = window_end(runs, from, each)?;
        covered.clear();
        for run in runs {
            Cover { covered: &covered, at: 0, united: &mut united }.with(run.as_ref(), from, to, found)?;
            std::mem::swap(&mut covered, &mut united);
            united.clear();
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
    /// The same with the run's entries.
    united: &'a mut Vec<(u64, u64)>,
}

impl Cover<'_> {
    fn with(
        mut self,
        run: &Run,
        from: u64,
        to: u64,
        found: &mut impl FnMut(Sequence),
    ) -> Result<(), IndexError> {
        run.overlapping(BlockRange::new(from, to - from), &mut |entry| {
            let (start, end) = (entry.start.max(from), entry.end().min(to));
            if !self.is_covered(start, end) {
                found(entry.sequence);
            }
            self.unite(start, end);
        })?;
        let rest = self.covered.get(self.at..).unwrap_or_default();
        rest.iter().for_each(|stretch| self.unite(stretch.0, stretch.1));
        Ok(())
    }

    /// Whether newer runs have all of these blocks. Takes over the stretches in front of them.
    fn is_covered(&mut self, start: u64, end: u64) -> bool {
        while let Some(stretch) = self.covered.get(self.at).filter(|stretch| stretch.1 <= start) {
            self.unite(stretch.0, stretch.1);
            self.at += 1;
        }
        // Stretches are apart, so several never cover what one does not.
        let covered = self.covered.get(self.at).is_some_and(|stretch| stretch.0 <= start && end <= stretch.1);
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
