//! One disk's log: what readers, the index and the wiring see of it.
//!
//! Owns the set of segments, the position up to which it is durable, and opening and recovering. The appending itself is
//! [`super::append`]'s. Does not know sessions or points. Invariant: `durable` never goes back while the process lives,
//! unless the log was recovered after a failed sync, and then not below what was acknowledged.
//! All methods block unless they are `async`.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak},
};

use tokio::sync::{Semaphore, watch};

use bytes::BytesMut;
use holdfast_common::{
    causes::in_one_line,
    durable,
    frame::{Frame, FrameHeader, FrameKind, header::FrameError},
    ids::{DiskId, Generation, Interval, Sequence},
};

use super::{
    append::LogSink,
    bad_frames::BadFrames,
    differences::Differences,
    error::StoreError,
    kept::{Kept, KeptFile},
    layout::DiskLayout,
    manifest::DiskManifest,
    reclaim::SegmentCensus,
    segments::{ActiveSegment, SegmentSet, StoredFrames},
    settings::StoreSettings,
};
use crate::journal::{
    format::SegmentHeader,
    recovery::{self, Damage, RecoveryPlan},
    segment::SealedSegment,
    tables::{FrameHead, HeadPlace},
    writer::SegmentWriter,
};

/// Where a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTail {
    /// Last frame.
    pub sequence: Sequence,
    /// Its generation; zero if there is none.
    pub generation: Generation,
    /// Interval that the next frame of the same generation belongs to.
    pub next_interval: Interval,
}

/// Some frames' heads, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadBatch {
    /// The heads.
    pub heads: Vec<FrameHead>,
    /// What they account for: a sequence up to here without a head is lost.
    pub up_to: Sequence,
}

/// What a disk takes in the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Size of all segment files.
    pub journal_bytes: u64,
    /// Size of all index files.
    pub index_bytes: u64,
    /// Number of segments.
    pub segments: u64,
}

/// One disk's log.
#[derive(Debug)]
pub struct DiskLog {
    manifest: DiskManifest,
    layout: DiskLayout,
    settings: StoreSettings,
    store_queue: Arc<Semaphore>,
    segments: RwLock<SegmentSet>,
    durable: watch::Sender<Sequence>,
    tail: Mutex<LogTail>,
    writing: Mutex<Writing>,
    /// Tells that `Writing::running` became false.
    idle: Condvar,
    /// One opening at a time.
    opening: Mutex<()>,
    bad_frames: BadFrames,
    differences: Differences,
    kept: KeptFile,
    /// Held while files of segments take others' places, and while they are listed.
    shaping: Mutex<()>,
    /// What was counted of segments, by first sequence: size of the file, needless frames then, and the census.
    census: Mutex<BTreeMap<u64, (u64, u64, SegmentCensus)>>,
    /// Why nothing can be written, since the last group that could.
    trouble: Mutex<Option<String>>,
}

/// What belongs to the writing side while no thread has it.
#[derive(Debug, Default)]
pub(super) struct Writing {
    /// The newest segment, if it can be appended to.
    pub(super) writer: Option<SegmentWriter>,
    /// After a failed sync: durable length of the newest segment.
    pub(super) poisoned: Option<(Sequence, u64)>,
    /// Whether a thread has the writer now.
    pub(super) running: bool,
    /// The sink that is in use.
    pub(super) sink: Weak<LogSink>,
}

/// What opening a log found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) torn_bytes: u64,
    pub(super) damage: Vec<(PathBuf, Damage)>,
    pub(super) records: Vec<String>,
}

