//! Bitmaps against a plain set of blocks.

use std::collections::BTreeSet;

use proptest::prelude::{Strategy, prop_assert, prop_assert_eq, proptest};

use super::*;

const BLOCKS: u64 = 70_000;

fn map() -> Vec<AtomicU64> {
    (0..BLOCKS.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
}

fn ranges() -> impl Strategy<Value = Vec<BlockRange>> {
    let range = (0..BLOCKS + 100, 0_u64..300).prop_map(|(start, count)| BlockRange::new(start, count));
    proptest::collection::vec(range, 0..40)
}

proptest! {
    #[test]
    fn taking_returns_what_was_marked_once_in_order(ranges in ranges()) {
        let (marks, taken) = (map(), map());
        let mut touched = TouchedPages::new(marks.len());
        let mut expected = BTreeSet::new();
        for range in &ranges {
            mark(&marks, BLOCKS, *range);
            expected.extend((range.start.0..range.end().0).filter(|block| *block < BLOCKS));
        }
        prop_assert_eq!(count(&marks), expected.len() as u64);
        let mut runs: Vec<BlockRange> = vec![];
        let blocks = take(&marks, &taken, &mut touched, &mut |run| runs.push(run));
        prop_assert!(runs.windows(2).all(|pair| pair[0].end().0 < pair[1].start.0), "runs touch or go back");
        let got: BTreeSet<u64> = runs.iter().flat_map(|run| run.start.0..run.end().0).collect();
        prop_assert_eq!(&got, &expected);
        prop_assert_eq!(blocks, expected.len() as u64);
        prop_assert_eq!(count(&marks), 0);
        prop_assert_eq!(count(&taken), expected.len() as u64);
        prop_assert_eq!(mark_again(&marks, &taken, &touched), expected.len() as u64);
        prop_assert!(expected.iter().all(|block| is_marked(&marks, BlockIndex(*block))));
        clear(&taken, &mut touched);
        prop_assert_eq!(count(&taken), 0);
    }
}

#[test]
fn what_was_taken_is_given_back_after_death() {
    let (marks, taken) = (map(), map());
    mark(&marks, BLOCKS, BlockRange::new(60, 10));
    take(&marks, &taken, &mut TouchedPages::new(marks.len()), &mut |_| {});
    mark(&marks, BLOCKS, BlockRange::new(5, 1));
    assert_eq!(give_back(&marks, &taken), 10);
    assert_eq!((count(&marks), count(&taken)), (11, 0));
}

#[test]
fn a_full_word_is_one_run() {
    let (marks, taken) = (map(), map());
    mark(&marks, BLOCKS, BlockRange::new(0, 64 * 1025));
    let mut runs = vec![];
    take(&marks, &taken, &mut TouchedPages::new(marks.len()), &mut |run| runs.push(run));
    assert_eq!(runs, [BlockRange::new(0, 64 * 1025)]);
}
