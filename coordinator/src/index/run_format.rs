//! The bytes of a run file.
//!
//! Owns the layouts and the files' names. Does not know mapping or merging. All integers are little endian.
//!
//! ```text
//! run     = header  pages  firsts  records
//! page    = count: u16, zero: 6 bytes, check: 8 bytes, then count packed entries (see `entry`)
//!           every page but the last has 255 entries; check is the start of the BLAKE3 of
//!           page number (u64), the run's `to` (u64) and the packed entries
//! firsts  = for each page, its first block: u64
//! records = for each record a tag (u8), a length (u32) and that many bytes of bincode (see `records`)
//! ```
//!
//! That is 16.1 bytes per extent for the pages. Runs are derived: a reader that finds a newer version, another disk or
//! damage drops the run, and it is made again from finer runs or from the journal. History: 1, first.

use std::path::{Path, PathBuf};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use holdfast_common::ids::{DiskId, Sequence};

use super::entry::ENTRY_BYTES;

/// First bytes of a run.
pub const RUN_MAGIC: [u8; 4] = *b"HRUN";
/// Version of the layouts of this file and of [`super::records`].
pub const RUN_VERSION: u16 = 1;
/// Size of the header.
pub const RUN_HEADER_BYTES: usize = 192;
/// Size of what stands in front of a page's entries.
pub const PAGE_HEAD_BYTES: usize = 16;
/// More entries than any disk has blocks; below this, no size computed from a header overflows.
const ENTRIES_MAX: u64 = 1 << 48;
/// Entries in every page but the last.
pub const PAGE_ENTRIES: usize = 255;
/// Size of every page but the last.
pub const PAGE_BYTES: usize = PAGE_HEAD_BYTES + PAGE_ENTRIES * ENTRY_BYTES;

const _: () = assert!(PAGE_BYTES == 4096);

/// The header as it lies in the file.
///
/// ```text
/// offset size  field
///   0     4    magic "HRUN"
///   4     2    version, 1
///   6     1    level: covers 2^level cuts; for a part of an open interval, how often it was merged
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
/// 128    32    zero
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
    reserved: [u8; 32],
    digest: [u8; 32],
}

const _: () = assert!(size_of::<RawRunHeader>() == RUN_HEADER_BYTES);

/// What a run covers; also its file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunName {
    /// Whether it is a part of an open interval.
    pub part: bool,
    /// Covers 2^level cuts; for a part, how often it was merged.
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
    /// The disk.
    pub disk: DiskId,
    /// What it covers.
    pub name: RunName,
    /// Number of entries.
    pub entry_count: u64,
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

    /// Number of the last cut before the run.
    #[must_use]
    pub fn first_cut(&self) -> u64 {
        if self.part { self.last_cut } else { self.last_cut.saturating_sub(1 << self.level) }
    }
}

impl RunHeader {
    /// Reads a header; `None` if the bytes are none of this version.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = RawRunHeader::read_from_prefix(bytes).ok()?;
        let digest = *blake3::hash(raw.as_bytes().get(..160)?).as_bytes();
        let valid = raw.magic == RUN_MAGIC
            && raw.version.get() == RUN_VERSION
            && raw.part <= 1
            && raw.level < 64
            && raw.entry_count.get() < ENTRIES_MAX
            && digest == raw.digest;
        valid.then(|| Self {
            disk: DiskId::from_bytes(raw.disk),
            name: RunName {
                part: raw.part == 1,
                level: raw.level,
                last_cut: raw.last_cut.get(),
                from: Sequence(raw.from.get()),
                to: Sequence(raw.to.get()),
            },
            entry_count: raw.entry_count.get(),
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
            version: U16::new(RUN_VERSION),
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
            reserved: [0; 32],
            digest: [0; 32],
        };
        raw.digest = *blake3::hash(raw.as_bytes().get(..160).unwrap_or_default()).as_bytes();
        zerocopy::transmute!(raw)
    }

    /// Number of pages.
    #[must_use]
    pub const fn page_count(&self) -> u64 {
        self.entry_count.div_ceil(PAGE_ENTRIES as u64)
    }

    /// Size of all pages.
    #[must_use]
    pub const fn pages_bytes(&self) -> u64 {
        self.page_count() * PAGE_HEAD_BYTES as u64 + self.entry_count * ENTRY_BYTES as u64
    }
}

/// What the check of a page covers in front of the entries. It has the size of a page's head, and stands in its place while
/// a page is checked, so that the hash runs over one piece of memory.
#[must_use]
pub fn page_seed(number: u64, to: Sequence) -> [u8; PAGE_HEAD_BYTES] {
    (u128::from(to.0) << 64 | u128::from(number)).to_le_bytes()
}

/// The check of a page: of its seed and entries.
#[must_use]
pub fn page_check(seeded: &[u8]) -> [u8; 8] {
    blake3::hash(seeded).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// The head of a page.
#[must_use]
pub fn page_head(entries: usize, check: [u8; 8]) -> [u8; PAGE_HEAD_BYTES] {
    let mut head = [0; PAGE_HEAD_BYTES];
    let (count, rest) = head.split_at_mut(2);
    count.copy_from_slice(&u16::try_from(entries).unwrap_or(u16::MAX).to_le_bytes());
    let (_zero, place) = rest.split_at_mut(6);
    place.copy_from_slice(&check);
    head
}
