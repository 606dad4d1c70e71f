//! The segments of one log, for readers.
//!
//! Owns which segments there are, and a bounded set of open ones. Does not know the writer; it is told when a segment is
//! begun and sealed. Invariant: a sequence is looked for in exactly one segment, the last that begins at or before it.
//! Limits: `open_segments_max` sealed segments are open at a time, and the tables of [`TABLES_MAX`] are in memory, of which one
//! may have more than [`AHEAD_BYTES_MAX`] of heads.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    num::NonZero,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::BytesMut;
use holdfast_common::{
    frame::{Frame, header::FrameError},
    ids::{DiskId, Sequence},
};
use rustix::fs::Advice;

use super::{error::StoreError, layout::DiskLayout};
use crate::journal::{
    format::{ENTRY_BYTES, SEGMENT_HEADER_BYTES, TRAILER_BYTES},
    segment::{SealedSegment, SegmentError, read_frame_into},
    source::ReadAt,
    tables::{FrameEntry, HeadPlace, SegmentTables},
    writer::SharedTables,
};

/// Sealed segments whose tables are read before anybody comes there.
const AHEAD_MAX: usize = 3;

/// Sealed segments whose tables are in memory: the one that is left, the one that is read, and those that come next.
const TABLES_MAX: usize = AHEAD_MAX + 2;

/// Heads are read ahead if a segment has at most so many bytes of them. A usual one has 1 MiB; one of frames that hold nothing but
/// extents of zeroes can have as many as the segment has bytes.
const AHEAD_BYTES_MAX: u64 = 4 << 20;

/// Segments whose tables the system is asked to read before anybody comes there: a device answers that many in the time of one.
const HINTED_MAX: usize = 16;

/// The end of a segment that a hint is for at first: more than the tables of a usual one. Later it is what the tables before took, and
/// a quarter more.
const HINTED_BYTES: u64 = 256 << 10;

fn is_large(tables: &SegmentTables) -> bool {
    tables.heads().len() as u64 > AHEAD_BYTES_MAX
}

/// The segment that is being written.
#[derive(Clone, Debug)]
pub(super) struct ActiveSegment {
    pub(super) first: Sequence,
    pub(super) file: Arc<File>,
    pub(super) tables: SharedTables,
}

/// All segments of a log.
#[derive(Debug)]
pub(super) struct SegmentSet {
    disk: DiskId,
    layout: DiskLayout,
    open_max: usize,
    /// First sequence and file size of each sealed segment.
    sealed: BTreeMap<u64, u64>,
    active: Option<ActiveSegment>,
    cache: Mutex<Cache>,
}

/// Tables that are read or will be; who reads them has the lock, and others who want the same ones wait for it.
type TablesSlot = Arc<Mutex<Option<Arc<SegmentTables>>>>;

#[derive(Debug)]
struct Cache {
    tick: u64,
    open: BTreeMap<u64, (Arc<SealedSegment>, u64)>,
    /// The tables that were read last, because they are read in batches.
    tables: VecDeque<(u64, TablesSlot)>,
    /// The segment that was hinted at last.
    hinted: u64,
    /// The end of a segment that a hint is for.
    hint_bytes: u64,
}

impl Default for Cache {
    fn default() -> Self {
        let (open, tables) = (BTreeMap::new(), VecDeque::new());
        Self { tick: 0, open, tables, hinted: 0, hint_bytes: HINTED_BYTES }
    }
}

impl Cache {
    fn slot(&self, first: u64) -> Option<TablesSlot> {
        self.tables.iter().find(|(cached, _)| *cached == first).map(|(_, slot)| Arc::clone(slot))
    }

