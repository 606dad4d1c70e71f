//! A run opened for looking up.
//!
//! Owns the mapping and which pages were verified. Does not know other runs. Invariants: header, firsts and records were
//! verified when it was opened, a page is before its first use; a run never changes.
//! Limit: one bit of memory per page besides the firsts, which take 8 bytes per 255 entries.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use memmap2::Mmap;

use holdfast_common::{
    ids::{DiskId, Sequence},
    units::BlockRange,
};

use super::{
    entry::{ENTRY_BYTES, IndexEntry, start_of},
    lookup::IndexError,
    map::map,
    records::RunRecords,
    run_format::{
        PAGE_BYTES, PAGE_ENTRIES, PAGE_HEAD_BYTES, RUN_HEADER_BYTES, RunHeader, RunName, page_check,
        page_seed,
    },
};

/// Pages that are asked for ahead of a reader of all.
const PAGES_AHEAD: usize = 128;

/// An immutable sorted run.
#[derive(Debug)]
pub struct Run {
    map: Mmap,
    path: PathBuf,
    header: RunHeader,
    firsts: Vec<u64>,
    verified: Vec<AtomicU64>,
    damaged: AtomicBool,
}

impl Run {
    /// Opens and verifies all but the pages.
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
        let io = |source| IndexError::Io { path: path.clone(), source };
        let map = map(&File::open(&path).map_err(io)?).map_err(io)?;
        let damaged = || IndexError::Damaged { path: path.clone() };
        let header = RunHeader::parse(&map).ok_or_else(damaged)?;
        let (firsts_at, records_at) = sections(&header, &map).ok_or_else(damaged)?;
        let firsts = map.get(firsts_at..records_at).ok_or_else(damaged)?;
        let records = map.get(records_at..).ok_or_else(damaged)?;
        let intact = header.disk == disk
            && header.name == name
            && blake3::hash(firsts).as_bytes() == &header.firsts_digest
            && blake3::hash(records).as_bytes() == &header.records_digest;
        if !intact {
            return Err(damaged());
        }
        let (words, _) = firsts.as_chunks::<8>();
        let firsts: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let verified = (0..firsts.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { map, path, header, firsts, verified, damaged: AtomicBool::new(false) })
    }

    /// What the run covers.
    #[must_use]
    pub const fn name(&self) -> RunName {
        self.header.name
    }

    /// Last frame covered.
    #[must_use]
    pub const fn to(&self) -> Sequence {
        self.header.name.to
    }

    /// Whether a page was found damaged when it was used.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.header.entry_count
    }

    /// Whether there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.header.entry_count == 0
    }

    /// Size of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// The records.
    ///
    /// # Errors
    /// They are damaged.
    pub fn records(&self) -> Result<RunRecords, IndexError> {
        let at = self.map.len().saturating_sub(self.header.record_bytes as usize);
        RunRecords::parse(self.map.get(at..).unwrap_or_default()).ok_or_else(|| self.damaged())
    }

    /// Position of the first entry that ends behind `block`.
    ///
    /// # Errors
    /// A page is damaged.
    pub fn position(&self, block: u64) -> Result<u64, IndexError> {
        let page = self.firsts.partition_point(|first| *first <= block);
        let Some(page) = page.checked_sub(1) else { return Ok(0) };
        let entries = self.page(page)?;
        // Only the words of the starts are looked at; the entry in front may reach over the block.
        let behind = entries.partition_point(|bytes| start_of(bytes) <= block);
        let before = behind.checked_sub(1).and_then(|at| entries.get(at));
        let reaches = before.is_some_and(|bytes| IndexEntry::unpack(*bytes).end() > block);
        Ok((page * PAGE_ENTRIES + behind - usize::from(reaches)) as u64)
    }

    /// The entry at a position; `None` behind the end.
    ///
    /// # Errors
    /// Its page is damaged.
    pub fn entry(&self, position: u64) -> Result<Option<IndexEntry>, IndexError> {
        if position >= self.header.entry_count {
            return Ok(None);
        }
        let position = usize::try_from(position).map_err(|_| self.damaged())?;
        let page = self.page(position / PAGE_ENTRIES)?;
        let entry = page.get(position % PAGE_ENTRIES).ok_or_else(|| self.damaged())?;
        Ok(Some(IndexEntry::unpack(*entry)))
    }

    /// Calls `found` with each entry that shares blocks with `range`, ascending.
    ///
    /// # Errors
    /// A page is damaged; what was found so far is true.
    pub fn overlapping(
        &self,
        range: BlockRange,
        found: &mut dyn FnMut(IndexEntry),
    ) -> Result<(), IndexError> {
        let mut position = self.position(range.start.0)?;
        loop {
            let number = usize::try_from(position).unwrap_or(usize::MAX) / PAGE_ENTRIES;
            if number >= self.firsts.len() {
                return Ok(());
            }
            let page = self.page(number)?;
            let skip = usize::try_from(position).unwrap_or(usize::MAX) % PAGE_ENTRIES;
            for bytes in page.get(skip..).unwrap_or_default() {
                let entry = IndexEntry::unpack(*bytes);
                if entry.start >= range.end().0 {
                    return Ok(());
                }
                found(entry);
            }
            position = ((number + 1) * PAGE_ENTRIES) as u64;
        }
    }

    /// Number of pages.
    pub(super) const fn page_count(&self) -> usize {
        self.firsts.len()
    }

    /// Whoever reads all pages says which one is next: the system reads the pages behind it meanwhile.
    pub(super) fn expect(&self, page: usize) {
        if page.is_multiple_of(PAGES_AHEAD) {
            let ahead = RUN_HEADER_BYTES + page * PAGE_BYTES;
            let bytes = (2 * PAGES_AHEAD * PAGE_BYTES).min(self.map.len().saturating_sub(ahead));
            // Only an advice.
            let _refused = self.map.advise_range(memmap2::Advice::WillNeed, ahead, bytes);
        }
    }

    /// The entries of a page, verified.
    pub(super) fn page(&self, number: usize) -> Result<&[[u8; ENTRY_BYTES]], IndexError> {
        let start = RUN_HEADER_BYTES + number * PAGE_BYTES;
        let before = (number * PAGE_ENTRIES) as u64;
        let count = self.header.entry_count.saturating_sub(before).min(PAGE_ENTRIES as u64);
        let count = usize::try_from(count).unwrap_or(0);
        let head = self.map.get(start..start + PAGE_HEAD_BYTES).ok_or_else(|| self.damaged())?;
        let from = start + PAGE_HEAD_BYTES;
        let body = self.map.get(from..from + count * ENTRY_BYTES).ok_or_else(|| self.damaged())?;
        let bit = 1u64 << (number % 64);
        let word = self.verified.get(number / 64).ok_or_else(|| self.damaged())?;
        if word.load(Ordering::Relaxed) & bit == 0 {
            let mut seeded = [0; PAGE_BYTES];
            let (seed, entries) = seeded.split_at_mut(PAGE_HEAD_BYTES);
            seed.copy_from_slice(&page_seed(number as u64, self.to()));
            entries.get_mut(..body.len()).ok_or_else(|| self.damaged())?.copy_from_slice(body);
            let seeded = seeded.get(..PAGE_HEAD_BYTES + body.len()).unwrap_or_default();
            if head.get(8..) != Some(&page_check(seeded)) {
                self.damaged.store(true, Ordering::Relaxed);
                return Err(self.damaged());
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        let (entries, _) = body.as_chunks::<ENTRY_BYTES>();
        Ok(entries)
    }

    fn damaged(&self) -> IndexError {
        IndexError::Damaged { path: self.path.clone() }
    }
}

/// Where firsts and records begin, if all sections fit the file exactly.
fn sections(header: &RunHeader, map: &[u8]) -> Option<(usize, usize)> {
    let firsts = (RUN_HEADER_BYTES as u64).checked_add(header.pages_bytes())?;
    let records = firsts.checked_add(header.page_count().checked_mul(8)?)?;
    let end = records.checked_add(u64::from(header.record_bytes))?;
    let fits = end == map.len() as u64;
    fits.then_some((usize::try_from(firsts).ok()?, usize::try_from(records).ok()?))
}
