//! Audits: on demand every block of a machine's protected disks is compared with its source, while it is protected.
//!
//! Owns the tasks, their records, and the comparing. What is asked when, and what follows from an answer, is
//! [`crate::points::audit`]'s; what follows from a difference is [`super::damage`]'s. One task per machine, its disks one after
//! another. Invariants: a difference is noted before the record passes it; an audit that was begun goes on after a restart of the
//! coordinator until it ends or is cancelled.
//! Limits: those of [`AuditPass`]; the agent reads at the rate of its comparisons (`holdfast protect --scan-rate`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use holdfast_common::{
    causes::in_one_line,
    clock::{Clock, Timestamp},
    ids::{DiskId, Generation, MachineId, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockRange},
    wire::{AuditAnswer, AuditOrder, limits::SCAN_CHUNK_BLOCKS},
};
use tokio::{sync::broadcast, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::logs::Logs;
use crate::{
    api::port::{AuditFigures, AuditStart, AuditedFigures, SourceAudits},
    index::{BlockMap as _, DiskIndex, PieceSource},
    ingest::links::{LiveLinks, Push},
    points::{
        audit::{self, AuditPass, AuditStep, Held, Verdict},
        frame_cache::FrameCache,
        point_view::PointView,
        request::next_request,
    },
    registry::{DiskState, Registry},
    store::{AuditRecord, AuditedPass, DiskLog},
};

/// Longest time between two looks for cuts, and for the end.
const LOOK: Duration = Duration::from_millis(200);
/// A source that cannot answer is left alone for this time.
const AGAIN: Duration = Duration::from_secs(1);
/// Time between two writes of a record; what was compared since is compared again after a crash.
const RECORD_EVERY: Duration = Duration::from_secs(5);
/// Bytes of decompressed frames kept for comparing.
const CACHE_BYTES: usize = 8 << 20;

/// All audits.
#[derive(Debug)]
pub(super) struct Audits {
    pub(super) logs: Arc<Logs>,
    pub(super) registry: Arc<Registry>,
    pub(super) links: LiveLinks,
    pub(super) clock: Arc<dyn Clock>,
    cache: Arc<FrameCache>,
    state: Mutex<State>,
    /// Ends all tasks, and keeps their records as they are.
    closing: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    tasks: JoinSet<()>,
    running: HashMap<MachineId, CancellationToken>,
    disks: HashMap<DiskId, Shown>,
}

/// What operators see of a disk's audit under way.
#[derive(Clone, Debug, Default)]
struct Shown {
    compared: u64,
    waiting: Option<String>,
    began: Option<(Duration, u64)>,
}

/// How the audit of a disk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Done,
    Cancelled,
    /// It goes on when the coordinator runs again.
    Closing,
}

impl Audits {
    pub(super) fn new(
        logs: Arc<Logs>,
        registry: Arc<Registry>,
        links: LiveLinks,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let (cache, closing) = (FrameCache::new(CACHE_BYTES), CancellationToken::new());
        let audits = Arc::new(Self { logs, registry, links, clock, cache, state: Mutex::default(), closing });
        for machine in audits.registry.machines() {
            let id = machine.record.id;
            if audits.disks(id).iter().any(|log| AuditRecord::load(&log.layout().audit()).pass.is_some()) {
                audits.begin(id);
            }
        }
        audits
    }

    /// Ends all tasks; they go on when the coordinator runs again.
    pub(super) async fn stop(&self) {
        self.closing.cancel();
        let mut tasks = std::mem::take(&mut self.state().tasks);
        while tasks.join_next().await.is_some() {}
    }

    /// Logs of a machine's protected disks.
    fn disks(&self, machine: MachineId) -> Vec<Arc<DiskLog>> {
        let disks = self.registry.disks().into_iter();
        let mine = disks.filter(|disk| disk.record.machine == machine && disk.is_protected());
        mine.filter_map(|disk| self.logs.store.disk(disk.record.id)).collect()
    }

    fn begin(self: &Arc<Self>, machine: MachineId) {
        let cancel = self.closing.child_token();
        let mut state = self.state();
        state.running.insert(machine, cancel.clone());
        while state.tasks.try_join_next().is_some() {}
        let this = Arc::clone(self);
        state.tasks.spawn(async move {
            this.run(machine, &cancel).await;
            this.state().running.remove(&machine);
        });
    }