    /// The place for tables, and the memory of those that had to go for it: fresh memory costs as much as reading into it.
    fn slot_for(&mut self, first: u64) -> (TablesSlot, Vec<u8>) {
        if let Some(slot) = self.slot(first) {
            return (slot, Vec::new());
        }
        let oldest = if self.tables.len() < TABLES_MAX { None } else { self.tables.pop_front() };
        let slot = TablesSlot::default();
        self.tables.push_back((first, Arc::clone(&slot)));
        let tables = oldest.and_then(|(_, slot)| Arc::into_inner(slot)?.into_inner().ok()?);
        let unused = tables.filter(|tables| !is_large(tables)).and_then(Arc::into_inner);
        (slot, unused.map(SegmentTables::into_heads).unwrap_or_default())
    }
}

/// Where a frame is to be looked for.
#[derive(Clone)]
pub(super) enum Place {
    Active(ActiveSegment),
    Sealed(Arc<SealedSegment>, Sequence),
}

/// Where the frames of one segment lie.
pub(super) struct StoredFrames {
    pub(super) place: Place,
    pub(super) first: Sequence,
    /// Last sequence that the segment accounts for.
    pub(super) end: Sequence,
    entries: Vec<FrameEntry>,
    /// Offset behind the last frame.
    behind: u64,
}

impl StoredFrames {
    /// Position of the first entry at or behind a sequence.
    pub(super) fn position(&self, sequence: Sequence) -> usize {
        self.entries.partition_point(|entry| self.first.0 + u64::from(entry.delta) < sequence.0)
    }

    /// Sequence, offset and size (with what stands behind the frame, at most a mark) of an entry.
    pub(super) fn entry(&self, position: usize) -> Option<(Sequence, u64, u64)> {
        let entry = self.entries.get(position)?;
        let next = self.entries.get(position + 1).map_or(self.behind, |next| u64::from(next.offset));
        let offset = u64::from(entry.offset);
        let sequence = Sequence(self.first.0 + u64::from(entry.delta));
        Some((sequence, offset, next.saturating_sub(offset)))
    }

    /// Offset and size of a frame.
    pub(super) fn find(&self, sequence: Sequence) -> Option<(u64, u64)> {
        let (found, offset, bytes) = self.entry(self.position(sequence))?;
        (found == sequence).then_some((offset, bytes))
    }
}

impl SegmentSet {
    pub(super) fn new(disk: DiskId, layout: DiskLayout, open_max: usize) -> Self {
        Self {
            disk,
            layout,
            open_max,
            sealed: BTreeMap::new(),
            active: None,
            cache: Mutex::new(Cache::default()),
        }
    }

    /// A sealed segment exists.
    pub(super) fn add_sealed(&mut self, first: Sequence, file_bytes: u64) {
        self.sealed.insert(first.0, file_bytes);
    }

    /// This segment is written from now on. The one before was sealed.
    pub(super) fn begin(&mut self, active: ActiveSegment) {
        self.active = Some(active);
    }

    /// The segment that was written is sealed.
    pub(super) fn seal(&mut self, first: Sequence, file_bytes: u64) {
        self.active = self.active.take().filter(|active| active.first != first);
        self.sealed.insert(first.0, file_bytes);
    }

    pub(super) fn count(&self) -> usize {
        self.sealed.len() + usize::from(self.active.is_some())
    }

    /// Size of all files together.
    pub(super) fn file_bytes(&self) -> u64 {
        let active = self.active.as_ref().and_then(|active| active.file.metadata().ok());
        self.sealed.values().sum::<u64>() + active.map_or(0, |metadata| metadata.len())
    }

    /// All sealed segments but the last, with their sizes, ascending.
    pub(super) fn sealed_but_last(&self) -> Vec<(Sequence, u64)> {
        let mut sealed: Vec<_> =
            self.sealed.iter().map(|(first, bytes)| (Sequence(*first), *bytes)).collect();
        sealed.pop();
        sealed
    }

    /// A sealed segment, opened.
    pub(super) fn sealed(&self, first: Sequence) -> Result<Arc<SealedSegment>, StoreError> {
        self.open(first)
    }

    /// Another file has taken the segment's place. Gives the size of the one before.
    pub(super) fn replace(&mut self, first: Sequence, file_bytes: u64) -> u64 {
        self.forget(first);
        self.sealed.insert(first.0, file_bytes).unwrap_or(0)
    }

