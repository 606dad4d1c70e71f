//! A full audit: every block of a protected disk is compared with its replica, while the source goes on.
//!
//! Pure. Owns what is asked next, what waits for a cut, and what came of it. Does not read, hash or know sessions.
//!
//! The source is asked for digests of a range, and says in which interval it read it: behind the instant of the cut that begins
//! the interval and in front of that of the cut that ends it. If the log has nothing of a block in that interval, tracking
//! saw no write to it; then the replica at the ending cut must hold just what was read. What was written meanwhile decides
//! nothing as a whole and is asked for again block by block: a block that is written in that interval, too, was sent anew, so
//! the replica has it from the source.
//!
//! ```text
//! ask (chunks) -> answer -> cut -> equal
//!                               -> changed or different -> ask (blocks) -> answer -> cut -> equal, sent anew, different
//! ```
//! Invariants: every block is decided exactly once; `position` never passes one that is not.
//! Limits: [`ORDERS_MAX`] unanswered orders, [`HELD_MAX`] answers that wait for their cut, [`NARROW_MAX`] chunks that wait for
//! their second turn.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use holdfast_common::{
    ids::Interval,
    units::{BlockCount, BlockRange},
    wire::{
        AuditDigests,
        limits::{AUDIT_BLOCKS_MAX, AUDIT_ORDERS_MAX, SCAN_CHUNK_BLOCKS},
    },
};

/// Unanswered orders.
pub const ORDERS_MAX: usize = AUDIT_ORDERS_MAX;
/// Answers that wait for the cut of their interval (4 GiB of disk, 512 KiB of digests).
pub const HELD_MAX: usize = 1024;
/// Chunks that wait to be asked for block by block.
pub const NARROW_MAX: usize = 4096;
/// An order is given again after this time: its answer was lost.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Time between two requests for a cut when nothing but a cut is waited for.
const CUT_EVERY: Duration = Duration::from_secs(2);

/// A range to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Number of the order.
    pub number: u64,
    /// The range.
    pub range: BlockRange,
    /// Blocks of each digest.
    pub digest_blocks: u64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuditStep {
    /// Ask the source.
    Ask(Ask),
    /// Nothing but the end of an interval is waited for: ask for a cut.
    Cut,
    /// Wait for answers or cuts.
    Wait,
    /// All blocks are decided.
    Done,
}

/// Digests whose interval has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What was asked.
    pub ask: Ask,
    /// The answer.
    pub digests: AuditDigests,
}

/// What a cut says of a part that a digest covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Source and replica are equal.
    Equal,
    /// It was written in the interval.
    Changed,
    /// Source and replica differ, though nothing was written.
    Differs,
    /// The replica's bytes cannot be read, or are known to be wrong; that is somebody else's finding.
    Unreadable,
}

/// What came of the blocks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditFigures {
    /// Blocks decided.
    pub blocks: u64,
    /// Of them: written meanwhile, and so sent anew.
    pub sent_anew: u64,
    /// Of them: different.
    pub differed: u64,
    /// Of them: not to be read here, or known to be wrong before.
    pub unreadable: u64,
}

/// The audit of one disk.
#[derive(Clone, Debug)]
pub struct AuditPass {
    size: BlockCount,
    /// First block that was never asked for.
    next: u64,
    number: u64,
    asked: BTreeMap<u64, (Ask, Duration)>,
    held: Vec<Held>,
    /// Ranges to ask for once more, before anything new: their blocks per digest stand beside them.
    again: VecDeque<(BlockRange, u64)>,
    figures: AuditFigures,
    cut_asked: Option<Duration>,
}

impl AuditPass {
    /// An audit of a disk of this size from `position` on; `figures` are those of what lies before.
    #[must_use]
    pub const fn new(size: BlockCount, position: u64, figures: AuditFigures) -> Self {
        Self {
            size,
            next: position,
            number: 0,
            asked: BTreeMap::new(),
            held: Vec::new(),
            again: VecDeque::new(),
            figures,
            cut_asked: None,
        }
    }

    /// What came of it so far.
    #[must_use]
    pub const fn figures(&self) -> &AuditFigures {
        &self.figures
    }

    /// First block that is not decided; all before it are.
    #[must_use]
    pub fn position(&self) -> u64 {
        let asked = self.asked.values().map(|(ask, _)| ask.range.start.0);
        let held = self.held.iter().map(|held| held.ask.range.start.0);
        let again = self.again.iter().map(|(range, _)| range.start.0);
        asked.chain(held).chain(again).min().unwrap_or(self.next).min(self.next)
    }

