//! Verifying: reading what a cut needs and nothing else.
//!
//! Owns which frames are read for a cut, and what is verified afterwards. Does not know rates.
//! Invariant: all cuts up to `verified_to` are verified; behind it, `good` names frames that need not be read again.

use std::thread;

use holdfast_common::{causes::in_one_line, ids::Sequence};
use tokio_util::sync::CancellationToken;

use super::{Checks, HEAD_START_LOOK, Hurried};
use crate::{
    catalog::record::PointRecord,
    index::{DiskIndex, IndexError},
    store::{CheckOrder, DiskLog, FrameSet},
};

impl Checks {
    /// What a cut needs of the frames behind the verified cut, and was not read yet.
    fn wanted(&self, index: &DiskIndex, cut: Sequence) -> Result<Reading, IndexError> {
        let disk = index.log().disk();
        let after = Sequence(self.with(disk, |state| state.record.verified_to));
        let mut wanted = index.frames_between(after, cut)?;
        self.with(disk, |state| {
            let good = state.good.iter().flat_map(|good| good.iter_after(after));
            good.for_each(|sequence| wanted.remove(sequence));
        });
        Ok(Reading { after, cut, wanted })
    }

    /// Reads that. Says whether it came to its end, and whether all was good.
    fn read(
        &self,
        log: &DiskLog,
        reading: &Reading,
        threads: usize,
        between: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<(bool, bool), IndexError> {
        let Reading { after, cut, wanted } = reading;
        let keep_cached = threads > 1;
        let order = CheckOrder { after: *after, up_to: *cut, wanted: Some(wanted), threads, keep_cached };
        let checked = log.check(&order, between)?;
        self.note(log, &checked);
        self.with(log.disk(), |state| {
            let good = state.good.get_or_insert_with(|| FrameSet::new(*after));
            let read = wanted.iter().take_while(|sequence| *sequence <= checked.up_to);
            read.filter(|sequence| checked.bad.binary_search(sequence).is_err())
                .for_each(|sequence| good.insert(sequence));
        });
        Ok((checked.up_to >= *cut, checked.bad.is_empty()))
    }

    /// The next cut's turn: once its frames were read, all cuts up to it are verified.
    pub(super) fn verify_next(
        &self,
        index: &DiskIndex,
        cut: Sequence,
        between: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<(), IndexError> {
        let log = index.log();
        let (whole, _good) = self.read(log, &self.wanted(index, cut)?, 1, between)?;
        if whole {
            self.with(log.disk(), |state| {
                state.record.verified_to = state.record.verified_to.max(cut.0);
                // What was read ahead lies in front of that now, or else it is kept.
                state.good = state.good.take().filter(|good| good.iter_after(cut).next().is_some());
            });
        }
        Ok(())
    }

    /// Verifies a point that somebody waits for. Cuts before it may need other frames: they stay unverified.
    pub(super) fn verify_now(&self, hurried: &Hurried, closing: &CancellationToken) {
        let (mut whole, mut good) = (true, true);
        let mut readings = Vec::new();
        for member in &hurried.point.disks {
            let verified = self.with(member.disk, |state| state.record.verified_to);
            let index = self.logs.index(member.disk).filter(|_| verified < member.sequence.0);
            let Some(index) = index else { continue };
            let planned = self.wanted(&index, member.sequence).and_then(|reading| {
                hurried.task.add_total_bytes(index.log().bytes_to_check(&reading.wanted)?);
                Ok(reading)
            });
            match planned {
                Ok(reading) => readings.push((index, reading)),
                Err(error) => good = cannot_verify(&hurried.point, &error),
            }
        }
        let counted = |bytes| {
            hurried.task.add_done_bytes(bytes);
            // Another failover may have begun.
            while self.is_head_start() && !closing.is_cancelled() {
                thread::sleep(HEAD_START_LOOK);
            }
            !closing.is_cancelled()
        };
        for (index, reading) in &readings {
            match self.read(index.log(), reading, self.threads, &counted) {
                Ok((all, fine)) => (whole, good) = (whole && all, good && fine),
                Err(error) => good = cannot_verify(&hurried.point, &error),
            }
        }
        if whole {
            let good = good && self.is_clean(&hurried.point);
            if let Some(known) = self.state().hurried.get_mut(&hurried.point.id) {
                known.ended = Some((self.clock.monotonic(), good));
            }
        }
    }
}

/// Frames that are to be read for a cut.
struct Reading {
    after: Sequence,
    cut: Sequence,
    wanted: FrameSet,
}

/// Logs why; the point is not good then.
fn cannot_verify(point: &PointRecord, error: &IndexError) -> bool {
    tracing::warn!(point = %point.id, error = %in_one_line(error), "a point cannot be verified now");
    false
}
