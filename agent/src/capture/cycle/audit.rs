//! The ranges of an audit: read between cuts, when nothing else is due.
//!
//! Invariant: a range is read in the gathering phase only, so that it lies between the instants of two cuts. After every cut
//! one range has its turn, however busy the machine is; more of them wait for idle time.

use std::{collections::VecDeque, time::Duration};

use holdfast_common::{
    ids::DiskId,
    wire::limits::{AUDIT_ORDERS_MAX, DISKS_PER_MACHINE_MAX},
};

use super::{
    Cycle,
    action::{Action, Audited},
    disk::Standing,
};

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Audits {
    waiting: VecDeque<DiskId>,
    idle_until: Duration,
    /// A range may be read although a cut is due.
    turn: bool,
}

impl Audits {
    pub(super) const fn new() -> Self {
        Self { waiting: VecDeque::new(), idle_until: Duration::ZERO, turn: false }
    }
}

impl Cycle {
    pub(super) fn audit_ordered(&mut self, disk: DiskId) {
        let is_ready = self.disks.get(&disk).is_some_and(|disk| matches!(disk.standing, Standing::Ready));
        if is_ready && self.audits.waiting.len() < AUDIT_ORDERS_MAX * DISKS_PER_MACHINE_MAX {
            self.audits.waiting.push_back(disk);
        }
    }

    pub(super) fn audits_forgotten(&mut self) {
        self.audits.waiting.clear();
    }

    /// The cut was made: one range has its turn before the next one.
    pub(super) const fn audit_has_turn(&mut self) {
        self.audits.turn = true;
    }

    /// The next range, if one may be read now; `busy` says that a cut is due.
    pub(super) fn next_audit(&mut self, now: Duration, busy: bool) -> Option<Action> {
        if now < self.audits.idle_until || (busy && !self.audits.turn) {
            return None;
        }
        let disk = self.audits.waiting.pop_front()?;
        self.audits.turn = false;
        Some(Action::Audit { disk })
    }

    /// When there may be something to read, if something waits.
    pub(super) fn audit_due(&self) -> Option<Duration> {
        (!self.audits.waiting.is_empty()).then_some(self.audits.idle_until)
    }

    pub(super) fn audited(&mut self, disk: DiskId, result: Audited) {
        match result {
            Audited::Done => return,
            Audited::Later { until } => self.audits.idle_until = until,
            Audited::Blocked => self.blocked = true,
        }
        self.audits.waiting.push_front(disk);
    }
}
