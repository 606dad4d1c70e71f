//! A disk as it was at a cut, or as it is now: index lookup, frame read, verification, decompression.
//!
//! Owns the translation of bytes to blocks to frames. Does not know who reads. Invariants: bytes come out only of frames
//! that passed their digest and whose own table agrees with the index; opening costs as many runs as the cut has, and
//! nothing that grows with the disk or the backlog.
//! Limit: memory is that of the shared frame cache. Any number of threads may read.

use std::{
    mem,
    ops::Range,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::BytesMut;
use holdfast_common::{
    causes::in_one_line,
    frame::{Extent, ExtentKind, FrameError, cut::WITNESS_DIGEST_BYTES, witness_digest},
    ids::Sequence,
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
    wire::limits::SCAN_CHUNK_BLOCKS,
};

use super::{
    frame_cache::FrameCache,
    view::{
        BlockView, BundlePart, BundlePlace, BundleReader, Changes, HistoryPlace, StoredExtent, ViewError,
        ViewExtent,
    },
};
use crate::{
    index::{BlockMap, CutMap, DiskIndex, IndexError, Piece, PieceSource},
    store::{Difference, DiskLog, StoreError},
};

/// A view of one disk.
#[derive(Debug)]
pub struct PointView {
    size_bytes: u64,
    /// Looked up again when it leads to damage: the index may have been made again since.
    map: RwLock<Arc<dyn BlockMap>>,
    log: Arc<DiskLog>,
    cache: Arc<FrameCache>,
    /// Ranges that the source is known to have had otherwise at a cut that is no later than the view's.
    doubts: Vec<Difference>,
    /// For views of cuts: what else the disk's history holds.
    history: Option<(HistoryPlace, Arc<DiskIndex>)>,
}

impl PointView {
    /// The disk at the cut whose frame has this sequence.
    ///
    /// # Errors
    /// There is no such cut, or the index cannot be used.
    pub fn at_cut(index: &Arc<DiskIndex>, cache: Arc<FrameCache>, cut: Sequence) -> Result<Self, IndexError> {
        let place = index.cut(cut).map(|head| HistoryPlace { point: head.record.point, cut });
        let history = place.map(|place| (place, Arc::clone(index)));
        let mut view = Self { history, ..Self::new(index, cache, Arc::new(index.at_cut(cut)?)) };
        view.doubts.retain(|doubt| doubt.at() <= cut);
        Ok(view)
    }

    /// The newest indexed state, which moves on while it is read; for comparison with the source, never for a point.
    #[must_use]
    pub fn newest(index: &Arc<DiskIndex>, cache: Arc<FrameCache>) -> Self {
        let map: Arc<DiskIndex> = Arc::clone(index);
        Self::new(index, cache, map)
    }

    fn new(index: &DiskIndex, cache: Arc<FrameCache>, map: Arc<dyn BlockMap>) -> Self {
        let log = Arc::clone(index.log());
        let doubts = log.differences().list();
        let map = RwLock::new(map);
        Self { size_bytes: log.manifest().size_bytes, map, log, cache, doubts, history: None }
    }

    fn map(&self) -> Arc<dyn BlockMap> {
        Arc::clone(&self.map.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks the cut up again, as the index has it now. `false` if it does not have it (yet).
    fn look_up_again(&self) -> bool {
        let Some((place, index)) = &self.history else { return false };
        // A log that lost its end may have another cut with the same number.
        let same = index.cut(place.cut).is_some_and(|head| head.record.point == place.point);
        let Some(map) = same.then(|| index.at_cut(place.cut).ok()).flatten() else { return false };
        *self.map.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(map);
        true
    }

    /// Where the blocks of a range are; may stop short.
    ///
    /// # Errors
    /// The index cannot be read, neither as it was when the view was opened nor as it is now.
    pub fn pieces(&self, range: BlockRange) -> Result<Vec<Piece>, ViewError> {
        match self.map().resolve(range) {
            Err(error) if error.is_damage() && self.look_up_again() => self.map().resolve(range),
            other => other,
        }
        .map_err(index_failed)
    }

    /// The first part of a piece that is known to be wrong: its version is no newer than the cut at which that was found.
    fn doubt(&self, piece: &Piece) -> Option<(BlockRange, Sequence)> {
        let version = piece.source.sequence();
        let of = |doubt: &Difference| Some((doubt.range().intersection(piece.range)?, doubt.at()));
        let doubts = self.doubts.iter().filter(|doubt| version <= doubt.at());
        doubts.filter_map(of).min_by_key(|(range, _)| range.start)
    }

    /// Digests of witnessed blocks as they are here, each with [`witness_digest`]'s rule; `None` where a block cannot be
    /// read, or is known to be wrong.
    ///
    /// # Errors
    /// The store cannot be read at all.
    pub fn witness_digests(
        &self,
        blocks: impl IntoIterator<Item = BlockIndex>,
    ) -> Result<Vec<Option<[u8; WITNESS_DIGEST_BYTES]>>, ViewError> {
        let mut buffer = [0; BLOCK_BYTES];
        let mut digests = Vec::new();
        for block in blocks {
            let range = BlockRange::new(block.0, 1);
            if range.end().0 > BlockCount::covering(self.size_bytes).0 {
                digests.push(None);
                continue;
            }
            digests.push(match self.read_blocks(range, &mut buffer) {
                Ok(()) => {
                    self.blank_behind_end(range, &mut buffer);
                    Some(witness_digest(&buffer))
                }
                Err(ViewError::Damaged { .. } | ViewError::Differs { .. }) => None,
                Err(error) => return Err(error),
            });
        }
        Ok(digests)
    }

    /// What stands behind the disk's end is zero, whatever was sent with its last block.
    fn blank_behind_end(&self, range: BlockRange, buffer: &mut [u8]) {
        let on_disk = self.size_bytes.saturating_sub(range.start.byte_offset());
        let behind = buffer.get_mut(usize::try_from(on_disk).unwrap_or(usize::MAX)..);
        behind.unwrap_or_default().fill(0);
    }

    /// Digests of [`SCAN_CHUNK_BLOCKS`] blocks each, from the range's start; the last one covers fewer blocks at the range's
    /// or the disk's end, and a last partial block is padded with zeroes. `None` where the replica is damaged: it differs
    /// from the source then, whatever the source holds.
    ///
    /// # Errors
    /// The range lies beyond the end, or the store cannot be read at all.
    pub fn digest_ranges(&self, range: BlockRange) -> Result<Vec<Option<[u8; 32]>>, ViewError> {
        let blocks = BlockCount::covering(self.size_bytes).0;
        if range.end().0 > blocks {
            return Err(ViewError::BeyondEnd { offset: range.start.byte_offset(), bytes: range.bytes() });
        }
        let mut digests = Vec::new();
        let mut buffer = Vec::new();
        let mut at = range.start.0;
        while at < range.end().0 {
            let count = SCAN_CHUNK_BLOCKS.min(range.end().0 - at);
            let chunk = BlockRange::new(at, count);
            buffer.clear();
            buffer.resize(usize::try_from(chunk.bytes()).unwrap_or(0), 0);
            digests.push(match self.read_blocks(chunk, &mut buffer) {
                Ok(()) => {
                    self.blank_behind_end(chunk, &mut buffer);
                    Some(*blake3::hash(&buffer).as_bytes())
                }
                Err(ViewError::Damaged { .. } | ViewError::Differs { .. }) => None,
                Err(error) => return Err(error),
            });
            at += count;
        }
        Ok(digests)
    }

    /// Fills `buffer` with whole blocks.
    fn read_blocks(&self, range: BlockRange, buffer: &mut [u8]) -> Result<(), ViewError> {
        self.each_piece(range, &mut |piece| {
            let start =
                usize::try_from(piece.range.start.0 - range.start.0).unwrap_or(usize::MAX) * BLOCK_BYTES;
            let end = start + usize::try_from(piece.range.bytes()).unwrap_or(usize::MAX);
            let target = buffer.get_mut(start..end).ok_or_else(|| self.beyond(range))?;
            self.copy(&piece, 0, target)
        })
    }

    fn each_piece(
        &self,
        range: BlockRange,
        with: &mut dyn FnMut(Piece) -> Result<(), ViewError>,
    ) -> Result<(), ViewError> {
        let mut left = range;
        while !left.is_empty() {
            for piece in self.pieces(left)? {
                let end = piece.range.end().0;
                if let Some((range, cut)) = self.doubt(&piece) {
                    return Err(ViewError::Differs { range, cut });
                }
                with(piece)?;
                left = BlockRange::new(end, range.end().0 - end);
            }
        }
        Ok(())
    }

    /// Copies the bytes of a piece from `skip` bytes into it. What fails is looked up and read once more before it counts as
    /// damaged: the frame may have been moved, or made good, since the cut was looked up.
    fn copy(&self, piece: &Piece, skip: usize, target: &mut [u8]) -> Result<(), ViewError> {
        let Err(failure) = self.copy_once(piece, skip, target) else { return Ok(()) };
        if !self.look_up_again() {
            return Err(self.report(piece, &failure));
        }
        let mut left = piece.range;
        while !left.is_empty() {
            for now in self.pieces(left)? {
                let behind = now.range.end().0;
                left = BlockRange::new(behind, piece.range.end().0 - behind);
                // Where the piece's bytes from `skip` on, and this part of it, meet.
                let at = usize::try_from(now.range.start.0 - piece.range.start.0).unwrap_or(usize::MAX);
                let (from, bytes) = (at * BLOCK_BYTES, usize::try_from(now.range.bytes()).unwrap_or(0));
                let (start, end) = (from.max(skip), (from + bytes).min(skip + target.len()));
                let Some(part) = target.get_mut(start.saturating_sub(skip)..end.saturating_sub(skip)) else {
                    continue;
                };
                if !part.is_empty() {
                    let copied = self.copy_once(&now, start - from, part);
                    copied.map_err(|failure| self.report(&now, &failure))?;
                }
            }
        }
        Ok(())
    }

    fn copy_once(&self, piece: &Piece, skip: usize, target: &mut [u8]) -> Result<(), Failure> {
        let PieceSource::Frame { sequence, plain_block } = piece.source else {
            target.fill(0);
            return Ok(());
        };
        let frame = self.cache.get(&self.log, sequence).map_err(Failure::Store)?;
        let bytes =
            frame.blocks(piece.range, plain_block).and_then(|bytes| bytes.get(skip..skip + target.len()));
        target.copy_from_slice(bytes.ok_or(Failure::Disagrees)?);
        Ok(())
    }

    fn report(&self, piece: &Piece, failure: &Failure) -> ViewError {
        match failure {
            Failure::Store(error) => self.failed(piece, error),
            Failure::Disagrees => self.damaged(piece, "its table does not agree with the index"),
        }
    }

    fn failed(&self, piece: &Piece, error: &StoreError) -> ViewError {
        match error {
            StoreError::Segment { source, path } if source.is_damage() => {
                self.damaged(piece, &path.display().to_string())
            }
            StoreError::Missing(_) | StoreError::Payload { .. } => self.damaged(piece, &error.to_string()),
            StoreError::Io { source, path, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                self.damaged(piece, &format!("{} (missing)", path.display()))
            }
            _ => ViewError::Io {
                place: self.log.layout().journal().display().to_string(),
                source: std::io::Error::other(in_one_line(error)),
            },
        }
    }

    fn damaged(&self, piece: &Piece, place: &str) -> ViewError {
        let sequence = piece.source.sequence();
        tracing::error!(disk = %self.log.disk(), range = %piece.range, %sequence, place, "stored data is damaged");
        self.log.bad_frames().note([sequence]);
        ViewError::Damaged { range: piece.range, sequence, place: place.to_owned() }
    }

    fn place_of(&self, bundle: u64, parts: &[BundlePart]) -> Piece {
        let source = PieceSource::Frame { sequence: Sequence(bundle), plain_block: 0 };
        let range = parts.first().map_or(BlockRange::new(0, 0), |part| part.range);
        Piece { range, source }
    }

    const fn beyond(&self, range: BlockRange) -> ViewError {
        ViewError::BeyondEnd { offset: range.start.byte_offset(), bytes: range.bytes() }
    }
}

impl BlockView for PointView {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let bytes = buffer.len() as u64;
        let end = offset.checked_add(bytes).filter(|end| *end <= self.size_bytes);
        let end = end.ok_or(ViewError::BeyondEnd { offset, bytes })?;
        self.each_piece(BlockRange::covering(offset, bytes), &mut |piece| {
            let from = piece.range.start.byte_offset().max(offset);
            let to = piece.range.end().byte_offset().min(end);
            let skip = usize::try_from(from - piece.range.start.byte_offset()).unwrap_or(usize::MAX);
            let start = usize::try_from(from - offset).unwrap_or(usize::MAX);
            let length = usize::try_from(to - from).unwrap_or(usize::MAX);
            let target = buffer.get_mut(start..start + length);
            self.copy(&piece, skip, target.ok_or(ViewError::BeyondEnd { offset, bytes })?)
        })
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        let mut extents: Vec<ViewExtent> = Vec::new();
        for piece in self.pieces(range)? {
            // Who skips holes must not skip what is known to be wrong.
            let hole = !matches!(piece.source, PieceSource::Frame { .. }) && self.doubt(&piece).is_none();
            match extents.last_mut().filter(|last| last.hole == hole) {
                Some(last) => last.range.count.0 += piece.range.count.0,
                None => extents.push(ViewExtent { range: piece.range, hole }),
            }
        }
        Ok(extents)
    }

    fn prefetch(&self, bytes: Range<u64>) {
        let range = BlockRange::covering(bytes.start, bytes.end.saturating_sub(bytes.start));
        // Trouble is reported to whoever reads it.
        let _trouble = self.each_piece(range, &mut |piece| {
            if let PieceSource::Frame { sequence, .. } = piece.source {
                let _trouble = self.cache.get(&self.log, sequence);
            }
            Ok(())
        });
    }

    fn stored(&self, range: BlockRange) -> Result<Vec<StoredExtent>, ViewError> {
        let stored = |piece: Piece| StoredExtent {
            range: piece.range,
            place: match piece.source {
                PieceSource::Frame { sequence, plain_block } => {
                    Some(BundlePlace { bundle: sequence.0, at_block: plain_block })
                }
                PieceSource::Hole | PieceSource::Zero(_) => None,
            },
        };
        let pieces = self.pieces(range)?;
        if let Some((range, cut)) = pieces.iter().find_map(|piece| self.doubt(piece)) {
            return Err(ViewError::Differs { range, cut });
        }
        Ok(pieces.into_iter().map(stored).collect())
    }

    /// A bundle is a frame. It is read past the cache: who copies reads each one once.
    fn read_bundle(
        &self,
        bundle: u64,
        parts: &[BundlePart],
        reader: &mut BundleReader,
        output: &mut [u8],
    ) -> Result<usize, ViewError> {
        let sequence = Sequence(bundle);
        let frame = self.log.read_into(sequence, mem::take(&mut reader.stored));
        // Once more before it counts as damaged.
        let frame = frame.or_else(|_first| self.log.read_into(sequence, BytesMut::new()));
        let frame = frame.map_err(|error| self.failed(&self.place_of(bundle, parts), &error))?;
        if !holds(frame.extents(), parts) {
            let place = self.place_of(bundle, parts);
            return Err(self.damaged(&place, "its table does not agree with the index"));
        }
        let read = reader.plain.read_to(&frame, output);
        // The frame was not shared, so its memory comes back.
        reader.stored = frame.into_bytes().try_into_mut().unwrap_or_default();
        read.map_err(|source: FrameError| {
            let error = StoreError::Payload { sequence, source };
            self.failed(&self.place_of(bundle, parts), &error)
        })
    }

    fn history_place(&self) -> Option<HistoryPlace> {
        self.history.as_ref().map(|(place, _)| *place)
    }

    fn changes_from(&self, other: HistoryPlace) -> Result<Option<Arc<dyn Changes>>, ViewError> {
        let Some((here, index)) = &self.history else { return Ok(None) };
        // A log that lost its end may have another cut with the same number.
        let known = index.cut(other.cut).is_some_and(|head| head.record.point == other.point);
        if !known {
            return Ok(None);
        }
        let (older, newer) = (here.cut.min(other.cut), here.cut.max(other.cut));
        let map = index.written_between(older, newer).map_err(index_failed)?;
        Ok(Some(Arc::new(Written { map, after: older, doubts: self.doubts.clone() })))
    }
}

/// Why a piece could not be copied.
enum Failure {
    Store(Arc<StoreError>),
    /// The frame's own table says something else than the index.
    Disagrees,
}

/// What a disk's log holds behind a cut, up to another.
#[derive(Debug)]
struct Written {
    map: CutMap,
    after: Sequence,
    /// Unchanged or not, these are looked at, so that they are not passed over.
    doubts: Vec<Difference>,
}

impl Changes for Written {
    fn changed(&self, range: BlockRange) -> Result<(Vec<BlockRange>, u64), ViewError> {
        let mut changed: Vec<BlockRange> = Vec::new();
        let mut end = range.start.0;
        for piece in self.map.resolve(range).map_err(index_failed)? {
            end = piece.range.end().0;
            match piece.source {
                PieceSource::Zero(sequence) | PieceSource::Frame { sequence, .. }
                    if sequence > self.after => {}
                _ if self.doubts.iter().any(|doubt| doubt.range().intersection(piece.range).is_some()) => {}
                _ => continue,
            }
            match changed.last_mut().filter(|last| last.end() == piece.range.start) {
                Some(last) => last.count.0 += piece.range.count.0,
                None => changed.push(piece.range),
            }
        }
        Ok((changed, end))
    }
}

/// Whether a frame's own table says of all parts what the index said. Both ascend.
fn holds(extents: &[Extent], parts: &[BundlePart]) -> bool {
    let mut data = extents.iter().filter(|extent| extent.kind == ExtentKind::Data);
    let (mut extent, mut at) = (data.next(), 0);
    parts.iter().all(|part| {
        // Neighbouring extents of one frame may be one entry in the index.
        let (mut next, mut place) = (part.range.start, u64::from(part.at_block));
        while next < part.range.end() {
            while let Some(passed) = extent.filter(|extent| extent.range.end() <= next) {
                at += passed.range.count.0;
                extent = data.next();
            }
            let Some(here) = extent.filter(|extent| extent.range.contains(next)) else { return false };
            if place != at + next.0 - here.range.start.0 {
                return false;
            }
            let end = here.range.end().min(part.range.end());
            place += end.0 - next.0;
            next = end;
        }
        true
    })
}

fn index_failed(error: IndexError) -> ViewError {
    let place = match &error {
        IndexError::Damaged { path } | IndexError::Io { path, .. } => path.display().to_string(),
        _ => "index".to_owned(),
    };
    ViewError::Io { place, source: std::io::Error::other(in_one_line(&error)) }
}
