//! A run's file opened for looking up.
//!
//! Owns the bytes and which pages were verified. Does not know other runs. Invariants: header and firsts were verified when it
//! was opened, a page and the records are before their first use, so that opening costs the same for a run of many cuts; a run never
//! changes.
//! Limit: one bit of memory per page besides the firsts, which take 16 bytes per 512 entries.

use std::{
    fs::File,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use holdfast_common::{
    ids::{DiskId, Sequence},
    units::BlockRange,
};

use super::{
    entry::{ENTRY_BYTES, IndexEntry},
    lookup::IndexError,
    map::FileBytes,
    page::{self, PackedPage, Page},
    records::RunRecords,
    run_format::{
        FIRST_BYTES, FIXED_BYTES, FIXED_HEAD_BYTES, RUN_HEADER_BYTES, RUN_VERSION_FIXED, RunHeader, RunName,
        fixed_check, fixed_seed,
    },
};

/// Pages that are asked for ahead of a reader of all.
const PAGES_AHEAD: usize = 128;

/// A run's file.
#[derive(Debug)]
pub(super) struct RunFile {
    map: FileBytes,
    path: PathBuf,
    header: RunHeader,
    firsts: Vec<u64>,
    /// Where each page ends, counted from the end of the header; empty for fixed pages.
    ends: Vec<u64>,
    verified: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl RunFile {
    /// Opens, and verifies what a lookup begins with.
    ///
    /// # Errors
    /// The run is damaged, newer, another disk's, or cannot be read.
    pub(super) fn open(path: PathBuf, disk: DiskId, name: RunName) -> Result<Self, IndexError> {
        let io = |source| IndexError::Io { path: path.clone(), source };
        let map = File::open(&path).and_then(|file| FileBytes::open(&file)).map_err(io)?;
        let damaged = || IndexError::Damaged { path: path.clone() };
        let header = RunHeader::parse(&map).ok_or_else(damaged)?;
        let (firsts_at, records_at) = sections(&header, &map).ok_or_else(damaged)?;
        let firsts = map.get(firsts_at..records_at).ok_or_else(damaged)?;
        let intact = header.disk == disk
            && header.name == name
            && blake3::hash(firsts).as_bytes() == &header.firsts_digest;
        if !intact {
            return Err(damaged());
        }
        let (firsts, ends) = split(firsts, header.version);
        let verified = (0..firsts.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { map, path, header, firsts, ends, verified, damaged: AtomicBool::new(false) })
    }

    /// What the run covers.
    pub(super) const fn name(&self) -> RunName {
        self.header.name
    }

    /// Last frame covered.
    pub(super) const fn to(&self) -> Sequence {
        self.header.name.to
    }

    /// Whether a page was found damaged when it was used.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Number of entries.
    pub(super) const fn len(&self) -> u64 {
        self.header.entry_count
    }

    /// Size of the file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The records.
    ///
    /// # Errors
    /// They are damaged.
    pub(super) fn records(&self) -> Result<RunRecords, IndexError> {
        let at = self.map.len().saturating_sub(self.header.record_bytes as usize);
        let records = self.map.get(at..).unwrap_or_default();
        let intact = blake3::hash(records).as_bytes() == &self.header.records_digest;
        RunRecords::parse(records).filter(|_| intact).ok_or_else(|| self.damaged())
    }

    /// Position of the first entry that ends behind `block`.
    ///
    /// # Errors
    /// A page is damaged.
    pub(super) fn position(&self, block: u64) -> Result<u64, IndexError> {
        let page = self.firsts.partition_point(|first| *first <= block);
        let Some(page) = page.checked_sub(1) else { return Ok(0) };
        Ok((page * self.header.page_entries() + self.page(page)?.position(block)) as u64)
    }

    /// The entry at a position; `None` behind the end.
    ///
    /// # Errors
    /// Its page is damaged.
    pub(super) fn entry(&self, position: u64) -> Result<Option<IndexEntry>, IndexError> {
        if position >= self.header.entry_count {
            return Ok(None);
        }
        let position = usize::try_from(position).map_err(|_| self.damaged())?;
        let page = self.page(position / self.header.page_entries())?;
        page.get(position % self.header.page_entries()).map(Some).ok_or_else(|| self.damaged())
    }

    /// Calls `found` with each entry that shares blocks with `range`, ascending.
    ///
    /// # Errors
    /// A page is damaged; what was found so far is true.
    pub(super) fn overlapping(
        &self,
        range: BlockRange,
        found: &mut (impl FnMut(IndexEntry) + ?Sized),
    ) -> Result<(), IndexError> {
        let number = self.firsts.partition_point(|first| *first <= range.start.0).saturating_sub(1);
        let mut skip =
            if number < self.firsts.len() { self.page(number)?.position(range.start.0) } else { 0 };
        for number in number..self.firsts.len() {
            let page = self.page(number)?;
            while let Some(entry) = page.get(skip) {
                if entry.start >= range.end().0 {
                    return Ok(());
                }
                found(entry);
                skip += 1;
            }
            skip = 0;
        }
        Ok(())
    }

    /// Number of pages.
    pub(super) const fn page_count(&self) -> usize {
        self.firsts.len()
    }

    /// Whoever reads all pages says which one is next: the system reads the pages behind it meanwhile.
    pub(super) fn expect(&self, page: usize) {
        if page.is_multiple_of(PAGES_AHEAD) {
            let (from, to) = (self.page_at(page).0, self.page_at(page + 2 * PAGES_AHEAD).0);
            let bytes = to.min(self.map.len()).saturating_sub(from);
            self.map.expect(from, bytes);
        }
    }

    /// Where a page begins and ends in the file; behind the last one, where it ends.
    fn page_at(&self, number: usize) -> (usize, usize) {
        if self.header.version == RUN_VERSION_FIXED {
            let start = RUN_HEADER_BYTES + number * FIXED_BYTES;
            let before = (number * self.header.page_entries()) as u64;
            let count = self.header.entry_count.saturating_sub(before).min(self.header.page_entries() as u64);
            return (start, start + FIXED_HEAD_BYTES + usize::try_from(count).unwrap_or(0) * ENTRY_BYTES);
        }
        let end = |number: usize| {
            let end = self.ends.get(number).copied().unwrap_or(self.header.pages_bytes);
            RUN_HEADER_BYTES.saturating_add(usize::try_from(end).unwrap_or(usize::MAX))
        };
        (number.checked_sub(1).map_or(RUN_HEADER_BYTES, end), end(number))
    }

    /// The entries of a page, verified.
    pub(super) fn page(&self, number: usize) -> Result<Page<'_>, IndexError> {
        let (start, end) = self.page_at(number);
        let bytes = self.map.get(start..end).ok_or_else(|| self.damaged())?;
        let first = self.firsts.get(number).ok_or_else(|| self.damaged())?;
        let bit = 1u64 << (number % 64);
        let word = self.verified.get(number / 64).ok_or_else(|| self.damaged())?;
        if word.load(Ordering::Relaxed) & bit == 0 {
            if !self.is_intact(number as u64, bytes) {
                self.damaged.store(true, Ordering::Relaxed);
                return Err(self.damaged());
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        if self.header.version == RUN_VERSION_FIXED {
            let (entries, _) = bytes.get(FIXED_HEAD_BYTES..).unwrap_or_default().as_chunks::<ENTRY_BYTES>();
            return Ok(Page::Fixed(entries));
        }
        PackedPage::parse(bytes, *first).map(Page::Packed).ok_or_else(|| self.damaged())
    }

    fn is_intact(&self, number: u64, bytes: &[u8]) -> bool {
        if self.header.version != RUN_VERSION_FIXED {
            return page::is_intact(number, self.to(), bytes);
        }
        let Some((head, body)) = bytes.split_at_checked(FIXED_HEAD_BYTES) else { return false };
        let seeded = [fixed_seed(number, self.to()).as_slice(), body].concat();
        head.get(8..) == Some(&fixed_check(&seeded))
    }

    fn damaged(&self) -> IndexError {
        IndexError::Damaged { path: self.path.clone() }
    }
}

/// Where firsts and records begin, if all sections fit the file exactly.
fn sections(header: &RunHeader, map: &[u8]) -> Option<(usize, usize)> {
    let firsts = (RUN_HEADER_BYTES as u64).checked_add(header.pages_bytes)?;
    let records = firsts.checked_add(header.firsts_bytes())?;
    let end = records.checked_add(u64::from(header.record_bytes))?;
    let fits = end == map.len() as u64;
    fits.then_some((usize::try_from(firsts).ok()?, usize::try_from(records).ok()?))
}

/// The first blocks of the pages, and where these end.
fn split(firsts: &[u8], version: u16) -> (Vec<u64>, Vec<u64>) {
    let (words, _) = firsts.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    if version == RUN_VERSION_FIXED {
        return (words.collect(), Vec::new());
    }
    let each = FIRST_BYTES / 8;
    (words.clone().step_by(each).collect(), words.skip(1).step_by(each).collect())
}
