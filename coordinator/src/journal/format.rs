//! The bytes of a segment file: header, marks, footer.
//!
//! Owns the fixed layouts. Does not know files. Invariant: what parses here carried the right digest, except the
//! frames, which verify themselves. All integers are little endian.
//!
//! ```text
//! segment  = header  { group }  [ footer ]
//! group    = mark  { frame }                  one group commit: written together, then synced
//! footer   = footer mark  entries  heads  trailer
//! entries  = { sequence - first sequence: u32, offset of the frame: u32 }     ascending in both
//! heads    = { frame header (96 bytes), then the table of a data frame or the record of another }
//! ```
//!
//! A segment without footer is the one being written, or was when a crash came. A *torn tail* is anything that does not
//! parse behind the last offset that a mark calls durable: it was never acknowledged. The same in front of that
//! offset is *damage*: it stays where it is, and the frames behind it still count.
//! A reader refuses newer versions by number. Version history: 1, first.

use thiserror::Error;
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use holdfast_common::ids::{DiskId, Generation, Interval, Sequence};

/// Version of all layouts of this file.
pub const SEGMENT_VERSION: u16 = 1;

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 4] = *b"HSEG";
/// First bytes of a mark.
pub const MARK_MAGIC: [u8; 4] = *b"HMRK";
/// First bytes of the mark that begins a footer.
pub const FOOTER_MAGIC: [u8; 4] = *b"HFTR";
/// First bytes of a trailer.
pub const TRAILER_MAGIC: [u8; 4] = *b"HEND";

/// Size of the segment header.
pub const SEGMENT_HEADER_BYTES: usize = 96;
/// Size of a mark.
pub const MARK_BYTES: usize = 64;
/// Size of a footer's entry for one frame.
pub const ENTRY_BYTES: usize = 8;
/// Size of the trailer.
pub const TRAILER_BYTES: usize = 160;

/// The largest segment; offsets of frames are 32 bits wide.
pub const SEGMENT_BYTES_MAX: u64 = 1 << 31;

/// The segment header as it lies in the file.
///
/// ```text
/// offset size  field
///   0     4    magic "HSEG"
///   4     2    version, 1
///   6     2    zero
///   8    16    disk (UUID bytes, most significant first)
///  24     8    first sequence: no frame in this file has a lower one
///  32     8    base interval: that of the last frame before this file; 0 if there is none
///  40     4    base generation: that of the last frame before this file; 0 if there is none
///  44    20    zero
///  64    32    BLAKE3 of bytes 0..64
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    version: U16,
    zero: [u8; 2],
    disk: [u8; 16],
    first_sequence: U64,
    base_interval: U64,
    base_generation: U32,
    reserved: [u8; 20],
    digest: [u8; 32],
}

/// A mark as it lies in the file.
///
/// ```text
/// offset size  field
///   0     4    magic: "HMRK" in front of a group, "HFTR" in front of a footer
///   4     2    version, 1
///   6     2    zero
///   8     8    durable bytes: all bytes of the file in front of this offset were synced when the mark was written;
///              for a footer, the offset of this mark
///  16     8    durable sequence: the last frame of the disk that was durable then
///  24     8    zero
///  32    32    BLAKE3 of bytes 0..32 followed by the 16 bytes of the disk: a copy of another disk's segment inside a
///              payload is never taken for a part of this one
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMark {
    magic: [u8; 4],
    version: U16,
    zero: [u8; 2],
    durable_bytes: U64,
    durable_sequence: U64,
    reserved: [u8; 8],
    digest: [u8; 32],
}

/// The trailer: the last bytes of a sealed segment.
///
/// ```text
/// offset size  field
///   0     4    magic "HEND"
///   4     2    version, 1
///   6     2    zero
///   8     8    first sequence, as in the header
///  16     8    last sequence that this segment accounts for; first sequence - 1 if there is none
///  24     4    number of frames
///  28     4    zero
///  32     8    offset of the entries in the file
///  40     8    offset of the heads in the file
///  48     8    frame bytes: size of all frames together
///  56     8    zero
///  64    32    BLAKE3 of the entries
///  96    32    BLAKE3 of the heads
/// 128    32    BLAKE3 of bytes 0..128
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTrailer {
    magic: [u8; 4],
    version: U16,
    zero: [u8; 2],
    first_sequence: U64,
    last_sequence: U64,
    frame_count: U32,
    zero_count: [u8; 4],
    entries_offset: U64,
    heads_offset: U64,
    frame_bytes: U64,
    reserved: [u8; 8],
    entries_digest: [u8; 32],
    heads_digest: [u8; 32],
    digest: [u8; 32],
}

