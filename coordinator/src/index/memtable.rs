//! The extents of the interval that is not cut yet, in memory.
//!
//! Owns what came since the last run as it came, and sorted tables of what came earlier; the newest wins. Does not know
//! limits; its owner spills it. Invariants: a table ascends without overlaps; of two tables the later one is newer; each
//! table has at most half as many entries as the one before, so there are few. Adding is appending: sorting waits until
//! somebody looks, so that frames that nobody looks at meanwhile cost one radix sort in all.
//! Limit: 16 bytes per entry, at most half as much again as room to grow ([`Memtable::memory_bytes`]).

use super::{
    entry::{IndexEntry, Packed},
    lookup::IndexError,
    merge::{Layer, Sweep, merge},
    sort::sort,
};

/// Entries for which room is made at least.
const GROWTH_MIN: usize = 256;

/// A map of extents.
#[derive(Debug, Default)]
pub struct Memtable {
    /// In the order of frames, overlaps and all.
    fresh: Vec<Packed>,
    /// Oldest and largest first.
    tables: Vec<Vec<Packed>>,
}

impl Memtable {
    /// Puts entries over whatever was there. Those of a later frame come later.
    pub fn insert(&mut self, entries: &[Packed]) {
        make_room(&mut self.fresh, entries.len());
        self.fresh.extend_from_slice(entries);
    }

    /// Sorts what came since the last call.
    pub fn settle(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        let mut table = sorted(std::mem::take(&mut self.fresh));
        table.shrink_to_fit();
        self.tables.push(table);
        while let Some([older, newer]) = self.tables.last_chunk::<2>()
            && older.len() < newer.len() * 2
        {
            let both = merged(older, newer);
            self.tables.truncate(self.tables.len() - 2);
            self.tables.push(both);
        }
    }

    /// Sorts everything into one table, which shows how much of it is still true.
    pub fn shrink(&mut self) {
        self.settle();
        while let Some([older, newer]) = self.tables.last_chunk::<2>() {
            let both = merged(older, newer);
            self.tables.truncate(self.tables.len() - 2);
            self.tables.push(both);
        }
    }

    /// Takes everything out as one table.
    pub fn take(&mut self) -> Vec<Packed> {
        if self.tables.is_empty() {
            // It is kept as it is: copying it to fit costs more than the room to grow.
            return sorted(std::mem::take(&mut self.fresh));
        }
        self.shrink();
        self.tables.pop().unwrap_or_default()
    }

    /// Whether [`Self::layers`] gives all.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.fresh.is_empty()
    }

    /// The sorted tables, newest first.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        self.tables.iter().rev().map(|table| Layer::Table(table))
    }

    /// Number of entries, those that were overwritten since they were last sorted included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fresh.len() + self.tables.iter().map(Vec::len).sum::<usize>()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the entries take, with the room to grow.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let capacity = self.fresh.capacity() + self.tables.iter().map(Vec::capacity).sum::<usize>();
        capacity * size_of::<Packed>()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

fn push(entries: &mut Vec<Packed>, entry: IndexEntry) {
    make_room(entries, 1);
    entries.push(Packed::of(&entry));
}

/// Makes room for some more; doubling would leave up to half of the memory unused.
fn make_room(entries: &mut Vec<Packed>, more: usize) {
    if entries.len() + more > entries.capacity() {
        entries.reserve_exact((entries.len() / 2).max(GROWTH_MIN).max(more));
    }
}

fn merged(older: &[Packed], newer: &[Packed]) -> Vec<Packed> {
    let mut both = Vec::with_capacity(older.len() + newer.len());
    // Neither tables nor the closure fail.
    let _infallible = merge(&[Layer::Table(newer), Layer::Table(older)], &mut |entry| {
        push(&mut both, entry);
        Ok::<(), IndexError>(())
    });
    both.shrink_to_fit();
    both
}

/// A table out of entries in any order.
fn sorted(mut entries: Vec<Packed>) -> Vec<Packed> {
    sort(&mut entries);
    let overlaps = entries.iter().zip(entries.iter().skip(1)).any(|(this, next)| this.end() > next.start());
    if !overlaps {
        return entries;
    }
    let mut table = Vec::new();
    let mut sweep = Sweep::default();
    let mut take = |entry| {
        push(&mut table, entry);
        Ok::<(), std::convert::Infallible>(())
    };
    for entry in &entries {
        let Ok(()) = sweep.push(entry.unpack(), &mut take);
    }
    let Ok(()) = sweep.finish(&mut take);
    table
}

#[cfg(test)]
mod tests;
