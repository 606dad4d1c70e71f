//! What fenced sources are told: the rounds in which their disks are brought to a point of the target.
//!
//! Owns the rounds, what came of them, and when each source was last heard. Knows no connection and no job. Invariants: a source gets
//! bytes of its own disks only, of the point of the round that is open; of a disk it is told to look at less than all only
//! while it has held it without a break since it was brought to the earlier point, or where its marks count from a frame that the log
//! still has, behind the point where the target's branch begins.
//! Limits: one round per machine; a question for work waits [`WORK_WAIT`] at most.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_common::{
    causes::in_one_line,
    clock::Clock,
    frame::{Extent, FrameIdentity, FrameSealer, witness_digest},
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
    wire::{
        BlockDigest, Capture, WriteBackReply, WriteBackRequest, WrittenBack,
        limits::SCAN_CHUNK_BLOCKS,
        write_back::{COMPARE_BLOCKS_MAX, FETCH_BLOCKS_MAX, WRITE_BACK_RANGES_MAX},
    },
};
use tokio::{sync::watch, task::spawn_blocking};

use super::{log_writer::is_zero, read_blocks};
use crate::{
    compute::port::Task,
    ingest::port::{WriteBackDesk, WriteBackFuture},
    points::view::{BlockView, Changes, ViewError},
    registry::lifecycle::SourceLine,
};

/// Longest time that a question for work is held.
const WORK_WAIT: Duration = Duration::from_secs(3);
/// How often it is looked meanwhile whether the source may go on as the machine.
const FENCE_LOOK: Duration = Duration::from_millis(200);
/// Silence after which a source counts as gone: it asks for work all the time.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A disk of a round.
#[derive(Clone, Debug)]
pub struct RoundDisk {
    /// What the agent finds it by.
    pub capture: Capture,
    /// What it is to hold.
    pub view: Arc<dyn BlockView>,
    /// What was written since the point that the source's hold is known to have brought it to.
    pub since: Option<(u64, Arc<dyn Changes>)>,
    /// What was written since both sides went apart, if that is known.
    pub apart: Option<Apart>,
}

/// What both sides have written since the cut at which the target's branch begins, as far as it is in the log. What else the source
/// has written it knows itself, if it knows anything.
#[derive(Clone, Debug)]
pub struct Apart {
    /// That cut.
    pub begins: Sequence,
    /// What was written behind it, up to the round's point.
    pub changes: Arc<dyn Changes>,
    /// Where the source's own line ends.
    pub line: Option<SourceLine>,
}

impl Apart {
    /// Whether a disk that holds the state at this frame, but for what its source has found marked, holds the round's point
    /// but for that and for `changes`: the frame must not lie before them, and be of a line that the log still has.
    fn covers(&self, capture: &Capture, generation: Generation, brought_to: Sequence) -> bool {
        if brought_to.0 == 0 {
            return self.line.is_some_and(|line| line.generation == generation && self.begins <= line.end);
        }
        generation == capture.generation && self.begins <= brought_to && brought_to <= capture.durable
    }
}

/// How a round ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoundEnd {
    /// All disks hold the point, durably; each with the hold under which it does.
    Done(HashMap<DiskId, (u64, WrittenBack)>),
    /// A disk cannot be brought to it; the text is the source's.
    Failed(String),
}

#[derive(Debug)]
struct Round {
    number: u64,
    disks: HashMap<DiskId, RoundDisk>,
    task: Arc<Task>,
    done: Mutex<HashMap<DiskId, (u64, WrittenBack)>>,
    end: watch::Sender<Option<RoundEnd>>,
}

#[derive(Debug, Default)]
struct Source {
    /// When it last asked for work (monotonic).
    seen_at: Option<Duration>,
    round: Option<Arc<Round>>,
}

/// Whether a machine's source may not write. Must not wait.
pub type IsFenced = Arc<dyn Fn(MachineId) -> bool + Send + Sync>;