const _: () = assert!(size_of::<RawHeader>() == SEGMENT_HEADER_BYTES);
const _: () = assert!(size_of::<RawMark>() == MARK_BYTES);
const _: () = assert!(size_of::<RawTrailer>() == TRAILER_BYTES);

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The disk whose log this is a part of.
    pub disk: DiskId,
    /// No frame of the segment has a lower sequence.
    pub first_sequence: Sequence,
    /// Interval of the last frame before the segment.
    pub base_interval: Interval,
    /// Generation of the last frame before the segment.
    pub base_generation: Generation,
}

/// What was durable when a group was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// All bytes of the file in front of this offset.
    pub durable_bytes: u64,
    /// All frames of the disk up to this one.
    pub durable_sequence: Sequence,
}

/// What a mark stands in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkPlace {
    /// Frames.
    Group,
    /// The footer: a walk stops here.
    Footer,
}

/// Where a footer's parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// As in the header.
    pub first_sequence: Sequence,
    /// Last sequence that the segment accounts for.
    pub last_sequence: Sequence,
    /// Number of frames.
    pub frame_count: u32,
    /// Offset of the entries in the file.
    pub entries_offset: u64,
    /// Offset of the heads in the file.
    pub heads_offset: u64,
    /// Size of all frames together.
    pub frame_bytes: u64,
    /// BLAKE3 of the entries.
    pub entries_digest: [u8; 32],
    /// BLAKE3 of the heads.
    pub heads_digest: [u8; 32],
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Written by a newer version of the program; nothing is wrong with it.
    #[error("{what} has version {version}; this program knows {SEGMENT_VERSION}: use the newer program")]
    Newer {
        /// The part.
        what: &'static str,
        /// Its version.
        version: u16,
    },
    /// The bytes are damaged, cut short, or something else.
    #[error("{what} is damaged")]
    Damaged {
        /// The part.
        what: &'static str,
    },
}

/// Checks what all parts have in common: magic, version, and the digest over what stands before it.
fn check<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    what: &'static str,
    bytes: &[u8],
    magic: [u8; 4],
    digested: Option<usize>,
) -> Result<T, FormatError> {
    let damaged = FormatError::Damaged { what };
    let (raw, _) = T::read_from_prefix(bytes).map_err(|_| damaged.clone())?;
    if bytes.get(..4) != Some(magic.as_slice()) {
        return Err(damaged);
    }
    let version = bytes.get(4..6).and_then(|pair| pair.try_into().ok()).map_or(0, u16::from_le_bytes);
    if version > SEGMENT_VERSION {
        return Err(FormatError::Newer { what, version });
    }
    if version == 0 || bytes.get(6..8) != Some(&[0, 0]) {
        return Err(damaged);
    }
    if let Some(length) = digested {
        let covered = bytes.get(..length).unwrap_or_default();
        let found = bytes.get(length..length + 32).unwrap_or_default();
        if blake3::hash(covered).as_bytes() != found {
            return Err(damaged);
        }
    }
    Ok(raw)
}

/// The digest over what stands before it.
fn seal(bytes: &[u8], digested: usize) -> [u8; 32] {
    *blake3::hash(bytes.get(..digested).unwrap_or_default()).as_bytes()
}

