//! Stored data is read in the background: new data once soon after it came, all of it once per period, and at a failover what
//! the point needs before all other checks, with all processors, once what the failover starts has had a moment for its first reads.
//!
//! Owns the rhythm, the rates, the records of how far each log is, and what operators see of it. The rules are those of
//! [`crate::points::checks`], reading is [`DiskLog::check`]'s, damage that is found goes to [`super::damage`].
//! Invariants: a point is called verified only when every frame that it needs was read and was good; what is recorded is never
//! ahead of what was done. Frames that newer ones covered are not read for a point that does not need them.
//! Limits: one piece of work at a time; one bit per frame of memory besides what the check takes;
//! [`HURRIED_KEPT`] hurried points are remembered.

mod figures;
mod pace;
mod verify;
mod witness;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_common::{
    causes::in_one_line,
    clock::Clock,
    ids::{DiskId, PointId, Sequence},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use pace::Pace;

use super::logs::Logs;
use crate::{
    catalog::record::{PointRecord, PointState, WitnessRecord},
    compute::port::{Progress, Task},
    index::IndexError,
    points::{
        catalog::PointCatalog,
        checks::{CheckPolicy, CheckWork, LogFacts},
        damage::DamageLedger,
        frame_cache::FrameCache,
    },
    store::{CheckOrder, CheckRecord, Checked, DiskLog, FrameSet},
};

/// Time between two looks when nothing is to be done.
const STEP: Duration = Duration::from_millis(200);
/// What was started from a point has the processors to itself for so long before the point is verified: what it reads is verified
/// when it reads it, and a machine's firmware and boot loader wait for every processor that reads for the proof of the rest.
const HEAD_START: Duration = Duration::from_secs(1);
/// Time between two looks whether that is over.
const HEAD_START_LOOK: Duration = Duration::from_millis(20);
/// A log that could not be checked is left alone for this time.
const AGAIN: Duration = Duration::from_secs(30);
/// Time between two writes of a record; what was done since is done again after a crash.
const RECORD_EVERY: Duration = Duration::from_secs(10);
/// Bytes of decompressed frames kept for comparing witnesses.
const WITNESS_CACHE_BYTES: usize = 4 << 20;
/// Hurried points of which the progress is remembered.
const HURRIED_KEPT: usize = 64;

/// The checks of all logs.
#[derive(Debug)]
pub(super) struct Checks {
    logs: Arc<Logs>,
    points: Arc<PointCatalog>,
    ledger: Arc<DamageLedger>,
    clock: Arc<dyn Clock>,
    policy: CheckPolicy,
    /// Frames that witnesses are compared with; they are others than those that clients read.
    cache: Arc<FrameCache>,
    /// Threads of a check that somebody waits for.
    threads: usize,
    state: Mutex<State>,
    /// Whether somebody waits; what goes on in the background makes room.
    hurry: AtomicBool,
    /// When the youngest head start ends, in microseconds of the clock.
    head_start_ends: AtomicU64,
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    disks: HashMap<DiskId, DiskState>,
    hurried: BTreeMap<PointId, Hurried>,
    /// What came of witnesses, to be recorded.
    witnessed: HashMap<PointId, WitnessRecord>,
    turn: u64,
}

/// What is known of one log.
#[derive(Debug, Default)]
struct DiskState {
    record: CheckRecord,
    /// Good frames behind the verified cut: read for a point in a hurry, or before the background was interrupted.
    good: Option<FrameSet>,
    turn: u64,
    recorded: Option<Duration>,
    failed: Option<Duration>,
    rate: Option<u64>,
}

/// A point that somebody waits for.
#[derive(Clone, Debug)]
struct Hurried {
    point: PointRecord,
    task: Arc<Task>,
    began: Duration,
    /// When it was done, and whether all was good.
    ended: Option<(Duration, bool)>,
}

/// How the verification of a point that a job uses is going.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PointProgress {
    pub(super) progress: Progress,
    /// `Some` when it is over: whether all was good.
    pub(super) good: Option<bool>,
}

impl Checks {
    pub(super) fn new(
        logs: Arc<Logs>,
        points: Arc<PointCatalog>,
        ledger: Arc<DamageLedger>,
        clock: Arc<dyn Clock>,
        policy: CheckPolicy,
        threads: usize,
    ) -> Arc<Self> {
        let (state, hurry, woken) = (Mutex::default(), AtomicBool::new(false), Notify::new());
        let cache = FrameCache::new(WITNESS_CACHE_BYTES);
        let head_start_ends = AtomicU64::new(0);
        Arc::new(Self {
            logs,
            points,
            ledger,
            clock,
            policy,
            cache,
            threads,
            state,
            hurry,
            head_start_ends,
            woken,
        })
    }

