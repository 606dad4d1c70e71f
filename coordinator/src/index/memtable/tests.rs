//! The memory table against a plain array.

use holdfast_common::ids::Sequence;
use proptest::prelude::{any, proptest};

use super::Memtable;
use crate::index::{
    entry::{IndexEntry, Packed},
    lookup::IndexError,
    merge::{Layer, merge},
};

const BLOCKS: usize = 4096;

fn check(table: &mut Memtable, model: &[u64]) {
    table.settle();
    assert!(table.is_settled());
    let layers: Vec<Layer<'_>> = table.layers().collect();
    let mut found = vec![0; BLOCKS];
    let mut end = 0;
    merge(&layers, &mut |entry| {
        assert!(entry.start >= end, "entries overlap");
        end = entry.end();
        for block in entry.start..end {
            let plain = u64::from(entry.plain.unwrap()) + block - entry.start;
            assert_eq!(plain, block % 1000, "an entry was cut wrongly");
            found[usize::try_from(block).unwrap()] = entry.sequence.0;
        }
        Ok::<(), IndexError>(())
    })
    .unwrap();
    assert_eq!(found, model);
}

proptest! {
    #[test]
    fn the_newest_wins_whenever_it_is_looked_at(
        // Enough entries for the radix sort, when nobody looks for long.
        writes in proptest::collection::vec((0u64..1000, 1u64..60, any::<bool>()), 1..3000),
        looks in proptest::collection::vec(0usize..3000, 0..4),
    ) {
        let mut table = Memtable::default();
        let mut model = vec![0; BLOCKS];
        for (round, (start, count, long)) in writes.iter().enumerate() {
            let start = start * 4;
            let count = if *long { *count } else { 1 };
            let count = count.min(BLOCKS as u64 - start).min(1000 - start % 1000);
            let sequence = Sequence(round as u64 + 1);
            let plain = Some(u32::try_from(start % 1000).unwrap());
            table.insert(&[Packed::of(&IndexEntry { start, count, sequence, plain })]);
            for block in start..start + count {
                model[usize::try_from(block).unwrap()] = sequence.0;
            }
            if looks.contains(&round) {
                check(&mut table, &model);
            }
        }
        check(&mut table, &model);
        table.shrink();
        assert!(table.layers().count() <= 1);
        check(&mut table, &model);
    }
}

#[test]
fn an_entry_takes_at_most_24_bytes_and_overwritten_ones_none() {
    let mut table = Memtable::default();
    let entry = |start, sequence| {
        Packed::of(&IndexEntry { start, count: 1, sequence: Sequence(sequence), plain: Some(0) })
    };
    for round in 0..300_000u64 {
        table.insert(&[entry(round * 7919 % 1_000_003, round + 1)]);
        assert!(table.memory_bytes() <= table.len() * 24 + super::GROWTH_MIN * 16);
        if round % 50_000 == 0 {
            table.settle();
        }
    }
    for round in 0..100_000 {
        table.insert(&[entry(round % 10, 400_000 + round)]);
    }
    table.shrink();
    let blocks: std::collections::BTreeSet<u64> =
        (0..300_000).map(|round| round * 7919 % 1_000_003).chain(0..10).collect();
    assert_eq!(table.len(), blocks.len());
    assert!(table.memory_bytes() <= table.len() * 24);
}
