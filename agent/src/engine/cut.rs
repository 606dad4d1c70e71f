//! The cut itself: hold, last takes, residue into memory, verdict, release; then residue and cut frames on their way.
//!
//! Invariant: between freeze and thaw nothing is sealed, sent, logged or written; buffers were made and touched before.

use std::time::Duration;

use holdfast_common::{
    clock::Clock,
    frame::{ApplicationFreeze, CutMethod, CutMore, CutRecord, seal},
    ids::{DiskId, PointId},
    units::BlockRange,
};

use super::{
    Engine,
    copy::Zeroes,
    disk::Disk,
    group_hold::GroupHold,
    host::{Held, HoldCheck, Mechanism, trouble},
    witness::WitnessReads,
};
use crate::{
    batch::{BatchShape, BufferPool, FRAME_BLOCKS, ReadFrame, SinkClosed, plan_batch, queue::Payload},
    capture::{
        CaptureError,
        cycle::{CutFailure, CutMade, Event, Trouble},
        quiet::{Watch, covered, in_flight, name_ranges},
        witness::Field,
    },
    group::HeldTurn,
};

/// Takes inside a hold until nothing is in flight any more, at most.
const TAKES_MAX: u32 = 20;
/// Pause between them.
const TAKE_PAUSE: Duration = Duration::from_millis(1);
/// Buffers that are always ready for a residue (4 MiB).
const RESIDUE_READY: usize = 64;
/// Reads of a small residue that are worth having under way at a time: its blocks are spread over as many frames.
const RESIDUE_READS: usize = 32;
/// Frames of residue that are submitted at a time.
const RESIDUE_SLICE: usize = 64;

/// Buffers for what is read while writes are held.
#[derive(Debug)]
pub(super) struct ResidueStore {
    pool: BufferPool,
    limit: usize,
    /// Buffers to make ready before the next cut.
    wanted: usize,
}

/// A disk's last look, and what it forbids.
struct Verdict {
    /// Writes that reached the disk while it was held, all in swap areas.
    swapped: bool,
}

impl ResidueStore {
    pub(super) fn new(limit: usize) -> Self {
        let wanted = RESIDUE_READY.min(limit);
        Self { pool: BufferPool::new(limit, wanted), limit, wanted }
    }

    /// Makes the buffers that the next cut is likely to need. Costs nothing if they are there.
    pub(super) fn make_ready(&mut self) {
        self.pool.prepare(self.wanted);
    }

    /// A cut needed `frames` buffers: the next one gets twice as many, and what is far beyond goes back.
    fn learn(&mut self, frames: usize) {
        let wanted = (frames * 2).clamp(RESIDUE_READY, self.limit.max(RESIDUE_READY));
        // Shrinks slowly, so that a load that comes and goes does not make every other cut fail.
        self.wanted = wanted.max(self.wanted - self.wanted / 8).min(self.limit);
    }
}

impl Engine {
    pub(super) fn plan_hold(&mut self) -> Result<bool, String> {
        let disks: Vec<DiskId> = self.disks.keys().copied().collect();
        self.host.plan_hold(&disks)
    }

