//! Takes, and copies of what was taken.

use holdfast_common::{
    frame::{Extent, FRAME_EXTENTS_MAX},
    ids::{DiskId, Interval},
    units::{BLOCK_BYTES, BlockCount, BlockRange},
};

use super::{Engine, disk::Disk, host::trouble};
use crate::{
    batch::{
        BatchShape, FRAME_BLOCKS, FramePlan, HandOver, ReadError, ReadFrame, SinkClosed, plan_batch,
        queue::Payload,
    },
    capture::{
        CaptureError,
        cycle::{Copied, Trouble},
    },
};

/// Frames of one batch (4 MiB): enough to keep the reading threads busy, little enough to be soon done.
pub(super) const BATCH_FRAMES: usize = 64;

/// Fewest frames worth a batch while more is left.
pub(super) const BATCH_FRAMES_MIN: usize = 8;

impl Engine {
    /// Moves the marks of a disk into the set of blocks to read.
    pub(super) fn take(&mut self, id: DiskId, interval: Interval) -> Result<BlockCount, Trouble> {
        let disk = self.disks.get_mut(&id).ok_or(Trouble::Gone)?;
        disk.interval = interval;
        disk.take().map_err(|error| trouble(&error))?;
        Ok(disk.pending.count())
    }

    /// Reads and sends one batch.
    pub(super) fn copy(&mut self, id: DiskId) -> Result<Result<Copied, Trouble>, SinkClosed> {
        let room = self.hand_over.room()?.min(self.buffers.available()).min(BATCH_FRAMES);
        let Some(disk) = self.disks.get_mut(&id) else { return Ok(Err(Trouble::Gone)) };
        let wanted = usize::try_from(disk.pending.count().0).unwrap_or(usize::MAX).div_ceil(FRAME_BLOCKS);
        if room < wanted.min(BATCH_FRAMES_MIN) {
            return Ok(Ok(Copied { left: disk.pending.count(), blocked: true }));
        }
        let plans = plan_batch(&mut disk.pending, disk.cursor, BatchShape::full(room));
        disk.cursor = plans.last().and_then(|plan| plan.runs.last()).map_or(disk.cursor, |run| run.end());
        let runs: Vec<BlockRange> = plans.iter().flat_map(|plan| plan.runs.iter().copied()).collect();
        let frames: Vec<ReadFrame> = plans
            .into_iter()
            .filter_map(|plan| self.buffers.take().map(|buffer| ReadFrame::new(plan, buffer)))
            .collect();
        match disk.host.reader.read(frames) {
            Ok(frames) => disk.submit(self.hand_over.as_mut(), frames, Zeroes::Send)?,
            Err(error) => {
                runs.into_iter().for_each(|run| disk.pending.insert(run));
                return Ok(Err(disk.read_trouble(&error)));
            }
        }
        Ok(Ok(Copied { left: disk.pending.count(), blocked: false }))
    }
}

/// What becomes of blocks that hold only zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zeroes {
    /// They are sent as zero extents.
    Send,
    /// The replica is known to hold zeroes there.
    Omit,
}

impl Disk {
    /// Moves the marks into the set of blocks to read.
    pub(super) fn take(&mut self) -> Result<crate::capture::Taken, CaptureError> {
        let Self { source, pending, interval, .. } = self;
        source.take(*interval, &mut |range| pending.insert(range))
    }

    /// Numbers the frames of a batch that was read, and gives them to sealing. Frames of nothing but zeroes become one.
    pub(super) fn submit(
        &mut self,
        hand_over: &mut dyn HandOver,
        frames: Vec<ReadFrame>,
        zeroes: Zeroes,
    ) -> Result<(), SinkClosed> {
        let mut zero_runs: Vec<Extent> = Vec::new();
        let mut plain_bytes = 0;
        for frame in frames {
            if frame.is_zero() {
                if zeroes == Zeroes::Send {
                    append_zeroes(&mut zero_runs, &frame.plan);
                }
                continue;
            }
            plain_bytes += (frame.plan.blocks() * BLOCK_BYTES) as u64;
            let identity = self.number();
            hand_over.submit(identity, Payload::Blocks(frame))?;
        }
        for extents in zero_runs.chunks(FRAME_EXTENTS_MAX) {
            let identity = self.number();
            hand_over.submit(identity, Payload::Zeroes(extents.to_vec()))?;
        }
        self.submitted(plain_bytes);
        Ok(())
    }

    /// What a failed read means: the disk is gone, or a range of it cannot be read.
    pub(super) fn read_trouble(&mut self, error: &ReadError) -> Trouble {
        match self.source.counters() {
            Err(CaptureError::Missing { .. }) => Trouble::Gone,
            _ => Trouble::Failed(format!(
                "{error} ({}): no point can be made before it can; check the disk and its cabling",
                error.source
            )),
        }
    }
}

/// Adds the runs of a plan, lengthening the last extent where it can.
fn append_zeroes(extents: &mut Vec<Extent>, plan: &FramePlan) {
    for run in &plan.runs {
        match extents.last_mut() {
            Some(last) if last.range.end() == run.start => last.range.count.0 += run.count.0,
            _ => extents.push(Extent::zero(*run)),
        }
    }
}
