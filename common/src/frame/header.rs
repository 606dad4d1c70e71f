//! The fixed-layout header of a frame, byte by byte.
//!
//! Owns parsing and the checks that need nothing but the header. Knows neither table nor payload contents.
//! Invariant: a parsed header's lengths are within the limits of [`super`].

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use super::{FRAME_EXTENTS_MAX, FRAME_PLAIN_BYTES_MAX, FRAME_STORED_BYTES_MAX};
use crate::ids::{DiskId, Generation, Interval, Sequence};

/// Size of the header.
pub const FRAME_HEADER_BYTES: usize = 96;

/// Bytes of the header that the digest covers: all that stand before the digest itself.
pub const FRAME_DIGESTED_HEADER_BYTES: usize = 64;

/// First four bytes of every frame.
pub const FRAME_MAGIC: [u8; 4] = *b"HFRM";

/// Version of the layout below. History: 1, first.
pub const FRAME_VERSION: u16 = 1;

/// The header as it lies on the wire and on disk; all integers little endian.
///
/// ```text
/// offset size  field
///   0     4    magic "HFRM"
///   4     2    version, 1
///   6     1    kind: 1 data, 2 cut, 3 scan
///   7     1    compression of the stored bytes: 0 none, 1 zstd
///   8    16    disk (UUID bytes, most significant first)
///  24     4    generation
///  28     4    number of extents in the table
///  32     8    sequence: position in the disk's log, from 1
///  40     8    interval that the frame belongs to
///  48     4    plain bytes: size of the payload once decompressed
///  52     4    stored bytes: size of the payload as it lies here
///  56     8    zero
///  64    32    BLAKE3 of bytes 0..64, the table and the stored bytes
///  96     -    table (16 bytes per extent), then stored bytes
/// ```
///
/// A reader refuses an unknown version, kind or compression, lengths over the limits, and reserved bytes that are
/// not zero. A frame that ends early is torn; a frame whose digest does not match is damaged.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: U16,
    pub(super) kind: u8,
    pub(super) compression: u8,
    pub(super) disk: [u8; 16],
    pub(super) generation: U32,
    pub(super) extent_count: U32,
    pub(super) sequence: U64,
    pub(super) interval: U64,
    pub(super) plain_bytes: U32,
    pub(super) stored_bytes: U32,
    pub(super) reserved: [u8; 8],
    pub(super) digest: [u8; 32],
}

const _: () = assert!(size_of::<RawHeader>() == FRAME_HEADER_BYTES);

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// Changed blocks: a table of extents, and the bytes of those that are not zero.
    Data,
    /// The end of an interval: a [`super::CutRecord`]. With it on every disk of the machine, a point exists.
    Cut,
    /// How far the comparison of source and replica got: a [`super::ScanRecord`].
    Scan,
}

/// How the stored bytes were made from the plain bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// They are the plain bytes.
    None,
    /// One zstd frame.
    Zstd,
}

/// A header whose fields were checked; the digest is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame carries.
    pub kind: FrameKind,
    /// How the payload is stored.
    pub compression: Compression,
    /// The disk that the frame belongs to.
    pub disk: DiskId,
    /// The disk's line of history that the writer believes in.
    pub generation: Generation,
    /// Position in the disk's log.
    pub sequence: Sequence,
    /// Interval that the frame belongs to.
    pub interval: Interval,
    /// Number of extents in the table; zero for cut and scan frames.
    pub extent_count: u32,
    /// Payload size once decompressed, in bytes.
    pub plain_bytes: u32,
    /// Payload size as stored, in bytes.
    pub stored_bytes: u32,
    /// BLAKE3 over header (without this field), table and stored bytes.
    pub digest: [u8; 32],
}

/// Why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Fewer bytes than the frame says it has.
    #[error("frame is cut short: {have} of {need} bytes")]
    Torn {
        /// Bytes at hand.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The first four bytes are not those of a frame.
    #[error("not a frame: magic bytes are {0:02x?}")]
    Magic([u8; 4]),
    /// Written by a newer version.
    #[error("frame has version {0}; this program knows {FRAME_VERSION}")]
    Version(u16),
    /// A header field has a value that no writer produces.
    #[error("frame header field {field} has the invalid value {value}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// An extent of the table is empty, out of order, or beyond the address space.
    #[error("extent {index} of the frame's table is invalid")]
    Extent {
        /// Position in the table.
        index: usize,
    },
    /// The digest does not match: the bytes are damaged.
    #[error("frame is damaged: its digest does not match its bytes")]
    Digest,
    /// The digest matches, yet the payload does not decompress to what the header says.
    #[error("frame payload cannot be decompressed")]
    Payload,
}