    /// Holds, takes, reads, releases.
    pub(super) fn cut(
        &mut self,
        members: &[DiskId],
        bound: Duration,
        turn: Option<HeldTurn>,
        strict: bool,
    ) -> Result<CutMade, CutFailure> {
        self.residue.make_ready();
        let swap: Vec<Vec<BlockRange>> = members.iter().map(|disk| self.host.swap_areas(*disk)).collect();
        let point = PointId(self.entropy.uuid(self.clock.wall()));
        let mut section = Section {
            clock: self.clock.as_ref(),
            phases: Phases::default(),
            disks: Vec::with_capacity(members.len()),
            pool: self.residue.pool.clone(),
            swap,
            notes: Vec::with_capacity(members.len()),
            witness: WitnessReads::default(),
            group: turn.map(|turn| GroupHold {
                turn,
                point,
                wait_max: bound / 2,
                marks: &self.marks,
                messages: self.messages.as_mut(),
            }),
        };
        section
            .disks
            .extend(self.disks.iter_mut().filter(|(id, _)| members.contains(id)).map(|(_, disk)| disk));
        if section.disks.len() != members.len() {
            return Err(CutFailure::Void(
                "a disk of the machine is not open; the next cut is tried in its turn".into(),
            ));
        }
        let fields = section.disks.iter().zip(&section.swap);
        let fields: Vec<Field> =
            fields.map(|(disk, swap)| Field { size: disk.size(), without: swap.clone() }).collect();
        section.witness = self.witnesses.prepare(&fields, self.entropy.as_ref());
        let compared = section.disks.iter().all(|disk| disk.host.mechanism == Mechanism::Compared);
        let mut outcome = None;
        let mut at = None;
        let clock = &self.clock;
        let held = self.host.hold(bound, &mut |check| {
            outcome = Some(section.run(check, &mut || at = Some(clock.wall())));
        });
        let (notes, phases) = (std::mem::take(&mut section.notes), section.phases);
        let group = section.group.take();
        let reads = std::mem::take(&mut section.witness);
        let result = match (held, outcome) {
            (Err(reason), _) => Err(CutFailure::Void(reason)),
            (Ok(_), None) => Err(CutFailure::Void("nothing was read while writes were held".into())),
            (Ok(_), Some(Err(failure))) => Err(failure),
            (Ok(held), Some(Ok(()))) => Ok(held),
        };
        let (application, result) = with_application(self.host.thaw_hooks(), strict, result);
        let mark = group.and_then(|group| group.end(&result));
        match result {
            Ok(held) => {
                let frames: usize = self.disks.values().map(|disk| disk.residue.len()).sum();
                self.residue.learn(frames);
                let method = match (held.held.is_zero(), compared) {
                    (false, _) => CutMethod::Freeze,
                    (true, true) => CutMethod::Unchanged,
                    (true, false) => CutMethod::QuietWindow,
                };
                let (mark, missed) = parts_of(mark);
                let (application, unproven) = parts_of(application);
                let notes = notes.into_iter().chain(held.notes).chain(missed).chain(unproven).collect();
                let disks: Vec<&Disk> =
                    self.disks.values().filter(|disk| members.contains(&disk.id())).collect();
                let witness = self.witnesses.finish(reads, &disks);
                let more = CutMore { group: mark, application, witness };
                let at = at.unwrap_or_else(|| self.clock.wall());
                phases.say(held.held);
                self.reporter.cut(at, held.held);
                Ok(CutMade { point, at, held: held.held, method, notes, more })
            }
            Err(failure) => {
                self.disks.values_mut().for_each(Disk::give_back_residue);
                self.learn_from(&failure);
                Err(failure)
            }
        }
    }

    fn learn_from(&mut self, failure: &CutFailure) {
        if let CutFailure::TooMuch(_) = failure {
            let left: u64 = self.disks.values().map(|disk| disk.pending.count().0).sum();
            let frames = usize::try_from(left).unwrap_or(usize::MAX).div_ceil(FRAME_BLOCKS);
            self.residue.learn(frames.min(self.residue.limit));
        }
    }

    /// Sends a part of what was read for the cut.
    pub(super) fn send_residue(&mut self, id: DiskId) -> Result<Event, SinkClosed> {
        let room = self.hand_over.room()?.min(RESIDUE_SLICE);
        let Some(disk) = self.disks.get_mut(&id) else {
            return Ok(Event::ResidueSent { left: 0, blocked: false });
        };
        let count = room.min(disk.residue.len());
        let blocked = room == 0 && !disk.residue.is_empty();
        let frames: Vec<ReadFrame> = disk.residue.drain(..count).collect();
        disk.submit(self.hand_over.as_mut(), frames, Zeroes::Send)?;
        let left = disk.residue.len();
        if left == 0 {
            self.residue.pool.shrink(self.residue.wanted);
        }
        Ok(Event::ResidueSent { left, blocked })
    }

    /// Sends the cut frame; what follows belongs to the next interval.
    pub(super) fn send_cut(&mut self, id: DiskId, record: &CutRecord) -> Result<Event, SinkClosed> {
        let Some(disk) = self.disks.get_mut(&id) else {
            return Err(SinkClosed { reason: format!("disk {id} was closed during its cut") });
        };
        let identity = disk.number();
        let bytes = seal::seal_cut(identity, record)
            .map_err(|error| SinkClosed { reason: format!("cut record cannot be sealed: {error}") })?;
        disk.interval = disk.interval.next();
        self.hand_over.submit(identity, Payload::Sealed(bytes))?;
        Ok(Event::CutSent { disk: id, sequence: identity.sequence })
    }
}