    async fn run(&self, machine: MachineId, cancel: &CancellationToken) {
        for log in self.disks(machine) {
            let path = log.layout().audit();
            let mut record = AuditRecord::load(&path);
            if record.pass.is_none() {
                continue;
            }
            let disk = log.disk();
            let end = self.audit(machine, &log, &mut record, cancel).await;
            self.state().disks.remove(&disk);
            if end != End::Closing {
                if end == End::Done
                    && let Some(pass) = record.pass
                {
                    log.differences().all_compared(Timestamp(pass.started_us));
                    tracing::info!(%disk, blocks = pass.size, differed = pass.differed, "a disk was compared with its source");
                }
                record.end(self.clock.wall().0, end == End::Cancelled);
            }
            if let Err(error) = record.store(&path) {
                tracing::error!(%disk, %error, "how far the disk was compared with its source cannot be recorded");
            }
        }
    }

    async fn audit(
        &self,
        machine: MachineId,
        log: &Arc<DiskLog>,
        record: &mut AuditRecord,
        cancel: &CancellationToken,
    ) -> End {
        let disk = log.disk();
        let mut answers = self.registry.audit_answers();
        let mut run: Option<Run> = None;
        let mut recorded = self.clock.monotonic();
        loop {
            if self.closing.is_cancelled() {
                return End::Closing;
            }
            let known = self.registry.disk(disk).filter(DiskState::is_protected);
            let (false, Some(known)) = (cancel.is_cancelled(), known) else { return End::Cancelled };
            let Some(index) = self.logs.index(disk) else {
                self.wait(&mut run, disk, "its history is being read", cancel).await;
                continue;
            };
            let generation = known.record.generation;
            let size = BlockCount::covering(known.record.size_bytes);
            let current = run.take().filter(|run| run.generation == generation && run.size == size);
            let mut now_run =
                current.unwrap_or_else(|| Run::new(record, generation, size, self.clock.as_ref()));
            if self.links.figures(machine).is_none() {
                now_run.pass.disconnected();
                run = Some(now_run);
                self.wait(&mut run, disk, "the machine is not connected", cancel).await;
                continue;
            }
            let done = self.ask(machine, disk, &mut now_run);
            self.hear(machine, disk, &mut now_run, &mut answers).await;
            self.judge(&index, &mut now_run).await;
            now_run.note(record);
            self.show(disk, &now_run);
            if done {
                return End::Done;
            }
            let now = self.clock.monotonic();
            if now >= recorded + RECORD_EVERY {
                recorded = now;
                if let Err(error) = record.store(&log.layout().audit()) {
                    tracing::warn!(%disk, %error, "how far the disk was compared with its source cannot be recorded");
                }
            }
            run = Some(now_run);
        }
    }

    /// Nothing can be asked now.
    async fn wait(&self, run: &mut Option<Run>, disk: DiskId, why: &str, cancel: &CancellationToken) {
        if let Some(run) = run {
            run.waiting = Some(why.to_owned());
            self.show(disk, run);
        } else {
            self.state().disks.entry(disk).or_default().waiting = Some(why.to_owned());
        }
        let _ended_or_time = timeout(AGAIN, cancel.cancelled()).await;
    }

    /// Asks what is next to be asked; `true` if all is decided.
    fn ask(&self, machine: MachineId, disk: DiskId, run: &mut Run) -> bool {
        let now = self.clock.monotonic();
        while now >= run.rest_until {
            match run.pass.step(now) {
                AuditStep::Done => return true,
                AuditStep::Wait => break,
                AuditStep::Cut => {
                    let request = next_request(self.clock.as_ref());
                    // If it does not come through, the next cut comes by itself.
                    let _asked = self.links.push(machine, Push::MakePoint { request });
                    break;
                }
                AuditStep::Ask(ask) => {
                    let order = AuditOrder {
                        order: run.first_order + ask.number,
                        disk,
                        generation: run.generation,
                        start: ask.range.start,
                        count: ask.range.count,
                        digest_blocks: ask.digest_blocks,
                    };
                    if let Err(error) = self.links.push(machine, Push::Audit(order)) {
                        run.pass.refused(ask.number);
                        run.rest(self.clock.as_ref(), error.to_string());
                    }
                }
            }
        }
        false
    }

