//! The plan over random censuses.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::ids::Sequence;
use proptest::prelude::{prop, prop_assert, prop_assert_eq, proptest};

use super::{PLAN_BYTES_MAX, SLACK_PERCENT, SegmentCensus, plan};

const SEGMENT: u64 = 1_000_000;

fn census(segments: &[(u64, u64)]) -> BTreeMap<u64, SegmentCensus> {
    let segment = |(at, (live, dead)): (usize, &(u64, u64))| {
        let census = SegmentCensus {
            file_bytes: live + dead + 1_000,
            live_bytes: *live,
            dead_bytes: *dead,
            live_frames: live.div_ceil(10_000),
            last: Sequence(at as u64 * 100 + 90),
        };
        (at as u64 * 100 + 1, census)
    };
    segments.iter().enumerate().map(segment).collect()
}

proptest! {
    #[test]
    fn plans_drop_what_is_empty_and_reach_the_target(
        segments in prop::collection::vec((0u64..SEGMENT, 0u64..SEGMENT), 0..40),
        empty in prop::collection::btree_set(0usize..40, 0..10),
    ) {
        let mut segments = segments;
        for at in empty {
            if let Some(segment) = segments.get_mut(at) {
                segment.0 = 0;
            }
        }
        let census = census(&segments);
        let plan = plan(&census, SEGMENT);
        let emptied: BTreeSet<u64> =
            census.iter().filter(|(_, segment)| segment.live_frames == 0).map(|(first, _)| *first).collect();
        prop_assert_eq!(plan.drop.iter().map(|first| first.0).collect::<BTreeSet<_>>(), emptied.clone());
        let mut chosen = BTreeSet::new();
        for group in &plan.rewrite {
            prop_assert!(!group.is_empty() && group.is_sorted());
            let (first, last) = (group[0].0, group[group.len() - 1].0);
            let live: u64 = group.iter().map(|first| census[&first.0].live_bytes).sum();
            prop_assert!(group.len() == 1 || live <= SEGMENT);
            for (between, _) in census.range(first..=last) {
                prop_assert!(group.contains(&Sequence(*between)) || emptied.contains(between));
            }
            for member in group {
                prop_assert!(chosen.insert(member.0) && !emptied.contains(&member.0));
            }
        }
        let live: u64 = census.values().map(|segment| segment.live_bytes).sum();
        let left = census.iter().filter(|(first, segment)| segment.live_frames > 0 && !chosen.contains(first));
        let dead: u64 = left.map(|(_, segment)| segment.dead_bytes).sum();
        // What is left is little in all, or little in each segment.
        prop_assert!(
            dead * 100 <= live * SLACK_PERCENT
                || census.iter().all(|(first, segment)| chosen.contains(first)
                    || segment.live_frames == 0
                    || segment.dead_bytes * 9 <= segment.live_bytes)
        );
        prop_assert!(plan.copy_bytes <= PLAN_BYTES_MAX);
        // Nothing is copied while little is needless.
        let all_dead: u64 =
            census.values().filter(|segment| segment.live_frames > 0).map(|segment| segment.dead_bytes).sum();
        prop_assert!(all_dead * 100 > live * SLACK_PERCENT || plan.rewrite.is_empty());
    }
}

#[test]
fn what_was_joined_to_another_before_a_crash_is_dropped() {
    let mut census = census(&[(500, 0), (400, 0), (300, 0), (200, 0)]);
    census.get_mut(&1).unwrap().last = Sequence(250);
    let plan = plan(&census, SEGMENT);
    assert_eq!(plan.drop, [Sequence(101), Sequence(201)]);
    assert!(plan.rewrite.is_empty());
}
