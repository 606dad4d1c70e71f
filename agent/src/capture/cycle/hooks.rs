//! App-consistent cuts: hooks are frozen when little is left to copy, and thawed by the cut.
//!
//! Invariants: hooks are frozen only for a cut that is next, and let go on every way that does not lead to it; a point is
//! app-consistent only if the cut says so ([`CutMade`]).

use std::time::Duration;

use super::{Action, CutMade, Cycle, Phase, Settle};
use crate::{hooks::HookState, ship::port::Strictness};

/// How often it is looked whether the hooks have answered.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// How far the hooks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hooks {
    /// Applications go on.
    Free,
    /// They were asked to freeze; not all have answered.
    Freezing { ask_at: Duration },
    /// All are frozen.
    Frozen,
    /// A hook failed; the cut goes on as a crash-consistent one.
    GivenUp { reason: String },
}

impl Cycle {
    /// Whether applications are to be made consistent for the next cut.
    fn wants_application(&self) -> bool {
        self.turn.as_ref().is_some_and(crate::group::Turn::application)
            || self.requests.front().is_some_and(|request| self.application_requests.contains_key(request))
    }

    /// Whether the cut that is next is void without its applications.
    pub(super) fn is_strict(&self) -> bool {
        self.is_required_by_group() || self.is_request_strict()
    }

    fn is_required_by_group(&self) -> bool {
        self.turn.as_ref().is_some_and(crate::group::Turn::requires_application)
    }

    fn is_request_strict(&self) -> bool {
        let request = match &self.phase {
            Phase::Settle(settle) => settle.request,
            _ => self.requests.front().copied(),
        };
        request.and_then(|request| self.application_requests.get(&request)) == Some(&Strictness::Strict)
    }

    /// What the hooks need before the last steps of a cut, if anything.
    pub(super) fn hooks_step(&mut self, now: Duration) -> Option<Action> {
        match &self.hooks {
            Hooks::Free if self.wants_application() => {
                self.hooks = Hooks::Freezing { ask_at: now };
                Some(Action::FreezeHooks)
            }
            Hooks::Freezing { ask_at } if now < *ask_at => Some(Action::Wait { until: *ask_at }),
            Hooks::Freezing { .. } => Some(Action::AskHooks),
            Hooks::Free | Hooks::Frozen | Hooks::GivenUp { .. } => None,
        }
    }

    pub(super) fn hooks_are(&mut self, state: HookState, now: Duration) {
        match state {
            HookState::Running => self.hooks = Hooks::Freezing { ask_at: now + ASK_EVERY },
            HookState::Frozen => {
                self.hooks = Hooks::Frozen;
                // What the applications wrote meanwhile is copied before anything is held.
                self.phase = Phase::PreCopy { round: self.round(1, 0), since: now, converged: true };
            }
            HookState::Failed(reason) if self.is_required_by_group() => {
                // The machine's own point is not concerned: it goes on, without the group.
                self.hooks = Hooks::Free;
                self.decline_turn(|_| Some(format!("it cannot be app-consistent: {reason}")));
            }
            HookState::Failed(reason) if self.is_request_strict() => {
                self.hooks = Hooks::Free;
                let request = self.requests.pop_front();
                self.phase = Phase::Settle(Settle::new(now, request));
                let action = self.give_up(format!("it cannot be app-consistent: {reason}"), now);
                self.outbox.push_back(action);
            }
            HookState::Failed(reason) => self.hooks = Hooks::GivenUp { reason },
        }
    }

    /// No cut is next any more: applications go on.
    pub(super) fn release_hooks(&mut self) {
        if matches!(std::mem::replace(&mut self.hooks, Hooks::Free), Hooks::Freezing { .. } | Hooks::Frozen) {
            self.outbox.push_back(Action::ThawHooks);
        }
    }

    /// A cut was tried: the hooks are thawed. Says on the point why it is not what was asked for.
    pub(super) fn hooks_were_thawed(&mut self, made: Option<&mut CutMade>) {
        let before = std::mem::replace(&mut self.hooks, Hooks::Free);
        if let (Hooks::GivenUp { reason }, Some(made)) = (before, made) {
            made.notes.push(format!("not app-consistent: {reason}"));
        }
    }
}