impl DiskLog {
    /// Opens a disk's folder and recovers its newest segment.
    pub(super) fn open(
        layout: DiskLayout,
        settings: &StoreSettings,
        store_queue: Arc<Semaphore>,
    ) -> Result<(Self, Found), StoreError> {
        let manifest = DiskManifest::load(&layout.manifest())?;
        let mut records = Vec::new();
        let log = Self {
            bad_frames: BadFrames::load(layout.damaged(), &mut records),
            differences: Differences::load(layout.differs(), &mut records),
            kept: KeptFile::load(layout.kept(), &mut records)?,
            shaping: Mutex::default(),
            census: Mutex::default(),
            trouble: Mutex::default(),
            segments: RwLock::new(SegmentSet::new(manifest.disk, layout.clone(), settings.open_segments_max)),
            manifest,
            layout,
            settings: settings.clone(),
            store_queue,
            durable: watch::Sender::new(Sequence(0)),
            tail: Mutex::new(LogTail { next_interval: Interval(1), ..LogTail::default() }),
            writing: Mutex::new(Writing::default()),
            idle: Condvar::new(),
            opening: Mutex::new(()),
        };
        let found = Found { records, ..log.recover()? };
        log.bad_frames.end_at(log.tail().sequence);
        log.differences.end_at(log.tail().sequence);
        let kept = log.kept();
        let shorter = kept.up_to(log.tail().sequence);
        if shorter != *kept {
            tracing::warn!(disk = %log.disk(), "the log ends before what its record of kept cuts names");
            log.keep(shorter)?;
        }
        let lost = found.damage.iter().filter_map(|(_, damage)| damage.lost.clone());
        log.bad_frames.note(lost.flatten().map(Sequence));
        Ok((log, found))
    }

    /// Looks at the files and gets the newest segment ready.
    fn recover(&self) -> Result<Found, StoreError> {
        let journal = self.layout.journal();
        let _shaping = self.shaping();
        self.layout.clear_beside().map_err(|error| StoreError::io("clearing", &journal, error))?;
        let listed =
            self.layout.list_segments().map_err(|error| StoreError::io("listing", &journal, error))?;
        let mut found = Found::default();
        let mut set = SegmentSet::new(self.disk(), self.layout.clone(), self.settings.open_segments_max);
        let Some(((first, bytes), older)) = listed.split_last() else { return Ok(found) };
        for (first, bytes) in older {
            set.add_sealed(*first, *bytes);
        }
        let path = self.layout.segment(*first);
        let failed = |source| StoreError::Segment { path: path.clone(), source };
        let file = File::options().read(true).write(true).open(&path);
        let file = file.map_err(|error| StoreError::io("opening", &path, error))?;
        let sealed = SealedSegment::open_sealed(&file, self.disk(), *first).map_err(failed)?;
        let tail = if let Some((last, head)) = sealed {
            set.add_sealed(*first, *bytes);
            LogTail::after(last, head.as_ref())
        } else {
            let plan = self.recover_newest(&file, *first, &path, &mut found)?;
            let tail = LogTail::of_plan(&plan);
            let header = self.header(*first, &plan);
            let reading = file.try_clone().map_err(|error| StoreError::io("opening", &path, error))?;
            let writer = SegmentWriter::resume(file, header, plan);
            set.begin(ActiveSegment {
                first: *first,
                file: Arc::new(reading),
                tables: Arc::clone(writer.tables()),
            });
            self.writing().writer = Some(writer);
            tail
        };
        *self.segments.write().unwrap_or_else(PoisonError::into_inner) = set;
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
        self.durable.send_replace(tail.sequence);
        Ok(found)
    }

    /// Plans and applies the recovery of the newest segment.
    fn recover_newest(
        &self,
        file: &File,
        first: Sequence,
        path: &Path,
        found: &mut Found,
    ) -> Result<RecoveryPlan, StoreError> {
        // What a dying process left in the page cache must reach the disk before it may be called durable, and what a
        // failed sync left there as seemingly clean must be read from the disk.
        durable::sync_all(file).map_err(|error| StoreError::io("syncing", path, error))?;
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
        let plan = recovery::plan(file, self.disk(), first)
            .map_err(|source| StoreError::Segment { path: path.to_owned(), source })?;
        recovery::apply(file, &plan).map_err(|error| StoreError::io("cutting", path, error))?;
        found.torn_bytes += plan.torn_bytes();
        found.damage.extend(plan.damage.iter().map(|damage| (path.to_owned(), damage.clone())));
        Ok(plan)
    }

