//! Writing a run: entries in, a file out under a temporary name.
//!
//! Owns the temporary file and the page being filled. Does not know where entries come from.
//! Invariant: a run appears under its name only when all of it was synced ([`WrittenRun::settle`]).
//! Limit: one page, and 16 bytes per page, in memory.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use holdfast_common::{durable, ids::DiskId};

use super::{
    entry::IndexEntry,
    page::PageBuilder,
    records::RunRecords,
    run_format::{RUN_HEADER_BYTES, RUN_VERSION, RunHeader, RunName},
};

/// Bytes collected before they are written.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes one run.
#[derive(Debug)]
pub struct RunWriter {
    disk: DiskId,
    name: RunName,
    temporary: PathBuf,
    path: PathBuf,
    file: BufWriter<File>,
    page: PageBuilder,
    /// A page's bytes.
    packed: Vec<u8>,
    page_count: u64,
    pages_bytes: u64,
    firsts: Vec<u8>,
    pending: Option<IndexEntry>,
    entry_count: u64,
}

impl RunWriter {
    /// Begins a run in the index's folder.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(folder: &Path, disk: DiskId, name: RunName) -> io::Result<Self> {
        let path = name.path(folder);
        let temporary = path.with_extension("new");
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temporary)?);
        file.write_all(&[0; RUN_HEADER_BYTES])?;
        Ok(Self {
            disk,
            name,
            temporary,
            path,
            file,
            page: PageBuilder::default(),
            packed: Vec::new(),
            page_count: 0,
            pages_bytes: 0,
            firsts: Vec::new(),
            pending: None,
            entry_count: 0,
        })
    }

    /// Where it is written.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Adds an entry, which must lie behind the last one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn push(&mut self, entry: IndexEntry) -> io::Result<()> {
        match self.pending.take() {
            None => self.pending = Some(entry),
            Some(before) => match before.joined(&entry) {
                Some(joined) => self.pending = Some(joined),
                None => {
                    self.write(before)?;
                    self.pending = Some(entry);
                }
            },
        }
        Ok(())
    }

    fn write(&mut self, entry: IndexEntry) -> io::Result<()> {
        self.page.push(entry);
        self.entry_count += 1;
        if self.page.is_full() { self.finish_page() } else { Ok(()) }
    }

    fn finish_page(&mut self) -> io::Result<()> {
        let Some(first) = self.page.first() else { return Ok(()) };
        self.page.finish(self.page_count, self.name.to, &mut self.packed);
        self.file.write_all(&self.packed)?;
        self.page_count += 1;
        self.pages_bytes += self.packed.len() as u64;
        self.firsts.extend_from_slice(&first.to_le_bytes());
        self.firsts.extend_from_slice(&self.pages_bytes.to_le_bytes());
        Ok(())
    }

    /// Ends the run. It can be read then, and must be settled to outlive a crash.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(mut self, records: &RunRecords) -> io::Result<WrittenRun> {
        if let Some(last) = self.pending.take() {
            self.write(last)?;
        }
        self.finish_page()?;
        let records = records.to_bytes().map_err(io::Error::other)?;
        self.file.write_all(&self.firsts)?;
        self.file.write_all(&records)?;
        let header = RunHeader {
            version: RUN_VERSION,
            disk: self.disk,
            name: self.name,
            entry_count: self.entry_count,
            pages_bytes: self.pages_bytes,
            record_bytes: u32::try_from(records.len()).map_err(io::Error::other)?,
            firsts_digest: *blake3::hash(&self.firsts).as_bytes(),
            records_digest: *blake3::hash(&records).as_bytes(),
        };
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.to_bytes())?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok(WrittenRun { file, temporary: self.temporary, path: self.path })
    }
}

/// A run that is written and has no name yet.
#[derive(Debug)]
pub struct WrittenRun {
    file: File,
    /// Where it is.
    pub(super) temporary: PathBuf,
    /// Where it belongs.
    pub(super) path: PathBuf,
}

impl WrittenRun {
    /// Where it can be read until it is settled.
    #[must_use]
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Has the system begin to write it out.
    pub(super) fn begin_writing(&self) {
        // Only an advice; pages that are mapped stay.
        let _refused = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }

    /// Syncs what is in it.
    ///
    /// # Errors
    /// It cannot be synced; it is lost then and must be made again.
    pub(super) fn sync(&self) -> io::Result<()> {
        durable::sync_data(&self.file)
    }

    /// Puts it in its place, which outlives a crash once the folder is synced.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub(super) fn name(&self) -> io::Result<()> {
        durable::rename_unsynced(&self.temporary, &self.path)
    }

    /// Syncs it and puts it in its place. Gives the path.
    ///
    /// # Errors
    /// It cannot be synced or renamed; what is lost then must be made again.
    pub fn settle(&self) -> io::Result<&Path> {
        self.sync()?;
        durable::rename(&self.temporary, &self.path)?;
        Ok(&self.path)
    }
}
