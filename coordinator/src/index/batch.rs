//! Frames that are taken in together: of data frames their entries, of others their heads.
//!
//! Owns the way from heads as they lie in the journal to entries, without anything in between for each frame. Does not know what is
//! indexed. Invariant: steps are in the order of frames, and a step of data frames has no gap.
//! Limit: [`BATCH_ENTRIES`] entries and those of one frame, and the heads of [`BATCH_BYTES`].

use holdfast_common::{
    frame::{FrameKind, header::FrameError},
    ids::{Generation, Sequence},
};

use super::{
    entry::{Entries, Packed, SEQUENCE_MAX},
    lookup::IndexError,
};
use crate::{
    journal::tables::{FrameHead, HeadPlace},
    store::DiskLog,
};

/// Bytes of heads taken from the log at a time.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Entries from which on no more frames are taken: they fit a processor's second cache.
const BATCH_ENTRIES: usize = 1 << 13;

/// Frames to be taken in.
#[derive(Debug, Default)]
pub(super) struct Batch {
    entries: Vec<Packed>,
    steps: Vec<Step>,
    /// What is not in the steps up to this frame is missing in the log.
    pub(super) up_to: Sequence,
}

#[derive(Debug)]
enum Step {
    Data {
        /// Of the first of them.
        generation: Generation,
        last: Sequence,
        /// Behind their entries.
        end: usize,
    },
    Other(FrameHead),
}

/// A step of a batch.
#[derive(Debug)]
pub(super) enum Frames<'a> {
    /// Data frames, each the next of the one before.
    Data {
        /// Of the first of them.
        generation: Generation,
        /// Of all of them, in their order. Every data frame has some.
        entries: &'a [Packed],
    },
    /// Another frame.
    Other(&'a FrameHead),
}

impl Batch {
    /// The next frames behind `after`, in the place of what was there.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub(super) fn read(&mut self, log: &DiskLog, after: Sequence) -> Result<(), IndexError> {
        self.entries.clear();
        self.steps.clear();
        self.up_to = log.each_head_after(after, BATCH_BYTES, &mut |head| {
            self.add(head)?;
            Ok(self.entries.len() < BATCH_ENTRIES)
        })?;
        Ok(())
    }

    fn add(&mut self, head: &HeadPlace<'_>) -> Result<(), FrameError> {
        let sequence = head.header.sequence;
        // Of a sequence that entries cannot hold whoever takes it in makes an error.
        if head.header.kind != FrameKind::Data || sequence.0 > SEQUENCE_MAX {
            self.steps.push(Step::Other(head.to_head()?));
            return Ok(());
        }
        let mut entries = Entries::of_frame(sequence);
        for extent in head.extents()? {
            self.entries.extend(entries.of(extent?).map(|entry| Packed::of(&entry)));
        }
        let behind = self.entries.len();
        match self.steps.last_mut() {
            Some(Step::Data { last, end, .. }) if last.next() == sequence => {
                (*last, *end) = (sequence, behind)
            }
            _ => {
                let generation = head.header.generation;
                self.steps.push(Step::Data { generation, last: sequence, end: behind });
            }
        }
        Ok(())
    }

    /// The steps with frames behind `after`, in their order.
    pub(super) fn steps_behind(&self, after: Sequence) -> impl Iterator<Item = Frames<'_>> {
        let mut start = 0;
        self.steps.iter().filter_map(move |step| match step {
            Step::Data { generation, end, .. } => {
                let entries = self.entries.get(start..*end).unwrap_or_default();
                start = *end;
                let known = entries.partition_point(|entry| entry.sequence() <= after);
                let entries = entries.get(known..).filter(|entries| !entries.is_empty())?;
                Some(Frames::Data { generation: *generation, entries })
            }
            Step::Other(head) => Some(Frames::Other(head)).filter(|_| head.header.sequence > after),
        })
    }
}
