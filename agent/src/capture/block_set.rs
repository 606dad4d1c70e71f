//! A set of blocks of one disk: what was taken from the marks and has not been read yet.
//!
//! Owns one bit per block, allocated and touched when the set is made, so that adding to it never faults in a page.
//! Does not know devices or frames. Invariant: `count` is the number of bits set, and no bit stands at or beyond the
//! disk's size. Limit: 32 MiB of memory per TiB of disk.

use holdfast_common::units::{BlockCount, BlockIndex, BlockRange};

const WORD_BITS: u64 = 64;

/// A set of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockSet {
    words: Vec<u64>,
    size: BlockCount,
    count: u64,
}

impl BlockSet {
    /// An empty set for a disk of `size` blocks.
    #[must_use]
    pub fn new(size: BlockCount) -> Self {
        let length = usize::try_from(size.0.div_ceil(WORD_BITS)).unwrap_or(usize::MAX);
        // Filled with ones first: an allocation of zeroes would be mapped lazily, and pages must not be faulted in
        // while file systems are frozen.
        let mut words = vec![u64::MAX; length];
        std::hint::black_box(&mut words).fill(0);
        Self { words, size, count: 0 }
    }

    /// Size of the disk.
    #[must_use]
    pub const fn size(&self) -> BlockCount {
        self.size
    }

    /// Number of blocks in the set.
    #[must_use]
    pub const fn count(&self) -> BlockCount {
        BlockCount(self.count)
    }

    /// Whether the set holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the blocks of a range; what lies beyond the disk is left out.
    pub fn insert(&mut self, range: BlockRange) {
        self.change(range, |word, mask| *word |= mask);
    }

    /// Takes the blocks of a range out.
    pub fn remove(&mut self, range: BlockRange) {
        self.change(range, |word, mask| *word &= !mask);
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.count = 0;
    }

    /// Whether a block is in the set.
    #[must_use]
    pub fn contains(&self, block: BlockIndex) -> bool {
        let (index, bit) = position(block.0);
        self.words.get(index).is_some_and(|word| word & (1 << bit) != 0)
    }

    /// The first run of neighbouring blocks at or after `from`, at most `max` of them.
    #[must_use]
    pub fn next_run(&self, from: BlockIndex, max: BlockCount) -> Option<BlockRange> {
        let start = self.find(from.0, |word| word)?;
        let end = self.find(start, |word| !word).unwrap_or(self.size.0).min(self.size.0);
        Some(BlockRange::new(start, (end - start).min(max.0)))
    }

    /// All runs, ascending.
    pub fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        let mut from = BlockIndex(0);
        std::iter::from_fn(move || {
            let run = self.next_run(from, self.size)?;
            from = run.end();
            Some(run)
        })
    }

    /// The first position at or after `from` whose bit is set in `view` of its word.
    fn find(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let (first, bit) = position(from);
        let mut keep = u64::MAX << bit;
        for (index, word) in self.words.iter().enumerate().skip(first) {
            let word = view(*word) & keep;
            if word != 0 {
                return Some(index as u64 * WORD_BITS + u64::from(word.trailing_zeros()));
            }
            keep = u64::MAX;
        }
        None
    }

    fn change(&mut self, range: BlockRange, apply: impl Fn(&mut u64, u64)) {
        let end = range.end().0.min(self.size.0);
        let mut at = range.start.0;
        while at < end {
            let (index, bit) = position(at);
            let bits = (WORD_BITS - u64::from(bit)).min(end - at);
            let mask = if bits == WORD_BITS { u64::MAX } else { ((1 << bits) - 1) << bit };
            if let Some(word) = self.words.get_mut(index) {
                let before = word.count_ones();
                apply(word, mask);
                self.count = self.count + u64::from(word.count_ones()) - u64::from(before);
            }
            at += bits;
        }
    }
}

/// Word and bit of a block.
fn position(block: u64) -> (usize, u32) {
    let bit = u32::try_from(block % WORD_BITS).unwrap_or(0);
    (usize::try_from(block / WORD_BITS).unwrap_or(usize::MAX), bit)
}

#[cfg(test)]
mod tests;
