//! The last steps before a cut: plan, syncfs until it is short, quick rounds while they shrink, and the attempt itself.

use std::{collections::VecDeque, time::Duration};

use holdfast_common::frame::CutMember;

use super::{
    Cycle, PRE_COPY_LEAD_MIN, Phase, Round, SMALL_BLOCKS, SYNCS_MAX, Sending,
    action::{Action, CutFailure, CutMade},
    disk::Disk,
    hooks::Hooks,
};

/// A syncfs that takes no longer leaves little for the freeze to write.
const SHORT_SYNC: Duration = Duration::from_millis(20);
/// Rounds after the last syncfs, at most: each leaves what is written while it lasts, so that they shrink to what a disk's
/// churn and this machine's speed allow, and are of no use beyond.
const QUICK_ROUNDS_MAX: u32 = 5;
/// Pause between attempts to find a quiet window.
const QUIET_PAUSE: Duration = Duration::from_millis(20);
/// Longest search for a quiet window.
const PATIENCE_MAX: Duration = Duration::from_secs(10);
/// Most attempts of one cut that freeze, or that found too much.
const ATTEMPTS_MAX: u32 = 5;

/// A cut that is being prepared.
#[derive(Debug)]
pub(super) struct Settle {
    pub(super) step: SettleStep,
    pub(super) request: Option<u64>,
    freezes: bool,
    syncs: u32,
    last_sync: Duration,
    quick_rounds: u32,
    attempts: u32,
    /// When a machine that waits for a group copies again what was written meanwhile.
    pub(super) refresh_at: Duration,
    give_up_at: Duration,
}

#[derive(Debug)]
pub(super) enum SettleStep {
    Pause { until: Duration },
    Plan,
    Sync,
    Round(Round),
    Cut,
}

impl Settle {
    pub(super) const fn new(give_up_at: Duration, request: Option<u64>) -> Self {
        Self {
            step: SettleStep::Plan,
            request,
            freezes: false,
            syncs: 0,
            last_sync: Duration::ZERO,
            quick_rounds: 0,
            attempts: 0,
            refresh_at: Duration::ZERO,
            give_up_at,
        }
    }

    /// Another attempt, from the plan on: what is mounted may have changed.
    fn again(&mut self, until: Duration) {
        self.step = SettleStep::Pause { until };
        self.syncs = 0;
        self.quick_rounds = 0;
    }
}

impl Cycle {
    /// How long a quiet window is searched for.
    pub(super) fn patience(&self) -> Duration {
        self.interval().min(PATIENCE_MAX)
    }

    pub(super) fn settle(&mut self, now: Duration) -> Action {
        if let Some(action) = self.take_or_copy(now) {
            return action;
        }
        if let Some(reason) = self.obstacle(now) {
            return self.give_up(reason, now);
        }
        let mut round = self.round(0, 0);
        let Phase::Settle(settle) = &mut self.phase else { return Action::Wait { until: now } };
        match &settle.step {
            SettleStep::Pause { until } if now < *until => Action::Wait { until: *until },
            SettleStep::Pause { .. } => {
                settle.step = SettleStep::Plan;
                Action::PlanHold
            }
            SettleStep::Plan => Action::PlanHold,
            SettleStep::Sync => Action::Sync,
            SettleStep::Cut => self.strike(now),
            SettleStep::Round(done) => {
                let long_sync = settle.freezes && settle.last_sync > SHORT_SYNC && settle.syncs < SYNCS_MAX;
                if long_sync {
                    settle.step = SettleStep::Sync;
                    return Action::Sync;
                }
                settle.quick_rounds += 1;
                let gains = settle.quick_rounds == 1 || done.taken * 4 < done.previous * 3;
                if settle.quick_rounds < QUICK_ROUNDS_MAX && gains && done.taken > SMALL_BLOCKS / 4 {
                    round.previous = done.taken;
                    settle.step = SettleStep::Round(round);
                    return self.settle(now);
                }
                settle.step = SettleStep::Cut;
                self.strike(now)
            }
        }
    }

    pub(super) fn hold_planned(&mut self, result: Result<bool, String>, now: Duration) {
        let round = self.round(0, 0);
        let Phase::Settle(settle) = &mut self.phase else { return };
        match result {
            Ok(freezes) => {
                settle.freezes = freezes;
                settle.step = if freezes { SettleStep::Sync } else { SettleStep::Round(round) };
            }
            Err(reason) => self.void(reason, now),
        }
    }

    pub(super) fn synced(&mut self, result: Result<Duration, String>, now: Duration) {
        let round = self.round(0, 0);
        let Phase::Settle(settle) = &mut self.phase else { return };
        match result {
            Ok(took) => {
                settle.last_sync = took;
                settle.syncs += 1;
                settle.step = SettleStep::Round(round);
            }
            Err(reason) => self.void(reason, now),
        }
    }

    pub(super) fn cut_tried(&mut self, mut result: Result<CutMade, CutFailure>, now: Duration) {
        let frozen = self.hooks == Hooks::Frozen;
        self.hooks_were_thawed(result.as_mut().ok());
        let Phase::Settle(settle) = &mut self.phase else { return };
        settle.attempts += 1;
        // Hooks are not frozen again for another attempt at once: the next cut that is asked for may have them.
        let last = settle.attempts >= ATTEMPTS_MAX || frozen;
        match result {
            Ok(made) => self.cut_made(made, now),
            Err(CutFailure::NotQuiet(reason)) => {
                if now >= settle.give_up_at || (settle.freezes && last) || frozen {
                    return self.void(reason, now);
                }
                settle.again(now + QUIET_PAUSE);
            }
            Err(CutFailure::TooMuch(reason)) => {
                if last {
                    return self.void(reason, now);
                }
                settle.again(now);
            }
            Err(CutFailure::Void(reason)) => self.void(reason, now),
            Err(CutFailure::Disk(disk, trouble)) => {
                self.trouble(disk, trouble, now);
                let reason = self.obstacle(now).unwrap_or_else(|| "a disk failed during the cut".into());
                self.void(reason, now);
            }
        }
    }

    fn cut_made(&mut self, made: CutMade, now: Duration) {
        let Phase::Settle(settle) = &self.phase else { return };
        let members = |disk: &Disk| CutMember { disk: disk.id(), generation: disk.capture.generation };
        let sending = Sending {
            made,
            members: self.disks.values().map(members).collect(),
            left: self.disks.keys().copied().collect::<VecDeque<_>>(),
            drained: false,
            request: settle.request,
        };
        for disk in self.disks.values_mut() {
            disk.pending = 0;
        }
        if let Some(request) = sending.request {
            self.application_requests.remove(&request);
        }
        let of_group = sending.made.more.group.is_some();
        self.phase = Phase::Sending(sending);
        self.audit_has_turn();
        self.told = None;
        self.next_due(now);
        if of_group {
            self.due_after_group_cut(now);
        }
    }

    fn void(&mut self, reason: String, now: Duration) {
        let action = self.give_up(reason, now);
        self.outbox.push_back(action);
    }

    /// Pre-copy took this long: the next one starts early enough to end when its cut is due.
    pub(super) fn learn_lead(&mut self, took: Duration) {
        let wanted = took + took / 2 + PRE_COPY_LEAD_MIN;
        self.lead = wanted.min(self.interval() * 4 / 5);
    }
}