impl FrameHeader {
    /// Reads a header from the first [`FRAME_HEADER_BYTES`] of `bytes`.
    ///
    /// # Errors
    /// [`FrameError::Torn`] if there are fewer; otherwise what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (raw, _) = RawHeader::read_from_prefix(bytes)
            .map_err(|_| FrameError::Torn { have: bytes.len(), need: FRAME_HEADER_BYTES })?;
        if raw.magic != FRAME_MAGIC {
            return Err(FrameError::Magic(raw.magic));
        }
        if raw.version.get() != FRAME_VERSION {
            return Err(FrameError::Version(raw.version.get()));
        }
        if raw.reserved != [0; 8] {
            return Err(invalid("reserved", u64::from_le_bytes(raw.reserved)));
        }
        let header = Self {
            kind: FrameKind::from_wire(raw.kind)?,
            compression: Compression::from_wire(raw.compression)?,
            disk: DiskId::from_bytes(raw.disk),
            generation: Generation(raw.generation.get()),
            sequence: Sequence(raw.sequence.get()),
            interval: Interval(raw.interval.get()),
            extent_count: raw.extent_count.get(),
            plain_bytes: raw.plain_bytes.get(),
            stored_bytes: raw.stored_bytes.get(),
            digest: raw.digest,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), FrameError> {
        let field = |field, value: u32| Err(invalid(field, u64::from(value)));
        if self.sequence.0 == 0 {
            return Err(invalid("sequence", 0));
        }
        if self.plain_bytes as usize > FRAME_PLAIN_BYTES_MAX {
            return field("plain bytes", self.plain_bytes);
        }
        if self.stored_bytes as usize > FRAME_STORED_BYTES_MAX {
            return field("stored bytes", self.stored_bytes);
        }
        if self.compression == Compression::None && self.stored_bytes != self.plain_bytes {
            return field("stored bytes", self.stored_bytes);
        }
        let extents_valid = match self.kind {
            FrameKind::Data => (1..=FRAME_EXTENTS_MAX).contains(&(self.extent_count as usize)),
            FrameKind::Cut | FrameKind::Scan => self.extent_count == 0,
        };
        if !extents_valid {
            return field("extent count", self.extent_count);
        }
        Ok(())
    }

    /// Size of the table in bytes.
    #[must_use]
    pub const fn table_bytes(&self) -> usize {
        self.extent_count as usize * super::extent::EXTENT_BYTES
    }

    /// Size of the whole frame in bytes: header, table and stored bytes.
    #[must_use]
    pub const fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.table_bytes() + self.stored_bytes as usize
    }

    pub(super) fn to_raw(self) -> RawHeader {
        RawHeader {
            magic: FRAME_MAGIC,
            version: U16::new(FRAME_VERSION),
            kind: self.kind.to_wire(),
            compression: self.compression.to_wire(),
            disk: self.disk.into_bytes(),
            generation: U32::new(self.generation.0),
            extent_count: U32::new(self.extent_count),
            sequence: U64::new(self.sequence.0),
            interval: U64::new(self.interval.0),
            plain_bytes: U32::new(self.plain_bytes),
            stored_bytes: U32::new(self.stored_bytes),
            reserved: [0; 8],
            digest: self.digest,
        }
    }
}

impl FrameKind {
    fn from_wire(value: u8) -> Result<Self, FrameError> {
        match value {
            1 => Ok(Self::Data),
            2 => Ok(Self::Cut),
            3 => Ok(Self::Scan),
            _ => Err(invalid("kind", u64::from(value))),
        }
    }

    const fn to_wire(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Cut => 2,
            Self::Scan => 3,
        }
    }
}

impl Compression {
    fn from_wire(value: u8) -> Result<Self, FrameError> {
        match value {
            0 => Ok(Self::None),
            1 => Ok(Self::Zstd),
            _ => Err(invalid("compression", u64::from(value))),
        }
    }

    const fn to_wire(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Zstd => 1,
        }
    }
}

pub(super) const fn invalid(field: &'static str, value: u64) -> FrameError {
    FrameError::Field { field, value }
}
