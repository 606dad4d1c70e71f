//! Units of the data path: blocks and ranges of blocks.
//!
//! Owns the arithmetic on block addresses; knows no format and no device.
//! Invariant: a [`BlockRange`] never wraps around the end of the address space.
//! Limit: [`BLOCKS_MAX`] blocks in one disk (64 TiB would be 2^34; the limit leaves room to 16 PiB).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in one block, the unit in which changes are tracked, sent and indexed.
pub const BLOCK_BYTES: usize = 4096;

/// The largest number of blocks a disk may have (2^42 blocks of 4 KiB are 16 PiB).
pub const BLOCKS_MAX: u64 = 1 << 42;

/// Position of a block on its disk, counted from zero in units of [`BLOCK_BYTES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockIndex(pub u64);

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockCount(pub u64);

/// A run of neighbouring blocks: `start .. start + count`. Empty when `count` is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks.
    pub count: BlockCount,
}

impl BlockIndex {
    /// The block that holds this byte.
    #[must_use]
    pub const fn containing(byte_offset: u64) -> Self {
        Self(byte_offset / BLOCK_BYTES as u64)
    }

    /// Offset of the block's first byte on the disk.
    #[must_use]
    pub const fn byte_offset(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

impl BlockCount {
    /// Blocks needed to hold this many bytes; a last partial block counts as one.
    #[must_use]
    pub const fn covering(bytes: u64) -> Self {
        Self(bytes.div_ceil(BLOCK_BYTES as u64))
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 * BLOCK_BYTES as u64
    }
}

impl BlockRange {
    /// The range of `count` blocks from `start`.
    #[must_use]
    pub const fn new(start: u64, count: u64) -> Self {
        Self { start: BlockIndex(start), count: BlockCount(count) }
    }

    /// The smallest range of blocks that covers `bytes` bytes from `byte_offset`.
    #[must_use]
    pub const fn covering(byte_offset: u64, bytes: u64) -> Self {
        let start = byte_offset / BLOCK_BYTES as u64;
        let end = byte_offset.saturating_add(bytes).div_ceil(BLOCK_BYTES as u64);
        Self::new(start, end - start)
    }

    /// First block after the range.
    #[must_use]
    pub const fn end(self) -> BlockIndex {
        BlockIndex(self.start.0.saturating_add(self.count.0))
    }

    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count.bytes()
    }

    /// Whether the range holds no block.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether `block` lies in the range.
    #[must_use]
    pub const fn contains(self, block: BlockIndex) -> bool {
        block.0 >= self.start.0 && block.0 < self.end().0
    }

    /// The range in parts of `blocks` each, the last of which may have fewer. Parts of none count as of one.
    pub fn pieces(self, blocks: u64) -> impl Iterator<Item = Self> {
        let (end, blocks) = (self.end().0, blocks.max(1));
        let step = usize::try_from(blocks).unwrap_or(usize::MAX);
        (self.start.0..end).step_by(step).map(move |start| Self::new(start, blocks.min(end - start)))
    }

    /// The blocks that both ranges hold, or `None` if they share none.
    #[must_use]
    pub fn intersection(self, other: Self) -> Option<Self> {
        let start = self.start.0.max(other.start.0);
        let end = self.end().0.min(other.end().0);
        (start < end).then(|| Self::new(start, end - start))
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}..{}", self.start.0, self.end().0)
    }
}

#[cfg(test)]
mod tests {
    use super::BlockRange;

    #[test]
    fn pieces_cover_the_range_once_in_order() {
        let pieces = |range: BlockRange, blocks| range.pieces(blocks).collect::<Vec<_>>();
        let [first, second] = [BlockRange::new(3, 4), BlockRange::new(7, 2)];
        assert_eq!(pieces(BlockRange::new(3, 6), 4), [first, second]);
        assert_eq!(pieces(BlockRange::new(3, 4), 4), [first]);
        assert_eq!(pieces(BlockRange::new(3, 0), 4), []);
        assert_eq!(pieces(second, 0), [BlockRange::new(7, 1), BlockRange::new(8, 1)]);
    }
}
