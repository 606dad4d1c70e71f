//! The engine of intervals and cuts of one machine: events in, actions out. No IO, no clock.
//!
//! Owns what is done next with each disk and when a cut is tried. Does not know block numbers, devices or formats.
//!
//! ```text
//!            +--------------------------- void, sent ----------------------------+
//!            v                                                                   |
//!   gather (scan slices, takes) -- cut due --> pre-copy rounds -- due --> settle (plan, syncfs, rounds)
//!                                                                                |
//!                                          sending residue and cut frames <-- cut tried
//! ```
//!
//! One action is under way at a time; its event comes before the next action. Invariants: no cut before every disk of
//! the machine has been scanned in its generation; no take for an interval while the cut two intervals before it is
//! not acknowledged; a void cut loses nothing, since what was taken stays in its interval.
//! Limits: [`ROUNDS_MAX`], [`SYNCS_MAX`], [`REQUESTS_MAX`], at most two open intervals per disk.

mod action;
mod audit;
mod disk;
mod group;
mod hooks;
mod inbound;
mod settle;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use holdfast_common::{
    frame::CutMember,
    ids::{DiskId, MachineId},
    wire::{
        Capture, DiskHealth, MachineSettings, limits::CUT_INTERVAL_MS_DEFAULT, limits::HOLD_MS_MAX_DEFAULT,
    },
};

pub use action::{Action, Audited, Copied, CutFailure, CutMade, Event, Scanned, Trouble};
use audit::Audits;
use disk::{Disk, Standing};
use hooks::Hooks;
use settle::{Settle, SettleStep};

use crate::{group::Turn, ship::port::Strictness};

/// Most pre-copy rounds before a cut is tried.
pub const ROUNDS_MAX: u32 = 12;
/// A round that took no more blocks than this (1 MiB) is small enough for a cut.
pub const SMALL_BLOCKS: u64 = 256;
/// Most syncfs passes before a cut.
pub const SYNCS_MAX: u32 = 6;
/// Most points an operator may have asked for at a time.
pub const REQUESTS_MAX: usize = 16;
/// Time between takes while a scan runs.
const TAKE_EVERY: Duration = Duration::from_secs(5);
/// How long to wait, at most, when there is no room; the executor comes earlier if there is.
const ROOM_WAIT: Duration = Duration::from_millis(100);
/// How long to wait when there is nothing to do.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Time before a cut is due in which the last rounds are made.
const SETTLE_LEAD: Duration = Duration::from_millis(100);
/// Shortest time before a cut is due in which pre-copy starts.
const PRE_COPY_LEAD_MIN: Duration = Duration::from_millis(200);
/// How often the same reason is reported while no cut can be tried at all.
const REPEAT_REASON: Duration = Duration::from_secs(60);

/// The engine.
#[derive(Debug)]
pub struct Cycle {
    machine: Option<MachineId>,
    settings: MachineSettings,
    disks: BTreeMap<DiskId, Disk>,
    phase: Phase,
    /// Actions that ask for no event, to be done first.
    outbox: VecDeque<Action>,
    /// Points that operators asked for.
    requests: VecDeque<u64>,
    /// When the next cut is due.
    due: Duration,
    /// How long before it pre-copy starts.
    lead: Duration,
    /// When marks are taken next during a scan.
    next_take: Duration,
    /// There was no room: wait once.
    blocked: bool,
    /// The group cut that this machine takes part in.
    turn: Option<Turn>,
    /// Whether applications are held consistent.
    hooks: Hooks,
    /// Requests for app-consistent points, and what becomes of them if a hook fails.
    application_requests: BTreeMap<u64, Strictness>,
    /// When and why it was last reported that no cut can be tried.
    told: Option<(Duration, String)>,
    /// The machine runs elsewhere: marks are kept, but no cut is made.
    fenced: bool,
    /// Disk whose scan had the last turn.
    last_scanned: Option<DiskId>,
    /// Ranges to hash for an audit.
    audits: Audits,
}

#[derive(Debug)]
enum Phase {
    Gather { untaken: Vec<DiskId> },
    PreCopy { round: Round, since: Duration, converged: bool },
    Settle(Settle),
    Sending(Sending),
}

/// One round: take the marks of all disks, then copy all that was taken.
#[derive(Debug, Default)]
struct Round {
    number: u32,
    untaken: Vec<DiskId>,
    taken: u64,
    previous: u64,
}

#[derive(Debug)]
struct Sending {
    made: CutMade,
    members: Vec<CutMember>,
    left: VecDeque<DiskId>,
    /// The residue of the first disk in `left` is sent.
    drained: bool,
    request: Option<u64>,
}