/// The rounds of all machines.
pub struct Desk {
    sources: Mutex<HashMap<MachineId, Source>>,
    /// Counts changes of rounds.
    changed: watch::Sender<u64>,
    numbered: AtomicU64,
    is_fenced: IsFenced,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("sources", &self.sources()).finish_non_exhaustive()
    }
}

impl Desk {
    /// A desk without rounds.
    #[must_use]
    pub fn new(is_fenced: IsFenced, clock: Arc<dyn Clock>) -> Self {
        // Agents of before a restart must not take a new round for one they know.
        let first = u64::try_from(clock.wall().0).unwrap_or(1);
        let (sources, changed) = (Mutex::default(), watch::Sender::new(0));
        Self { sources, changed, numbered: AtomicU64::new(first), is_fenced, clock }
    }

    /// Whether the machine's source stands by now.
    #[must_use]
    pub fn is_standing_by(&self, machine: MachineId) -> bool {
        let now = self.clock.monotonic();
        let seen = self.sources().get(&machine).and_then(|source| source.seen_at);
        seen.is_some_and(|seen| now.saturating_sub(seen) < SILENCE_MAX)
    }

    /// Has the source bring its disks to what these hold; says how that ended. One that is under way is over. Dropping the
    /// future ends the round; it ends too when `task` is cancelled, with `None`.
    pub async fn round(
        &self,
        machine: MachineId,
        disks: Vec<RoundDisk>,
        task: Arc<Task>,
    ) -> Option<RoundEnd> {
        let number = self.numbered.fetch_add(1, Ordering::Relaxed);
        let end = watch::Sender::new(None);
        let mut ended = end.subscribe();
        let disks = disks.into_iter().map(|disk| (disk.capture.disk, disk)).collect();
        let round = Arc::new(Round { number, disks, task: Arc::clone(&task), done: Mutex::default(), end });
        let _open = Open { desk: self, machine, number };
        self.sources().entry(machine).or_default().round = Some(round);
        self.changed.send_modify(|count| *count += 1);
        loop {
            tokio::select! {
                end = ended.wait_for(Option::is_some) => return end.ok().and_then(|end| end.clone()),
                () = tokio::time::sleep(FENCE_LOOK) => {
                    if task.is_cancelled() {
                        return None;
                    }
                }
            }
        }
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<MachineId, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_round(&self, machine: MachineId) -> Option<Arc<Round>> {
        self.sources().get(&machine)?.round.clone()
    }

    async fn work(&self, machine: MachineId) -> WriteBackReply {
        let mut changed = self.changed.subscribe();
        let deadline = tokio::time::Instant::now() + WORK_WAIT;
        loop {
            if !(self.is_fenced)(machine) {
                return WriteBackReply::LetIn;
            }
            self.sources().entry(machine).or_default().seen_at = Some(self.clock.monotonic());
            if let Some(round) = self.open_round(machine).filter(|round| round.end.borrow().is_none()) {
                let disks = round.disks.values().map(|disk| disk.capture.clone()).collect();
                return WriteBackReply::Round { round: round.number, disks };
            }
            if tokio::time::Instant::now() >= deadline {
                return WriteBackReply::Wait;
            }
            let _either = tokio::time::timeout(FENCE_LOOK, changed.changed()).await;
        }
    }

    async fn about(&self, machine: MachineId, request: WriteBackRequest) -> WriteBackReply {
        let (number, disk) = match &request {
            WriteBackRequest::Work => return self.work(machine).await,
            WriteBackRequest::Ranges { round, disk, .. }
            | WriteBackRequest::RangesSince { round, disk, .. }
            | WriteBackRequest::Compare { round, disk, .. }
            | WriteBackRequest::Fetch { round, disk, .. }
            | WriteBackRequest::Done { round, disk, .. } => (*round, *disk),
        };
        let round = self.open_round(machine).filter(|round| round.number == number);
        let Some(round) = round.filter(|_| (self.is_fenced)(machine)) else { return WriteBackReply::Over };
        let Some(of) = round.disks.get(&disk).cloned() else {
            return WriteBackReply::Failed("the disk is not of this round".into());
        };
        match request {
            WriteBackRequest::Done { hold, result, .. } => {
                round.note(disk, hold, result);
                WriteBackReply::Noted
            }
            request => {
                let task = Arc::clone(&round.task);
                spawn_blocking(move || of.answer(request, &task))
                    .await
                    .unwrap_or_else(|error| WriteBackReply::Failed(error.to_string()))
            }
        }
    }
}

impl WriteBackDesk for Desk {
    fn answer(&self, machine: MachineId, request: WriteBackRequest) -> WriteBackFuture<'_> {
        Box::pin(self.about(machine, request))
    }
}

