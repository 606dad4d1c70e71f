//! The bytes of a run file.
//!
//! Owns the layouts and the files' names. Does not know mapping or merging. All integers are little endian.
//!
//! ```text
//! run     = header  pages  firsts  records
//! pages   = see `page`; every page but the last has 512 entries
//! firsts  = for each page, its first block (u64) and where it ends, counted from the end of the header (u64)
//! records = for each record a tag (u8), a length (u32) and that many bytes of bincode (see `records`)
//! ```
//!
//! With extents of one block all over a disk that is about 5.5 bytes per extent, whatever the disk's size: where there are few
//! extents their starts take more bits, and their frames' numbers fewer.
//!
//! Runs are derived: a reader that finds a newer version, another disk or damage drops the run, and it is made again from finer
//! runs or from the journal. History:
//! - 2: pages are packed.
//! - 1: the first. Is read, and no longer written:
//!
//! ```text
//! page    = count: u16, zero: 6 bytes, check: 8 bytes, then count packed entries of 16 bytes (see `entry`)
//!           every page but the last has 255 entries; check is the start of the BLAKE3 of
//!           page number (u64), the run's `to` (u64) and the packed entries
//! firsts  = for each page, its first block: u64
//! ```

use std::path::{Path, PathBuf};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use holdfast_common::ids::{DiskId, Sequence};

use super::{entry::ENTRY_BYTES, page};

/// First bytes of a run.
pub const RUN_MAGIC: [u8; 4] = *b"HRUN";
/// Version of the layouts of this file and of [`super::records`].
pub const RUN_VERSION: u16 = 2;
/// The first version, of fixed pages.
pub const RUN_VERSION_FIXED: u16 = 1;
/// Size of the header.
pub const RUN_HEADER_BYTES: usize = 192;
/// Size of what the firsts say of a page.
pub const FIRST_BYTES: usize = 16;
/// Size of what stands in front of a fixed page's entries.
pub const FIXED_HEAD_BYTES: usize = 16;
/// More entries than any disk has blocks; below this, no size computed from a header overflows.
const ENTRIES_MAX: u64 = 1 << 48;
/// The same for pages: 16 bytes for each of them.
const PAGES_BYTES_MAX: u64 = 1 << 53;
/// Entries in every fixed page but the last.
pub const FIXED_ENTRIES: usize = 255;
/// Size of every fixed page but the last.
pub const FIXED_BYTES: usize = FIXED_HEAD_BYTES + FIXED_ENTRIES * ENTRY_BYTES;

const _: () = assert!(FIXED_BYTES == 4096);

/// The header as it lies in the file.
///
/// ```text
/// offset size  field
///   0     4    magic "HRUN"
///   4     2    version, 2
///   6     1    level: how often it was merged, at most 63; 0 for a tile
///   7     1    1 if this is a part of an open interval, else 0
///   8    16    disk (UUID bytes, most significant first)
///  24     8    from: the run covers the frames after this sequence
///  32     8    to: up to and including this one
///  40     8    last cut: number of the cut that ends the run; for a part, of the last cut before it
///  48     8    number of entries
///  56     4    size of the records in bytes
///  60     4    zero
///  64    32    BLAKE3 of the firsts
///  96    32    BLAKE3 of the records
/// 128     8    size of all pages in bytes (zero in version 1)
/// 136    24    zero
/// 160    32    BLAKE3 of bytes 0..160
/// ```
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRunHeader {
    magic: [u8; 4],
    version: U16,
    level: u8,
    part: u8,
    disk: [u8; 16],
    from: U64,
    to: U64,
    last_cut: U64,
    entry_count: U64,
    record_bytes: U32,
    zero: [u8; 4],
    firsts_digest: [u8; 32],
    records_digest: [u8; 32],
    pages_bytes: U64,
    reserved: [u8; 24],
    digest: [u8; 32],
}

const _: () = assert!(size_of::<RawRunHeader>() == RUN_HEADER_BYTES);

/// What a run covers; also its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunName {
    /// Whether it is a part of an open interval.
    pub part: bool,
    /// How often it was merged, at most 63; 0 for a tile. (Runs of the first ladder cover 2^level cuts.)
    pub level: u8,
    /// Number of the cut that ends it; for a part, of the last cut before it.
    pub last_cut: u64,
    /// Covers the frames after this one.
    pub from: Sequence,
    /// Up to and including this one.
    pub to: Sequence,
}

/// What a run says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHeader {
    /// [`RUN_VERSION`] or [`RUN_VERSION_FIXED`].
    pub version: u16,
    /// The disk.
    pub disk: DiskId,
    /// What it covers.
    pub name: RunName,
    /// Number of entries.
    pub entry_count: u64,
    /// Size of all pages.
    pub pages_bytes: u64,
    /// Size of the records.
    pub record_bytes: u32,
    /// BLAKE3 of the firsts.
    pub firsts_digest: [u8; 32],
    /// BLAKE3 of the records.
    pub records_digest: [u8; 32],
}