    /// The segment exists no more. Gives its size.
    pub(super) fn remove(&mut self, first: Sequence) -> u64 {
        self.forget(first);
        self.sealed.remove(&first.0).unwrap_or(0)
    }

    fn forget(&mut self, first: Sequence) {
        let cache = self.cache.get_mut().unwrap_or_else(PoisonError::into_inner);
        cache.open.remove(&first.0);
        cache.tables.retain(|(cached, _)| *cached != first.0);
    }

    /// The segment that holds `sequence` if any does.
    pub(super) fn place(&self, sequence: Sequence) -> Result<Place, StoreError> {
        if let Some(active) = self.active.as_ref().filter(|active| active.first <= sequence) {
            return Ok(Place::Active(active.clone()));
        }
        let found = self.sealed.range(..=sequence.0).next_back();
        let (first, _) = found.ok_or(StoreError::Missing(sequence))?;
        let first = Sequence(*first);
        Ok(Place::Sealed(self.open(first)?, first))
    }

    /// Where the frames of the segment that holds `sequence` lie, as far as they are durable.
    pub(super) fn stored_frames(
        &self,
        sequence: Sequence,
        durable: Sequence,
    ) -> Result<StoredFrames, StoreError> {
        let place = self.place(sequence)?;
        let first = place.first();
        let next = self.next_first(first).map_or(durable, |next| Sequence(next.0 - 1));
        let (entries, behind) = match &place {
            Place::Active(active) => {
                let tables = active.tables.read().unwrap_or_else(PoisonError::into_inner);
                let last = tables.last_sequence().and_then(|last| tables.extent_of(last));
                (tables.entries().to_vec(), last.map_or(0, |(offset, bytes)| offset + bytes))
            }
            Place::Sealed(segment, _) => {
                let behind = segment.frames_end().map_err(|source| StoreError::Segment {
                    path: self.layout.segment(first),
                    source: source.into(),
                })?;
                (segment.entries().to_vec(), behind)
            }
        };
        Ok(StoredFrames { place, first, end: next.min(durable), entries, behind })
    }

    /// Last sequence in front of the next segment behind `sequence`, if there is one.
    pub(super) fn end_of(&self, sequence: Sequence) -> Option<Sequence> {
        self.next_first(sequence).map(|next| Sequence(next.0 - 1))
    }

