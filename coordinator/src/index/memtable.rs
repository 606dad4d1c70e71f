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
};

/// Entries for which room is made at least.
const GROWTH_MIN: usize = 256;

/// Below this many entries comparing is faster than counting digits.
const RADIX_MIN: usize = 1024;

/// Bits that one pass of the sort looks at: the places that it writes to by turns fit a processor's nearest cache.
const DIGIT_BITS: u32 = 8;

/// A map of extents.
#[derive(Debug, Default)]
pub struct Memtable {
    /// In the order of frames, overlaps and all.
    fresh: Vec<Packed>,
    /// Oldest and largest first.
    tables: Vec<Vec<Packed>>,
}

impl Memtable {
    /// Puts an entry over whatever was there. Entries of a later frame come later.
    pub fn insert(&mut self, entry: IndexEntry) {
        push(&mut self.fresh, entry);
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

/// Adds one entry; doubling would leave up to half of the memory unused.
fn push(entries: &mut Vec<Packed>, entry: IndexEntry) {
    if entries.len() == entries.capacity() {
        entries.reserve_exact((entries.len() / 2).max(GROWTH_MIN));
    }
    entries.push(Packed::of(&entry));
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

/// Sorts by start: a radix sort from the lowest digit up that leaves out digits in which no two entries differ. All digits are
/// counted in one pass.
fn sort(entries: &mut Vec<Packed>) {
    if entries.is_sorted_by_key(Packed::start) {
        return;
    }
    if entries.len() < RADIX_MIN {
        entries.sort_unstable_by_key(Packed::start);
        return;
    }
    let first = entries.first().map_or(0, Packed::start);
    let differing = entries.iter().fold(0, |bits, entry| bits | (entry.start() ^ first));
    let lowest = differing.trailing_zeros();
    let digits = (u64::BITS - differing.leading_zeros() - lowest).div_ceil(DIGIT_BITS);
    let mut counts = vec![[0usize; 1 << DIGIT_BITS]; digits as usize];
    for entry in entries.iter() {
        let mut rest = entry.start() >> lowest;
        for counts in &mut counts {
            if let Some(count) = counts.get_mut(digit(rest)) {
                *count += 1;
            }
            rest >>= DIGIT_BITS;
        }
    }
    let mut target = vec![Packed::default(); entries.len()];
    for (number, mut places) in (0..).zip(counts) {
        let mut next = 0;
        for place in &mut places {
            let count = *place;
            *place = next;
            next += count;
        }
        pass(entries, &mut target, lowest + number * DIGIT_BITS, &mut places);
        std::mem::swap(entries, &mut target);
    }
}

/// The lowest digit.
fn digit(rest: u64) -> usize {
    usize::try_from(rest & ((1 << DIGIT_BITS) - 1)).unwrap_or(0)
}

/// Moves entries to where their digit belongs, keeping the order of equal ones. `places` says where the first of each goes.
fn pass(entries: &[Packed], target: &mut [Packed], shift: u32, places: &mut [usize; 1 << DIGIT_BITS]) {
    for entry in entries {
        if let Some(place) = places.get_mut(digit(entry.start() >> shift)) {
            if let Some(slot) = target.get_mut(*place) {
                *slot = *entry;
            }
            *place += 1;
        }
    }
}

#[cfg(test)]
mod tests;