    /// The header of a segment in which `plan` found these frames.
    fn header(&self, first: Sequence, plan: &RecoveryPlan) -> SegmentHeader {
        SegmentHeader {
            disk: self.disk(),
            first_sequence: first,
            base_interval: plan.last_interval,
            base_generation: plan.last_generation,
        }
    }

    /// The log's only writer: the one in use, or a new one. After a failure this recovers the log.
    ///
    /// # Errors
    /// The store is nearly full, or the log cannot be recovered.
    pub fn sink(self: &Arc<Self>) -> Result<Arc<LogSink>, StoreError> {
        self.open_sink().inspect_err(|error| self.set_trouble(Some(in_one_line(error))))
    }

    fn open_sink(self: &Arc<Self>) -> Result<Arc<LogSink>, StoreError> {
        let _one_at_a_time = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sink) = self.writing().sink.upgrade().filter(|sink| !sink.has_stopped()) {
            return Ok(sink);
        }
        self.check_space()?;
        // The thread of an earlier sink may still be finishing its last group.
        let mut writing = self.writing();
        while writing.running {
            writing = self.idle.wait(writing).unwrap_or_else(PoisonError::into_inner);
        }
        let poisoned = writing.poisoned.take();
        let writer = writing.writer.take();
        drop(writing);
        let writer = match (poisoned, writer) {
            (Some((first, durable_bytes)), _) => {
                self.recover_poisoned(first, durable_bytes)?;
                self.writing().writer.take()
            }
            (None, writer) => writer,
        };
        let writer = match writer {
            Some(writer) => writer,
            None => self.begin_segment()?,
        };
        let sink = LogSink::start(self, writer, Arc::clone(&self.store_queue))?;
        let mut writing = self.writing();
        writing.sink = Arc::downgrade(&sink);
        Ok(sink)
    }

    /// Cuts off what a failed sync left behind, and recovers.
    fn recover_poisoned(&self, first: Sequence, durable_bytes: u64) -> Result<(), StoreError> {
        let path = self.layout.segment(first);
        let again = |error| {
            self.writing().poisoned = Some((first, durable_bytes));
            error
        };
        let file = File::options().write(true).open(&path);
        let cut = file.and_then(|file| {
            file.set_len(durable_bytes)?;
            durable::sync_all(&file)
        });
        cut.map_err(|error| again(StoreError::io("cutting", &path, error)))?;
        self.recover().map_err(again).map(|_| ())
    }

    /// Creates the next segment.
    pub(super) fn begin_segment(&self) -> Result<SegmentWriter, StoreError> {
        let tail = self.tail();
        let header = SegmentHeader {
            disk: self.disk(),
            first_sequence: tail.sequence.next(),
            base_interval: tail.next_interval,
            base_generation: tail.generation,
        };
        let path = self.layout.segment(header.first_sequence);
        let failed = |error| StoreError::io("creating", &path, error);
        let writer = SegmentWriter::create(&path, header).map_err(failed)?;
        let file = Arc::new(writer.reading_handle().map_err(failed)?);
        let active =
            ActiveSegment { first: header.first_sequence, file, tables: Arc::clone(writer.tables()) };
        self.segments.write().unwrap_or_else(PoisonError::into_inner).begin(active);
        Ok(writer)
    }

    /// Seals the newest segment and begins the next one.
    pub(super) fn roll(&self, writer: &mut SegmentWriter) -> Result<(), StoreError> {
        let first = writer.header().first_sequence;
        let path = self.layout.segment(first);
        writer.seal().map_err(|source| StoreError::Write { path, source })?;
        let bytes = writer.file_bytes();
        self.segments.write().unwrap_or_else(PoisonError::into_inner).seal(first, bytes);
        *writer = self.begin_segment()?;
        Ok(())
    }

    /// A group is durable.
    pub(super) fn advance(&self, last: &FrameHeader) {
        let tail = LogTail::after(last.sequence, Some(last));
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner) = tail;
        self.set_trouble(None);
        self.durable.send_replace(last.sequence);
    }

    pub(super) fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Why nothing could be written the last time it was tried, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What of the log is kept, and which frames nobody needs any more.
    #[must_use]
    pub fn kept(&self) -> Arc<Kept> {
        self.kept.now()
    }

    /// Records what is kept from now on; durable when it returns. The caller has made sure that no cut which is still needed
    /// takes a block from the needless frames.
    ///
    /// # Errors
    /// The record cannot be written; the one before is valid then.
    pub fn keep(&self, kept: Kept) -> Result<(), StoreError> {
        self.kept.store(kept)
    }

    pub(super) fn segments(&self) -> RwLockReadGuard<'_, SegmentSet> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segments_mut(&self) -> RwLockWriteGuard<'_, SegmentSet> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shaping(&self) -> MutexGuard<'_, ()> {
        self.shaping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn census_memory(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, u64, SegmentCensus)>> {
        self.census.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frames that are known to be damaged.
    #[must_use]
    pub const fn bad_frames(&self) -> &BadFrames {
        &self.bad_frames
    }

    /// Ranges that are known to differ from the source.
    #[must_use]
    pub const fn differences(&self) -> &Differences {
        &self.differences
    }

    /// The writer's thread ends; it gives the writer back.
    pub(super) fn thread_ended(&self, writer: SegmentWriter) {
        let mut writing = self.writing();
        if writer.is_poisoned() {
            writing.poisoned = Some((writer.header().first_sequence, writer.durable_bytes()));
        } else if !writer.is_sealed() {
            writing.writer = Some(writer);
        }
        writing.running = false;
        self.idle.notify_all();
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for more; gives the free bytes.
    ///
    /// # Errors
    /// [`StoreError::Full`] says how much is missing.
    pub(super) fn check_space(&self) -> Result<u64, StoreError> {
        let root = self.layout.root();
        let space =
            rustix::fs::statvfs(root).map_err(|error| StoreError::io("asking", root, error.into()))?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if free_bytes < self.settings.reserve_bytes {
            return Err(StoreError::Full { free_bytes, reserve_bytes: self.settings.reserve_bytes });
        }
        Ok(free_bytes)
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> DiskId {
        self.manifest.disk
    }

    /// What the disk is.
    #[must_use]
    pub const fn manifest(&self) -> &DiskManifest {
        &self.manifest
    }

    /// The disk's paths.
    #[must_use]
    pub const fn layout(&self) -> &DiskLayout {
        &self.layout
    }

    pub(super) const fn settings(&self) -> &StoreSettings {
        &self.settings
    }

    /// Where the log ends, as far as it is durable.
    #[must_use]
    pub fn tail(&self) -> LogTail {
        *self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Last durable frame, kept up to date; unlike a sink's, this one lives as long as the log.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Sequence> {
        self.durable.subscribe()
    }

    /// Reads and verifies one frame.
    ///
    /// # Errors
    /// The frame is damaged, missing, or cannot be read.
    pub fn read(&self, sequence: Sequence) -> Result<Frame, StoreError> {
        self.read_into(sequence, BytesMut::new())
    }

    /// Like [`Self::read`], into memory that is there already; [`Frame::into_bytes`] gives it back.
    ///
    /// # Errors
    /// The frame is damaged, missing, or cannot be read.
    pub fn read_into(&self, sequence: Sequence, buffer: BytesMut) -> Result<Frame, StoreError> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let place = segments.place(sequence)?;
        drop(segments);
        let path = self.layout.segment(place.first());
        place.read(self.disk(), sequence, buffer).map_err(|source| StoreError::Segment { path, source })
    }

    /// Heads of durable frames after `after`, in order, about `bytes_max` bytes of them. Reads no payload. What is
    /// accounted for never passes what is durable; nothing new gives `up_to == after`.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn heads_after(&self, after: Sequence, bytes_max: usize) -> Result<HeadBatch, StoreError> {
        let mut heads = Vec::new();
        let up_to = self.each_head_after(after, bytes_max, &mut |head| {
            heads.push(head.to_head()?);
            Ok(true)
        })?;
        Ok(HeadBatch { heads, up_to })
    }

    /// Calls `found` with the same heads where they lie, until it says `false` or fails. Gives up to where all is accounted for. While it
    /// runs no segment is begun, so it must not wait for anything.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn each_head_after(
        &self,
        after: Sequence,
        bytes_max: usize,
        found: &mut impl FnMut(&HeadPlace<'_>) -> Result<bool, FrameError>,
    ) -> Result<Sequence, StoreError> {
        let durable = *self.durable.borrow();
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let up_to = segments.each_head_after(after, bytes_max, durable, &mut |head| {
            // A group becomes visible to readers just before it is announced.
            if head.header.sequence > durable { Ok(false) } else { found(head) }
        })?;
        Ok(up_to.min(durable).max(after))
    }

    /// Reads the tables of the segment behind the one that accounts for `sequence`, so that [`Self::heads_after`] does not wait for
    /// them there.
    ///
    /// # Errors
    /// The segment cannot be read.
    pub fn read_tables_ahead(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).read_tables_ahead(sequence)
    }

    /// Bytes in the log behind `after`; exact near the end, by proportion of files further back.
    #[must_use]
    pub fn bytes_after(&self, after: Sequence) -> u64 {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).bytes_after(after)
    }

    /// Size of all segment files.
    #[must_use]
    pub fn journal_bytes(&self) -> u64 {
        self.segments.read().unwrap_or_else(PoisonError::into_inner).file_bytes()
    }

    /// What the disk takes in the store. Lists the index's files.
    #[must_use]
    pub fn usage(&self) -> DiskUsage {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        let sizes = std::fs::read_dir(self.layout.index()).into_iter().flatten().flatten();
        DiskUsage {
            journal_bytes: segments.file_bytes(),
            index_bytes: sizes.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum(),
            segments: segments.count() as u64,
        }
    }

    /// The frames from `first` to before `end` that are not missing on purpose.
    pub(super) fn missing(&self, first: Sequence, end: Sequence) -> Vec<Sequence> {
        if first >= end {
            return Vec::new();
        }
        let stretches = self.kept().wanted(first, Sequence(end.0 - 1));
        stretches.into_iter().flat_map(|(first, last)| first.0..=last.0).map(Sequence).collect()
    }

    /// Where the frames of the segment that holds `sequence` lie.
    pub(super) fn stored_frames(&self, sequence: Sequence) -> Result<StoredFrames, StoreError> {
        let durable = *self.durable.borrow();
        self.segments.read().unwrap_or_else(PoisonError::into_inner).stored_frames(sequence, durable)
    }

    /// Last sequence that can lie in the segment that `sequence` is looked for in.
    pub(super) fn segment_end(&self, sequence: Sequence) -> Sequence {
        let durable = *self.durable.borrow();
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.end_of(sequence).unwrap_or(durable).max(sequence)
    }
}

impl LogTail {
    fn after(sequence: Sequence, last: Option<&FrameHeader>) -> Self {
        let next_interval = last.map_or(Interval(1), |last| match last.kind {
            FrameKind::Cut => last.interval.next(),
            FrameKind::Data | FrameKind::Scan => last.interval,
        });
        Self { sequence, generation: last.map_or(Generation(0), |last| last.generation), next_interval }
    }

    fn of_plan(plan: &RecoveryPlan) -> Self {
        match plan.tables.last_head() {
            Some(last) => Self::after(plan.last_sequence, Some(&last)),
            None => Self {
                sequence: plan.last_sequence,
                generation: plan.last_generation,
                next_interval: plan.last_interval.max(Interval(1)),
            },
        }
    }
}
