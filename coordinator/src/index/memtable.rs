//! The extents of the interval that is not cut yet, in memory.
//!
//! Owns a map without overlaps in which the newest wins. Does not know limits; its owner spills it.
//! Invariant: entries ascend and do not overlap. About 60 bytes per extent.

use std::collections::BTreeMap;

use holdfast_common::units::BlockRange;

use super::entry::IndexEntry;

/// A map of extents.
#[derive(Clone, Debug, Default)]
pub struct Memtable {
    entries: BTreeMap<u64, IndexEntry>,
}

impl Memtable {
    /// Puts an entry over whatever was there.
    pub fn insert(&mut self, entry: IndexEntry) {
        let (start, end) = (entry.start, entry.end());
        if let Some((_, before)) = self.entries.range(..start).next_back() {
            let before = *before;
            if before.end() > start {
                self.entries.insert(before.start, before.part(before.start, start));
                if before.end() > end {
                    self.entries.insert(end, before.part(end, before.end()));
                }
            }
        }
        while let Some((at, covered)) = self.entries.range(start..end).next() {
            let (at, covered) = (*at, *covered);
            self.entries.remove(&at);
            if covered.end() > end {
                self.entries.insert(end, covered.part(end, covered.end()));
            }
        }
        self.entries.insert(start, entry);
    }

    /// The entries that share blocks with `range`, ascending.
    pub fn overlapping(&self, range: BlockRange) -> impl Iterator<Item = IndexEntry> + '_ {
        let before = self.entries.range(..range.start.0).next_back().map(|(_, entry)| *entry);
        let before = before.filter(|entry| entry.end() > range.start.0);
        before.into_iter().chain(self.entries.range(range.start.0..range.end().0).map(|(_, entry)| *entry))
    }

    /// All entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = IndexEntry> + '_ {
        self.entries.values().copied()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.entries.clear();
    }
}
