//! Newest wins: sorted layers of entries become one.
//!
//! Owns the layers' cursors, the merge, and the sweep that resolves overlaps. Pure but for the pages of runs.
//! Invariant: the output ascends without overlaps; where several inputs have a block, the entry of the highest sequence is
//! what comes out. Cost: per entry log2 of the number of layers; only entries that overlap cost more.
//! Limit: what is covered now waits in memory, at most one entry of each frame that reaches over this place.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use super::{
    entry::{IndexEntry, Packed},
    lookup::IndexError,
    page::Page,
    run::Run,
    run_file::RunFile,
};

/// Entries that ascend by start; those of one layer do not overlap.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'a> {
    /// In memory.
    Table(&'a [Packed]),
    /// In a file.
    Run(&'a Run),
}

/// Merges layers; `out` gets the entries, ascending.
///
/// # Errors
/// A run is damaged, or `out` failed.
pub fn merge(
    layers: &[Layer<'_>],
    out: &mut impl FnMut(IndexEntry) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    if let [layer] = layers {
        // Nothing to compare and nothing to resolve: most runs are made of one table.
        let mut cursor = Cursor::new(*layer);
        while let Some(entry) = cursor.next()? {
            out(entry)?;
        }
        return Ok(());
    }
    // The heap moves only starts and numbers about; entries and cursors stay where they are.
    let mut cursors: Vec<Cursor<'_>> = layers.iter().copied().map(Cursor::new).collect();
    let mut heads = Vec::with_capacity(layers.len());
    let mut order = BinaryHeap::with_capacity(layers.len());
    for (number, cursor) in cursors.iter_mut().enumerate() {
        let entry = cursor.next()?;
        order.extend(entry.map(|entry| Reverse((entry.start, number))));
        heads.push(entry);
    }
    let mut sweep = Sweep::default();
    while let Some(mut first) = order.peek_mut() {
        let Reverse((_, number)) = *first;
        // The numbers are those of layers.
        let (Some(head), Some(cursor)) = (heads.get_mut(number), cursors.get_mut(number)) else { break };
        let next = cursor.next()?;
        match next {
            Some(next) => *first = Reverse((next.start, number)),
            None => drop(PeekMut::pop(first)),
        }
        if let Some(entry) = std::mem::replace(head, next) {
            sweep.push(entry, out)?;
        }
    }
    sweep.finish(out)
}

/// Where a merge is in a layer.
struct Cursor<'a> {
    file: Option<&'a RunFile>,
    /// Number of the next page.
    next_page: usize,
    page: Page<'a>,
    /// Number of the next entry in the page.
    at: usize,
    table: std::slice::Iter<'a, Packed>,
}

impl<'a> Cursor<'a> {
    fn new(layer: Layer<'a>) -> Self {
        let (file, table) = match layer {
            Layer::Table(table) => (None, table),
            Layer::Run(run) => (run.file(), run.table().unwrap_or_default()),
        };
        let table = table.iter();
        Self { file, next_page: 0, page: Page::Fixed(&[]), at: 0, table }
    }

    fn next(&mut self) -> Result<Option<IndexEntry>, IndexError> {
        let Some(file) = self.file else { return Ok(self.table.next().map(Packed::unpack)) };
        loop {
            if let Some(entry) = self.page.get(self.at) {
                self.at += 1;
                return Ok(Some(entry));
            }
            if self.next_page >= file.page_count() {
                return Ok(None);
            }
            file.expect(self.next_page);
            self.page = file.page(self.next_page)?;
            self.at = 0;
            self.next_page += 1;
        }
    }
}

/// Resolves overlaps among entries that come in the order of their starts, of whatever age.
#[derive(Debug, Default)]
pub struct Sweep {
    /// The newest of those that reach to this place.
    current: Option<IndexEntry>,
    /// Older ones that reach further, the newest on top.
    covered: BinaryHeap<Covered>,
}

impl Sweep {
    /// The next entry.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn push<E>(
        &mut self,
        entry: IndexEntry,
        out: &mut impl FnMut(IndexEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(current) = self.current.filter(|current| current.end() <= entry.start) {
            out(current)?;
            self.current = self.uncover(current.end());
        }
        let Some(current) = self.current.replace(entry) else { return Ok(()) };
        if entry.sequence >= current.sequence {
            if current.start < entry.start {
                out(current.part(current.start, entry.start))?;
            }
            if current.end() > entry.end() {
                self.covered.push(Covered(current));
            }
        } else {
            self.current = Some(current);
            if entry.end() > current.end() {
                self.covered.push(Covered(entry));
            }
        }
        Ok(())
    }

    /// There are no more.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn finish<E>(mut self, out: &mut impl FnMut(IndexEntry) -> Result<(), E>) -> Result<(), E> {
        while let Some(current) = self.current {
            out(current)?;
            self.current = self.uncover(current.end());
        }
        Ok(())
    }

    /// The newest that reaches beyond `at`, from there on.
    fn uncover(&mut self, at: u64) -> Option<IndexEntry> {
        while let Some(Covered(entry)) = self.covered.pop() {
            if entry.end() > at {
                return Some(entry.part(at.max(entry.start), entry.end()));
            }
        }
        None
    }
}

/// An entry under a newer one; orders by age.
#[derive(Debug)]
struct Covered(IndexEntry);

impl Ord for Covered {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.sequence.cmp(&other.0.sequence)
    }
}

impl PartialOrd for Covered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Covered {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Covered {}
