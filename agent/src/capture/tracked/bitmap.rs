//! Moving marks into the map of an interval, giving them back, and clearing what was acknowledged.
//!
//! Owns the word arithmetic on bitmaps. Does not know where their memory comes from.
//! Invariant: a bit enters the taken map before it leaves the marks, so that death between the two loses nothing.
//! Limit: work is one pass over the words; clearing costs only the pages that were touched.
//! Format: block n is bit `n % 64` of word `n / 64`.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

#[cfg(test)]
use holdfast_common::units::BlockIndex;
use holdfast_common::units::BlockRange;

/// Words whose use is remembered together (4 KiB of bitmap, 128 MiB of disk).
const PAGE_WORDS: usize = 512;

/// Which pages of a taken map may hold bits.
#[derive(Debug, Default)]
pub(super) struct TouchedPages(Vec<bool>);

impl TouchedPages {
    pub(super) fn new(words: usize) -> Self {
        Self(vec![false; words.div_ceil(PAGE_WORDS)])
    }

    fn touch(&mut self, word: usize) {
        if let Some(page) = self.0.get_mut(word / PAGE_WORDS) {
            *page = true;
        }
    }
}

/// Collects single blocks into runs.
struct Runs<'a> {
    open: Option<(u64, u64)>,
    blocks: u64,
    found: &'a mut dyn FnMut(BlockRange),
}

impl Runs<'_> {
    fn add(&mut self, start: u64, end: u64) {
        self.blocks += end - start;
        match &mut self.open {
            Some((_, open_end)) if *open_end == start => *open_end = end,
            _ => {
                self.close();
                self.open = Some((start, end));
            }
        }
    }

    fn close(&mut self) {
        if let Some((start, end)) = self.open.take() {
            (self.found)(BlockRange::new(start, end - start));
        }
    }
}

/// Moves all marks to `taken` and calls `found` with each run, ascending. Returns the number of blocks.
pub(super) fn take(
    marks: &[AtomicU64],
    taken: &[AtomicU64],
    touched: &mut TouchedPages,
    found: &mut dyn FnMut(BlockRange),
) -> u64 {
    let mut runs = Runs { open: None, blocks: 0, found };
    for (index, (mark, keep)) in marks.iter().zip(taken).enumerate() {
        let word = mark.load(SeqCst);
        if word == 0 {
            continue;
        }
        keep.fetch_or(word, SeqCst);
        touched.touch(index);
        mark.fetch_and(!word, SeqCst);
        runs_of_word(word, index as u64 * 64, &mut runs);
    }
    runs.close();
    runs.blocks
}

fn runs_of_word(word: u64, first_block: u64, runs: &mut Runs<'_>) {
    let (mut rest, mut shift) = (word, 0_u64);
    while rest != 0 {
        let zeros = u64::from(rest.trailing_zeros());
        rest >>= zeros;
        let ones = u64::from(rest.trailing_ones());
        let start = first_block + shift + zeros;
        runs.add(start, start + ones);
        shift += zeros + ones;
        // Shifting by all 64 bits is not defined, and then nothing is left anyway.
        rest = if ones == 64 { 0 } else { rest >> ones };
    }
}

/// Sets the marks of a range, cut to the bitmap's first `blocks` blocks. Returns how many blocks were asked for.
pub(super) fn mark(marks: &[AtomicU64], blocks: u64, range: BlockRange) -> u64 {
    let Some(range) = range.intersection(BlockRange::new(0, blocks)) else { return 0 };
    let (first, last) = (range.start.0, range.end().0 - 1);
    let (first_word, last_word) = (word_of(first), word_of(last));
    for index in first_word..=last_word {
        let from = if index == first_word { !0 << (first % 64) } else { !0 };
        let to = if index == last_word { !0 >> (63 - last % 64) } else { !0 };
        if let Some(word) = marks.get(index) {
            word.fetch_or(from & to, SeqCst);
        }
    }
    range.count.0
}

/// Whether a block is marked.
#[cfg(test)]
fn is_marked(marks: &[AtomicU64], block: BlockIndex) -> bool {
    marks.get(word_of(block.0)).is_some_and(|word| word.load(SeqCst) >> (block.0 % 64) & 1 == 1)
}

/// Empties a taken map.
pub(super) fn clear(taken: &[AtomicU64], touched: &mut TouchedPages) {
    for (page, is_touched) in taken.chunks(PAGE_WORDS).zip(&mut touched.0) {
        if std::mem::take(is_touched) {
            page.iter().for_each(|word| word.store(0, SeqCst));
        }
    }
}

/// Marks everything that a taken map remembers; it stays remembered.
pub(super) fn mark_again(marks: &[AtomicU64], taken: &[AtomicU64], touched: &TouchedPages) -> u64 {
    let pages = marks.chunks(PAGE_WORDS).zip(taken.chunks(PAGE_WORDS)).zip(&touched.0);
    let words = pages.filter(|(_, is_touched)| **is_touched).flat_map(|((to, from), _)| to.iter().zip(from));
    words.map(|(to, from)| move_bits(to, from.load(SeqCst))).sum()
}

/// Gives everything that a taken map remembers back to the marks, and empties it.
pub(super) fn give_back(marks: &[AtomicU64], taken: &[AtomicU64]) -> u64 {
    let mut blocks = 0;
    for (to, from) in marks.iter().zip(taken) {
        let word = from.load(SeqCst);
        if word != 0 {
            blocks += move_bits(to, word);
            from.store(0, SeqCst);
        }
    }
    blocks
}

fn move_bits(to: &AtomicU64, bits: u64) -> u64 {
    if bits != 0 {
        to.fetch_or(bits, SeqCst);
    }
    u64::from(bits.count_ones())
}

/// Number of marked blocks.
pub(super) fn count(marks: &[AtomicU64]) -> u64 {
    marks.iter().map(|word| u64::from(word.load(std::sync::atomic::Ordering::Relaxed).count_ones())).sum()
}

fn word_of(block: u64) -> usize {
    (block / 64) as usize
}

#[cfg(test)]
mod tests;
