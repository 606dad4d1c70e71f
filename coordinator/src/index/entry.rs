//! One extent of the index: blocks, and the frame that holds them.
//!
//! Owns the packed layout. Does not know files or frames' contents. Invariant: packing loses nothing; what does not fit is
//! refused or split before.
//!
//! ```text
//! 16 bytes, two little-endian words; words of entries without overlap sort by start
//! word 0   bits 63..22  first block (42 bits)       bits 21..0  number of blocks - 1
//! word 1   bits 63..16  sequence of the frame        bits 15..1  block offset in the frame's plain bytes
//!          bit 0        1: zeroes (the offset is 0 then)
//! ```

use holdfast_common::{
    frame::{Extent, ExtentKind},
    ids::Sequence,
    units::{BLOCKS_MAX, BlockRange},
};

/// Size of a packed entry.
pub const ENTRY_BYTES: usize = 16;

/// The most blocks in one entry (16 GiB); longer extents of zeroes take several.
pub const ENTRY_BLOCKS_MAX: u64 = 1 << 22;

/// The highest sequence that fits.
pub const SEQUENCE_MAX: u64 = (1 << 48) - 1;

const _: () = assert!(BLOCKS_MAX <= 1 << 42);
const _: () =
    assert!(holdfast_common::frame::FRAME_PLAIN_BYTES_MAX / holdfast_common::units::BLOCK_BYTES < 1 << 15);

/// Some blocks and where their content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// First block.
    pub start: u64,
    /// Number of blocks, 1 to [`ENTRY_BLOCKS_MAX`].
    pub count: u64,
    /// The frame that wrote them.
    pub sequence: Sequence,
    /// Block offset in the frame's plain bytes; `None` for zeroes.
    pub plain: Option<u32>,
}

impl IndexEntry {
    /// First block behind.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start + self.count
    }

    /// The blocks.
    #[must_use]
    pub const fn range(&self) -> BlockRange {
        BlockRange::new(self.start, self.count)
    }

    /// The part from `start` to `end`, which must lie inside.
    #[must_use]
    pub fn part(&self, start: u64, end: u64) -> Self {
        let skip = start - self.start;
        let plain = self.plain.map(|plain| plain.saturating_add(u32::try_from(skip).unwrap_or(u32::MAX)));
        Self { start, count: end - start, sequence: self.sequence, plain }
    }

    /// This entry and the next as one, if they are neighbours in every respect.
    #[must_use]
    pub fn joined(&self, next: &Self) -> Option<Self> {
        let follows = self.end() == next.start
            && self.sequence == next.sequence
            && self.count + next.count <= ENTRY_BLOCKS_MAX
            && match (self.plain, next.plain) {
                (None, None) => true,
                (Some(first), Some(second)) => u64::from(first) + self.count == u64::from(second),
                _ => false,
            };
        follows.then(|| Self { count: self.count + next.count, ..*self })
    }

    /// The packed bytes.
    #[must_use]
    pub fn pack(&self) -> [u8; ENTRY_BYTES] {
        let Packed { blocks, source } = Packed::of(self);
        let mut bytes = [0; ENTRY_BYTES];
        let (low, high) = bytes.split_at_mut(8);
        low.copy_from_slice(&blocks.to_le_bytes());
        high.copy_from_slice(&source.to_le_bytes());
        bytes
    }

    /// Reads packed bytes.
    #[must_use]
    pub fn unpack(bytes: [u8; ENTRY_BYTES]) -> Self {
        let words = u128::from_le_bytes(bytes);
        let blocks = u64::try_from(words & u128::from(u64::MAX)).unwrap_or(0);
        let source = u64::try_from(words >> 64).unwrap_or(0);
        Packed { blocks, source }.unpack()
    }
}

/// An entry in memory: the two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    blocks: u64,
    source: u64,
}

const _: () = assert!(size_of::<Packed>() == ENTRY_BYTES);

impl Packed {
    /// Packs an entry.
    #[must_use]
    pub fn of(entry: &IndexEntry) -> Self {
        let place = entry.plain.map_or(1, |plain| u64::from(plain & 0x7fff) << 1);
        Self {
            blocks: entry.start << 22 | (entry.count - 1) & (ENTRY_BLOCKS_MAX - 1),
            source: entry.sequence.0 << 16 | place,
        }
    }

    /// The entry.
    #[must_use]
    pub fn unpack(&self) -> IndexEntry {
        let plain = (self.source & 1 == 0).then(|| u32::try_from(self.source >> 1 & 0x7fff).unwrap_or(0));
        IndexEntry { start: self.start(), count: self.end() - self.start(), sequence: self.sequence(), plain }
    }

    /// The frame.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        Sequence(self.source >> 16)
    }

    /// First block.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.blocks >> 22
    }

    /// First block behind.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.start() + (self.blocks & (ENTRY_BLOCKS_MAX - 1)) + 1
    }
}

/// First block of an entry that is still packed.
#[must_use]
pub fn start_of(bytes: &[u8; ENTRY_BYTES]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |word| u64::from_le_bytes(*word) >> 22)
}

/// Makes entries of a frame's extents.
#[derive(Debug)]
pub struct Entries {
    sequence: Sequence,
    /// Blocks of the extents so far that have a place in the frame's plain bytes.
    plain_blocks: u64,
}

impl Entries {
    /// Of the frame of this sequence, from its first extent on.
    #[must_use]
    pub const fn of_frame(sequence: Sequence) -> Self {
        Self { sequence, plain_blocks: 0 }
    }

    /// Those of the next extent: one, unless it is longer than an entry can say.
    pub fn of(&mut self, extent: Extent) -> impl Iterator<Item = IndexEntry> + use<> {
        let (sequence, first) = (self.sequence, self.plain_blocks);
        let (start, count) = (extent.range.start.0, extent.range.count.0);
        let data = extent.kind == ExtentKind::Data;
        if data {
            self.plain_blocks += count;
        }
        let pieces = count.div_ceil(ENTRY_BLOCKS_MAX);
        (0..pieces).map(move |piece| {
            let skip = piece * ENTRY_BLOCKS_MAX;
            IndexEntry {
                start: start + skip,
                count: (count - skip).min(ENTRY_BLOCKS_MAX),
                sequence,
                plain: data.then(|| u32::try_from(first + skip).unwrap_or(u32::MAX)),
            }
        })
    }
}