/// What a value or the remark in its place are.
fn parts_of<T>(value: Option<Result<T, String>>) -> (Option<T>, Option<String>) {
    match value {
        None => (None, None),
        Some(Ok(value)) => (Some(value), None),
        Some(Err(remark)) => (None, Some(remark)),
    }
}

type Application = Option<Result<ApplicationFreeze, String>>;

/// Hooks are thawed when the hold is over. What was not frozen all the time is not app-consistent: void, or with a remark.
fn with_application(
    thawed: Application,
    strict: bool,
    result: Result<Held, CutFailure>,
) -> (Application, Result<Held, CutFailure>) {
    match thawed {
        Some(Err(reason)) => {
            let remark = format!("not app-consistent: {reason}");
            match result {
                Ok(_) if strict => (None, Err(CutFailure::Void(remark))),
                result => (Some(Err(remark)), result),
            }
        }
        other => (other, result),
    }
}

/// How long the parts of a hold took, in order; noted while it lasts, said afterwards.
#[derive(Clone, Copy, Debug, Default)]
struct Phases {
    began: Duration,
    taken: Duration,
    read: Duration,
    witnessed: Duration,
    marked: Duration,
    judged: Duration,
    blocks: u64,
}

impl Phases {
    /// For whoever looks into why a hold is long.
    fn say(&self, held: Duration) {
        // A log field of 128 bits would be text.
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let between = |from: Duration, to: Duration| micros(to.saturating_sub(from));
        let Self { began, taken, read, witnessed, marked, judged, blocks } = *self;
        let (taking_us, reading_us) = (between(began, taken), between(taken, read));
        let witness_us = between(read, witnessed);
        let (waiting_us, judging_us) = (between(witnessed, marked), between(marked, judged));
        let freezing_us = micros(held).saturating_sub(between(began, judged));
        tracing::debug!(
            freezing_us,
            taking_us,
            reading_us,
            witness_us,
            waiting_us,
            judging_us,
            blocks,
            "held"
        );
    }
}

/// What happens between freeze and thaw.
struct Section<'a> {
    clock: &'a dyn Clock,
    phases: Phases,
    disks: Vec<&'a mut Disk>,
    pool: BufferPool,
    /// Swap areas, disk by disk.
    swap: Vec<Vec<BlockRange>>,
    notes: Vec<String>,
    witness: WitnessReads,
    group: Option<GroupHold<'a>>,
}

impl Section<'_> {
    fn run(&mut self, check: &mut HoldCheck<'_>, instant: &mut dyn FnMut()) -> Result<(), CutFailure> {
        self.phases.began = self.clock.monotonic();
        for disk in &mut self.disks {
            disk.take().map_err(|error| failed(disk, &error))?;
        }
        let mut watches = self.last_takes()?;
        instant();
        if let Some(group) = &mut self.group {
            group.report(self.clock);
        }
        self.phases.taken = self.clock.monotonic();
        self.phases.blocks = self.disks.iter().map(|disk| disk.pending.count().0).sum();
        let frames: usize = self.disks.iter().map(|disk| disk.frames_pending()).sum();
        if frames > self.pool.ready() {
            return Err(CutFailure::TooMuch(format!(
                "{} MiB changed after the last pass, more than memory is set aside for: the disks are written faster \
                 than they can be read, or much was dirty in the page cache",
                frames * FRAME_BLOCKS * 4 / 1024
            )));
        }
        // Spread over several reads, a residue needs at most so many buffers more.
        let spread = frames + self.disks.len() * RESIDUE_READS <= self.pool.ready();
        let reads = if spread { RESIDUE_READS } else { 1 };
        for disk in &mut self.disks {
            check().map_err(CutFailure::Void)?;
            disk.read_residue(&self.pool, reads)?;
        }
        check().map_err(CutFailure::Void)?;
        self.phases.read = self.clock.monotonic();
        let held = self.phases.read.saturating_sub(self.phases.began);
        self.witness.read(self.clock, held, &mut self.disks);
        self.phases.witnessed = self.clock.monotonic();
        if let Some(group) = &mut self.group {
            group.wait(self.clock, check)?;
        }
        self.phases.marked = self.clock.monotonic();
        for ((disk, watch), swap) in self.disks.iter_mut().zip(&mut watches).zip(&self.swap) {
            watch.after = disk.source.counters().map_err(|error| failed(disk, &error))?;
            if disk.verdict(watch, swap)?.swapped {
                self.notes.push(format!(
                    "swap on {} was written while it was held; that is harmless",
                    disk.host.path
                ));
            }
        }
        self.phases.judged = self.clock.monotonic();
        Ok(())
    }

    /// Takes from all disks until nothing is in flight.
    fn last_takes(&mut self) -> Result<Vec<Watch>, CutFailure> {
        let mut busy = String::new();
        for _ in 0..TAKES_MAX {
            let mut watches = Vec::with_capacity(self.disks.len());
            busy.clear();
            for disk in &mut self.disks {
                let before = disk.source.counters().map_err(|error| failed(disk, &error))?;
                let taken = disk.take().map_err(|error| failed(disk, &error))?;
                if in_flight(taken, before) {
                    busy.push_str(&disk.host.path);
                }
                watches.push(Watch { before, taken, after: before });
            }
            if busy.is_empty() {
                return Ok(watches);
            }
            std::thread::sleep(TAKE_PAUSE);
        }
        Err(CutFailure::NotQuiet(format!("writes to {busy} were in flight all the time; {QUIET_ADVICE}")))
    }
}

