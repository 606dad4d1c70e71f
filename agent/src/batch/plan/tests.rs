//! Properties of plans.

use holdfast_common::units::{BlockCount, BlockIndex, BlockRange};
use proptest::prelude::*;

use super::{BatchShape, FRAME_BLOCKS, plan_batch};
use crate::capture::BlockSet;

const SIZE: u64 = 4000;

fn set_of(ranges: &[(u64, u64)]) -> BlockSet {
    let mut set = BlockSet::new(BlockCount(SIZE));
    for (start, count) in ranges {
        set.insert(BlockRange::new(*start, *count));
    }
    set
}

proptest! {
    #[test]
    fn a_batch_is_sorted_bounded_and_takes_each_block_once(
        ranges in prop::collection::vec((0..SIZE, 1_u64..120), 0..60),
        from in 0..SIZE,
        frames_max in 1_usize..20,
        frame_blocks in 1_usize..=FRAME_BLOCKS,
    ) {
        let mut set = set_of(&ranges);
        let before = set.clone();
        let frames = plan_batch(&mut set, BlockIndex(from), BatchShape { frames_max, frame_blocks });
        prop_assert!(frames.len() <= frames_max);
        let mut end = 0;
        let mut planned = BlockSet::new(BlockCount(SIZE));
        for frame in &frames {
            prop_assert!(frame.blocks() >= 1 && frame.blocks() <= frame_blocks);
            let mut previous_end = None;
            for run in &frame.runs {
                prop_assert!(run.start.0 >= end, "ascending over the whole batch");
                prop_assert!(previous_end != Some(run.start), "neighbours are one run");
                previous_end = Some(run.end());
                end = run.end().0;
                planned.insert(*run);
            }
        }
        // What was planned and what is left are the set, and share nothing.
        prop_assert_eq!(planned.count().0 + set.count().0, before.count().0);
        for run in planned.runs().chain(set.runs()) {
            for block in run.start.0..run.end().0 {
                prop_assert!(before.contains(BlockIndex(block)));
            }
        }
        // A batch ends only when it is full or nothing is left.
        prop_assert!(set.is_empty() || frames.len() == frames_max);
    }

    #[test]
    fn a_long_run_fills_its_frames(count in 1_u64..2000) {
        let mut set = set_of(&[(7, count)]);
        let frames = plan_batch(&mut set, BlockIndex(0), BatchShape::full(1000));
        prop_assert_eq!(frames.len() as u64, count.div_ceil(FRAME_BLOCKS as u64));
        prop_assert!(frames.iter().all(|frame| frame.runs.len() == 1));
    }
}

#[test]
fn goes_on_at_the_beginning() {
    let mut set = set_of(&[(10, 4), (3000, 4)]);
    let frames = plan_batch(&mut set, BlockIndex(2000), BatchShape::full(8));
    let starts: Vec<u64> = frames.iter().map(|frame| frame.runs[0].start.0).collect();
    assert_eq!(starts, [10, 3000]);
    assert!(set.is_empty());
}
