//! A cut's witness: some blocks are read while writes are held, and hashed afterwards.
//!
//! Owns the reads, made ready before the hold, and their buffers. Which blocks, and how many, is decided in
//! [`crate::capture::witness`]. Invariant: a cut is never void because of its witness; what cannot be read is left out.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use holdfast_common::{
    clock::Clock,
    entropy::Entropy,
    frame::{Witness, WitnessBlock, witness_digest},
    units::{BLOCK_BYTES, BlockRange},
};

use super::disk::Disk;
use crate::{
    batch::{BufferPool, FramePlan, ReadFrame},
    capture::witness::{BLOCKS_MAX, Field, HOLD_LONG, Pace, READS, choose, goes_on},
};

/// What a source's witnesses need from cut to cut.
#[derive(Debug)]
pub(super) struct Witnesses {
    /// A buffer for each block, so that several are read at a time (1 MiB).
    pool: BufferPool,
    pace: Pace,
}

/// The reads of one cut.
#[derive(Debug, Default)]
pub(super) struct WitnessReads {
    /// To be read, a few at a time: the disk's place, and its frames of one block.
    waiting: VecDeque<(usize, Vec<ReadFrame>)>,
    read: Vec<(usize, Vec<ReadFrame>)>,
    blocks: usize,
    took: Duration,
}

impl Witnesses {
    pub(super) fn new() -> Self {
        Self { pool: BufferPool::new(BLOCKS_MAX, BLOCKS_MAX), pace: Pace::default() }
    }

    /// Chooses blocks and makes their reads ready. Nothing is held yet.
    pub(super) fn prepare(&mut self, fields: &[Field], entropy: &dyn Entropy) -> WitnessReads {
        let chosen = choose(fields, self.pace.next(), &mut || entropy.next_u64());
        let mut waiting: VecDeque<(usize, Vec<ReadFrame>)> = VecDeque::with_capacity(BLOCKS_MAX);
        for some in chosen.chunks(READS) {
            let mut together: BTreeMap<usize, Vec<ReadFrame>> = BTreeMap::new();
            for chosen in some {
                let Some(buffer) = self.pool.take() else { break };
                let plan = FramePlan { runs: vec![BlockRange::new(chosen.block.0, 1)] };
                together.entry(chosen.disk).or_default().push(ReadFrame::new(plan, buffer));
            }
            waiting.extend(together);
        }
        let read = Vec::with_capacity(waiting.len());
        WitnessReads { waiting, read, ..WitnessReads::default() }
    }

    /// The cut stood: hashes what was read.
    pub(super) fn finish(&mut self, reads: WitnessReads, disks: &[&Disk]) -> Option<Witness> {
        self.pace.learn(reads.blocks, reads.took);
        let mut blocks = Vec::with_capacity(reads.blocks);
        for (place, frames) in &reads.read {
            let Some(disk) = disks.get(*place) else { continue };
            blocks.extend(frames.iter().filter_map(|frame| {
                let block = frame.plan.runs.first()?.start;
                let bytes = frame.buffer.bytes(1).get(..BLOCK_BYTES)?;
                Some(WitnessBlock { disk: disk.id(), block, digest: witness_digest(bytes) })
            }));
        }
        blocks.sort_unstable_by_key(|block| (block.disk, block.block));
        (!blocks.is_empty()).then_some(Witness { blocks })
    }
}

impl WitnessReads {
    /// Reads while writes are held, as much as the budget allows; `held` is how long they are held already.
    pub(super) fn read(&mut self, clock: &dyn Clock, held: Duration, disks: &mut [&mut Disk]) {
        if held > HOLD_LONG {
            return;
        }
        let began = clock.monotonic();
        let mut last = Duration::ZERO;
        while goes_on(self.took, last)
            && let Some((place, frames)) = self.waiting.pop_front()
        {
            let Some(disk) = disks.get_mut(place) else { continue };
            let count = frames.len();
            // A place that cannot be read is the copy's trouble, not the witness's.
            if let Ok(frames) = disk.host.reader.read(frames) {
                self.read.push((place, frames));
            }
            self.blocks += count;
            let took = clock.monotonic().saturating_sub(began);
            last = took.saturating_sub(self.took);
            self.took = took;
        }
    }
}
