//! Some frames of one log: one bit each.
//!
//! Owns the bits. Pure. Limit: one bit of memory per frame between the first and the last one, so 2 MiB for a terabyte of
//! frames of 64 KiB.

use holdfast_common::ids::Sequence;

/// Some frames of one log behind a given one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameSet {
    after: u64,
    words: Vec<u64>,
}

impl FrameSet {
    /// No frame, with room for those behind `after`.
    #[must_use]
    pub const fn new(after: Sequence) -> Self {
        Self { after: after.0, words: Vec::new() }
    }

    /// Adds a frame; one that is not behind the set's beginning is left out.
    pub fn insert(&mut self, sequence: Sequence) {
        let Some((word, bit)) = self.place(sequence) else { return };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }

    /// Adds the frames of another set that begins behind the same frame.
    pub fn unite(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
    }

    /// Takes a frame out.
    pub fn remove(&mut self, sequence: Sequence) {
        if let Some((word, bit)) = self.place(sequence)
            && let Some(word) = self.words.get_mut(word)
        {
            *word &= !bit;
        }
    }

    /// Whether the frame is in it.
    #[must_use]
    pub fn contains(&self, sequence: Sequence) -> bool {
        let found = self.place(sequence).and_then(|(word, bit)| Some(self.words.get(word)? & bit));
        found.is_some_and(|bit| bit != 0)
    }

    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The frames behind `after`, ascending.
    pub fn iter_after(&self, after: Sequence) -> impl Iterator<Item = Sequence> + '_ {
        let from = after.0.max(self.after) - self.after;
        let first = usize::try_from(from / 64).unwrap_or(usize::MAX);
        let mut bits = self.words.get(first).map_or(0, |word| word & (u64::MAX << (from % 64)));
        let mut at = first;
        std::iter::from_fn(move || {
            while bits == 0 {
                at = at.checked_add(1)?;
                bits = *self.words.get(at)?;
            }
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            Some(Sequence(self.after + 1 + at as u64 * 64 + u64::from(bit)))
        })
    }

    /// All frames, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Sequence> + '_ {
        self.iter_after(Sequence(self.after))
    }

    /// Bytes in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    fn place(&self, sequence: Sequence) -> Option<(usize, u64)> {
        let at = sequence.0.checked_sub(self.after)?.checked_sub(1)?;
        Some((usize::try_from(at / 64).ok()?, 1 << (at % 64)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use holdfast_common::ids::Sequence;
    use proptest::prelude::{any, proptest};

    use super::FrameSet;

    proptest! {
        #[test]
        fn equals_a_set_of_numbers(
            after in 0u64..200,
            ops in proptest::collection::vec((0u64..700, any::<bool>()), 0..200),
            from in 0u64..700,
        ) {
            let (mut set, mut model) = (FrameSet::new(Sequence(after)), BTreeSet::new());
            for (sequence, add) in ops {
                if add {
                    set.insert(Sequence(sequence));
                    model.extend(Some(sequence).filter(|sequence| *sequence > after));
                } else {
                    set.remove(Sequence(sequence));
                    model.remove(&sequence);
                }
            }
            assert!(set.iter().map(|sequence| sequence.0).eq(model.iter().copied()));
            assert!(set.iter_after(Sequence(from)).map(|sequence| sequence.0).eq(model.range(from + 1..).copied()));
            assert_eq!(set.len(), model.len() as u64);
            assert!((0..700).all(|sequence| set.contains(Sequence(sequence)) == model.contains(&sequence)));
        }
    }
}
