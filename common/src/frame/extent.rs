//! The table of extents in a data frame.
//!
//! Owns the layout of one table entry. Invariant: the extents of a frame are not empty, ascend, and do not overlap.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U32, U64},
};

use super::header::FrameError;
use crate::units::{BLOCKS_MAX, BlockRange};

/// Size of one table entry.
pub const EXTENT_BYTES: usize = 16;

/// One table entry as it lies in the frame; integers little endian.
///
/// ```text
/// offset size  field
///   0     8    first block
///   8     4    number of blocks
///  12     1    kind: 0 data, 1 zero
///  13     3    zero
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawExtent {
    start: U64,
    count: U32,
    kind: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<RawExtent>() == EXTENT_BYTES);

/// What an extent's blocks hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes, in the frame's payload, in the order of the table.
    Data,
    /// Zeroes (written or discarded); nothing in the payload.
    Zero,
}

/// Some neighbouring blocks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The blocks; at most `u32::MAX` of them.
    pub range: BlockRange,
    /// What they hold.
    pub kind: ExtentKind,
}

impl Extent {
    /// An extent of blocks whose bytes are in the payload.
    #[must_use]
    pub const fn data(range: BlockRange) -> Self {
        Self { range, kind: ExtentKind::Data }
    }

    /// An extent of zeroes.
    #[must_use]
    pub const fn zero(range: BlockRange) -> Self {
        Self { range, kind: ExtentKind::Zero }
    }

    /// Bytes of this extent in the payload.
    #[must_use]
    pub const fn plain_bytes(&self) -> u64 {
        match self.kind {
            ExtentKind::Data => self.range.bytes(),
            ExtentKind::Zero => 0,
        }
    }

    /// The entry as it lies in a frame, or `None` if the range is empty or has more than `u32::MAX` blocks.
    pub(super) fn to_raw(self) -> Option<RawExtent> {
        let count = u32::try_from(self.range.count.0).ok().filter(|count| *count > 0)?;
        Some(RawExtent {
            start: U64::new(self.range.start.0),
            count: U32::new(count),
            kind: u8::from(self.kind == ExtentKind::Zero),
            reserved: [0; 3],
        })
    }

    fn from_raw(raw: &RawExtent) -> Option<Self> {
        let range = BlockRange::new(raw.start.get(), u64::from(raw.count.get()));
        let kind = match raw.kind {
            0 => ExtentKind::Data,
            1 => ExtentKind::Zero,
            _ => return None,
        };
        let valid = raw.start.get() < BLOCKS_MAX
            && !range.is_empty()
            && range.end().0 <= BLOCKS_MAX
            && raw.reserved == [0; 3];
        valid.then_some(Self { range, kind })
    }
}

/// Reads a whole table and checks its order.
///
/// # Errors
/// [`FrameError::Extent`] names the first entry that is invalid, [`FrameError::Torn`] a length that is no multiple
/// of an entry.
pub fn parse_table(table: &[u8]) -> Result<Vec<Extent>, FrameError> {
    let mut extents = Vec::with_capacity(table.len() / EXTENT_BYTES);
    for extent in extents_of(table)? {
        extents.push(extent?);
    }
    Ok(extents)
}

/// The extents of a table one by one, without memory for them. The first that is invalid is an error; what comes behind it then
/// means nothing.
///
/// # Errors
/// Those of [`parse_table`].
pub fn extents_of(table: &[u8]) -> Result<impl Iterator<Item = Result<Extent, FrameError>> + '_, FrameError> {
    let raw = <[RawExtent]>::ref_from_bytes(table).map_err(|_| FrameError::Torn {
        have: table.len(),
        need: table.len().next_multiple_of(EXTENT_BYTES),
    })?;
    let mut end = 0;
    Ok(raw.iter().enumerate().map(move |(index, raw)| {
        let extent = Extent::from_raw(raw).filter(|extent| extent.range.start.0 >= end);
        let extent = extent.ok_or(FrameError::Extent { index })?;
        end = extent.range.end().0;
        Ok(extent)
    }))
}
