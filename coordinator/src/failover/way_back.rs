//! What a failback has to move to a disk at its source. Pure: maps in, ranges and a way of finding them out.
//!
//! Owns the decision only; it is to be used by the jobs of re-protection and failback (docs/failover.md has their design).
//! The branch of the target began at a point; since then the source may have been written to (`source`), and the target was
//! (`target`). Invariant: outside the ranges of [`Way::Differences`] both sides hold the same bytes, provided that both maps
//! are what they are trusted to be. Cost: that of sorting both maps; nothing is in proportion to the disk.

use holdfast_common::units::{BlockCount, BlockRange};

/// What is known of the blocks that one side has written since the common point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// These and no others, in any order; they may overlap.
    Known(Vec<BlockRange>),
    /// Not known: tracking was lost, or there never was any.
    Unknown,
}

/// The source's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceDisk {
    /// It is there, with what was written to it.
    There(Since),
    /// It is lost, or was replaced by an empty one.
    Gone,
}

/// How the disk is brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// These ranges are sent as the target has them: sorted, apart from each other, not empty.
    Differences(Vec<BlockRange>),
    /// Digests of both sides are compared over the whole disk, and what differs is sent.
    Comparison,
    /// All of it is sent, holes left out.
    Seed,
}

/// How a disk of `size` blocks is brought to what its target holds.
#[must_use]
pub fn way_back(size: BlockCount, source: SourceDisk, target: Since) -> Way {
    match (source, target) {
        (SourceDisk::Gone, _) => Way::Seed,
        (SourceDisk::There(Since::Known(source)), Since::Known(target)) => {
            Way::Differences(union(size, source.into_iter().chain(target)))
        }
        (SourceDisk::There(_), _) => Way::Comparison,
    }
}

/// All blocks of these ranges that the disk has, as few ranges.
fn union(size: BlockCount, ranges: impl Iterator<Item = BlockRange>) -> Vec<BlockRange> {
    let disk = BlockRange::new(0, size.0);
    let mut sorted: Vec<BlockRange> = ranges.filter_map(|range| range.intersection(disk)).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<BlockRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match joined.last_mut() {
            Some(last) if range.start <= last.end() => {
                let end = last.end().0.max(range.end().0);
                *last = BlockRange::new(last.start.0, end - last.start.0);
            }
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{BlockCount, BlockRange, Since, SourceDisk, Way, way_back};

    const SIZE: u64 = 64;

    fn ranges() -> impl Strategy<Value = Vec<BlockRange>> {
        let range = (0..SIZE + 8, 0_u64..12).prop_map(|(start, count)| BlockRange::new(start, count));
        prop::collection::vec(range, 0..12)
    }

    fn written(disk: &mut [u32], ranges: &[BlockRange], mark: u32) {
        for block in ranges.iter().flat_map(|range| range.start.0..range.end().0) {
            if let Some(block) = disk.get_mut(usize::try_from(block).unwrap()) {
                *block += mark;
            }
        }
    }

    proptest! {
        /// Both sides write; sending the differences makes the source what the target is, and moves no block that
        /// neither has written.
        #[test]
        fn the_differences_are_enough_and_no_more(source in ranges(), target in ranges()) {
            let common: Vec<u32> = (0..SIZE).map(|block| u32::try_from(block).unwrap() << 8).collect();
            let (mut there, mut here) = (common.clone(), common.clone());
            written(&mut there, &source, 1);
            written(&mut here, &target, 100);
            let touched = |block: usize| there[block] != common[block] || here[block] != common[block];
            let expected: usize = (0..common.len()).filter(|block| touched(*block)).count();
            let way = way_back(
                BlockCount(SIZE),
                SourceDisk::There(Since::Known(source.clone())),
                Since::Known(target.clone()),
            );
            let Way::Differences(moved) = way else { panic!("{way:?}") };
            let mut restored = there.clone();
            let mut count = 0;
            for range in &moved {
                prop_assert!(!range.is_empty() && range.end().0 <= SIZE);
                for block in range.start.0..range.end().0 {
                    let block = usize::try_from(block).unwrap();
                    restored[block] = here[block];
                    count += 1;
                }
            }
            prop_assert_eq!(restored, here);
            prop_assert_eq!(count, expected);
            prop_assert!(moved.windows(2).all(|pair| pair[0].end() < pair[1].start), "{:?}", moved);
        }
    }

    #[test]
    fn what_is_not_known_is_compared_and_what_is_gone_is_sent() {
        let size = BlockCount(SIZE);
        let known = || Since::Known(vec![BlockRange::new(1, 1)]);
        for (source, target) in [(Since::Unknown, known()), (known(), Since::Unknown)] {
            assert_eq!(way_back(size, SourceDisk::There(source), target), Way::Comparison);
        }
        for target in [known(), Since::Unknown] {
            assert_eq!(way_back(size, SourceDisk::Gone, target), Way::Seed);
        }
    }
}
