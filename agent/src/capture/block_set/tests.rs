//! The set against a plain model.

use std::collections::BTreeSet;

use holdfast_common::units::{BlockCount, BlockIndex, BlockRange};
use proptest::prelude::*;

use super::BlockSet;

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    Remove(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0_u64..700, 0_u64..200);
    prop_oneof![
        range.clone().prop_map(|(start, count)| Step::Insert(start, count)),
        range.prop_map(|(start, count)| Step::Remove(start, count)),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_set(size in 1_u64..600, steps in prop::collection::vec(step(), 0..40)) {
        let mut set = BlockSet::new(BlockCount(size));
        let mut model = BTreeSet::new();
        for step in steps {
            match step {
                Step::Insert(start, count) => {
                    set.insert(BlockRange::new(start, count));
                    model.extend((start..start + count).filter(|block| *block < size));
                }
                Step::Remove(start, count) => {
                    set.remove(BlockRange::new(start, count));
                    model.retain(|block| *block < start || *block >= start + count);
                }
            }
        }
        let listed: Vec<u64> = set.runs().flat_map(|run| run.start.0..run.end().0).collect();
        prop_assert_eq!(listed, model.iter().copied().collect::<Vec<_>>());
        prop_assert_eq!(set.count().0, model.len() as u64);
        for block in 0..size + 3 {
            prop_assert_eq!(set.contains(BlockIndex(block)), model.contains(&block));
        }
    }

    #[test]
    fn a_run_is_cut_to_the_wanted_length(start in 0_u64..300, count in 1_u64..300, max in 1_u64..100) {
        let mut set = BlockSet::new(BlockCount(1000));
        set.insert(BlockRange::new(start, count));
        let run = set.next_run(BlockIndex(0), BlockCount(max));
        prop_assert_eq!(run, Some(BlockRange::new(start, count.min(max))));
    }
}
