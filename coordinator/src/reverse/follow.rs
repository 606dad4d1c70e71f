//! A machine at its target becomes points in its disks' logs.
//!
//! Owns the passes over what the target has written, and the instant of a cut. Does not know when a point is due.
//! Invariants: at a cut, the newest state of each log is what its disk held at that instant, all disks at the same one;
//! what failed half-way is looked at again from the beginning.
//!
//! A first pass brings the logs from whatever they end with to the target's disks: every block that either line of history has
//! written since the point where the target begins is compared, and appended where it differs. So
//! the source's writes behind that point are taken back in the log by the same frames that bring the target's. After that
//! only what is said to have been written is appended.
//!
//! - What is written to **branches** is read while it is written; then writes are held for what is left of it.
//!   Limits: [`RESIDUE_BYTES_MAX`] are read while writes are held; [`PASSES_MAX`] passes before that.
//! - What is written to **images** of the machine's own is read as it was at one instant, while the machine runs on
//!   ([`OwnImages`]).

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
    compute::{
        branch::Branch,
        machines::{InstantDisk, MachineInstant, Mark, OwnImages, Written},
        port::{ComputeError, Task},
    },
    index::{DiskIndex, IndexError},
    points::{
        frame_cache::FrameCache,
        point_view::PointView,
        view::{BlockView, HistoryPlace, ViewError},
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
    /// The machine's own images cannot be read.
    #[error("the machine's own images cannot be read")]
    Images(#[from] ComputeError),
    /// The machine has other disks than those that are followed.
    #[error("disk {0} is not among the machine's own images")]
    NoImage(DiskId),
}

/// A disk of a target.
#[derive(Clone, Debug)]
pub struct TargetDisk {
    /// The disk.
    pub disk: DiskId,
    /// Where the target begins.
    pub begins: HistoryPlace,
    /// Its log's index.
    pub index: Arc<DiskIndex>,
    /// The generation to write under.
    pub generation: Generation,
}

/// What a target writes to.
#[derive(Debug)]
pub enum Target {
    /// Branches, in the order of the disks.
    Branches(Vec<Arc<Branch>>),
    /// Images of the machine's own.
    Images {
        /// Where they are.
        images: Arc<dyn OwnImages>,
        /// Of which machine.
        owner: String,
    },
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
    target: Target,
    cache: Arc<FrameCache>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    /// Whether the logs have all but what the branches say was written.
    caught_up: bool,
    /// The logs have all but what was written to images since this.
    mark: Option<Mark>,
}

impl Follower {
    /// Follows these disks. Nothing is read yet.
    #[must_use]
    pub fn new(
        machine: MachineId,
        disks: Vec<TargetDisk>,
        target: Target,
        cache: Arc<FrameCache>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self { machine, disks, target, cache, clock, entropy, caught_up: false, mark: None }
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
        match &self.target {
            Target::Branches(branches) => {
                let branches = branches.clone();
                let was_caught_up = std::mem::replace(&mut self.caught_up, false);
                if !was_caught_up {
                    self.catch_up(&branches, &mut writers, task)?;
                }
                let made = self.cut(&branches, &mut writers, task)?;
                self.caught_up = true;
                Ok(made)
            }
            Target::Images { images, owner } => {
                let (images, owner) = (Arc::clone(images), owner.clone());
                let instant = runtime.block_on(images.instant(owner.clone(), self.mark.take()))?;
                let made = self.instant(&instant, &mut writers, task);
                if let Err(error) = runtime.block_on(images.end_instant(owner)) {
                    // The next one ends it.
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(machine = %self.machine, error, "what was read of a machine's images is still kept");
                }
                let made = made?;
                self.mark = instant.mark;
                Ok(made)
            }
        }
    }

    /// A point of what a machine's own images held at an instant.
    fn instant(
        &self,
        instant: &MachineInstant,
        writers: &mut [LogWriter],
        task: &Task,
    ) -> Result<MadePoint, FollowError> {
        let mut work = Vec::with_capacity(self.disks.len());
        for disk in &self.disks {
            let found = instant.disks.iter().find(|found| found.disk == disk.disk);
            let InstantDisk { view, written, .. } = found.ok_or(FollowError::NoImage(disk.disk))?;
            let blocks = BlockCount::covering(view.size_bytes()).0;
            let (ranges, compares) = match written {
                Written::SinceMark(written) => (joined(blocks, written.clone()), false),
                Written::SincePoint(written) => (self.candidates(disk, blocks, written.clone())?, true),
                Written::Unknown => (vec![BlockRange::new(0, blocks)], true),
            };
            task.add_total_bytes(ranges.iter().map(|range| range.bytes()).sum());
            work.push((disk, view, ranges, compares));
        }
        for ((disk, view, ranges, compares), writer) in work.into_iter().zip(writers.iter_mut()) {
            if compares {
                self.compare(disk, &**view, ranges, writer, task)?;
                continue;
            }
            for piece in pieces(ranges) {
                if task.is_cancelled() {
                    return Err(FollowError::Cancelled);
                }
                put_all(writer, piece, &read_blocks(&**view, piece)?)?;
                task.add_done_bytes(piece.bytes());
            }
        }
        let since = i64::try_from(instant.at.elapsed().as_micros()).unwrap_or(0);
        let at = Timestamp(self.clock.wall().0.saturating_sub(since));
        self.end_interval(writers, at, u64::try_from(instant.hold.as_micros()).unwrap_or(u64::MAX))
    }

    /// The first pass over branches.
    fn catch_up(
        &self,
        branches: &[Arc<Branch>],
        writers: &mut [LogWriter],
        task: &Task,
    ) -> Result<(), FollowError> {
        let mut candidates = Vec::with_capacity(self.disks.len());
        for (disk, branch) in self.disks.iter().zip(branches) {
            branch.track();
            let blocks = BlockCount::covering(branch.size_bytes()).0;
            let ranges = self.candidates(disk, blocks, branch.written())?;
            task.add_total_bytes(ranges.iter().map(|range| range.bytes()).sum());
            candidates.push(ranges);
        }
        for (((disk, branch), writer), ranges) in self.disks.iter().zip(branches).zip(writers).zip(candidates)
        {
            self.compare(disk, &**branch, ranges, writer, task)?;
        }
        Ok(())
    }

    /// Appends the blocks of these ranges in which a disk differs from its log's newest state.
    fn compare(
        &self,
        disk: &TargetDisk,
        target: &dyn BlockView,
        ranges: Vec<BlockRange>,
        writer: &mut LogWriter,
        task: &Task,
    ) -> Result<(), FollowError> {
        disk.index.catch_up()?;
        let newest = PointView::newest(&disk.index, Arc::clone(&self.cache));
        for piece in pieces(ranges) {
            if task.is_cancelled() {
                return Err(FollowError::Cancelled);
            }
            let here = read_blocks(target, piece)?;
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
            writer.compared(BlockIndex(BlockCount::covering(target.size_bytes()).0))?;
        }
        Ok(())
    }

    /// Every block in which the log's newest state can differ from the target, which has written `ranges` since it began.
    fn candidates(
        &self,
        disk: &TargetDisk,
        blocks: u64,
        mut ranges: Vec<BlockRange>,
    ) -> Result<Vec<BlockRange>, FollowError> {
        disk.index.catch_up()?;
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

    /// A point of what branches hold.
    fn cut(
        &self,
        branches: &[Arc<Branch>],
        writers: &mut [LogWriter],
        task: &Task,
    ) -> Result<MadePoint, FollowError> {
        for _ in 0..PASSES_MAX {
            if task.is_cancelled() {
                return Err(FollowError::Cancelled);
            }
            let changed: Vec<Vec<BlockRange>> = branches.iter().map(|branch| branch.take_changed()).collect();
            let bytes: u64 = changed.iter().flatten().map(|range| range.bytes()).sum();
            for ((branch, writer), ranges) in branches.iter().zip(writers.iter_mut()).zip(changed) {
                for piece in pieces(ranges) {
                    put_all(writer, piece, &read_blocks(&**branch, piece)?)?;
                }
            }
            if bytes <= RESIDUE_BYTES_GOOD {
                break;
            }
        }
        let held = self.hold(branches)?;
        for (writer, residue) in writers.iter_mut().zip(&held.residue) {
            for (piece, bytes) in residue {
                put_all(writer, *piece, bytes)?;
            }
        }
        self.end_interval(writers, held.at, held.hold_us)
    }

    /// Makes the point: the logs have what the target held at this time.
    fn end_interval(
        &self,
        writers: &mut [LogWriter],
        at: Timestamp,
        hold_us: u64,
    ) -> Result<MadePoint, FollowError> {
        let record = CutRecord {
            point: PointId(self.entropy.uuid(at)),
            machine: self.machine,
            at,
            hold_us,
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
        Ok(MadePoint { point: record.point, hold_us, blocks })
    }

    /// Holds the writes of all disks and reads what is left.
    fn hold(&self, branches: &[Arc<Branch>]) -> Result<HeldResidue, FollowError> {
        let began = self.clock.monotonic();
        let guards: Vec<_> = branches.iter().map(|branch| branch.hold()).collect();
        let at = self.clock.wall();
        let left: Vec<_> = branches.iter().map(|branch| (branch, branch.take_changed())).collect();
        let left_bytes: u64 = left.iter().flat_map(|(_, ranges)| ranges).map(|range| range.bytes()).sum();
        if left_bytes > RESIDUE_BYTES_MAX {
            return Err(FollowError::TooFast { left_bytes });
        }
        let mut residue = Vec::with_capacity(left.len());
        for (branch, ranges) in left {
            let mut read_pieces = Vec::new();
            for piece in pieces(ranges) {
                read_pieces.push((piece, read_blocks(&**branch, piece)?));
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
