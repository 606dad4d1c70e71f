//! Appends frames to one segment file, in groups, and seals it.
//!
//! Owns the write handle and the tables of what was written. Does not know the queue in front of it, file names or
//! other segments. Invariants: `durable_bytes` only grows, and every byte below it survives power loss; bytes below it are
//! never written again; after a failed sync nothing is written any more.
//! Limit: one group holds at most [`GROUP_BYTES_MAX`] bytes and [`GROUP_FRAMES_MAX`] frames.
//! Format: see [`super::format`].

use std::{
    fs::File,
    io::{self, IoSlice},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use thiserror::Error;

use holdfast_common::{
    durable,
    frame::Frame,
    ids::{DiskId, Sequence},
};

use super::{
    format::{MARK_BYTES, Mark, MarkPlace, SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader, Trailer},
    recovery::RecoveryPlan,
    tables::SegmentTables,
};

/// The most bytes of frames in one group commit: enough that the sync's fixed cost vanishes.
pub const GROUP_BYTES_MAX: usize = 8 << 20;

/// The most frames in one group commit; with the mark they fit one system call.
pub const GROUP_FRAMES_MAX: usize = 1000;

/// Size of a page of the cache.
const PAGE_BYTES: u64 = 4096;

/// Tables that the writer extends after each sync and that readers look into.
pub type SharedTables = Arc<RwLock<SegmentTables>>;

/// Why nothing was appended.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Writing failed. The file was cut back to its durable length; the same group may be tried again.
    #[error("writing to the segment failed")]
    Write(#[source] io::Error),
    /// The sync failed, or the file could not be cut back. Final: what lies behind the durable length is unknown.
    #[error("syncing the segment failed; it must be recovered before anything else is written")]
    Poisoned(#[source] io::Error),
    /// An earlier failure was final.
    #[error("the segment failed earlier and must be recovered")]
    Unusable,
    /// The segment is full; seal it.
    #[error("the segment is full")]
    Full,
}

/// The one writer of a segment.
#[derive(Debug)]
pub struct SegmentWriter {
    file: File,
    header: SegmentHeader,
    tables: SharedTables,
    durable_bytes: u64,
    durable_sequence: Sequence,
    poisoned: bool,
    sealed_bytes: Option<u64>,
}

impl SegmentWriter {
    /// Creates a segment at `path`, whole or not at all, and opens it.
    ///
    /// # Errors
    /// The file cannot be created or synced; none is there then.
    pub fn create(path: &Path, header: SegmentHeader) -> io::Result<Self> {
        durable::replace(path, &header.to_bytes(), durable::MODE_PRIVATE)?;
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self {
            file,
            header,
            tables: shared(SegmentTables::new(header.first_sequence)),
            durable_bytes: SEGMENT_HEADER_BYTES as u64,
            durable_sequence: Sequence(header.first_sequence.0.saturating_sub(1)),
            poisoned: false,
            sealed_bytes: None,
        })
    }

    /// Goes on with a segment whose recovery was applied.
    #[must_use]
    pub fn resume(file: File, header: SegmentHeader, plan: RecoveryPlan) -> Self {
        Self {
            file,
            header,
            tables: shared(plan.tables),
            durable_bytes: plan.keep_bytes.max(SEGMENT_HEADER_BYTES as u64),
            durable_sequence: plan.last_sequence,
            poisoned: false,
            sealed_bytes: None,
        }
    }

    /// Writes a group of frames and makes it durable. The caller has checked that they follow the last frame.
    ///
    /// # Errors
    /// Nothing of the group counts then; see [`WriteError`] for what may be done.
    pub fn append_group(&mut self, frames: &[Frame]) -> Result<(), WriteError> {
        if self.poisoned || self.sealed_bytes.is_some() {
            return Err(WriteError::Unusable);
        }
        let mark = Mark { durable_bytes: self.durable_bytes, durable_sequence: self.durable_sequence };
        let mark = mark.to_bytes(MarkPlace::Group, self.header.disk);
        let start = self.durable_bytes + MARK_BYTES as u64;
        let total: u64 = frames.iter().map(|frame| frame.bytes().len() as u64).sum();
        if start + total > SEGMENT_BYTES_MAX {
            return Err(WriteError::Full);
        }
        let parts: Vec<&[u8]> = std::iter::once(mark.as_slice())
            .chain(frames.iter().map(|frame| frame.bytes().as_ref()))
            .collect();
        self.write_and_sync(&parts)?;
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let mut offset = start;
        for frame in frames {
            // Cannot fail: the size was checked above, and heads are smaller than their frames.
            let _ = tables.push(frame, offset);
            offset += frame.bytes().len() as u64;
        }
        drop(tables);
        self.durable_bytes = offset;
        if let Some(last) = frames.last() {
            self.durable_sequence = last.header().sequence;
        }
        Ok(())
    }

    /// Writes the footer; the segment is immutable from then on.
    ///
    /// # Errors
    /// The segment stays unsealed; see [`WriteError`] for what may be done.
    pub fn seal(&mut self) -> Result<(), WriteError> {
        if self.poisoned || self.sealed_bytes.is_some() {
            return Err(WriteError::Unusable);
        }
        let mark = Mark { durable_bytes: self.durable_bytes, durable_sequence: self.durable_sequence };
        let mark = mark.to_bytes(MarkPlace::Footer, self.header.disk);
        let tables = Arc::clone(&self.tables);
        let tables = tables.read().unwrap_or_else(PoisonError::into_inner);
        let entries = tables.entry_bytes();
        let entries_offset = self.durable_bytes + MARK_BYTES as u64;
        let trailer = Trailer {
            first_sequence: self.header.first_sequence,
            last_sequence: self.durable_sequence,
            frame_count: u32::try_from(tables.entries().len()).map_err(|_| WriteError::Full)?,
            entries_offset,
            heads_offset: entries_offset + entries.len() as u64,
            frame_bytes: tables.frame_bytes(),
            entries_digest: *blake3::hash(&entries).as_bytes(),
            heads_digest: *blake3::hash(tables.heads()).as_bytes(),
        }
        .to_bytes();
        let parts: [&[u8]; 4] = [&mark, &entries, tables.heads(), &trailer];
        self.write_and_sync(&parts)?;
        self.sealed_bytes =
            Some(self.durable_bytes + parts.iter().map(|part| part.len() as u64).sum::<u64>());
        Ok(())
    }

    /// Writes the parts behind the durable bytes, as a whole or not at all, and syncs.
    fn write_and_sync(&mut self, parts: &[&[u8]]) -> Result<(), WriteError> {
        if let Err(error) = write_all_at(&self.file, parts, self.durable_bytes) {
            return match self.file.set_len(self.durable_bytes) {
                Ok(()) => Err(WriteError::Write(error)),
                Err(cut) => {
                    self.poisoned = true;
                    Err(WriteError::Poisoned(cut))
                }
            };
        }
        durable::sync_data(&self.file).map_err(|error| {
            self.poisoned = true;
            WriteError::Poisoned(error)
        })?;
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.leave_cache(self.durable_bytes + bytes);
        Ok(())
    }

    /// Gives the pages of what is durable up to `end` back to the system. The next group is written into the same pages,
    /// which are warm: pages that were never used before cost several times the copying (and on a machine that is full of
    /// its users' work, somebody else's cached files). What is read again soon is rare, and is read from the disk then.
    fn leave_cache(&self, end: u64) {
        let start = self.durable_bytes / PAGE_BYTES * PAGE_BYTES;
        // Only an advice; a refusal costs speed.
        if let Some(bytes) = std::num::NonZero::new((end / PAGE_BYTES * PAGE_BYTES).saturating_sub(start)) {
            let _kept = rustix::fs::fadvise(&self.file, start, Some(bytes), rustix::fs::Advice::DontNeed);
        }
    }

    /// The tables of all durable frames; readers may keep them.
    #[must_use]
    pub const fn tables(&self) -> &SharedTables {
        &self.tables
    }

    /// Whether the footer was written.
    #[must_use]
    pub const fn is_sealed(&self) -> bool {
        self.sealed_bytes.is_some()
    }

    /// Size of the file: all of it once sealed, else what is durable.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.sealed_bytes.unwrap_or(self.durable_bytes)
    }

    /// Whether an earlier failure was final.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// The segment's header.
    #[must_use]
    pub const fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Size of the file as far as it is durable.
    #[must_use]
    pub const fn durable_bytes(&self) -> u64 {
        self.durable_bytes
    }

    /// Last durable frame of the disk.
    #[must_use]
    pub const fn durable_sequence(&self) -> Sequence {
        self.durable_sequence
    }

    /// The disk.
    #[must_use]
    pub const fn disk(&self) -> DiskId {
        self.header.disk
    }

    /// A second handle for reading.
    ///
    /// # Errors
    /// No more file handles.
    pub fn reading_handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

fn shared(tables: SegmentTables) -> SharedTables {
    Arc::new(RwLock::new(tables))
}

/// Writes all parts one after the other from `offset`.
fn write_all_at(file: &File, parts: &[&[u8]], offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = slices.as_mut_slice();
    let mut at = offset;
    // Empty parts would make a zero-byte write look like an error.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::pwritev(file, left, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                at += count as u64;
                IoSlice::advance_slices(&mut left, count);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