/// The round ends with whoever waits for it.
struct Open<'desk> {
    desk: &'desk Desk,
    machine: MachineId,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(source) = self.desk.sources().get_mut(&self.machine)
            && source.round.as_ref().is_some_and(|round| round.number == self.number)
        {
            source.round = None;
        }
    }
}

impl Round {
    fn note(&self, disk: DiskId, hold: u64, result: Result<WrittenBack, String>) {
        let end = match result {
            Err(text) => Some(RoundEnd::Failed(text)),
            Ok(written) => {
                let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
                done.insert(disk, (hold, written));
                (done.len() == self.disks.len()).then(|| RoundEnd::Done(done.clone()))
            }
        };
        if end.is_some() {
            self.end.send_if_modified(|before| before.is_none().then(|| *before = end).is_some());
        }
    }
}

impl RoundDisk {
    fn answer(&self, request: WriteBackRequest, task: &Task) -> WriteBackReply {
        let answered = match request {
            WriteBackRequest::Ranges { from, hold, .. } => self.ranges(from, self.held_since(hold), task),
            WriteBackRequest::RangesSince { from, hold, generation, brought_to, marked, .. } => {
                let apart = self.apart.as_ref();
                let known = apart.filter(|apart| apart.covers(&self.capture, generation, brought_to));
                let changes = self.held_since(hold).or_else(|| known.map(|apart| &apart.changes));
                if from.0 == 0 && changes.is_some() {
                    task.add_total_bytes(marked.0 * BLOCK_BYTES as u64);
                }
                self.ranges(from, changes, task)
            }
            WriteBackRequest::Compare { start, count, digests, .. } => {
                self.compare(BlockRange { start, count }, &digests, task)
            }
            WriteBackRequest::Fetch { blocks, .. } => self.fetch(&blocks, task),
            WriteBackRequest::Work | WriteBackRequest::Done { .. } => Ok(WriteBackReply::Noted),
        };
        answered.unwrap_or_else(|error| {
            let text = in_one_line(&error);
            tracing::error!(disk = %self.capture.disk, error = text, "a disk that is written back cannot be read");
            WriteBackReply::Failed(format!("the coordinator cannot read its copy: {text}"))
        })
    }

    fn blocks(&self) -> u64 {
        BlockCount::covering(self.view.size_bytes()).0
    }

    fn held_since(&self, hold: u64) -> Option<&Arc<dyn Changes>> {
        self.since.as_ref().filter(|(held, _)| *held == hold).map(|(_, changes)| changes)
    }