    fn open(&self, first: Sequence) -> Result<Arc<SealedSegment>, StoreError> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.tick += 1;
        let tick = cache.tick;
        if let Some((segment, used)) = cache.open.get_mut(&first.0) {
            *used = tick;
            return Ok(Arc::clone(segment));
        }
        let path = self.layout.segment(first);
        let file = File::open(&path).map_err(|error| StoreError::io("opening", &path, error))?;
        let segment = SealedSegment::open(file, self.disk, first)
            .map_err(|source| StoreError::Segment { path: path.clone(), source })?;
        if !segment.has_footer() {
            tracing::warn!(disk = %self.disk, segment = %path.display(), "footer is damaged; the frames were read instead");
        }
        let segment = Arc::new(segment);
        while cache.open.len() >= self.open_max.max(1) {
            let oldest = cache.open.iter().min_by_key(|(_, (_, used))| *used).map(|(first, _)| *first);
            oldest.and_then(|oldest| cache.open.remove(&oldest));
        }
        cache.open.insert(first.0, (Arc::clone(&segment), tick));
        Ok(segment)
    }

    /// First sequence of the segment behind the one that begins at `first`.
    fn next_first(&self, first: Sequence) -> Option<Sequence> {
        let sealed = self.sealed.range(first.0 + 1..).next().map(|(first, _)| Sequence(*first));
        sealed.or(self.active.as_ref().map(|active| active.first).filter(|next| *next > first))
    }

    /// Calls `found` with the heads of the frames after `after`, from the first segment that accounts for more than that, until it
    /// says `false`. `end` is the log's end. Gives up to where all is accounted for.
    pub(super) fn each_head_after(
        &self,
        after: Sequence,
        bytes_max: usize,
        end: Sequence,
        found: &mut impl FnMut(&HeadPlace<'_>) -> Result<bool, FrameError>,
    ) -> Result<Sequence, StoreError> {
        let mut from = after.next();
        loop {
            let place = match self.place(from) {
                Err(StoreError::Missing(_)) => match self.next_first(Sequence(0)) {
                    // The log begins later than that: what was before is lost.
                    Some(first) => self.place(first)?,
                    None => return Ok(after.max(end)),
                },
                other => other?,
            };
            let (seen, last) = self.each_head_in(&place, after, bytes_max, found)?;
            let next = self.next_first(place.first());
            let finished = seen.is_none() || seen == last;
            let up_to = match (seen, next) {
                (Some(seen), _) if !finished => seen,
                (_, Some(next)) => Sequence(next.0 - 1),
                (_, None) => after.max(end),
            };
            match next {
                Some(next) if seen.is_none() && up_to <= after => from = next,
                _ => return Ok(up_to),
            }
        }
    }

    /// Gives the last head that `found` was called with, and the last one that there is.
    fn each_head_in(
        &self,
        place: &Place,
        after: Sequence,
        bytes_max: usize,
        found: &mut impl FnMut(&HeadPlace<'_>) -> Result<bool, FrameError>,
    ) -> Result<(Option<Sequence>, Option<Sequence>), StoreError> {
        let failed = |first, source| StoreError::Segment { path: self.layout.segment(first), source };
        let mut each = |first: Sequence, tables: &SegmentTables| {
            let seen = tables.each_head_after(after, bytes_max, found).map_err(|source| {
                failed(first, SegmentError::Frame { sequence: after.next(), offset: 0, source })
            })?;
            Ok((seen, tables.last_sequence()))
        };
        match place {
            Place::Active(active) => {
                let tables = active.tables.read().unwrap_or_else(PoisonError::into_inner);
                each(active.first, &tables)
            }
            Place::Sealed(segment, first) => {
                let tables = self.sealed_tables(segment, *first).map_err(|source| failed(*first, source))?;
                each(*first, &tables)
            }
        }
    }

    fn sealed_tables(
        &self,
        segment: &SealedSegment,
        first: Sequence,
    ) -> Result<Arc<SegmentTables>, SegmentError> {
        let (slot, spare) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).slot_for(first.0);
        let mut place = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tables) = &*place {
            return Ok(Arc::clone(tables));
        }
        let tables = segment.tables_into(spare)?;
        let took = tables.heads().len() + tables.entries().len() * ENTRY_BYTES + TRAILER_BYTES;
        *place = Some(Arc::clone(&tables));
        drop(place);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.hint_bytes = (took as u64 / 4 * 5).min(AHEAD_BYTES_MAX);
        if is_large(&tables) {
            // What is being read is not known to be large yet, and whoever reads it comes here as well.
            let is_other_large = |slot: &TablesSlot| {
                slot.try_lock().is_ok_and(|tables| tables.as_deref().is_some_and(is_large))
            };
            cache.tables.retain(|(other, slot)| *other == first.0 || !is_other_large(slot));
        }
        Ok(tables)
    }

    /// Reads the tables of the next sealed segments behind the one that accounts for `sequence`, as far as nobody does so yet, and lets
    /// the system read those of the segments behind them. Several threads may call this.
    pub(super) fn read_tables_ahead(&self, sequence: Sequence) -> Result<(), StoreError> {
        self.hint_tables(sequence);
        for (first, _) in self.sealed.range(sequence.0.saturating_add(1)..).take(AHEAD_MAX) {
            let first = Sequence(*first);
            let known = self.cache.lock().unwrap_or_else(PoisonError::into_inner).slot(first.0).is_some();
            if known {
                continue;
            }
            let segment = self.open(first)?;
            let failed = |source| StoreError::Segment { path: self.layout.segment(first), source };
            let heads_bytes = segment.heads_bytes().map_err(|error| failed(error.into()))?;
            if heads_bytes.is_some_and(|bytes| bytes <= AHEAD_BYTES_MAX) {
                self.sealed_tables(&segment, first).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Asks the system to read the tables of the segments behind the one that accounts for `sequence`.
    fn hint_tables(&self, sequence: Sequence) {
        let next = self.sealed.range(sequence.0.saturating_add(1)..).take(HINTED_MAX);
        let next: Vec<_> = next.map(|(first, bytes)| (*first, *bytes)).collect();
        let Some((last, _)) = next.last() else { return };
        let (hinted, hint_bytes) = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::replace(&mut cache.hinted, *last), cache.hint_bytes)
        };
        let known = next.iter().position(|(first, _)| *first == hinted).map_or(0, |at| at + 1);
        for (first, bytes) in next.into_iter().skip(known) {
            // Who reads it says what is wrong with it.
            let Ok(file) = File::open(self.layout.segment(Sequence(first))) else { continue };
            let tables = bytes.saturating_sub(hint_bytes);
            for (offset, bytes) in [(0, SEGMENT_HEADER_BYTES as u64), (tables, bytes - tables)] {
                let _refused = rustix::fs::fadvise(&file, offset, NonZero::new(bytes), Advice::WillNeed);
            }
        }
    }

    /// Bytes behind `after`: exact in the segment being written, by file size and proportion in the others.
    pub(super) fn bytes_after(&self, after: Sequence) -> u64 {
        let mut bytes: u64 = self.sealed.range(after.0 + 1..).map(|(_, size)| size).sum();
        if let Some(active) = &self.active {
            let tables = active.tables.read().unwrap_or_else(PoisonError::into_inner);
            bytes += tables.frame_bytes_after(after);
        }
        if let Some((first, size)) = self.sealed.range(..=after.0).next_back() {
            let next = self.next_first(Sequence(*first)).map_or(after.0 + 1, |next| next.0);
            let frames = u128::from(next.saturating_sub(*first).max(1));
            let behind = u128::from(next.saturating_sub(after.0 + 1));
            bytes += u64::try_from(u128::from(*size) * behind / frames).unwrap_or(0);
        }
        bytes
    }
}