impl Default for Cycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Cycle {
    /// An engine that protects nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            machine: None,
            settings: MachineSettings {
                cut_interval_ms: CUT_INTERVAL_MS_DEFAULT,
                hold_ms_max: HOLD_MS_MAX_DEFAULT,
                send_bytes_per_second_max: 0,
                scan_bytes_per_second_max: 0,
            },
            disks: BTreeMap::new(),
            phase: Phase::Gather { untaken: Vec::new() },
            outbox: VecDeque::new(),
            requests: VecDeque::new(),
            due: Duration::ZERO,
            lead: PRE_COPY_LEAD_MIN,
            next_take: Duration::ZERO,
            blocked: false,
            turn: None,
            hooks: Hooks::Free,
            application_requests: BTreeMap::new(),
            told: None,
            fenced: false,
            last_scanned: None,
            audits: Audits::new(),
        }
    }

    /// What to do next. After every action but [`Action::Wait`] and those that ask for no event, [`Self::on`] must be
    /// called before this is called again.
    pub fn next(&mut self, now: Duration) -> Action {
        if let Some(action) = self.outbox.pop_front() {
            return action;
        }
        if std::mem::take(&mut self.blocked) {
            return Action::Wait { until: now + ROOM_WAIT };
        }
        if let Some(capture) = self.disks.values_mut().find_map(|disk| disk.opening(now)) {
            return Action::Open(Box::new(capture));
        }
        match &self.phase {
            Phase::Gather { .. } => self.gather(now),
            Phase::PreCopy { .. } => self.pre_copy(now),
            Phase::Settle(_) => self.settle(now),
            Phase::Sending(_) => self.send(now),
        }
    }

    /// State of a disk, for reports.
    #[must_use]
    pub fn health(&self, disk: DiskId) -> Option<DiskHealth> {
        self.disks.get(&disk).map(Disk::health)
    }

    /// The disks of the machine as they were assigned, and their state.
    pub fn disks(&self) -> impl Iterator<Item = (&Capture, DiskHealth)> {
        self.disks.values().map(|disk| (&disk.capture, disk.health()))
    }

    /// Settings in force.
    #[must_use]
    pub const fn settings(&self) -> &MachineSettings {
        &self.settings
    }

    /// Cuts that were sent and are not acknowledged, counted on the disk that has most of them.
    #[must_use]
    pub fn unacknowledged_cuts(&self) -> usize {
        self.disks.values().map(|disk| disk.unacknowledged.len()).max().unwrap_or(0)
    }

    /// What an event means for the phase and the disks.
    pub fn on(&mut self, event: Event, now: Duration) {
        match event {
            Event::Opened { disk, result } => self.opened(disk, result, now),
            Event::Taken { disk, result } => {
                let blocks = result.as_ref().map_or(0, |blocks| blocks.0);
                if let Some(round) = self.phase.round() {
                    round.taken += blocks;
                }
                let figures = result.map(|blocks| Copied { left: blocks, blocked: false });
                self.counted(disk, figures, now);
            }
            Event::Copied { disk, result } => {
                if let (Ok(_), Some(disk)) = (&result, self.disks.get_mut(&disk)) {
                    disk.recovered();
                }
                self.counted(disk, result, now);
            }
            Event::Scanned { disk, result } => self.scanned(disk, result, now),
            Event::Audited { disk, result } => self.audited(disk, result),
            Event::HoldPlanned(result) => self.hold_planned(result, now),
            Event::Synced(result) => self.synced(result, now),
            Event::Hooks(state) => self.hooks_are(state, now),
            Event::CutTried(result) => self.cut_tried(*result, now),
            Event::ResidueSent { left, blocked } => {
                self.blocked |= blocked;
                if let Phase::Sending(sending) = &mut self.phase {
                    sending.drained = left == 0;
                }
            }
            Event::CutSent { disk, sequence } => {
                if let Phase::Sending(sending) = &mut self.phase {
                    sending.left.pop_front();
                    sending.drained = false;
                }
                if let Some(disk) = self.disks.get_mut(&disk) {
                    disk.cut_sent(sequence);
                }
            }
        }
    }

    fn gather(&mut self, now: Duration) -> Action {
        if let Some(action) = self.take_or_copy(now) {
            return action;
        }
        let scanning = self.disks.values().any(|disk| matches!(disk.standing, Standing::Scanning { .. }));
        if scanning {
            self.refuse_requests(now);
            return self.outbox.pop_front().unwrap_or_else(|| self.scan(now));
        }
        if let Some(reason) = self.obstacle(now) {
            return self.explain(reason, now);
        }
        if !self.disks.values().all(Disk::may_take) {
            // Lag: the acknowledgement that is waited for wakes the executor.
            return Action::Wait { until: now + IDLE_WAIT };
        }
        let start = if self.is_wanted_now() { now } else { self.due.saturating_sub(self.lead) };
        if let Some(action) = self.next_audit(now, now >= start) {
            return action;
        }
        if now < start {
            let audit = self.audit_due().unwrap_or(start);
            return Action::Wait { until: start.min(audit).min(now + IDLE_WAIT) };
        }
        self.phase = Phase::PreCopy { round: self.round(1, 0), since: now, converged: false };
        self.pre_copy(now)
    }

    /// The next slice of a scan, the disks by turns; or the next take, or a wait.
    fn scan(&mut self, now: Duration) -> Action {
        if now >= self.next_take {
            self.next_take = now + TAKE_EVERY;
            self.phase = Phase::Gather { untaken: self.takeable() };
            if let Some(action) = self.take_or_copy(now) {
                return action;
            }
        }
        let after = self.last_scanned;
        let ready =
            |disk: &&Disk| matches!(disk.standing, Standing::Scanning { idle_until } if idle_until <= now);
        let mut turns: Vec<DiskId> = self.disks.values().filter(ready).map(Disk::id).collect();
        turns.sort_by_key(|disk| (Some(*disk) <= after, *disk));
        if let Some(disk) = turns.first() {
            self.last_scanned = Some(*disk);
            return Action::Scan { disk: *disk };
        }
        let idle = self.disks.values().filter_map(|disk| match disk.standing {
            Standing::Scanning { idle_until } => Some(idle_until),
            _ => None,
        });
        Action::Wait { until: idle.chain([self.next_take]).min().unwrap_or(now + IDLE_WAIT) }
    }

    fn pre_copy(&mut self, now: Duration) -> Action {
        if let Some(action) = self.take_or_copy(now) {
            return action;
        }
        if let Some(reason) = self.obstacle(now) {
            return self.give_up(reason, now);
        }
        let Phase::PreCopy { round, since, converged } = &mut self.phase else {
            return Action::Wait { until: now };
        };
        let (number, taken, since) = (round.number, round.taken, *since);
        let no_gain = number >= 2 && taken * 4 >= round.previous * 3;
        if taken > SMALL_BLOCKS && !no_gain && number < ROUNDS_MAX {
            let round = self.round(number + 1, taken);
            self.phase = Phase::PreCopy { round, since, converged: false };
            return self.pre_copy(now);
        }
        if !*converged {
            *converged = true;
            let took = now.saturating_sub(since);
            self.learn_lead(took);
        }
        let settle_at = self.due.saturating_sub(SETTLE_LEAD);
        if !self.is_wanted_now() && now < settle_at {
            return Action::Wait { until: settle_at };
        }
        if let Some(action) = self.hooks_step(now) {
            return action;
        }
        self.phase = Phase::Settle(Settle::new(now + self.patience(), self.requests.pop_front()));
        self.settle(now)
    }

    /// Sends residue and cut frame disk by disk.
    fn send(&mut self, now: Duration) -> Action {
        let Phase::Sending(sending) = &self.phase else { return Action::Wait { until: now } };
        let Some(disk) = sending.left.front().copied() else {
            self.phase = Phase::Gather { untaken: Vec::new() };
            return self.gather(now);
        };
        if !sending.drained {
            return Action::SendResidue { disk };
        }
        let Some(machine) = self.machine else { return Action::Wait { until: now + IDLE_WAIT } };
        let record = sending.made.record(machine, &sending.members, sending.request);
        Action::SendCut { disk, record: Box::new(record) }
    }

    /// The next take of the round, or the next copy of what was taken; `None` once all is copied.
    fn take_or_copy(&mut self, now: Duration) -> Option<Action> {
        while let Some(disk) = self.phase.untaken().and_then(Vec::pop) {
            let Some(disk) = self.disks.get(&disk).filter(|disk| disk.is_open() && disk.may_take()) else {
                continue;
            };
            return Some(Action::Take { disk: disk.id(), interval: disk.interval });
        }
        let pending =
            self.disks.values().find(|disk| disk.is_open() && disk.pending > 0 && disk.is_well(now));
        pending.map(|disk| Action::Copy { disk: disk.id() })
    }

    fn round(&self, number: u32, previous: u64) -> Round {
        Round { number, untaken: self.takeable(), taken: 0, previous }
    }

    fn takeable(&self) -> Vec<DiskId> {
        self.disks.values().filter(|disk| disk.is_open() && disk.may_take()).map(Disk::id).collect()
    }

    /// Time between cuts.
    fn interval(&self) -> Duration {
        Duration::from_millis(self.settings.cut_interval_ms.max(1))
    }

    /// The machine's next cut is due one interval after this one was; one that is late makes no burst.
    fn next_due(&mut self, now: Duration) {
        self.due = (self.due + self.interval()).clamp(now, now + self.interval());
    }

    /// A disk could not be captured: what that means for it and for a cut under way.
    fn trouble(&mut self, id: DiskId, trouble: Trouble, now: Duration) {
        let Some(disk) = self.disks.get_mut(&id) else { return };
        self.outbox.extend(disk.trouble(trouble, now));
        if let Phase::Sending(sending) = &mut self.phase {
            // The residue went with the disk: its cut frame must not be sent, and the point stays incomplete.
            if !disk.is_open() {
                if sending.left.front() == Some(&id) {
                    sending.drained = false;
                }
                sending.left.retain(|left| *left != id);
            }
        }
    }

    fn opened(&mut self, id: DiskId, result: Result<(), Trouble>, now: Duration) {
        match result {
            Ok(()) => {
                if let Some(disk) = self.disks.get_mut(&id) {
                    disk.opened();
                }
                self.due = now;
                self.next_take = now;
            }
            Err(trouble) => self.trouble(id, trouble, now),
        }
    }

    fn counted(&mut self, id: DiskId, result: Result<Copied, Trouble>, now: Duration) {
        match result {
            Ok(copied) => {
                self.blocked |= copied.blocked;
                if let Some(disk) = self.disks.get_mut(&id) {
                    disk.pending = copied.left.0;
                }
            }
            Err(trouble) => self.trouble(id, trouble, now),
        }
    }

    fn scanned(&mut self, id: DiskId, result: Result<Scanned, Trouble>, now: Duration) {
        let Some(disk) = self.disks.get_mut(&id) else { return };
        match result {
            Ok(Scanned::Progress { pending }) => disk.pending = pending.0,
            Ok(Scanned::Idle { until }) => disk.standing = Standing::Scanning { idle_until: until },
            Ok(Scanned::Blocked) => self.blocked = true,
            Ok(Scanned::Complete) => {
                disk.standing = Standing::Ready;
                self.due = now;
            }
            Err(trouble) => self.trouble(id, trouble, now),
        }
    }

    /// Why no cut can be tried now, if so.
    fn obstacle(&self, now: Duration) -> Option<String> {
        if self.disks.is_empty() {
            return Some("no disk of this machine is protected: protect one first".into());
        }
        if self.fenced {
            return Some("this source is fenced: its machine was failed over".into());
        }
        self.disks.values().find_map(|disk| disk.obstacle(now))
    }

    /// No cut can be tried: says so to operators who asked, and to all once in a while.
    fn explain(&mut self, reason: String, now: Duration) -> Action {
        self.refuse_requests(now);
        let known = self.told.as_ref().is_some_and(|(at, told)| *told == reason && now < *at + REPEAT_REASON);
        if !known && !self.disks.is_empty() {
            self.told = Some((now, reason.clone()));
            self.outbox.push_back(Action::Void { request: None, reason });
        }
        let retry = self.disks.values().filter_map(Disk::retry_at).min().unwrap_or(now + IDLE_WAIT);
        self.outbox.pop_front().unwrap_or(Action::Wait { until: retry.clamp(now, now + IDLE_WAIT) })
    }

    fn refuse_requests(&mut self, now: Duration) {
        self.decline_turn(|cycle| cycle.obstacle(now));
        if self.requests.is_empty() {
            return;
        }
        let reason = self.obstacle(now).unwrap_or_else(|| "the machine is not ready".into());
        self.application_requests.clear();
        for request in self.requests.drain(..) {
            self.outbox.push_back(Action::Void { request: Some(request), reason: reason.clone() });
        }
    }

    /// The cut under way is void: reports it; the next one is due in its turn.
    fn give_up(&mut self, reason: String, now: Duration) -> Action {
        let request = match &self.phase {
            Phase::Settle(settle) => settle.request,
            _ => self.requests.pop_front(),
        };
        self.decline_turn(|_| Some(reason.clone()));
        self.release_hooks();
        self.phase = Phase::Gather { untaken: Vec::new() };
        self.next_due(now);
        if let Some(request) = request {
            self.application_requests.remove(&request);
        }
        Action::Void { request, reason }
    }
}

impl Phase {
    const fn round(&mut self) -> Option<&mut Round> {
        match self {
            Self::PreCopy { round, .. } | Self::Settle(Settle { step: SettleStep::Round(round), .. }) => {
                Some(round)
            }
            _ => None,
        }
    }

    fn untaken(&mut self) -> Option<&mut Vec<DiskId>> {
        match self {
            Self::Gather { untaken } => Some(untaken),
            other => other.round().map(|round| &mut round.untaken),
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod turns;