    /// What to do next.
    pub fn step(&mut self, now: Duration) -> AuditStep {
        self.forget_late(now);
        let nothing_left = self.again.is_empty() && self.next >= self.size.0;
        if nothing_left && self.asked.is_empty() && self.held.is_empty() {
            return AuditStep::Done;
        }
        let is_full = self.asked.len() >= ORDERS_MAX || self.held.len() + self.asked.len() >= HELD_MAX;
        if !is_full && let Some((range, digest_blocks)) = self.take() {
            self.number += 1;
            let ask = Ask { number: self.number, range, digest_blocks };
            self.asked.insert(self.number, (ask, now));
            return AuditStep::Ask(ask);
        }
        if self.asked.is_empty() && self.cut_asked.is_none_or(|at| now >= at + CUT_EVERY) {
            self.cut_asked = Some(now);
            return AuditStep::Cut;
        }
        AuditStep::Wait
    }

    fn take(&mut self) -> Option<(BlockRange, u64)> {
        if let Some(again) = self.again.pop_front() {
            return Some(again);
        }
        // What waits for its second turn must not grow with the disk.
        if self.next >= self.size.0 || self.held.len() * CHUNKS_PER_ORDER >= NARROW_MAX {
            return None;
        }
        let count = AUDIT_BLOCKS_MAX.min(self.size.0 - self.next);
        let range = BlockRange::new(self.next, count);
        self.next += count;
        Some((range, SCAN_CHUNK_BLOCKS))
    }

    /// The source has answered. An answer that is not waited for (any more), or does not fit, means nothing.
    pub fn answered(&mut self, number: u64, digests: AuditDigests) {
        let Some((ask, _)) = self.asked.remove(&number) else { return };
        let parts = ask.range.count.0.div_ceil(ask.digest_blocks);
        if parts == digests.digests.len() as u64 {
            self.held.push(Held { ask, digests });
        } else {
            self.again.push_back((ask.range, ask.digest_blocks));
        }
    }

    /// The source could not answer: the range is asked for again.
    pub fn refused(&mut self, number: u64) {
        if let Some((ask, _)) = self.asked.remove(&number) {
            self.again.push_back((ask.range, ask.digest_blocks));
        }
    }

    /// The session ended: what was asked is not answered any more.
    pub fn disconnected(&mut self) {
        for (ask, _) in std::mem::take(&mut self.asked).into_values() {
            self.again.push_back((ask.range, ask.digest_blocks));
        }
    }

    fn forget_late(&mut self, now: Duration) {
        let late: Vec<u64> = self
            .asked
            .iter()
            .filter(|(_, (_, at))| now >= *at + ANSWER_MAX)
            .map(|(number, _)| *number)
            .collect();
        late.into_iter().for_each(|number| self.refused(number));
    }

    /// Answers whose interval has ended with a cut: to be given to [`Self::judged`], or to [`Self::cannot_judge`].
    pub fn ended(&mut self, last: Interval) -> Vec<Held> {
        let (ended, open) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.digests.interval <= last);
        self.held = open;
        ended
    }

    /// What the cut says of an answer's parts, in order. Gives the blocks that differ, decided now.
    pub fn judged(&mut self, held: &Held, verdicts: &[Verdict]) -> Vec<BlockRange> {
        let ask = &held.ask;
        let mut differing: Vec<BlockRange> = Vec::new();
        let end = ask.range.end().0;
        let mut start = ask.range.start.0;
        for verdict in verdicts {
            let part = BlockRange::new(start, ask.digest_blocks.min(end.saturating_sub(start)));
            start = part.end().0;
            if ask.digest_blocks > 1 && *verdict != Verdict::Equal {
                self.again.push_back((part, 1));
                continue;
            }
            self.figures.blocks += part.count.0;
            match verdict {
                Verdict::Equal => {}
                Verdict::Changed => self.figures.sent_anew += part.count.0,
                Verdict::Unreadable => self.figures.unreadable += part.count.0,
                Verdict::Differs => {
                    self.figures.differed += part.count.0;
                    match differing.last_mut().filter(|last| last.end() == part.start) {
                        Some(last) => last.count.0 += part.count.0,
                        None => differing.push(part),
                    }
                }
            }
        }
        if start < end {
            self.again.push_back((BlockRange::new(start, end - start), ask.digest_blocks));
        }
        differing
    }

    /// The cuts around an answer's interval are not known (any more): it is asked for again.
    pub fn cannot_judge(&mut self, held: Held) {
        self.again.push_back((held.ask.range, held.ask.digest_blocks));
    }
}

/// Chunks that one order may send into their second turn.
const CHUNKS_PER_ORDER: usize = (AUDIT_BLOCKS_MAX / SCAN_CHUNK_BLOCKS) as usize;

#[cfg(test)]
mod tests;
