//! Writing a run: entries in, a file out, whole or not at all.
//!
//! Owns the temporary file and the page being filled. Does not know where entries come from.
//! Invariant: a run appears under its name only when all of it was synced.
//! Limit: one page, and 8 bytes per page, in memory.

use std::{
    fs::File,
    io::{self, BufWriter, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use holdfast_common::{durable, ids::DiskId};

use super::{
    entry::{ENTRY_BYTES, IndexEntry},
    records::RunRecords,
    run_format::{PAGE_ENTRIES, RUN_HEADER_BYTES, RunHeader, RunName, page_check},
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
    page: Vec<u8>,
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
            page: Vec::with_capacity(PAGE_ENTRIES * ENTRY_BYTES),
            firsts: Vec::new(),
            pending: None,
            entry_count: 0,
        })
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
        if self.page.is_empty() {
            self.firsts.extend_from_slice(&entry.start.to_le_bytes());
        }
        self.page.extend_from_slice(&entry.pack());
        self.entry_count += 1;
        if self.page.len() == PAGE_ENTRIES * ENTRY_BYTES { self.finish_page() } else { Ok(()) }
    }

    fn finish_page(&mut self) -> io::Result<()> {
        let count = u16::try_from(self.page.len() / ENTRY_BYTES).unwrap_or(0);
        if count == 0 {
            return Ok(());
        }
        let number = (self.firsts.len() / 8) as u64 - 1;
        self.file.write_all(&count.to_le_bytes())?;
        self.file.write_all(&[0; 6])?;
        self.file.write_all(&page_check(number, self.name.to, &self.page))?;
        self.file.write_all(&self.page)?;
        self.page.clear();
        Ok(())
    }

    /// Ends the run and puts it in its place.
    ///
    /// # Errors
    /// The file cannot be written or synced; no run is there then.
    pub fn finish(mut self, records: &RunRecords) -> io::Result<PathBuf> {
        if let Some(last) = self.pending.take() {
            self.write(last)?;
        }
        self.finish_page()?;
        let records = records.to_bytes().map_err(io::Error::other)?;
        self.file.write_all(&self.firsts)?;
        self.file.write_all(&records)?;
        let header = RunHeader {
            disk: self.disk,
            name: self.name,
            entry_count: self.entry_count,
            record_bytes: u32::try_from(records.len()).map_err(io::Error::other)?,
            firsts_digest: *blake3::hash(&self.firsts).as_bytes(),
            records_digest: *blake3::hash(&records).as_bytes(),
        };
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&header.to_bytes())?;
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        durable::sync_data(&file)?;
        durable::rename(&self.temporary, &self.path)?;
        Ok(self.path)
    }
}
