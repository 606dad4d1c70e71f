//! A machine at its target becomes points in its disks' logs.
//!
//! Owns the passes over what the target has written, and the instant of a cut. Does not know when a point is due.
//! Invariants: at a cut, the newest state of each log is what its branch held at that instant, all disks at the same one;
//! what failed half-way is looked at again from the beginning.
//! Limits: [`RESIDUE_BYTES_MAX`] are read while writes are held; [`PASSES_MAX`] passes before that.
//!
//! A first pass brings the logs from whatever they end with to the branches: every block that either line of history has
//! written since the point where the branches begin is compared, and appended where it differs. So
//! the source's writes behind that point are taken back in the log by the same frames that bring the target's. After that
//! only what the branches say was written is appended.

use std::sync::Arc;

use holdfast_common::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    frame::{Consistency, CutMember, CutMethod, CutMore, CutRecord},
    ids::{DiskId, Generation, MachineId, PointId},
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
};
use thiserror::Error;
use tokio::runtime::Handle;

use super::{
    log_writer::{LogWriter, LogWriterError},
    read_blocks,
};
use crate::{
    compute::{branch::Branch, port::Task},
    index::{DiskIndex, IndexError},
    points::{
        frame_cache::FrameCache,
        point_view::PointView,
        view::{BlockView as _, HistoryPlace, ViewError},
    },
    store::error::StoreError,
};

/// Bytes that are read while writes are held, at most.
pub const RESIDUE_BYTES_MAX: u64 = 64 << 20;
/// Passes over what was written meanwhile, at most, before writes are held.
pub const PASSES_MAX: usize = 8;
/// Bytes left over that are worth no further pass.
const RESIDUE_BYTES_GOOD: u64 = 4 << 20;
/// Blocks read at a time (1 MiB).
const PIECE_BLOCKS: u64 = 256;
/// Heads read at a time.
const HEAD_BYTES: usize = 1 << 20;