impl SegmentHeader {
    /// Reads the first bytes of a file.
    ///
    /// # Errors
    /// They are damaged or newer.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw: RawHeader = check("segment header", bytes, SEGMENT_MAGIC, Some(64))?;
        Ok(Self {
            disk: DiskId::from_bytes(raw.disk),
            first_sequence: Sequence(raw.first_sequence.get()),
            base_interval: Interval(raw.base_interval.get()),
            base_generation: Generation(raw.base_generation.get()),
        })
    }

    /// The bytes of the header.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut raw = RawHeader {
            magic: SEGMENT_MAGIC,
            version: U16::new(SEGMENT_VERSION),
            zero: [0; 2],
            disk: self.disk.into_bytes(),
            first_sequence: U64::new(self.first_sequence.0),
            base_interval: U64::new(self.base_interval.0),
            base_generation: U32::new(self.base_generation.0),
            reserved: [0; 20],
            digest: [0; 32],
        };
        raw.digest = seal(raw.as_bytes(), 64);
        zerocopy::transmute!(raw)
    }
}

impl Mark {
    /// Reads a mark of a segment of `disk` that stands in front of a group or of the footer.
    ///
    /// # Errors
    /// The bytes are no mark, one of another disk, or a newer one.
    pub fn parse(bytes: &[u8], disk: DiskId) -> Result<(Self, MarkPlace), FormatError> {
        let place = match bytes.get(..4) {
            Some(magic) if magic == FOOTER_MAGIC => MarkPlace::Footer,
            _ => MarkPlace::Group,
        };
        let raw: RawMark = check("mark", bytes, place.magic(), None)?;
        if mark_digest(&raw, disk) != raw.digest {
            return Err(FormatError::Damaged { what: "mark" });
        }
        let mark = Self {
            durable_bytes: raw.durable_bytes.get(),
            durable_sequence: Sequence(raw.durable_sequence.get()),
        };
        Ok((mark, place))
    }

    /// The bytes of the mark.
    #[must_use]
    pub fn to_bytes(self, place: MarkPlace, disk: DiskId) -> [u8; MARK_BYTES] {
        let mut raw = RawMark {
            magic: place.magic(),
            version: U16::new(SEGMENT_VERSION),
            zero: [0; 2],
            durable_bytes: U64::new(self.durable_bytes),
            durable_sequence: U64::new(self.durable_sequence.0),
            reserved: [0; 8],
            digest: [0; 32],
        };
        raw.digest = mark_digest(&raw, disk);
        zerocopy::transmute!(raw)
    }
}

fn mark_digest(raw: &RawMark, disk: DiskId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(raw.as_bytes().get(..32).unwrap_or_default()).update(&disk.into_bytes());
    *hasher.finalize().as_bytes()
}

impl MarkPlace {
    const fn magic(self) -> [u8; 4] {
        match self {
            Self::Group => MARK_MAGIC,
            Self::Footer => FOOTER_MAGIC,
        }
    }
}

impl Trailer {
    /// Reads the last bytes of a file.
    ///
    /// # Errors
    /// There is no trailer (the segment is not sealed), it is damaged, or newer.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let raw: RawTrailer = check("segment footer", bytes, TRAILER_MAGIC, Some(128))?;
        Ok(Self {
            first_sequence: Sequence(raw.first_sequence.get()),
            last_sequence: Sequence(raw.last_sequence.get()),
            frame_count: raw.frame_count.get(),
            entries_offset: raw.entries_offset.get(),
            heads_offset: raw.heads_offset.get(),
            frame_bytes: raw.frame_bytes.get(),
            entries_digest: raw.entries_digest,
            heads_digest: raw.heads_digest,
        })
    }

    /// The bytes of the trailer.
    #[must_use]
    pub fn to_bytes(self) -> [u8; TRAILER_BYTES] {
        let mut raw = RawTrailer {
            magic: TRAILER_MAGIC,
            version: U16::new(SEGMENT_VERSION),
            zero: [0; 2],
            first_sequence: U64::new(self.first_sequence.0),
            last_sequence: U64::new(self.last_sequence.0),
            frame_count: U32::new(self.frame_count),
            zero_count: [0; 4],
            entries_offset: U64::new(self.entries_offset),
            heads_offset: U64::new(self.heads_offset),
            frame_bytes: U64::new(self.frame_bytes),
            reserved: [0; 8],
            entries_digest: self.entries_digest,
            heads_digest: self.heads_digest,
            digest: [0; 32],
        };
        raw.digest = seal(raw.as_bytes(), 128);
        zerocopy::transmute!(raw)
    }
}
