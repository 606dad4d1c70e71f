use holdfast_common::ids::Sequence;
use proptest::prelude::*;

use super::{PAGE_ENTRIES, PAGE_HEAD_BYTES, PackedPage, Page, PageBuilder, is_intact};
use crate::index::entry::IndexEntry;

fn packed(entries: &[IndexEntry]) -> Vec<u8> {
    let (mut builder, mut bytes) = (PageBuilder::default(), vec![1]);
    entries.iter().for_each(|entry| builder.push(*entry));
    builder.finish(7, Sequence(99), &mut bytes);
    assert!(builder.first().is_none());
    bytes
}

/// Gaps, counts, sequences and places, each with small and with the largest values.
fn entries() -> impl Strategy<Value = Vec<IndexEntry>> {
    let gap = prop_oneof![0u64..3, 0u64..1 << 30];
    let count = prop_oneof![Just(1u64), 1u64..9, Just(1 << 22)];
    let sequence = prop_oneof![1000u64..1016, 0u64..1 << 48];
    let plain = proptest::option::of(prop_oneof![Just(0u32), 0u32..1 << 15]);
    prop::collection::vec((gap, count, sequence, plain), 1..=PAGE_ENTRIES).prop_map(|list| {
        let mut start = 3;
        let entries = list.into_iter().map(|(gap, count, sequence, plain)| {
            start += gap;
            let entry = IndexEntry { start, count, sequence: Sequence(sequence), plain };
            start += count;
            entry
        });
        entries.collect()
    })
}

proptest! {
    #[test]
    fn packing_loses_nothing_and_any_entry_is_found(entries in entries()) {
        let bytes = packed(&entries);
        prop_assert!(is_intact(7, Sequence(99), &bytes));
        let page = Page::Packed(PackedPage::parse(&bytes, entries[0].start).unwrap());
        prop_assert_eq!(page.len(), entries.len());
        for (number, entry) in entries.iter().enumerate() {
            prop_assert_eq!(page.get(number), Some(*entry));
            for block in [entry.start.saturating_sub(1), entry.start, entry.end() - 1, entry.end()] {
                prop_assert_eq!(page.position(block), entries.partition_point(|entry| entry.end() <= block));
            }
        }
        prop_assert_eq!(page.get(entries.len()), None);
    }

    #[test]
    fn no_bytes_make_reading_panic(
        entries in entries(), at in 8usize..PAGE_HEAD_BYTES, value in any::<u8>(), first in any::<u64>(),
    ) {
        let mut bytes = packed(&entries);
        bytes[at] = value;
        prop_assert!(!is_intact(7, Sequence(99), &bytes) || bytes == packed(&entries));
        if let Some(page) = PackedPage::parse(&bytes, first) {
            let page = Page::Packed(page);
            for number in 0..page.len() {
                let entry = page.get(number).unwrap();
                let _ = page.position(entry.end());
                let _ = entry.pack();
            }
        }
    }
}

#[test]
fn a_page_says_which_one_of_which_run_it_is() {
    let bytes = packed(&[IndexEntry { start: 1, count: 1, sequence: Sequence(1), plain: None }]);
    assert!(is_intact(7, Sequence(99), &bytes));
    assert!(!is_intact(8, Sequence(99), &bytes) && !is_intact(7, Sequence(98), &bytes));
}

#[test]
fn golden_bytes_of_a_page() {
    let entries = [
        IndexEntry { start: 5, count: 1, sequence: Sequence(0x30), plain: Some(2) },
        IndexEntry { start: 7, count: 3, sequence: Sequence(0x33), plain: None },
    ];
    let bytes = packed(&entries);
    let expected: [&[u8]; 5] = [
        &[2, 0, 2, 2, 2, 2, 0, 0],
        &[0x30, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0],
        // Start 0 and 2, count 0 and 2, sequence 0 and 3, place 3 and 0, two bits each.
        &[0b11_00_00_00, 0b00_11_10_10],
        &[0; 15],
    ];
    assert_eq!(bytes[8..], expected.concat());
    assert_eq!(bytes.len(), PAGE_HEAD_BYTES + 2 + 15);
}
