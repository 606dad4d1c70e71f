//! What a hold knows of the group cut that it is for.
//!
//! Owns the decision whether the mark came in time. Used while writes are held: it allocates only for the mark itself.

use std::{fmt, time::Duration};

use holdfast_common::{
    frame::GroupMark,
    ids::{GroupCutId, PointId},
    wire::{AnswerStep, GroupAnswer, GroupOrder, MarkOrder, OrderStep},
};

/// Most that two monotonic clocks may run apart, in parts per thousand; more is taken for a broken clock.
const DRIFT_PER_MILLE_MAX: u32 = 1;
/// What a duration may be off by besides.
const CLOCK_SLACK: Duration = Duration::from_millis(1);

/// A group cut's part of one hold. Made when the hold is ordered; it lives as long as the hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldTurn {
    cut: GroupCutId,
    ordered_at: Duration,
    wait: Duration,
    /// The hold and when it was reported; from then on no write reaches the disks.
    held: Option<(PointId, Duration)>,
    verdict: Option<Result<GroupMark, Missed>>,
}

/// Why a hold has no mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// It did not come within the machine's own limit.
    Late {
        /// The limit.
        wait: Duration,
    },
    /// The group cut was called off.
    Cancelled {
        /// Why.
        reason: String,
    },
    /// The coordinator measured more time since the report of the hold than this machine did.
    Clock,
}

impl HeldTurn {
    pub(super) const fn new(cut: GroupCutId, ordered_at: Duration, wait: Duration) -> Self {
        Self { cut, ordered_at, wait, held: None, verdict: None }
    }

    /// The hold stands: what to say. Must be called before it is said, and when nothing is in flight any more.
    pub fn held(&mut self, hold: PointId, now: Duration) -> GroupAnswer {
        self.held = Some((hold, now));
        let took_us = micros(now.saturating_sub(self.ordered_at));
        self.answer(AnswerStep::Held { hold, took_us })
    }

    /// When the machine waits no longer, by its own timer; the past if it was not held.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.held.map_or(Duration::ZERO, |(_, at)| at + self.wait)
    }

    /// An order came while writes are held. Says whether there is nothing more to wait for.
    pub fn order(&mut self, order: &GroupOrder, now: Duration) -> bool {
        if order.cut == self.cut && self.verdict.is_none() {
            match &order.step {
                OrderStep::Mark(mark) => self.mark(mark, now),
                OrderStep::Cancel { reason } => {
                    self.verdict = Some(Err(Missed::Cancelled { reason: reason.clone() }));
                }
                OrderStep::Arm(_) | OrderStep::Hold => {}
            }
        }
        self.verdict.is_some()
    }

    fn mark(&mut self, mark: &MarkOrder, now: Duration) {
        let Some((_, at)) = self.held.filter(|(hold, _)| *hold == mark.hold) else { return };
        let waited = now.saturating_sub(at);
        if waited > self.wait {
            return;
        }
        // The coordinator's time lies inside ours: from after our report was sent until before the mark came.
        let longest = waited + waited / 1_000 * DRIFT_PER_MILLE_MAX + CLOCK_SLACK;
        self.verdict = Some(if Duration::from_micros(mark.since_held_us) > longest {
            Err(Missed::Clock)
        } else {
            Ok(GroupMark {
                cut: self.cut,
                group: mark.group,
                name: mark.name.clone(),
                members: mark.members.clone(),
                since_held_us: mark.since_held_us,
                waited_us: micros(waited),
                spread_us: mark.spread_us,
            })
        });
    }

    /// The mark, or why there is none, at the end of the hold.
    ///
    /// # Errors
    /// The hold is no part of a group point; the machine's own point is not concerned.
    pub fn verdict(&self) -> Result<&GroupMark, Missed> {
        match &self.verdict {
            Some(Ok(mark)) => Ok(mark),
            Some(Err(missed)) => Err(missed.clone()),
            None => Err(Missed::Late { wait: self.wait }),
        }
    }

    /// What to say when the hold is over and stood: `held` in all.
    #[must_use]
    pub fn released(&self, held: Duration) -> GroupAnswer {
        match self.held {
            Some((hold, _)) => {
                let marked = self.verdict().is_ok();
                self.answer(AnswerStep::Released { hold, marked, held_us: micros(held) })
            }
            None => self.failed("the hold ended before it was reported"),
        }
    }

    /// What to say when the hold did not stand.
    #[must_use]
    pub fn failed(&self, reason: impl Into<String>) -> GroupAnswer {
        self.answer(AnswerStep::Declined { reason: reason.into() })
    }

    const fn answer(&self, step: AnswerStep) -> GroupAnswer {
        GroupAnswer { cut: self.cut, step }
    }
}

impl fmt::Display for Missed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late { wait } => write!(f, "the mark did not come within {} ms", wait.as_millis()),
            Self::Cancelled { reason } => write!(f, "it was called off: {reason}"),
            Self::Clock => f.write_str("this machine's monotonic clock and the coordinator's disagree"),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
