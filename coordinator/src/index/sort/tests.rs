//! The sort against the standard library's.

use holdfast_common::ids::Sequence;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use super::{Packed, RADIX_MIN, sort_on};
use crate::index::entry::IndexEntry;

/// Places of several kinds: all over a disk, in a small part of it, in few parts far from each other, on a grid.
fn starts() -> impl Strategy<Value = Vec<u64>> {
    let kinds = prop_oneof![
        Just((0, 1u64 << 42, 1)),
        Just((1 << 30, 3000, 1)),
        Just((0, 10, 1 << 38)),
        Just((5, 1 << 20, 64))
    ];
    let count = prop_oneof![0usize..10, RADIX_MIN - 2..RADIX_MIN + 2, 2000usize..6000];
    (kinds, count).prop_flat_map(|((least, places, step), count)| {
        proptest::collection::vec(
            (0..places).prop_map(move |place| (least + place * step) % (1 << 42)),
            count,
        )
    })
}

proptest! {
    #[test]
    fn the_same_entries_come_out_in_order(starts in starts(), threads in 1usize..6) {
        let entry = |(number, start): (usize, &u64)| {
            let sequence = Sequence(number as u64 + 1);
            Packed::of(&IndexEntry { start: *start, count: 1, sequence, plain: None })
        };
        let entries: Vec<Packed> = starts.iter().enumerate().map(entry).collect();
        let mut sorted = entries.clone();
        sort_on(threads, &mut sorted);
        assert!(sorted.is_sorted_by_key(Packed::start));
        let key = |entry: &Packed| (entry.start(), entry.unpack().sequence);
        let mut expected = entries;
        expected.sort_unstable_by_key(key);
        sorted.sort_by_key(key);
        assert_eq!(sorted, expected);
    }
}

#[test]
fn many_entries_are_sorted_too() {
    // As many as make pieces of all values of a digit, at places that look random.
    let places = (1..=300_000u64).map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24);
    let entry = |start| Packed::of(&IndexEntry { start, count: 1, sequence: Sequence(1), plain: None });
    let mut sorted: Vec<Packed> = places.clone().map(entry).collect();
    sort_on(3, &mut sorted);
    let mut expected: Vec<u64> = places.collect();
    expected.sort_unstable();
    assert!(sorted.iter().map(Packed::start).eq(expected));
}
