//! Planning: from a set of changed blocks to bounded frames, sorted by offset.
//!
//! Pure. Owns the shape of frames; does not read. Invariants: runs of a plan ascend and never touch or overlap, no
//! block stands twice in a batch, and a plan fits one buffer and one frame.
//! Limits: [`FRAME_BLOCKS`] blocks per frame, and those of the [`BatchShape`].

use holdfast_common::{
    frame::FRAME_EXTENTS_MAX,
    units::{BlockCount, BlockIndex, BlockRange},
};

use super::FRAME_BLOCKS;
use crate::capture::BlockSet;

const _: () = assert!(FRAME_BLOCKS <= FRAME_EXTENTS_MAX, "a frame of single blocks has an extent for each");

/// The blocks of one frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FramePlan {
    /// Runs of neighbouring blocks, ascending.
    pub runs: Vec<BlockRange>,
}

/// How large a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchShape {
    /// Most frames.
    pub frames_max: usize,
    /// Most blocks of each, up to [`FRAME_BLOCKS`].
    pub frame_blocks: usize,
}

impl BatchShape {
    /// Full frames.
    #[must_use]
    pub const fn full(frames_max: usize) -> Self {
        Self { frames_max, frame_blocks: FRAME_BLOCKS }
    }
}

impl FramePlan {
    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> usize {
        self.runs.iter().map(|run| usize::try_from(run.count.0).unwrap_or(usize::MAX)).sum()
    }
}

/// Moves up to a batch's worth of blocks out of `set`, starting at `from` and going on at the disk's
/// beginning, so that a disk that is written faster than it is read has every block's turn come.
#[must_use]
pub fn plan_batch(set: &mut BlockSet, from: BlockIndex, shape: BatchShape) -> Vec<FramePlan> {
    let BatchShape { frames_max, frame_blocks } = shape;
    let mut frames = Vec::with_capacity(frames_max);
    let mut cursor = from;
    while frames.len() < frames_max && !set.is_empty() {
        let Some(frame) = plan_frame(set, cursor, frame_blocks.clamp(1, FRAME_BLOCKS)) else {
            // Nothing behind the cursor, yet the set is not empty: go on at the beginning.
            cursor = BlockIndex(0);
            continue;
        };
        cursor = frame.runs.last().map_or(cursor, |run| run.end());
        frames.push(frame);
    }
    // The turn of the cursor may have put the disk's beginning last.
    frames.sort_by_key(|frame| frame.runs.first().map(|run| run.start));
    frames
}

fn plan_frame(set: &mut BlockSet, from: BlockIndex, blocks: usize) -> Option<FramePlan> {
    let mut runs = Vec::new();
    let mut room = blocks as u64;
    let mut cursor = from;
    while room > 0 {
        let Some(run) = set.next_run(cursor, BlockCount(room)) else { break };
        set.remove(run);
        room -= run.count.0;
        cursor = run.end();
        runs.push(run);
    }
    (!runs.is_empty()).then_some(FramePlan { runs })
}

#[cfg(test)]
mod tests;
