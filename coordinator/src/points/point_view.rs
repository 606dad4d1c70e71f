//! A disk as it was at a cut, or as it is now: index lookup, frame read, verification, decompression.
//!
//! Owns the translation of bytes to blocks to frames. Does not know who reads. Invariants: bytes come out only of frames
//! that passed their digest and whose own table agrees with the index; opening costs as many runs as the cut has, and
//! nothing that grows with the disk or the backlog.
//! Limit: memory is that of the shared frame cache. Any number of threads may read.

use std::sync::Arc;

use holdfast_common::{
    ids::Sequence,
    units::{BLOCK_BYTES, BlockCount, BlockRange},
    wire::limits::SCAN_CHUNK_BLOCKS,
};

use super::{
    frame_cache::FrameCache,
    view::{BlockView, ViewError, ViewExtent},
};
use crate::{
    index::{BlockMap, DiskIndex, IndexError, Piece, PieceSource},
    store::{DiskLog, StoreError},
};

/// A view of one disk.
#[derive(Debug)]
pub struct PointView {
    size_bytes: u64,
    map: Arc<dyn BlockMap>,
    log: Arc<DiskLog>,
    cache: Arc<FrameCache>,
}

impl PointView {
    /// The disk at the cut whose frame has this sequence.
    ///
    /// # Errors
    /// There is no such cut, or the index cannot be used.
    pub fn at_cut(index: &DiskIndex, cache: Arc<FrameCache>, cut: Sequence) -> Result<Self, IndexError> {
        Ok(Self::new(index, cache, Arc::new(index.at_cut(cut)?)))
    }

    /// The newest indexed state, which moves on while it is read; for comparison with the source, never for a point.
    #[must_use]
    pub fn newest(index: &Arc<DiskIndex>, cache: Arc<FrameCache>) -> Self {
        let map: Arc<DiskIndex> = Arc::clone(index);
        Self::new(index, cache, map)
    }

    fn new(index: &DiskIndex, cache: Arc<FrameCache>, map: Arc<dyn BlockMap>) -> Self {
        let log = Arc::clone(index.log());
        Self { size_bytes: log.manifest().size_bytes, map, log, cache }
    }

    /// Where the blocks of a range are; may stop short.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn pieces(&self, range: BlockRange) -> Result<Vec<Piece>, ViewError> {
        self.map.resolve(range).map_err(index_failed)
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
                    // What stands behind the disk's end is zero, whatever was sent with its last block.
                    let on_disk = self.size_bytes.saturating_sub(chunk.start.byte_offset());
                    let behind = buffer.get_mut(usize::try_from(on_disk).unwrap_or(usize::MAX)..);
                    behind.unwrap_or_default().fill(0);
                    Some(*blake3::hash(&buffer).as_bytes())
                }
                Err(ViewError::Damaged { .. }) => None,
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
                with(piece)?;
                left = BlockRange::new(end, range.end().0 - end);
            }
        }
        Ok(())
    }

    /// Copies the bytes of a piece from `skip` bytes into it.
    fn copy(&self, piece: &Piece, skip: usize, target: &mut [u8]) -> Result<(), ViewError> {
        let PieceSource::Frame { sequence, plain_block } = piece.source else {
            target.fill(0);
            return Ok(());
        };
        let frame = self.cache.get(&self.log, sequence).map_err(|error| self.failed(piece, &error))?;
        let bytes =
            frame.blocks(piece.range, plain_block).and_then(|bytes| bytes.get(skip..skip + target.len()));
        let bytes = bytes.ok_or_else(|| self.damaged(piece, "its table does not agree with the index"))?;
        target.copy_from_slice(bytes);
        Ok(())
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
                source: std::io::Error::other(crate::store::error::describe(error)),
            },
        }
    }

    fn damaged(&self, piece: &Piece, place: &str) -> ViewError {
        let sequence = match piece.source {
            PieceSource::Frame { sequence, .. } | PieceSource::Zero(sequence) => sequence,
            PieceSource::Hole => Sequence(0),
        };
        tracing::error!(disk = %self.log.disk(), range = %piece.range, %sequence, place, "stored data is damaged");
        self.log.bad_frames().note([sequence]);
        ViewError::Damaged { range: piece.range, sequence, place: place.to_owned() }
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
            let hole = !matches!(piece.source, PieceSource::Frame { .. });
            match extents.last_mut().filter(|last| last.hole == hole) {
                Some(last) => last.range.count.0 += piece.range.count.0,
                None => extents.push(ViewExtent { range: piece.range, hole }),
            }
        }
        Ok(extents)
    }
}

fn index_failed(error: IndexError) -> ViewError {
    let place = match &error {
        IndexError::Damaged { path } | IndexError::Io { path, .. } => path.display().to_string(),
        _ => "index".to_owned(),
    };
    ViewError::Io { place, source: std::io::Error::other(crate::store::error::describe(&error)) }
}
