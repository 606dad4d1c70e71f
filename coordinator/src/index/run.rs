//! An immutable sorted run, for looking up: a file's, or one that is in memory until its file is written.
//!
//! Owns the choice between the two. Does not know other runs. Invariant: a run never changes; both kinds answer alike.
//! Limit: a run in memory takes 16 bytes per entry, at most half as much again as room to grow, for which it has a share of a
//! [`Room`](super::room::Room).

use std::path::{Path, PathBuf};

use holdfast_common::{
    ids::{DiskId, Sequence},
    units::BlockRange,
};

use super::{
    entry::{IndexEntry, Packed},
    lookup::IndexError,
    records::RunRecords,
    room::Share,
    run_file::RunFile,
    run_format::{RUN_HEADER_BYTES, RunName},
};

/// Bytes that an entry takes in a file, about.
const ENTRY_FILE_BYTES: u64 = 6;

/// A run.
#[derive(Debug)]
pub struct Run(Kind);

#[derive(Debug)]
enum Kind {
    File(RunFile),
    Table(Table),
}

/// A run that has no file yet.
#[derive(Debug)]
struct Table {
    name: RunName,
    entries: Vec<Packed>,
    records: RunRecords,
    record_bytes: u64,
    /// Given back with the run.
    _share: Share,
}

impl Run {
    /// Opens a file, and verifies what a lookup begins with.
    ///
    /// # Errors
    /// The run is damaged, newer, another disk's, or cannot be read.
    pub fn open(folder: &Path, disk: DiskId, name: RunName) -> Result<Self, IndexError> {
        Self::open_at(name.path(folder), disk, name)
    }

    /// Like [`Self::open`], for a run that has another file name yet.
    ///
    /// # Errors
    /// As those of [`Self::open`].
    pub fn open_at(path: PathBuf, disk: DiskId, name: RunName) -> Result<Self, IndexError> {
        RunFile::open(path, disk, name).map(|file| Self(Kind::File(file)))
    }

    /// A run of sorted entries without overlaps, for whose memory there is a share.
    #[must_use]
    pub fn in_memory(name: RunName, entries: Vec<Packed>, records: RunRecords, share: Share) -> Self {
        // Who writes it says what is wrong with them.
        let record_bytes = records.to_bytes().map_or(0, |bytes| bytes.len() as u64);
        Self(Kind::Table(Table { name, entries, records, record_bytes, _share: share }))
    }

    /// The entries, if the run is in memory.
    #[must_use]
    pub fn table(&self) -> Option<&[Packed]> {
        match &self.0 {
            Kind::File(_) => None,
            Kind::Table(table) => Some(&table.entries),
        }
    }

    /// The file's, if it is not.
    pub(super) const fn file(&self) -> Option<&RunFile> {
        match &self.0 {
            Kind::File(file) => Some(file),
            Kind::Table(_) => None,
        }
    }

    /// What the run covers.
    #[must_use]
    pub const fn name(&self) -> RunName {
        match &self.0 {
            Kind::File(file) => file.name(),
            Kind::Table(table) => table.name,
        }
    }

    /// Last frame covered.
    #[must_use]
    pub const fn to(&self) -> Sequence {
        self.name().to
    }

    /// Whether a page was found damaged when it was used.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.file().is_some_and(RunFile::is_damaged)
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> u64 {
        match &self.0 {
            Kind::File(file) => file.len(),
            Kind::Table(table) => table.entries.len() as u64,
        }
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the file without its header; about, as long as there is none.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match &self.0 {
            Kind::File(file) => file.file_bytes().saturating_sub(RUN_HEADER_BYTES as u64),
            Kind::Table(table) => self.len() * ENTRY_FILE_BYTES + table.record_bytes,
        }
    }

    /// The records.
    ///
    /// # Errors
    /// They are damaged.
    pub fn records(&self) -> Result<RunRecords, IndexError> {
        match &self.0 {
            Kind::File(file) => file.records(),
            Kind::Table(table) => Ok(table.records.clone()),
        }
    }

    /// Position of the first entry that ends behind `block`.
    ///
    /// # Errors
    /// A page is damaged.
    pub fn position(&self, block: u64) -> Result<u64, IndexError> {
        match &self.0 {
            Kind::File(file) => file.position(block),
            Kind::Table(table) => Ok(position(&table.entries, block) as u64),
        }
    }

    /// The entry at a position; `None` behind the end.
    ///
    /// # Errors
    /// Its page is damaged.
    pub fn entry(&self, position: u64) -> Result<Option<IndexEntry>, IndexError> {
        match &self.0 {
            Kind::File(file) => file.entry(position),
            Kind::Table(table) => {
                let position = usize::try_from(position).unwrap_or(usize::MAX);
                Ok(table.entries.get(position).map(Packed::unpack))
            }
        }
    }

    /// Calls `found` with each entry that shares blocks with `range`, ascending.
    ///
    /// # Errors
    /// A page is damaged; what was found so far is true.
    pub fn overlapping(
        &self,
        range: BlockRange,
        found: &mut (impl FnMut(IndexEntry) + ?Sized),
    ) -> Result<(), IndexError> {
        match &self.0 {
            Kind::File(file) => file.overlapping(range, found),
            Kind::Table(table) => {
                overlapping(&table.entries, range, found);
                Ok(())
            }
        }
    }
}

/// Position of the first entry of a table that ends behind `block`.
#[must_use]
pub fn position(table: &[Packed], block: u64) -> usize {
    table.partition_point(|entry| entry.end() <= block)
}

/// Calls `found` with each entry of a table that shares blocks with `range`, ascending.
pub fn overlapping(table: &[Packed], range: BlockRange, found: &mut (impl FnMut(IndexEntry) + ?Sized)) {
    let from = position(table, range.start.0);
    let entries = table.iter().skip(from).take_while(|entry| entry.start() < range.end().0);
    entries.map(Packed::unpack).for_each(found);
}