impl Place {
    /// Reads and verifies one frame.
    pub(super) fn read(
        &self,
        disk: DiskId,
        sequence: Sequence,
        buffer: BytesMut,
    ) -> Result<Frame, SegmentError> {
        match self {
            Self::Sealed(segment, _) => segment.read_into(sequence, buffer),
            Self::Active(active) => {
                let tables = active.tables.read().unwrap_or_else(PoisonError::into_inner);
                let (offset, limit) = tables.extent_of(sequence).ok_or(SegmentError::Missing(sequence))?;
                drop(tables);
                read_frame_into(active.file.as_ref(), disk, sequence, (offset, Some(limit)), buffer)
            }
        }
    }

    /// Fills `buffer` from an offset of the segment's file.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        match self {
            Self::Sealed(segment, _) => ReadAt::read_exact_at(segment.file(), offset, buffer),
            Self::Active(active) => ReadAt::read_exact_at(active.file.as_ref(), offset, buffer),
        }
    }

    /// Tells the system that these bytes are not read again soon.
    pub(super) fn leave_cache(&self, offset: u64, bytes: u64) {
        let file = match self {
            Self::Sealed(segment, _) => segment.file(),
            Self::Active(active) => active.file.as_ref(),
        };
        // Only an advice.
        let _refused = rustix::fs::fadvise(file, offset, NonZero::new(bytes), Advice::DontNeed);
    }

    /// First sequence of the segment.
    pub(super) const fn first(&self) -> Sequence {
        match self {
            Self::Sealed(_, first) => *first,
            Self::Active(active) => active.first,
        }
    }
}
