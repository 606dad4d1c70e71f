//! The member's side of a group cut, without IO and without a clock.
//!
//! Owns when this machine arms, holds and goes its own way ([`Turn`]), and what a hold may take for its mark
//! ([`HeldTurn`]). Does not know disks, freezing or the network.
//! Invariant: a mark is taken only by the very hold that it names, while that hold stands; nothing waits without a limit.
//! Limits: [`GROUP_WAIT_MS_MAX`]. Proof: docs/consistency.md.

mod held;
mod marks;

use std::time::Duration;

use holdfast_common::{
    ids::GroupCutId,
    wire::{
        AnswerStep, Applications, GroupAnswer, GroupArm, GroupOrder, OrderStep, limits::GROUP_WAIT_MS_MAX,
    },
};

pub use held::{HeldTurn, Missed};
pub use marks::Marks;

/// Longest time that a machine stays ready for a group cut, whatever it is told.
const READY_MAX: Duration = Duration::from_mins(10);

/// This machine's part in one group cut, until it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    cut: GroupCutId,
    arm: GroupArm,
    standing: Standing,
    /// When the machine goes its own way.
    until: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Arming,
    Armed,
    Ordered { at: Duration },
}

/// What an order means for a machine that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A turn begins; one that was under way is over.
    Begin(Turn),
    /// Hold now.
    Hold,
    /// The turn is over; the machine goes its own way.
    Over(String),
    /// Nothing.
    Nothing,
}

impl Turn {
    /// What an order means; `turn` is the one under way.
    #[must_use]
    pub fn hear(turn: Option<&mut Self>, order: &GroupOrder, now: Duration) -> Heard {
        let mine = turn.filter(|turn| turn.cut == order.cut);
        match (&order.step, mine) {
            // Said twice on the way: the turn goes on as it is.
            (OrderStep::Arm(_), Some(_)) => Heard::Nothing,
            (OrderStep::Arm(arm), None) => {
                let until = now + Duration::from_millis(arm.ready_ms_max).min(READY_MAX);
                Heard::Begin(Self { cut: order.cut, arm: *arm, standing: Standing::Arming, until })
            }
            (OrderStep::Hold, Some(turn)) if turn.standing == Standing::Armed => {
                turn.standing = Standing::Ordered { at: now };
                Heard::Hold
            }
            (OrderStep::Cancel { reason }, Some(_)) => Heard::Over(reason.clone()),
            // A mark that finds no hold, and whatever belongs to another group cut.
            _ => Heard::Nothing,
        }
    }

    /// Which group cut it is.
    #[must_use]
    pub const fn cut(&self) -> GroupCutId {
        self.cut
    }

    /// Whether applications are to be made consistent.
    #[must_use]
    pub const fn application(&self) -> bool {
        !matches!(self.arm.application, Applications::AsTheyAre)
    }

    /// Whether this machine takes no part if they cannot be made so.
    #[must_use]
    pub const fn requires_application(&self) -> bool {
        matches!(self.arm.application, Applications::Required)
    }

    /// When the machine goes its own way.
    #[must_use]
    pub const fn until(&self) -> Duration {
        self.until
    }

    /// Whether the machine is to hold now.
    #[must_use]
    pub const fn is_ordered(&self) -> bool {
        matches!(self.standing, Standing::Ordered { .. })
    }

    /// Little is left to copy. The answer, if it was not given yet.
    pub fn ready(&mut self) -> Option<GroupAnswer> {
        if self.standing != Standing::Arming {
            return None;
        }
        self.standing = Standing::Armed;
        Some(self.answer(AnswerStep::Armed))
    }

    /// The machine does not take part any more.
    #[must_use]
    pub fn decline(&self, reason: impl Into<String>) -> GroupAnswer {
        self.answer(AnswerStep::Declined { reason: reason.into() })
    }

    /// The part of the hold; `None` unless the machine was ordered to hold. The turn is over with it: a machine holds
    /// for a group cut once.
    #[must_use]
    pub fn hold(&self) -> Option<HeldTurn> {
        let Standing::Ordered { at } = self.standing else { return None };
        let wait = Duration::from_millis(self.arm.wait_ms_max.min(GROUP_WAIT_MS_MAX));
        Some(HeldTurn::new(self.cut, at, wait))
    }

    const fn answer(&self, step: AnswerStep) -> GroupAnswer {
        GroupAnswer { cut: self.cut, step }
    }
}

#[cfg(test)]
mod tests;