    /// Takes the answers that are there, and waits a moment if there are none.
    async fn hear(
        &self,
        machine: MachineId,
        disk: DiskId,
        run: &mut Run,
        answers: &mut broadcast::Receiver<(MachineId, AuditAnswer)>,
    ) {
        let mut next = timeout(LOOK, answers.recv()).await.ok();
        while let Some(heard) = next {
            match heard {
                Ok((of, answer)) if of == machine && answer.disk == disk => {
                    run.answered(self.clock.as_ref(), answer)
                }
                // Of others; or so many that some were missed, which are asked for again after a while.
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
            next = answers.try_recv().map(Ok).ok();
        }
    }

    /// Compares what was read in intervals that have ended.
    async fn judge(&self, index: &Arc<DiskIndex>, run: &mut Run) {
        let cuts = index.cuts();
        let last = cuts.iter().rev().find(|cut| cut.generation == run.generation).map(|cut| cut.interval);
        let Some(last) = last else { return };
        for held in run.pass.ended(last) {
            if self.clock.monotonic() < run.rest_until {
                run.pass.cannot_judge(held);
                continue;
            }
            let (index, cache, generation) = (Arc::clone(index), Arc::clone(&self.cache), run.generation);
            let log = Arc::clone(index.log());
            let asked = held.clone();
            let judging = tokio::task::spawn_blocking(move || verdicts(&index, &cache, generation, &asked));
            match judging.await {
                Ok(Ok(Some((cut, verdicts)))) => {
                    let differing = run.pass.judged(&held, &verdicts);
                    if !differing.is_empty() {
                        let new = log.differences().note(cut, &differing, self.clock.wall());
                        tracing::error!(disk = %log.disk(), blocks = new, "the copy differs from its source");
                    }
                }
                Ok(Ok(None)) => run.pass.cannot_judge(held),
                Ok(Err(error)) => {
                    run.pass.cannot_judge(held);
                    run.rest(self.clock.as_ref(), format!("the copy cannot be read now: {error}"));
                }
                Err(error) => {
                    run.pass.cannot_judge(held);
                    run.rest(self.clock.as_ref(), format!("a comparison ended early: {error}"));
                }
            }
        }
    }

    fn show(&self, disk: DiskId, run: &Run) {
        let position = run.pass.position();
        let shown = Shown {
            compared: position,
            waiting: run.waiting.clone(),
            began: Some((run.began, run.began_at_block)),
        };
        self.state().disks.insert(disk, shown);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An audit of one line of a disk's history.
#[derive(Debug)]
struct Run {
    generation: Generation,
    size: BlockCount,
    pass: AuditPass,
    /// What stands before the numbers of its orders, so that answers to those of an earlier run mean nothing.
    first_order: u64,
    rest_until: Duration,
    waiting: Option<String>,
    /// For the rate: when it began, and at which block.
    began: Duration,
    began_at_block: u64,
}

impl Run {
    fn new(record: &AuditRecord, generation: Generation, size: BlockCount, clock: &dyn Clock) -> Self {
        // Of another size it is another disk: from its start.
        let before = record.pass.filter(|pass| pass.size == size.0).unwrap_or_default();
        let figures = audit::AuditFigures {
            blocks: before.position,
            sent_anew: before.sent_anew,
            differed: before.differed,
            unreadable: before.unreadable,
        };
        Self {
            generation,
            size,
            pass: AuditPass::new(size, before.position, figures),
            first_order: next_request(clock),
            rest_until: Duration::ZERO,
            waiting: None,
            began: clock.monotonic(),
            began_at_block: before.position,
        }
    }

    fn answered(&mut self, clock: &dyn Clock, answer: AuditAnswer) {
        let Some(number) = answer.order.checked_sub(self.first_order) else { return };
        if answer.generation != self.generation {
            return;
        }
        match answer.result {
            Ok(digests) => {
                self.waiting = None;
                self.pass.answered(number, digests);
            }
            Err(reason) => {
                self.pass.refused(number);
                self.rest(clock, reason);
            }
        }
    }

    fn rest(&mut self, clock: &dyn Clock, why: String) {
        self.rest_until = clock.monotonic() + AGAIN;
        self.waiting = Some(why);
    }

    /// What is to be known of it after a restart.
    fn note(&self, record: &mut AuditRecord) {
        let figures = self.pass.figures();
        if let Some(pass) = &mut record.pass {
            pass.size = self.size.0;
            pass.position = self.pass.position();
            (pass.sent_anew, pass.differed) = (figures.sent_anew, figures.differed);
            pass.unreadable = figures.unreadable;
        }
    }
}

/// What the cut that ended an answer's interval says of its parts; `None` if the cuts around it are not known.
fn verdicts(
    index: &Arc<DiskIndex>,
    cache: &Arc<FrameCache>,
    generation: Generation,
    held: &Held,
) -> Result<Option<(Sequence, Vec<Verdict>)>, String> {
    let cuts = index.cuts();
    let mine = || cuts.iter().filter(|cut| cut.generation == generation);
    let interval = held.digests.interval;
    let ending = mine().find(|cut| cut.interval == interval && cut.whole);
    let before = mine().rev().find(|cut| cut.interval < interval);
    let (Some(ending), Some(before)) = (ending, before) else { return Ok(None) };
    let written =
        index.written_between(before.sequence, ending.sequence).map_err(|error| in_one_line(&error))?;
    let range = held.ask.range;
    let mut changed: Vec<BlockRange> = Vec::new();
    let mut at = range.start.0;
    while at < range.end().0 {
        let pieces =
            written.resolve(BlockRange::new(at, range.end().0 - at)).map_err(|error| in_one_line(&error))?;
        let Some(last) = pieces.last() else { break };
        at = last.range.end().0;
        changed.extend(pieces.iter().filter_map(|piece| match piece.source {
            PieceSource::Zero(sequence) | PieceSource::Frame { sequence, .. } => {
                (sequence > before.sequence).then_some(piece.range)
            }
            PieceSource::Hole => None,
        }));
    }
    let view =
        PointView::at_cut(index, Arc::clone(cache), ending.sequence).map_err(|error| in_one_line(&error))?;
    let parts = parts(held);
    // Chunks are read one behind the other, blocks one by one.
    let whole = held.ask.digest_blocks == SCAN_CHUNK_BLOCKS;
    let ranges = if whole { vec![range] } else { parts.clone() };
    let mut here = Vec::with_capacity(parts.len());
    for range in ranges {
        here.extend(view.digest_ranges(range).map_err(|error| in_one_line(&error))?);
    }
    let verdicts = parts.iter().zip(&held.digests.digests).zip(&here).map(|((part, there), here)| {
        if changed.iter().any(|changed| changed.intersection(*part).is_some()) {
            return Verdict::Changed;
        }
        match here {
            None => Verdict::Unreadable,
            Some(here) if here == there => Verdict::Equal,
            Some(_) => Verdict::Differs,
        }
    });
    Ok(Some((ending.sequence, verdicts.collect())))
}

fn parts(held: &Held) -> Vec<BlockRange> {
    held.ask.range.pieces(held.ask.digest_blocks).collect()
}

/// The audits as the interface sees them: all of them are begun and ended through it.
#[derive(Debug)]
pub(super) struct AuditControl(pub(super) Arc<Audits>);

impl SourceAudits for AuditControl {
    fn start(&self, machine: MachineId) -> AuditStart {
        let audits = &self.0;
        if audits.state().running.contains_key(&machine) {
            return AuditStart::Running;
        }
        let logs = audits.disks(machine);
        if logs.is_empty() {
            return AuditStart::NothingProtected;
        }
        let started_us = audits.clock.wall().0;
        for log in &logs {
            let path = log.layout().audit();
            let mut record = AuditRecord::load(&path);
            record.pass = Some(AuditedPass { started_us, ..AuditedPass::default() });
            if let Err(error) = record.store(&path) {
                return AuditStart::Failed(format!("{} cannot be written: {error}", path.display()));
            }
        }
        audits.begin(machine);
        AuditStart::Begun
    }

    fn cancel(&self, machine: MachineId) -> bool {
        let running = self.0.state().running.get(&machine).cloned();
        running.inspect(CancellationToken::cancel).is_some()
    }

    fn figures(&self, disk: DiskId) -> Option<AuditFigures> {
        let log = self.0.logs.store.disk(disk)?;
        let record = AuditRecord::load(&log.layout().audit());
        let shown = self.0.state().disks.get(&disk).cloned().unwrap_or_default();
        let rate = shown.began.and_then(|(began, at_block)| {
            let time = self.0.clock.monotonic().saturating_sub(began).as_secs_f64();
            let bytes = shown.compared.saturating_sub(at_block) * BLOCK_BYTES as u64;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a rate for people"
            )]
            let rate = (bytes as f64 / time) as u64;
            (time > 1.0).then_some(rate)
        });
        let size = self.0.registry.disk(disk).map_or(0, |disk| disk.record.size_bytes);
        Some(AuditFigures {
            pass: record.pass.map(|pass| figures(&pass, shown.compared.max(pass.position))),
            last: record.last.map(|pass| figures(&pass, pass.position)),
            size_bytes: size,
            waiting: shown.waiting,
            bytes_per_second: rate,
        })
    }
}

fn figures(pass: &AuditedPass, position: u64) -> AuditedFigures {
    let bytes = |blocks: u64| blocks * BLOCK_BYTES as u64;
    AuditedFigures {
        started_at: Timestamp(pass.started_us),
        ended_at: Some(Timestamp(pass.ended_us)).filter(|at| at.0 > 0),
        cancelled: pass.cancelled,
        compared_bytes: bytes(position),
        sent_anew_bytes: bytes(pass.sent_anew),
        differed_bytes: bytes(pass.differed),
        unreadable_bytes: bytes(pass.unreadable),
    }
}