    /// Has a point verified before all others, with all processors, after what uses it had its head start.
    pub(super) fn hurry(&self, point: &PointRecord) {
        if point.verified_at.is_some() {
            return;
        }
        let began = self.clock.monotonic();
        let mut state = self.state();
        if state.hurried.len() >= HURRIED_KEPT {
            let over = state.hurried.iter().filter_map(|(id, hurried)| Some((hurried.ended?.0, *id))).min();
            over.and_then(|(_, id)| state.hurried.remove(&id));
        }
        let hurried = Hurried { point: point.clone(), task: Arc::default(), began, ended: None };
        let known = state.hurried.entry(point.id).or_insert_with(|| hurried.clone());
        if known.ended.is_some_and(|(_, good)| !good) {
            *known = hurried;
        }
        self.hurry.store(true, Ordering::Relaxed);
        self.head_start_ends.fetch_max(micros(began + HEAD_START), Ordering::Relaxed);
        drop(state);
        self.woken.notify_one();
    }

    /// How the verification of a hurried point is going.
    pub(super) fn progress(&self, point: PointId) -> Option<PointProgress> {
        let state = self.state();
        let hurried = state.hurried.get(&point)?;
        let until = hurried.ended.map_or_else(|| self.clock.monotonic(), |(at, _)| at);
        let progress = hurried.task.progress(until.saturating_sub(hurried.began));
        Some(PointProgress { progress, good: hurried.ended.map(|(_, good)| good) })
    }

    /// Works until told to end.
    pub(super) async fn run(self: Arc<Self>, closing: CancellationToken) {
        loop {
            let (this, stop) = (Arc::clone(&self), closing.clone());
            let busy = tokio::task::spawn_blocking(move || this.step(&stop)).await.unwrap_or_else(|error| {
                tracing::error!(%error, "a check ended early; it is made again");
                false
            });
            self.settle().await;
            if closing.is_cancelled() {
                break;
            }
            if !busy {
                tokio::select! {
                    () = closing.cancelled() => {}
                    () = self.woken.notified() => {}
                    () = tokio::time::sleep(STEP) => {}
                }
            }
        }
        let _ended = tokio::task::spawn_blocking(move || self.record_all()).await;
    }

    /// One piece of work; `false` if there was none.
    fn step(&self, closing: &CancellationToken) -> bool {
        let waiting = {
            let state = self.state();
            let next = state.hurried.values().find(|hurried| hurried.ended.is_none()).cloned();
            self.hurry.store(next.is_some(), Ordering::Relaxed);
            next
        };
        if let Some(hurried) = waiting {
            if self.is_head_start() {
                return false;
            }
            self.verify_now(&hurried, closing);
            return true;
        }
        let witnessed = self.witness_next();
        let Some(work) = self.policy.next(&self.facts(), self.clock.wall()) else { return witnessed };
        if let Err(error) = self.work(work, closing) {
            let disk = disk_of(&work);
            tracing::warn!(%disk, error = %in_one_line(&error), "stored data cannot be checked now; it is tried again");
            let now = self.clock.monotonic();
            self.with(disk, |state| state.failed = Some(now));
        }
        true
    }

    fn is_head_start(&self) -> bool {
        micros(self.clock.monotonic()) < self.head_start_ends.load(Ordering::Relaxed)
    }

    /// What the rules need to know; loads the records of logs that are new here.
    fn facts(&self) -> Vec<LogFacts> {
        let now = self.clock.monotonic();
        let mut facts = Vec::new();
        for log in self.logs.store.disks() {
            let disk = log.disk();
            let Some(index) = self.logs.index(disk) else { continue };
            let known = self.state().disks.contains_key(&disk);
            if !known {
                let record =
                    CheckRecord::load(&log.layout().checks(), log.tail().sequence, self.clock.wall());
                let loaded = DiskState { record, ..DiskState::default() };
                self.state().disks.insert(disk, loaded);
                // So that the first pass counts from now on also after a restart.
                self.record(&log, true);
            }
            let (record, turn, failed) = self.with(disk, |state| (state.record, state.turn, state.failed));
            if failed.is_some_and(|failed| now < failed + AGAIN) {
                continue;
            }
            let next_cut = index.cuts_after(Sequence(record.verified_to)).first().map(|cut| cut.sequence);
            facts.push(LogFacts { disk, record, next_cut, durable: log.tail().sequence, turn });
        }
        facts
    }

