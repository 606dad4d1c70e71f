//! The cache's budget and order, and that one reads where many want.

use std::sync::{Arc, OnceLock};

use holdfast_common::{
    frame::Extent,
    ids::{DiskId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use proptest::prelude::{ProptestConfig, any, proptest};

use super::{Key, PlainFrame, Shard};

const BLOCKS: usize = 4;

fn frame() -> Arc<PlainFrame> {
    let extents = [Extent::data(BlockRange::new(0, BLOCKS as u64))].into();
    Arc::new(PlainFrame { extents, plain: vec![1; BLOCKS * BLOCK_BYTES] })
}

fn key(number: u8) -> Key {
    (DiskId::from_bytes([1; 16]), Sequence(u64::from(number)))
}

/// Asks for a frame; reads it if it is not there, as the cache does. Whether it was read.
fn ask(shard: &mut Shard, number: u8, bytes_max: usize) -> bool {
    let outcome = shard.outcome(key(number));
    let mut read = false;
    let frame = outcome.get_or_init(|| {
        read = true;
        Ok(frame())
    });
    if read {
        let cost = frame.as_ref().ok().map(|frame| frame.cost());
        shard.settle(key(number), &outcome, cost, bytes_max);
    }
    read
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_budget_holds_and_the_books_are_right(
        asked in proptest::collection::vec((any::<u8>(), any::<bool>()), 1..300),
        room in 1usize..8,
    ) {
        let bytes_max = room * frame().cost();
        let mut shard = Shard::default();
        // Frames that are being read all the while: they cost nothing and never go.
        let reading: Vec<Arc<OnceLock<_>>> = (250..=251).map(|number| shard.outcome(key(number))).collect();
        for (number, again) in asked {
            let number = number % 20;
            ask(&mut shard, number, bytes_max);
            if again {
                assert!(!ask(&mut shard, number, bytes_max), "what was just read is there");
            }
            assert!(shard.bytes <= bytes_max);
            assert_eq!(shard.bytes, shard.slots.values().map(|slot| slot.cost).sum::<usize>());
            let mut order: Vec<Key> = shard.order.iter().copied().collect();
            order.sort_unstable();
            order.dedup();
            assert_eq!((order.len(), shard.order.len()), (shard.slots.len(), shard.slots.len()));
        }
        for (number, outcome) in (250..=251).zip(&reading) {
            assert!(Arc::ptr_eq(&shard.outcome(key(number)), outcome));
        }
    }
}

#[test]
fn what_is_used_again_outlives_what_is_not() {
    let bytes_max = 4 * frame().cost();
    let mut shard = Shard::default();
    ask(&mut shard, 1, bytes_max);
    for number in 2..100 {
        assert!(!ask(&mut shard, 1, bytes_max), "the hot frame was dropped before {number}");
        ask(&mut shard, number, bytes_max);
    }
}

#[test]
fn a_failed_read_is_forgotten() {
    let mut shard = Shard::default();
    let outcome = shard.outcome(key(1));
    shard.settle(key(1), &outcome, None, 1000);
    assert!(shard.slots.is_empty() && shard.order.is_empty());
    // Settling late, after the slot was made anew, changes nothing.
    let newer = shard.outcome(key(1));
    shard.settle(key(1), &outcome, Some(5), 1000);
    assert!(shard.bytes == 0 && Arc::ptr_eq(&shard.outcome(key(1)), &newer));
}
