//! A read-only view of a disk at one recovery point: the seam between points and whoever serves or writes them out.
//!
//! Owns the contract only. Invariant: bytes come out only of frames whose digest was verified on the way; damage is an
//! error for exactly the damaged range, never other data.

use holdfast_common::{ids::Sequence, units::BlockRange};
use thiserror::Error;

/// What some neighbouring blocks of a view hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewExtent {
    /// The blocks.
    pub range: BlockRange,
    /// Whether they read as zeroes without any stored bytes (a hole).
    pub hole: bool,
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
}

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