/// Why a target cannot be followed.
#[derive(Debug, Error)]
pub enum FollowError {
    /// Asked to end.
    #[error("cancelled")]
    Cancelled,
    /// More is written than can be read.
    #[error(
        "the machine at the target writes faster than its disks can be read ({left_bytes} bytes were left after {PASSES_MAX} \
         passes); the next point is tried when it is due"
    )]
    TooFast {
        /// What was left.
        left_bytes: u64,
    },
    /// A branch or the point below it cannot be read.
    #[error("a disk of the target cannot be read")]
    View(#[from] ViewError),
    /// The log takes nothing.
    #[error("a disk's log cannot be written")]
    Log(#[from] LogWriterError),
    /// The log cannot be read.
    #[error("a disk's log cannot be read")]
    Store(#[from] StoreError),
    /// The index cannot be used.
    #[error("a disk's index cannot be used")]
    Index(#[from] IndexError),
}

/// A disk of a target.
#[derive(Clone, Debug)]
pub struct TargetDisk {
    /// The disk.
    pub disk: DiskId,
    /// What the target has made of it.
    pub branch: Arc<Branch>,
    /// Where the branch begins.
    pub begins: HistoryPlace,
    /// Its log's index.
    pub index: Arc<DiskIndex>,
    /// The generation to write under.
    pub generation: Generation,
}

/// A point that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadePoint {
    /// The point.
    pub point: PointId,
    /// How long writes were held, in microseconds.
    pub hold_us: u64,
    /// Blocks appended for it.
    pub blocks: u64,
}

/// Follows one machine at its target. Nobody else may write to its logs meanwhile.
#[derive(Debug)]
pub struct Follower {
    machine: MachineId,
    disks: Vec<TargetDisk>,
    cache: Arc<FrameCache>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Whether the logs have all but what the branches say was written.
    caught_up: bool,
}

impl Follower {
    /// Follows these disks. Nothing is read yet.
    #[must_use]
    pub fn new(
        machine: MachineId,
        disks: Vec<TargetDisk>,
        cache: Arc<FrameCache>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self { machine, disks, cache, clock, entropy, caught_up: false }
    }

    /// Makes a point of what the target's disks hold now; durable when it returns. Reports the first pass to `task`. Blocks, on a
    /// thread outside the runtime.
    ///
    /// # Errors
    /// See [`FollowError`]; there is no point then.
    pub fn point(&mut self, runtime: &Handle, task: &Task) -> Result<MadePoint, FollowError> {
        let mut writers = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            writers.push(LogWriter::open(disk.index.log(), disk.generation, runtime.clone())?);
        }
        let was_caught_up = std::mem::replace(&mut self.caught_up, false);
        if !was_caught_up {
            self.catch_up(&mut writers, task)?;
        }
        let made = self.cut(&mut writers, task)?;
        self.caught_up = true;
        Ok(made)
    }

    /// The first pass.
    fn catch_up(&self, writers: &mut [LogWriter], task: &Task) -> Result<(), FollowError> {
        let mut candidates = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            disk.branch.track();
            let ranges = self.candidates(disk)?;
            task.add_total_bytes(ranges.iter().map(|range| range.bytes()).sum());
            candidates.push(ranges);
        }
        for ((disk, writer), ranges) in self.disks.iter().zip(writers).zip(candidates) {
            let newest = PointView::newest(&disk.index, Arc::clone(&self.cache));
            for piece in pieces(ranges) {
                if task.is_cancelled() {
                    return Err(FollowError::Cancelled);
                }
                let here = read_blocks(&*disk.branch, piece)?;
                // What cannot be read is not what the target has.
                let there = read_blocks(&newest, piece).ok();
                for (number, block) in (piece.start.0..piece.end().0).enumerate() {
                    let place = number * BLOCK_BYTES..(number + 1) * BLOCK_BYTES;
                    let bytes = here.get(place.clone()).unwrap_or_default();
                    if there.as_ref().and_then(|there| there.get(place)) != Some(bytes) {
                        writer.put(BlockIndex(block), bytes)?;
                    }
                }
                task.add_done_bytes(piece.bytes());
            }
            let scan = disk.index.newest_scan().filter(|scan| scan.generation == disk.generation);
            if !scan.is_some_and(|scan| scan.record.complete) {
                let blocks = BlockCount::covering(disk.branch.size_bytes()).0;
                writer.compared(BlockIndex(blocks))?;
            }
        }
        Ok(())
    }

    /// Every block in which the log's newest state can differ from the branch.
    fn candidates(&self, disk: &TargetDisk) -> Result<Vec<BlockRange>, FollowError> {
        disk.index.catch_up()?;
        let mut ranges = disk.branch.written();
        let blocks = BlockCount::covering(disk.branch.size_bytes()).0;
        let newest_cut = disk.index.cuts().last().map_or(disk.begins.cut, |cut| cut.sequence);
        let view = PointView::at_cut(&disk.index, Arc::clone(&self.cache), newest_cut)?;
        match view.changes_from(disk.begins)? {
            Some(changes) => {
                let mut at = 0;
                while at < blocks {
                    let (changed, end) = changes.changed(BlockRange::new(at, blocks - at))?;
                    ranges.extend(changed);
                    at = end;
                }
            }
            // The history does not say: everything is looked at.
            None => ranges.push(BlockRange::new(0, blocks)),
        }
        let mut after = newest_cut;
        loop {
            let batch = disk.index.log().heads_after(after, HEAD_BYTES)?;
            if batch.up_to == after {
                break;
            }
            ranges.extend(batch.heads.iter().flat_map(|head| &head.extents).map(|extent| extent.range));
            after = batch.up_to;
        }
        Ok(joined(blocks, ranges))
    }

    fn cut(&self, writers: &mut [LogWriter], task: &Task) -> Result<MadePoint, FollowError> {
        for _ in 0..PASSES_MAX {
            if task.is_cancelled() {
                return Err(FollowError::Cancelled);
            }
            let changed: Vec<Vec<BlockRange>> =
                self.disks.iter().map(|disk| disk.branch.take_changed()).collect();
            let bytes: u64 = changed.iter().flatten().map(|range| range.bytes()).sum();
            for ((disk, writer), ranges) in self.disks.iter().zip(writers.iter_mut()).zip(changed) {
                for piece in pieces(ranges) {
                    put_all(writer, piece, &read_blocks(&*disk.branch, piece)?)?;
                }
            }
            if bytes <= RESIDUE_BYTES_GOOD {
                break;
            }
        }
        let held = self.hold()?;
        for (writer, residue) in writers.iter_mut().zip(&held.residue) {
            for (piece, bytes) in residue {
                put_all(writer, *piece, bytes)?;
            }
        }
        let record = CutRecord {
            point: PointId(self.entropy.uuid(held.at)),
            machine: self.machine,
            at: held.at,
            hold_us: held.hold_us,
            method: CutMethod::Held,
            consistency: Consistency::Crash,
            members: self
                .disks
                .iter()
                .map(|disk| CutMember { disk: disk.disk, generation: disk.generation })
                .collect(),
            notes: vec!["of the machine at its target".to_owned()],
            request: None,
            more: CutMore::default(),
        };
        for writer in writers.iter_mut() {
            writer.cut(&record)?;
        }
        for writer in writers.iter_mut() {
            writer.settle()?;
        }
        let blocks = writers.iter().map(LogWriter::blocks).sum();
        Ok(MadePoint { point: record.point, hold_us: held.hold_us, blocks })
    }

    /// Holds the writes of all disks and reads what is left.
    fn hold(&self) -> Result<HeldResidue, FollowError> {
        let began = self.clock.monotonic();
        let guards: Vec<_> = self.disks.iter().map(|disk| disk.branch.hold()).collect();
        let at = self.clock.wall();
        let left: Vec<_> = self.disks.iter().map(|disk| (disk, disk.branch.take_changed())).collect();
        let left_bytes: u64 = left.iter().flat_map(|(_, ranges)| ranges).map(|range| range.bytes()).sum();
        if left_bytes > RESIDUE_BYTES_MAX {
            return Err(FollowError::TooFast { left_bytes });
        }
        let mut residue = Vec::with_capacity(left.len());
        for (disk, ranges) in left {
            let mut read_pieces = Vec::new();
            for piece in pieces(ranges) {
                read_pieces.push((piece, read_blocks(&*disk.branch, piece)?));
            }
            residue.push(read_pieces);
        }
        drop(guards);
        let held = self.clock.monotonic().saturating_sub(began);
        Ok(HeldResidue { residue, at, hold_us: u64::try_from(held.as_micros()).unwrap_or(u64::MAX) })
    }
}