impl RunName {
    /// The file's path in the index's folder.
    #[must_use]
    pub fn path(&self, folder: &Path) -> PathBuf {
        let kind = if self.part { "part" } else { "run" };
        let Self { level, last_cut, from, to, .. } = self;
        folder.join(format!("{kind}-{last_cut:012}-{level:02}-{:016x}-{:016x}", from.0, to.0))
    }

    /// From a file's name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut fields = name.split('-');
        let part = match fields.next()? {
            "part" => true,
            "run" => false,
            _ => return None,
        };
        let last_cut = fields.next()?.parse().ok()?;
        let level = fields.next()?.parse().ok().filter(|level| *level < 64)?;
        let from = Sequence(u64::from_str_radix(fields.next()?, 16).ok()?);
        let to = Sequence(u64::from_str_radix(fields.next()?, 16).ok()?);
        fields.next().is_none().then_some(Self { part, level, last_cut, from, to })
    }
}

impl RunHeader {
    /// Reads a header; `None` if the bytes are none of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = RawRunHeader::read_from_prefix(bytes).ok()?;
        let digest = *blake3::hash(raw.as_bytes().get(..160)?).as_bytes();
        let valid = raw.magic == RUN_MAGIC
            && matches!(raw.version.get(), RUN_VERSION | RUN_VERSION_FIXED)
            && raw.part <= 1
            && raw.level < 64
            && raw.entry_count.get() < ENTRIES_MAX
            && raw.pages_bytes.get() < PAGES_BYTES_MAX
            && digest == raw.digest;
        valid.then(|| Self {
            version: raw.version.get(),
            disk: DiskId::from_bytes(raw.disk),
            name: RunName {
                part: raw.part == 1,
                level: raw.level,
                last_cut: raw.last_cut.get(),
                from: Sequence(raw.from.get()),
                to: Sequence(raw.to.get()),
            },
            entry_count: raw.entry_count.get(),
            pages_bytes: if raw.version.get() == RUN_VERSION_FIXED {
                fixed_pages_bytes(raw.entry_count.get())
            } else {
                raw.pages_bytes.get()
            },
            record_bytes: raw.record_bytes.get(),
            firsts_digest: raw.firsts_digest,
            records_digest: raw.records_digest,
        })
    }

    /// The bytes of the header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RUN_HEADER_BYTES] {
        let mut raw = RawRunHeader {
            magic: RUN_MAGIC,
            version: U16::new(self.version),
            level: self.name.level,
            part: u8::from(self.name.part),
            disk: self.disk.into_bytes(),
            from: U64::new(self.name.from.0),
            to: U64::new(self.name.to.0),
            last_cut: U64::new(self.name.last_cut),
            entry_count: U64::new(self.entry_count),
            record_bytes: U32::new(self.record_bytes),
            zero: [0; 4],
            firsts_digest: self.firsts_digest,
            records_digest: self.records_digest,
            pages_bytes: U64::new(if self.version == RUN_VERSION_FIXED { 0 } else { self.pages_bytes }),
            reserved: [0; 24],
            digest: [0; 32],
        };
        raw.digest = *blake3::hash(raw.as_bytes().get(..160).unwrap_or_default()).as_bytes();
        zerocopy::transmute!(raw)
    }

    /// Entries in every page but the last.
    #[must_use]
    pub const fn page_entries(&self) -> usize {
        if self.version == RUN_VERSION_FIXED { FIXED_ENTRIES } else { page::PAGE_ENTRIES }
    }

    /// Number of pages.
    #[must_use]
    pub const fn page_count(&self) -> u64 {
        self.entry_count.div_ceil(self.page_entries() as u64)
    }

    /// Size of the firsts.
    #[must_use]
    pub const fn firsts_bytes(&self) -> u64 {
        let each = if self.version == RUN_VERSION_FIXED { 8 } else { FIRST_BYTES as u64 };
        self.page_count() * each
    }
}

/// Size of all fixed pages.
const fn fixed_pages_bytes(entries: u64) -> u64 {
    entries.div_ceil(FIXED_ENTRIES as u64) * FIXED_HEAD_BYTES as u64 + entries * ENTRY_BYTES as u64
}

/// What the check of a fixed page covers in front of the entries. It has the size of a page's head, and stands in its place while
/// a page is checked, so that the hash runs over one piece of memory.
#[must_use]
pub fn fixed_seed(number: u64, to: Sequence) -> [u8; FIXED_HEAD_BYTES] {
    (u128::from(to.0) << 64 | u128::from(number)).to_le_bytes()
}

/// The check of a fixed page: of its seed and entries.
#[must_use]
pub fn fixed_check(seeded: &[u8]) -> [u8; 8] {
    blake3::hash(seeded).as_bytes().first_chunk().copied().unwrap_or_default()
}