    fn ranges(
        &self,
        from: BlockIndex,
        changes: Option<&Arc<dyn Changes>>,
        task: &Task,
    ) -> Result<WriteBackReply, ViewError> {
        let end = self.blocks();
        let Some(changes) = changes else {
            let rest = BlockRange::new(from.0.min(end), end.saturating_sub(from.0));
            task.add_total_bytes(rest.bytes());
            let ranges = if rest.is_empty() { Vec::new() } else { vec![rest] };
            return Ok(WriteBackReply::Ranges { ranges, next: None, known: false });
        };
        let (mut ranges, mut at) = (Vec::new(), from.0);
        while at < end && ranges.is_empty() {
            let (mut changed, reached) = changes.changed(BlockRange::new(at, end - at))?;
            at = reached;
            if changed.len() > WRITE_BACK_RANGES_MAX {
                changed.truncate(WRITE_BACK_RANGES_MAX);
                at = changed.last().map_or(at, |last| last.end().0);
            }
            ranges = changed;
        }
        task.add_total_bytes(ranges.iter().map(|range| range.bytes()).sum());
        Ok(WriteBackReply::Ranges { ranges, next: (at < end).then_some(BlockIndex(at)), known: true })
    }

    fn compare(
        &self,
        range: BlockRange,
        digests: &[[u8; 32]],
        task: &Task,
    ) -> Result<WriteBackReply, ViewError> {
        let chunks = range.count.0.div_ceil(SCAN_CHUNK_BLOCKS);
        if range.count.0 > COMPARE_BLOCKS_MAX
            || range.end().0 > self.blocks()
            || chunks != digests.len() as u64
        {
            return Ok(WriteBackReply::Failed("a comparison whose digests do not cover its range".into()));
        }
        let mut differs = Vec::with_capacity(digests.len());
        for (chunk, digest) in range.pieces(SCAN_CHUNK_BLOCKS).zip(digests) {
            let same = blake3::hash(&read_blocks(&*self.view, chunk)?).as_bytes() == digest;
            if same {
                task.add_done_bytes(chunk.bytes());
            }
            differs.push(!same);
        }
        Ok(WriteBackReply::Differs(differs))
    }

    fn fetch(&self, blocks: &[BlockDigest], task: &Task) -> Result<WriteBackReply, ViewError> {
        let ascending = blocks.iter().zip(blocks.iter().skip(1)).all(|(one, next)| one.block < next.block);
        let beyond = blocks.last().is_some_and(|last| last.block.0 >= self.blocks());
        if !ascending || beyond || blocks.len() > FETCH_BLOCKS_MAX {
            return Ok(WriteBackReply::Failed(
                "a question for blocks that are not the disk's, or too many".into(),
            ));
        }
        let (mut extents, mut plain) = (Vec::<Extent>::new(), Vec::new());
        for asked in blocks {
            let block = BlockRange::new(asked.block.0, 1);
            let bytes = read_blocks(&*self.view, block)?;
            task.add_done_bytes(BLOCK_BYTES as u64);
            if witness_digest(&bytes) == asked.digest {
                continue;
            }
            let extent = if is_zero(&bytes) { Extent::zero(block) } else { Extent::data(block) };
            match extents
                .last_mut()
                .filter(|last| last.range.end() == block.start && last.kind == extent.kind)
            {
                Some(last) => last.range.count.0 += 1,
                None => extents.push(extent),
            }
            if extent.plain_bytes() > 0 {
                plain.extend_from_slice(&bytes);
            }
        }
        if extents.is_empty() {
            return Ok(WriteBackReply::Blocks(Vec::new()));
        }
        let identity = FrameIdentity {
            disk: self.capture.disk,
            generation: Generation(0),
            sequence: Sequence(1),
            interval: Interval(0),
        };
        let sealed = FrameSealer::new(Some(COMPRESSION_LEVEL))
            .map_err(|source| ViewError::Io { place: "the compressor".into(), source })
            .map(|mut sealer| sealer.seal_data(identity, &extents, &plain))?;
        Ok(match sealed {
            Ok(frame) => WriteBackReply::Blocks(frame.to_vec()),
            Err(error) => WriteBackReply::Failed(error.to_string()),
        })
    }
}

/// What blocks on the way back are compressed with.
const COMPRESSION_LEVEL: i32 = 1;

#[cfg(test)]
mod tests;
