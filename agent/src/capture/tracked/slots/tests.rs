//! The packing of slots.

use super::*;

#[test]
fn slots_are_told_apart() {
    assert_eq!(decode(0), None);
    assert_eq!(decode(u64::MAX), Some(InFlight::ManyRanges));
    assert_eq!(decode(7 << 28 | 3), Some(InFlight::Range(BlockRange::new(7, 3))));
    let last = SLOT_BLOCKS_MAX - 1;
    assert_eq!(decode(last << 28 | 1), Some(InFlight::Range(BlockRange::new(last, 1))));
}
