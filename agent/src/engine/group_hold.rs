//! A hold's part in a group cut: says that it stands, and waits for the mark.
//!
//! Owns the waiting, while file systems are frozen: it neither allocates (but for the mark) nor waits without a limit.
//! What counts is decided by [`HeldTurn`].

use std::time::Duration;

use holdfast_common::{
    clock::Clock,
    frame::GroupMark,
    ids::PointId,
    wire::{AgentMessage, GroupAnswer},
};

use super::{
    MessageSink,
    host::{Held, HoldCheck},
};
use crate::{
    capture::cycle::CutFailure,
    group::{HeldTurn, Marks},
};

/// How often the hold is looked after while it waits. Whatever ends it early also voids it when it is released; this only makes
/// a wait that is in vain shorter, and every look takes a processor from whoever does not hold yet.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The part of one hold.
pub(super) struct GroupHold<'a> {
    pub(super) turn: HeldTurn,
    /// The point that the hold makes; it names the hold.
    pub(super) point: PointId,
    /// Longest wait, so that the machine's own point keeps within the bound of holds.
    pub(super) wait_max: Duration,
    pub(super) marks: &'a Marks,
    pub(super) messages: &'a mut dyn MessageSink,
}

impl GroupHold<'_> {
    /// No write reaches the disks any more, and none is in flight: says so.
    pub(super) fn report(&mut self, clock: &dyn Clock) {
        let answer = self.turn.held(self.point, clock.monotonic());
        self.say(answer);
    }

    /// Waits until the mark or a cancel has come, or this machine's own time is over.
    pub(super) fn wait(&mut self, clock: &dyn Clock, check: &mut HoldCheck<'_>) -> Result<(), CutFailure> {
        let until = self.turn.until().min(clock.monotonic() + self.wait_max);
        loop {
            let left = until.saturating_sub(clock.monotonic());
            if left.is_zero() {
                return Ok(());
            }
            check().map_err(CutFailure::Void)?;
            let Some(order) = self.marks.take(left.min(LOOK_EVERY)) else { continue };
            if self.turn.order(&order, clock.monotonic()) {
                return Ok(());
            }
        }
    }

    /// The hold is over. Tells the coordinator, and gives the mark, or a remark why there is none.
    pub(super) fn end(mut self, result: &Result<Held, CutFailure>) -> Option<Result<GroupMark, String>> {
        let held = match result {
            Ok(held) => held.held,
            Err(failure) => {
                self.say(self.turn.failed(failure.to_string()));
                return None;
            }
        };
        self.say(self.turn.released(held));
        let verdict = self.turn.verdict().cloned();
        Some(verdict.map_err(|missed| format!("no part of a group point: {missed}")))
    }

    fn say(&mut self, answer: GroupAnswer) {
        self.messages.send(AgentMessage::GroupCut(answer));
    }
}