    fn work(&self, work: CheckWork, closing: &CancellationToken) -> Result<(), IndexError> {
        let disk = disk_of(&work);
        let Some(index) = self.logs.index(disk) else { return Ok(()) };
        let log = Arc::clone(index.log());
        let rate = self.policy.rate(&work, self.store_bytes());
        let turn = {
            let mut state = self.state();
            state.turn += 1;
            state.turn
        };
        self.with(disk, |state| (state.turn, state.rate) = (turn, rate));
        let pace = Pace::new(Arc::clone(&self.clock), rate);
        let go_on = || !closing.is_cancelled() && !self.hurry.load(Ordering::Relaxed);
        let between = |bytes| pace.wait(bytes, &go_on);
        match work {
            CheckWork::Verify { cut, .. } => self.verify_next(&index, cut, &between)?,
            CheckWork::BeginPass { .. } => {
                let (last, now) = (log.tail().sequence, self.clock.wall());
                self.with(disk, |state| state.record.begin_pass(last, now, false));
                tracing::info!(%disk, frames = last.0, "a scrub of all stored data begins");
            }
            CheckWork::Scrub { after, up_to, .. } => {
                let order = CheckOrder { after, up_to, wanted: None, threads: 1, keep_cached: false };
                let checked = log.check(&order, &between)?;
                self.note(&log, &checked);
                let (bad, now) = (checked.bad.len() as u64, self.clock.wall());
                let record = self.with(disk, |state| {
                    state.record.advance_pass(checked.up_to, checked.bytes, bad, now);
                    state.record
                });
                if let Some(last) = record.last.filter(|_| record.pass.is_none()) {
                    tracing::info!(%disk, bytes = last.good_bytes, bad_frames = last.bad_frames, "a scrub of all stored data has ended");
                }
            }
        }
        self.record(&log, false);
        Ok(())
    }

    /// Damage that was found is known to whoever reads the log from now on.
    fn note(&self, log: &DiskLog, checked: &Checked) {
        if !checked.bad.is_empty() {
            tracing::error!(disk = %log.disk(), frames = checked.bad.len(), "a check found damaged data");
            log.bad_frames().note(checked.bad.iter().copied());
        }
    }

    /// Points all of whose data is read by now are recorded as verified.
    async fn settle(&self) {
        self.settle_witnesses().await;
        let ready: Vec<PointId> = {
            let points = self.points.unverified();
            points.iter().filter(|point| self.is_verified(point)).map(|point| point.id).collect()
        };
        if ready.is_empty() {
            return;
        }
        if let Err(error) = self.points.verified(&ready).await {
            tracing::error!(%error, "that points are verified cannot be recorded; it is tried again");
        }
    }

    /// What came of witnesses is recorded; what cannot be is compared again.
    async fn settle_witnesses(&self) {
        let witnessed: Vec<(PointId, WitnessRecord)> = self.state().witnessed.drain().collect();
        if witnessed.is_empty() {
            return;
        }
        if let Err(error) = self.points.witnessed(&witnessed).await {
            tracing::error!(%error, "that points were witnessed cannot be recorded; it is tried again");
        }
    }

    fn is_verified(&self, point: &PointRecord) -> bool {
        let read = {
            let state = self.state();
            let hurried = state.hurried.get(&point.id).and_then(|hurried| hurried.ended);
            hurried.is_some_and(|(_, good)| good)
                || point.disks.iter().all(|member| {
                    let disk = state.disks.get(&member.disk);
                    disk.is_some_and(|disk| disk.record.verified_to >= member.sequence.0)
                })
        };
        read && point.state != PointState::Void && self.is_clean(point)
    }

    /// Whether no frame that is known to be bad is needed by the point. One that was not assessed yet counts against it.
    fn is_clean(&self, point: &PointRecord) -> bool {
        point.disks.iter().all(|member| {
            let Some(log) = self.logs.store.disk(member.disk) else { return false };
            let known = self.ledger.disk(member.disk);
            if known.differing.iter().any(|some| some.hits(member.sequence)) {
                return false;
            }
            log.bad_frames().list().into_iter().filter(|bad| *bad <= member.sequence).all(|bad| {
                let assessed = known.frames.iter().find(|frame| frame.sequence == bad);
                assessed.is_some_and(|frame| !frame.hits(member.sequence))
            })
        })
    }

    fn store_bytes(&self) -> u64 {
        self.logs.store.disks().iter().map(|log| log.journal_bytes()).sum()
    }

    fn record_all(&self) {
        for log in self.logs.store.disks() {
            self.record(&log, true);
        }
    }

    /// Writes the record of a log, unless that was done a moment ago.
    fn record(&self, log: &DiskLog, now: bool) {
        let at = self.clock.monotonic();
        let mut state = self.state();
        let Some(disk) = state.disks.get_mut(&log.disk()) else { return };
        if !now && disk.recorded.is_some_and(|recorded| at < recorded + RECORD_EVERY) {
            return;
        }
        disk.recorded = Some(at);
        let record = disk.record;
        drop(state);
        if let Err(error) = record.store(&log.layout().checks()) {
            tracing::warn!(disk = %log.disk(), %error, "how far stored data was checked cannot be recorded");
        }
    }

    /// Looks at or changes what is known of a log.
    fn with<T>(&self, disk: DiskId, look: impl FnOnce(&mut DiskState) -> T) -> T {
        look(self.state().disks.entry(disk).or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

const fn disk_of(work: &CheckWork) -> DiskId {
    match work {
        CheckWork::Verify { disk, .. } | CheckWork::BeginPass { disk } | CheckWork::Scrub { disk, .. } => {
            *disk
        }
    }
}

#[cfg(test)]
mod tests;