/// What to do about a disk that is never at rest.
const QUIET_ADVICE: &str =
    "a disk without a mounted file system is cut while it is not written to: pause its writer for a moment";

impl Disk {
    /// Buffers that its residue needs.
    fn frames_pending(&self) -> usize {
        usize::try_from(self.pending.count().0).unwrap_or(usize::MAX).div_ceil(FRAME_BLOCKS)
    }

    /// Reads all that was taken, in about this many frames at least.
    fn read_residue(&mut self, pool: &BufferPool, reads: usize) -> Result<(), CutFailure> {
        let blocks = usize::try_from(self.pending.count().0).unwrap_or(usize::MAX);
        let frame_blocks = blocks.div_ceil(reads.max(1)).clamp(1, FRAME_BLOCKS);
        let shape = BatchShape { frames_max: blocks.div_ceil(frame_blocks), frame_blocks };
        let plans = plan_batch(&mut self.pending, holdfast_common::units::BlockIndex(0), shape);
        let runs: Vec<BlockRange> = plans.iter().flat_map(|plan| plan.runs.iter().copied()).collect();
        let planned = plans.len();
        let frames: Vec<ReadFrame> =
            plans.into_iter().filter_map(|plan| Some(ReadFrame::new(plan, pool.take()?))).collect();
        if frames.len() < planned {
            // What was planned for a buffer that is not there must not be passed over.
            runs.into_iter().for_each(|run| self.pending.insert(run));
            return Err(CutFailure::TooMuch("there was less memory for the cut than was set aside".into()));
        }
        match self.host.reader.read(frames) {
            Ok(frames) => {
                self.residue.extend(frames);
                Ok(())
            }
            Err(error) => {
                runs.into_iter().for_each(|run| self.pending.insert(run));
                Err(CutFailure::Disk(self.id(), self.read_trouble(&error)))
            }
        }
    }

    /// Whether the disk was at rest between the looks.
    fn verdict(&mut self, watch: &Watch, swap: &[BlockRange]) -> Result<Verdict, CutFailure> {
        let compared = self.host.mechanism == Mechanism::Compared;
        if watch.at_rest() && !compared {
            self.source.guard().map_err(|error| failed(self, &error))?;
            return Ok(Verdict { swapped: false });
        }
        let mut written = Vec::new();
        let Self { source, interval, .. } = self;
        source.take(*interval, &mut |range| written.push(range)).map_err(|error| failed(self, &error))?;
        let harmless = !compared && !written.is_empty() && written.iter().all(|range| covered(*range, swap));
        for range in &written {
            // They are in this interval's map, which is emptied with its cut: marked anew they belong to the next.
            self.source.mark(*range);
        }
        if harmless || (written.is_empty() && watch.unchanged()) {
            return Ok(Verdict { swapped: harmless });
        }
        let what = if written.is_empty() { "it".to_owned() } else { name_ranges(&written) };
        Err(CutFailure::NotQuiet(format!(
            "{what} on {} was written while the cut was made; {QUIET_ADVICE}",
            self.host.path
        )))
    }

    /// The cut is void: what was read for it is to be read again.
    fn give_back_residue(&mut self) {
        for frame in self.residue.drain(..) {
            frame.plan.runs.into_iter().for_each(|run| self.pending.insert(run));
        }
    }
}

fn failed(disk: &Disk, error: &CaptureError) -> CutFailure {
    let trouble: Trouble = trouble(error);
    CutFailure::Disk(disk.id(), trouble)
}