/// What was read while writes were held.
struct HeldResidue {
    /// Of each disk, in their order.
    residue: Vec<Vec<(BlockRange, Vec<u8>)>>,
    at: Timestamp,
    hold_us: u64,
}

fn put_all(writer: &mut LogWriter, piece: BlockRange, bytes: &[u8]) -> Result<(), LogWriterError> {
    let (blocks, _none) = bytes.as_chunks::<BLOCK_BYTES>();
    (piece.start.0..).zip(blocks).try_for_each(|(block, bytes)| writer.put(BlockIndex(block), bytes))
}

/// Ranges in pieces that are read at a time.
fn pieces(ranges: Vec<BlockRange>) -> impl Iterator<Item = BlockRange> {
    ranges.into_iter().flat_map(|range| range.pieces(PIECE_BLOCKS))
}

/// All blocks of these ranges that the disk has, as few ranges, ascending.
pub(super) fn joined(blocks: u64, ranges: Vec<BlockRange>) -> Vec<BlockRange> {
    let disk = BlockRange::new(0, blocks);
    let mut sorted: Vec<BlockRange> =
        ranges.into_iter().filter_map(|range| range.intersection(disk)).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<BlockRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut().filter(|last| range.start <= last.end()) {
            Some(last) => last.count.0 = last.end().0.max(range.end().0) - last.start.0,
            None => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
