//! Which bundles to read for a stretch of a disk, in which order, and what of each is wanted.
//!
//! Pure: is told of extents, reads nothing. Invariants: every bundle stands in a plan once, with all of its parts; bundles
//! ascend by their first block, so that when all bundles before one are written, every block below its first is.
//! Limit: [`PARTS_MAX`] parts, 24 bytes each, and 16 for each run; then a plan stops short.

use holdfast_common::units::{BlockIndex, BlockRange};

use crate::points::view::{BundlePart, BundlePlace};

/// What is to be done with some neighbouring blocks of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Leave them as they are.
    Keep,
    /// Make them zero.
    Zero,
    /// Write the bytes that are here.
    Write(BundlePlace),
}

/// Actions for the front of a range, and thereby how far the answer reaches.
pub(super) type Actions = Vec<(BlockRange, Action)>;

/// A plan.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By bundle, then by block.
    parts: Vec<Part>,
    bundles: Vec<Bundle>,
    /// Blocks to write, ascending, neighbours as one run.
    pub(super) runs: Vec<BlockRange>,
    /// Blocks to make zero, ascending.
    pub(super) zeroes: Vec<BlockRange>,
    /// The first block that is not planned for.
    pub(super) end: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    bundle: u64,
    start: u64,
    count: u32,
    at_block: u32,
}

#[derive(Clone, Copy, Debug)]
struct Bundle {
    first_block: u64,
    from: u32,
    to: u32,
}

impl Plan {
    /// Plans for `range`, or its front, asking `actions` piece by piece.
    ///
    /// # Errors
    /// Those of `actions`.
    pub(super) fn make<E>(
        range: BlockRange,
        parts_max: usize,
        actions: &mut dyn FnMut(BlockRange) -> Result<Actions, E>,
    ) -> Result<Self, E> {
        let mut plan = Self { end: range.start.0, ..Self::default() };
        while plan.end < range.end().0 && plan.parts.len() + plan.zeroes.len() < parts_max {
            let rest = BlockRange::new(plan.end, range.end().0 - plan.end);
            let before = plan.end;
            for (blocks, action) in actions(rest)? {
                plan.add(blocks, action);
            }
            if plan.end == before {
                break;
            }
        }
        plan.group();
        Ok(plan)
    }

    fn add(&mut self, blocks: BlockRange, action: Action) {
        self.end = blocks.end().0;
        match action {
            Action::Keep => {}
            Action::Zero => join(&mut self.zeroes, blocks),
            Action::Write(BundlePlace { bundle, at_block }) => {
                join(&mut self.runs, blocks);
                // A bundle has far fewer blocks than that.
                let count = u32::try_from(blocks.count.0).unwrap_or(u32::MAX);
                self.parts.push(Part { bundle, start: blocks.start.0, count, at_block });
            }
        }
    }

    fn group(&mut self) {
        self.parts.sort_unstable();
        let mut from = 0;
        for same in self.parts.chunk_by(|left, right| left.bundle == right.bundle) {
            let to = from + u32::try_from(same.len()).unwrap_or(u32::MAX);
            let first_block = same.first().map_or(0, |part| part.start);
            self.bundles.push(Bundle { first_block, from, to });
            from = to;
        }
        self.bundles.sort_unstable_by_key(|bundle| bundle.first_block);
    }

    /// Number of bundles.
    pub(super) fn len(&self) -> usize {
        self.bundles.len()
    }

    /// The first block of a bundle; behind the last bundle the plan's end.
    pub(super) fn first_block(&self, index: usize) -> u64 {
        self.bundles.get(index).map_or(self.end, |bundle| bundle.first_block)
    }

    /// The bundle at this place, and what is wanted of it, put into `parts`.
    pub(super) fn bundle(&self, index: usize, parts: &mut Vec<BundlePart>) -> Option<u64> {
        let Bundle { from, to, .. } = self.bundles.get(index)?;
        let wanted = self.parts.get(*from as usize..*to as usize)?;
        parts.clear();
        parts.extend(wanted.iter().map(|part| BundlePart {
            range: BlockRange {
                start: BlockIndex(part.start),
                count: holdfast_common::units::BlockCount(u64::from(part.count)),
            },
            at_block: part.at_block,
        }));
        wanted.first().map(|part| part.bundle)
    }
}

fn join(runs: &mut Vec<BlockRange>, blocks: BlockRange) {
    match runs.last_mut().filter(|last| last.end() == blocks.start) {
        Some(last) => last.count.0 += blocks.count.0,
        None => runs.push(blocks),
    }
}

/// Parts of one plan: 48 MiB. At a grain of 4 KiB that is 8 GiB of data whose bundles are each read once.
pub(super) const PARTS_MAX: usize = 2 << 20;

#[cfg(test)]
mod tests;
