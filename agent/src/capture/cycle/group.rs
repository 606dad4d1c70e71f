//! The machine's part in group cuts: when it says that it is ready, and when it holds.
//!
//! A turn that ends in whatever way leaves the machine's own cut where it was: it is made without the group.

use std::time::Duration;

use holdfast_common::{ids::DiskId, wire::GroupOrder};

use super::{Action, Cycle, Phase, settle::SettleStep};
use crate::group::{Heard, Turn};

/// How often a machine that is ready and waits for the others copies what was written meanwhile.
const REFRESH_EVERY: Duration = Duration::from_millis(100);

impl Cycle {
    pub(super) fn group_order(&mut self, order: &GroupOrder, now: Duration) {
        match Turn::hear(self.turn.as_mut(), order, now) {
            Heard::Begin(turn) => self.turn = Some(turn),
            Heard::Over(_) => self.turn = None,
            // The hold is next; it is looked for by `strike`.
            Heard::Hold | Heard::Nothing => {}
        }
    }

    /// Whether somebody waits for a cut, so that it is made as soon as it can be.
    pub(super) fn is_wanted_now(&self) -> bool {
        !self.requests.is_empty() || self.turn.is_some()
    }

    /// Whether a group cut is under way in which this machine takes part and does not hold yet.
    pub(crate) const fn is_in_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// This machine cannot take part, if there is such a reason; the coordinator need not wait for it.
    pub(super) fn decline_turn(&mut self, reason: impl FnOnce(&Self) -> Option<String>) {
        if self.turn.is_none() {
            return;
        }
        let reason = reason(self).unwrap_or_else(|| "the machine is not ready".into());
        if let Some(turn) = self.turn.take() {
            self.outbox.push_back(Action::TellGroup(turn.decline(reason)));
        }
    }

    /// All is copied but a little: the cut, at once or when the group says so.
    pub(super) fn strike(&mut self, now: Duration) -> Action {
        let disks: Vec<DiskId> = self.disks.keys().copied().collect();
        let bound = Duration::from_millis(self.settings.hold_ms_max);
        let strict = self.is_strict();
        let Some(turn) = &mut self.turn else { return Action::Cut { disks, bound, group: None, strict } };
        if let Some(held) = turn.hold() {
            self.turn = None;
            return Action::Cut { disks, bound, group: Some(Box::new(held)), strict };
        }
        if let Some(answer) = turn.ready() {
            return Action::TellGroup(answer);
        }
        let until = turn.until();
        if now >= until {
            self.decline_turn(|_| Some("no order to hold came in time".into()));
            return self.strike(now);
        }
        self.stay_ready(now, until)
    }

    /// Copies now and then what is written while the machine waits, so that little is left when it holds.
    fn stay_ready(&mut self, now: Duration, until: Duration) -> Action {
        let round = self.round(0, 0);
        let Phase::Settle(settle) = &mut self.phase else { return Action::Wait { until: now } };
        if settle.refresh_at == Duration::ZERO {
            settle.refresh_at = now + REFRESH_EVERY;
        }
        if now < settle.refresh_at {
            return Action::Wait { until: settle.refresh_at.min(until) };
        }
        settle.refresh_at = now + REFRESH_EVERY;
        settle.step = SettleStep::Round(round);
        self.settle(now)
    }

    /// The group makes this machine's points: its own next cut is only due if the group's does not come.
    pub(super) fn due_after_group_cut(&mut self, now: Duration) {
        self.due = now + self.interval() + self.interval() / 2;
    }
}
