//! Sorting entries by their first blocks.
//!
//! Owns the radix sort. Does not know frames or runs. One pass spreads the entries by the highest digit in which they differ, into
//! pieces that fit a processor's nearest cache; each piece is sorted by the digits below, from the lowest up. Processors share the
//! pieces. The order of entries with the same first block is not kept: their sequences say which one is newer.
//! Limit: as much memory again as the entries take; [`THREADS_MAX`](super::threads::THREADS_MAX) threads.

use std::{
    sync::{Mutex, PoisonError},
    thread,
};

use super::{entry::Packed, threads::threads_for};

/// Below this many entries comparing is faster than counting digits.
const RADIX_MIN: usize = 1024;

/// The same for a piece, whose entries are in the nearest cache.
const PIECE_RADIX_MIN: usize = 64;

/// Bits that one pass looks at, at most: the places that it writes to by turns fit a processor's nearest cache.
const DIGIT_BITS: u32 = 8;

/// A piece gets about 2 to the power of so many entries, 16 KiB: the more it has, the less its counters cost.
const PIECE_BITS: u32 = 10;

/// Values of a digit.
const DIGITS: usize = 1 << DIGIT_BITS;

/// Shares that pieces are given out in, for each thread: whoever is done first takes the next one.
const SHARES_PER_THREAD: usize = 4;

/// Sorts by first block.
pub(super) fn sort(entries: &mut Vec<Packed>) {
    sort_on(threads_for(entries.len() as u64), entries);
}

fn sort_on(threads: usize, entries: &mut Vec<Packed>) {
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
    let top = entries.len().ilog2().saturating_sub(PIECE_BITS).clamp(1, DIGIT_BITS);
    let below = (u64::BITS - differing.leading_zeros() - lowest).saturating_sub(top);
    let order = Order { lowest, below, passes: below.div_ceil(DIGIT_BITS) };
    let mut spread = vec![Packed::default(); entries.len()];
    let ends = scatter(entries, &mut spread, lowest + below, top);
    sort_pieces(threads, order, &ends, &mut spread, entries);
    if order.passes.is_multiple_of(2) {
        *entries = spread;
    }
}

/// How pieces are sorted.
#[derive(Clone, Copy)]
struct Order {
    /// The lowest bit in which entries differ.
    lowest: u32,
    /// Bits from there on in which entries of a piece may differ.
    below: u32,
    /// Passes that it takes. After an even number of them entries are where they were, after an odd one in the other place.
    passes: u32,
}

/// Sorts the pieces that end at these places, by several threads.
fn sort_pieces(threads: usize, order: Order, ends: &[usize], mut from: &mut [Packed], mut to: &mut [Packed]) {
    let share = from.len().div_ceil(threads * SHARES_PER_THREAD).max(1);
    let (mut shares, mut rest, mut begin) = (Vec::new(), ends, 0);
    while !rest.is_empty() {
        let count = rest.partition_point(|end| *end < begin + share) + 1;
        let (ends, others) = rest.split_at(count.min(rest.len()));
        let end = ends.last().map_or(begin, |end| *end);
        let (these_from, others_from) = from.split_at_mut(end - begin);
        let (these_to, others_to) = to.split_at_mut(end - begin);
        shares.push(Share { ends, begin, from: these_from, to: these_to });
        (rest, begin, from, to) = (others, end, others_from, others_to);
    }
    let shares = Mutex::new(shares);
    let next = || shares.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || {
        while let Some(share) = next() {
            share.sort(order);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without it the others do its work.
            let _none = thread::Builder::new().name("index-sort".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
}

/// Pieces side by side.
struct Share<'a> {
    /// Where each ends, counted from the first piece of all.
    ends: &'a [usize],
    /// The same for where these begin.
    begin: usize,
    from: &'a mut [Packed],
    to: &'a mut [Packed],
}

impl Share<'_> {
    fn sort(self, order: Order) {
        let mut start = 0;
        for end in self.ends.iter().map(|end| end - self.begin) {
            if let (Some(from), Some(to)) = (self.from.get_mut(start..end), self.to.get_mut(start..end)) {
                order.sort_piece(from, to);
            }
            start = end;
        }
    }
}

impl Order {
    fn sort_piece<'a>(self, mut from: &'a mut [Packed], mut to: &'a mut [Packed]) {
        if from.len() < PIECE_RADIX_MIN {
            from.sort_unstable_by_key(Packed::start);
            if !self.passes.is_multiple_of(2) {
                to.copy_from_slice(from);
            }
            return;
        }
        let bits = self.below.div_ceil(self.passes.max(1));
        for pass in 0..self.passes {
            scatter(from, to, self.lowest + pass * bits, bits);
            std::mem::swap(&mut from, &mut to);
        }
    }
}

/// Moves entries to where the digit of so many bits from `shift` on belongs, keeping the order of equal ones. Gives where the entries
/// of each digit end.
fn scatter(from: &[Packed], to: &mut [Packed], shift: u32, bits: u32) -> [usize; DIGITS] {
    let mask = (1u64 << bits) - 1;
    let digit = |entry: &Packed| usize::try_from(entry.start() >> shift & mask).unwrap_or(0) % DIGITS;
    let mut places = [0usize; DIGITS];
    for entry in from {
        if let Some(count) = places.get_mut(digit(entry)) {
            *count += 1;
        }
    }
    let mut next = 0;
    for place in &mut places {
        let count = *place;
        *place = next;
        next += count;
    }
    for entry in from {
        if let Some(place) = places.get_mut(digit(entry)) {
            if let Some(slot) = to.get_mut(*place) {
                *slot = *entry;
            }
            *place += 1;
        }
    }
    places
}

#[cfg(test)]
mod tests;
