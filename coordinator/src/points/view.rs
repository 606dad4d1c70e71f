//! A read-only view of a disk at one recovery point: the seam between points and whoever serves or writes them out.
//!
//! Owns the contract only. Invariant: bytes come out only of frames whose digest was verified on the way; damage is an
//! error for exactly the damaged range, never other data.
//!
//! A view can be read in two ways: by offset ([`BlockView::read`], for devices), and bundle by bundle
//! ([`BlockView::stored`], [`BlockView::read_bundle`], for copying much of it), where a bundle is what is stored, verified
//! and decompressed as one. Who copies by bundle decompresses each only once, however its blocks are scattered.

use std::{ops::Range, sync::Arc};

use bytes::BytesMut;
use holdfast_common::{
    frame::{FRAME_PLAIN_BYTES_MAX, PlainReader},
    ids::{PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use thiserror::Error;

/// What some neighbouring blocks of a view hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewExtent {
    /// The blocks.
    pub range: BlockRange,
    /// Whether they read as zeroes without any stored bytes (a hole).
    pub hole: bool,
}

/// Some neighbouring blocks of a view, and where their bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredExtent {
    /// The blocks.
    pub range: BlockRange,
    /// Where their bytes are; `None` if they read as zeroes without any.
    pub place: Option<BundlePlace>,
}

/// A place in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundlePlace {
    /// The bundle; the number means something to its view only.
    pub bundle: u64,
    /// Where the first block is in the bundle's plain bytes, in blocks.
    pub at_block: u32,
}

/// Blocks that are wanted of one bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundlePart {
    /// The blocks.
    pub range: BlockRange,
    /// Where the first one is in the bundle's plain bytes, in blocks.
    pub at_block: u32,
}

/// Memory for reading bundles, kept from one to the next. One per thread.
#[derive(Debug, Default)]
pub struct BundleReader {
    /// For stored bytes.
    pub stored: BytesMut,
    /// The decompressor.
    pub plain: PlainReader,
}

/// The most plain bytes of a bundle.
pub const BUNDLE_BYTES_MAX: usize = FRAME_PLAIN_BYTES_MAX;

/// Where a view stands in its disk's history: what is written down beside a copy of it, to ask later what has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryPlace {
    /// The point.
    pub point: PointId,
    /// Its cut in the disk's log.
    pub cut: Sequence,
}

/// Which blocks differ between two points of a disk. All methods block.
pub trait Changes: Send + Sync + std::fmt::Debug {
    /// The blocks of `range` that were written between the two points, ascending, and how far that answer reaches: to
    /// the end of `range`, or short of it, but on by at least a block.
    ///
    /// # Errors
    /// The index cannot be read.
    fn changed(&self, range: BlockRange) -> Result<(Vec<BlockRange>, u64), ViewError>;
}

/// A disk as it was at one point. All methods block; callers run them on a pool.
pub trait BlockView: Send + Sync + std::fmt::Debug {
    /// Size of the disk in bytes; need not be a multiple of the block size.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    /// The range lies beyond the end, or some of it is damaged or cannot be read. `buffer` is then undefined.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError>;

    /// Which parts of `range` hold data and which are holes: ascending, without gaps, covering the range. May stop early
    /// after a number of extents of its choice, but gives at least one.
    ///
    /// # Errors
    /// The index cannot be read.
    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError>;

    /// Brings these bytes into the view's cache, if it has one. What cannot be read shows when it is read.
    fn prefetch(&self, bytes: Range<u64>) {
        let _ = bytes;
    }

    /// Like [`Self::extents`], and says which bundle holds the data. Views that know of none get bundles that are
    /// stretches of [`BUNDLE_BYTES_MAX`] bytes of the disk.
    ///
    /// # Errors
    /// The index cannot be read.
    fn stored(&self, range: BlockRange) -> Result<Vec<StoredExtent>, ViewError> {
        let mut stored = Vec::new();
        for extent in self.extents(range)? {
            let (mut at, end) = (extent.range.start.0, extent.range.end().0);
            while at < end {
                let next = if extent.hole { end } else { end.min((at / BUNDLE_BLOCKS + 1) * BUNDLE_BLOCKS) };
                let at_block = u32::try_from(at % BUNDLE_BLOCKS).unwrap_or(0);
                let place = BundlePlace { bundle: at / BUNDLE_BLOCKS, at_block };
                let range = BlockRange::new(at, next - at);
                stored.push(StoredExtent { range, place: (!extent.hole).then_some(place) });
                at = next;
            }
        }
        Ok(stored)
    }

    /// Puts the plain bytes of a bundle into the front of `output`, which has room for [`BUNDLE_BYTES_MAX`], and says
    /// how many there are. Only the bytes of `parts` are meant: ascending, at the places that [`Self::stored`] gave,
    /// each no longer than its extent. What lies beyond the disk's end is undefined.
    ///
    /// # Errors
    /// The bundle is damaged (the range of the first part is named), or cannot be read.
    fn read_bundle(
        &self,
        bundle: u64,
        parts: &[BundlePart],
        reader: &mut BundleReader,
        output: &mut [u8],
    ) -> Result<usize, ViewError> {
        let (_, _) = (bundle, reader);
        let mut filled = 0;
        for part in parts {
            let offset = part.range.start.byte_offset();
            let bytes = part.range.bytes().min(self.size_bytes().saturating_sub(offset));
            let start = part.at_block as usize * BLOCK_BYTES;
            let end = start + usize::try_from(bytes).unwrap_or(usize::MAX);
            let target = output.get_mut(start..end).ok_or(ViewError::BeyondEnd { offset, bytes })?;
            self.read(offset, target)?;
            filled = end.next_multiple_of(BLOCK_BYTES);
        }
        Ok(filled)
    }

    /// Where this view stands in its disk's history; `None` if it has none.
    fn history_place(&self) -> Option<HistoryPlace> {
        None
    }

    /// What differs between this view and another point of the same disk, from the index alone. `None` if the history
    /// does not hold that point (any more).
    ///
    /// # Errors
    /// The index cannot be read.
    fn changes_from(&self, other: HistoryPlace) -> Result<Option<Arc<dyn Changes>>, ViewError> {
        let _ = other;
        Ok(None)
    }
}

/// Blocks of a bundle of views that know of none.
const BUNDLE_BLOCKS: u64 = (BUNDLE_BYTES_MAX / BLOCK_BYTES) as u64;

/// Why a view cannot give bytes.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The range is not on the disk.
    #[error("range {offset}+{bytes} is beyond the end of the disk")]
    BeyondEnd {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        bytes: u64,
    },
    /// Stored bytes are damaged: their digest does not match.
    #[error("stored data for {range} is damaged (frame {sequence} in {place})")]
    Damaged {
        /// Blocks that cannot be served.
        range: BlockRange,
        /// The frame that is damaged.
        sequence: Sequence,
        /// Segment file and offset.
        place: String,
    },
    /// Stored bytes are whole, but the source is known to have had others.
    #[error("{range} is known to differ from what the source had (found at the cut of frame {cut})")]
    Differs {
        /// Blocks that cannot be served.
        range: BlockRange,
        /// The cut at which it was found.
        cut: Sequence,
    },
    /// The store cannot be read.
    #[error("cannot read {place}")]
    Io {
        /// Segment or index file.
        place: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
