//! Scan: how far the comparison of a source disk with its replica has got.
//!
//! Pure. Owns the ranges still to read, the questions asked and not answered, and what may be recorded. Does not read,
//! hash or send. Invariants: at most [`SCAN_QUESTIONS_MAX`] questions are unanswered; `scanned_to` never passes a range
//! whose answer is missing or whose differing blocks have not been sent.
//! Limit: [`STEP_BLOCKS`] per step, so that marks are taken in between.

use std::collections::VecDeque;

use holdfast_common::{
    frame::ScanRecord,
    units::{BlockCount, BlockIndex, BlockRange},
    wire::{
        ScanAnswer,
        limits::{SCAN_CHUNK_BLOCKS, SCAN_QUESTIONS_MAX},
    },
};

/// Blocks of one step (16 MiB): one question.
pub const STEP_BLOCKS: u64 = 64 * SCAN_CHUNK_BLOCKS;

/// Blocks between two records of progress (512 MiB): what a restart of the agent costs at most in reading again.
pub const RECORD_BLOCKS: u64 = 128 << 10;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanStep {
    /// Read this range, and ask or send.
    Read(BlockRange),
    /// Nothing until an answer arrives.
    AwaitAnswers,
    /// Send this record (once everything found so far has been sent).
    Record(ScanRecord),
    /// The comparison is complete and recorded.
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    number: u64,
    range: BlockRange,
}

/// The progress of one disk's scan.
#[derive(Clone, Debug)]
pub struct ScanProgress {
    size: BlockCount,
    /// First block not read yet.
    next: BlockIndex,
    /// Unanswered, in the order of their ranges.
    questions: VecDeque<Question>,
    recorded_to: BlockIndex,
    complete: bool,
    next_number: u64,
    ask: bool,
}

impl ScanProgress {
    /// A scan from `from`. With `replica_empty` nothing is asked: what is not zero is sent.
    #[must_use]
    pub const fn new(size: BlockCount, from: BlockIndex, replica_empty: bool) -> Self {
        // A chunk is compared as a whole.
        let next = BlockIndex(from.0 - from.0 % SCAN_CHUNK_BLOCKS);
        Self {
            size,
            next,
            questions: VecDeque::new(),
            recorded_to: next,
            complete: false,
            next_number: 1,
            ask: !replica_empty,
        }
    }

    /// Whether digests are to be compared, or everything that is not zero to be sent.
    #[must_use]
    pub const fn asks(&self) -> bool {
        self.ask
    }

    /// What to do next; `unsent` says that found blocks wait to be sent.
    #[must_use]
    pub fn step(&self, unsent: bool) -> ScanStep {
        if self.complete {
            return ScanStep::Done;
        }
        let to = self.scanned_to();
        let all = to.0 >= self.size.0;
        if !unsent && (all || to.0 >= self.recorded_to.0 + RECORD_BLOCKS) {
            return ScanStep::Record(ScanRecord { scanned_to: to, complete: all });
        }
        if self.next.0 >= self.size.0 || self.questions.len() >= SCAN_QUESTIONS_MAX {
            return ScanStep::AwaitAnswers;
        }
        let count = STEP_BLOCKS.min(self.size.0 - self.next.0);
        ScanStep::Read(BlockRange::new(self.next.0, count))
    }

    /// A range was read and its blocks sent; nothing was asked.
    pub const fn sent(&mut self, range: BlockRange) {
        self.next = range.end();
    }

    /// A range was read and its digests were asked for. Returns the question's number.
    pub fn asked(&mut self, range: BlockRange) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.next = range.end();
        self.questions.push_back(Question { number, range });
        number
    }

    /// An answer arrived. Returns the ranges that differ; an answer that was not asked for (any more) gives none.
    /// An answer with a wrong number of entries counts as "all differ".
    pub fn answered(&mut self, answer: &ScanAnswer) -> Vec<BlockRange> {
        let Some(at) = self.questions.iter().position(|question| question.number == answer.question) else {
            return Vec::new();
        };
        let Some(Question { range, .. }) = self.questions.remove(at) else { return Vec::new() };
        let chunks = chunks(range);
        if chunks.len() != answer.differs.len() {
            return vec![range];
        }
        chunks
            .into_iter()
            .zip(&answer.differs)
            .filter(|(_, differs)| **differs)
            .map(|(chunk, _)| chunk)
            .collect()
    }

    /// The session ended: what was asked and not answered is read and asked again.
    pub fn disconnected(&mut self) {
        if let Some(first) = self.questions.front() {
            self.next = first.range.start;
        }
        self.questions.clear();
    }

    /// A record was sent.
    pub const fn recorded(&mut self, record: &ScanRecord) {
        self.recorded_to = record.scanned_to;
        self.complete = record.complete;
    }

    /// First block that is not compared yet.
    #[must_use]
    pub fn scanned_to(&self) -> BlockIndex {
        self.questions.iter().map(|question| question.range.start).min().unwrap_or(self.next).min(self.next)
    }
}

/// The chunks of a range, one per digest.
#[must_use]
pub fn chunks(range: BlockRange) -> Vec<BlockRange> {
    range.pieces(SCAN_CHUNK_BLOCKS).collect()
}

#[cfg(test)]
mod tests;
