//! Damage is delimited exactly, whatever the read's borders.

use std::ops::Range;

use holdfast_common::{
    ids::Sequence,
    units::{BLOCK_BYTES, BlockRange},
};

use super::{extents_of, read_around_damage};
use crate::points::view::{BlockView, ViewError, ViewExtent};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Sixteen blocks; byte value = block number; some damaged. Each error names one damaged range.
#[derive(Debug)]
struct Damaged(Vec<BlockRange>);

impl BlockView for Damaged {
    fn size_bytes(&self) -> u64 {
        16 * BLOCK
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let asked = BlockRange::covering(offset, buffer.len() as u64);
        // The last one first: callers must not rely on an order.
        if let Some(range) = self.0.iter().rev().find(|range| range.intersection(asked).is_some()) {
            buffer.fill(0xee);
            return Err(ViewError::Damaged { range: *range, sequence: Sequence(1), place: "x".into() });
        }
        for (at, byte) in (offset..).zip(buffer) {
            *byte = u8::try_from(at / BLOCK).unwrap();
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        // Every second block is a hole, and only two extents are given at a time.
        let blocks = range.start.0..range.end().0.min(range.start.0 + 2);
        Ok(blocks
            .map(|block| ViewExtent { range: BlockRange::new(block, 1), hole: block % 2 == 1 })
            .collect())
    }
}

fn check(damaged: &[BlockRange], range: Range<u64>, expected: &[Range<u64>]) {
    let mut buffer = vec![0; usize::try_from(range.end - range.start).unwrap()];
    let failures = read_around_damage(&Damaged(damaged.to_vec()), range.start, &mut buffer);
    let failed: Vec<_> = failures.into_iter().map(|failure| failure.range).collect();
    assert_eq!(failed, expected);
    for (at, byte) in range.zip(buffer) {
        if !expected.iter().any(|failed| failed.contains(&at)) {
            assert_eq!(u64::from(byte), at / BLOCK, "byte {at}");
        }
    }
}

#[test]
fn failures_are_exactly_the_damage() {
    let two = [BlockRange::new(3, 2), BlockRange::new(9, 1)];
    check(&two, 0..16 * BLOCK, &[3 * BLOCK..5 * BLOCK, 9 * BLOCK..10 * BLOCK]);
    check(&two, 4 * BLOCK + 7..9 * BLOCK + 1, &[4 * BLOCK + 7..5 * BLOCK, 9 * BLOCK..9 * BLOCK + 1]);
    check(&two, 5 * BLOCK..9 * BLOCK, &[]);
    check(&[BlockRange::new(0, 16)], 10..20, std::slice::from_ref(&(10..20)));
}

#[test]
fn extents_are_clipped_to_the_range() {
    let parts = extents_of(&Damaged(Vec::new()), &(100..2 * BLOCK - 1)).unwrap();
    assert_eq!(parts, [(100..BLOCK, false), (BLOCK..2 * BLOCK - 1, true)]);
}
