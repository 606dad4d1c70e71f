//! Witness: which blocks of the copy are not what the source had at a cut.
//!
//! Pure. Owns the comparison. Invariant: a block that cannot be read here, or is known to be wrong already, is no new
//! difference, but counts as one for its point.

use holdfast_common::{
    frame::{WitnessBlock, cut::WITNESS_DIGEST_BYTES},
    units::BlockRange,
};

/// What came of some blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Blocks that were compared.
    pub blocks: u32,
    /// Blocks of which the copy holds something else, ascending.
    pub differing: Vec<BlockRange>,
    /// Blocks that the copy cannot give.
    pub unreadable: u32,
}

impl Compared {
    /// Adds those of another disk; ranges of several disks say nothing together, only their number does.
    pub fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.unreadable += other.unreadable;
        self.differing.extend(other.differing);
    }

    /// Blocks that the copy does not hold as the source had them.
    #[must_use]
    pub fn differed(&self) -> u32 {
        let differing: u64 = self.differing.iter().map(|range| range.count.0).sum();
        u32::try_from(differing).unwrap_or(u32::MAX).saturating_add(self.unreadable)
    }
}

/// Compares what was witnessed with the digests of the same blocks here, in the same order; `None` is a block that cannot
/// be given.
#[must_use]
pub fn compare(witnessed: &[WitnessBlock], here: &[Option<[u8; WITNESS_DIGEST_BYTES]>]) -> Compared {
    let mut compared = Compared::default();
    for (block, here) in witnessed.iter().zip(here) {
        compared.blocks += 1;
        match here {
            None => compared.unreadable += 1,
            Some(here) if *here == block.digest => {}
            Some(_) => match compared.differing.last_mut().filter(|last| last.end() == block.block) {
                Some(last) => last.count.0 += 1,
                None => compared.differing.push(BlockRange::new(block.block.0, 1)),
            },
        }
    }
    compared
}

#[cfg(test)]
mod tests {
    use holdfast_common::{
        frame::WitnessBlock,
        ids::DiskId,
        units::{BlockIndex, BlockRange},
    };

    use super::compare;

    fn block(number: u64, digest: u8) -> WitnessBlock {
        WitnessBlock { disk: DiskId::from_bytes([1; 16]), block: BlockIndex(number), digest: [digest; 16] }
    }

    #[test]
    fn neighbours_that_differ_are_one_range_and_equal_ones_none() {
        let witnessed = [block(3, 1), block(4, 2), block(5, 3), block(9, 4), block(10, 5)];
        let here = [Some([1; 16]), Some([9; 16]), Some([9; 16]), Some([9; 16]), None];
        let compared = compare(&witnessed, &here);
        assert_eq!(compared.differing, [BlockRange::new(4, 2), BlockRange::new(9, 1)]);
        assert_eq!((compared.blocks, compared.unreadable, compared.differed()), (5, 1, 4));
        let equal = compare(&witnessed[..1], &here[..1]);
        assert_eq!((equal.blocks, equal.differed(), equal.differing.len()), (1, 0, 0));
    }
}
