//! Plans against a plain list of blocks.

use std::collections::BTreeMap;

use holdfast_common::units::BlockRange;
use proptest::prelude::{ProptestConfig, proptest};

use super::{Action, Actions, Plan};
use crate::points::view::BundlePlace;

/// Actions for stretches of 1 to 4 blocks: kept, zeroed, or of a bundle, in which they come one after the other.
fn script(choices: &[(u8, u64)]) -> Vec<(BlockRange, Action)> {
    let (mut at, mut filled) = (0, BTreeMap::<u64, u32>::new());
    let mut stretches = Vec::new();
    for (kind, count) in choices {
        let range = BlockRange::new(at, *count);
        at += count;
        let action = match kind {
            0 => Action::Keep,
            1 => Action::Zero,
            _ => {
                let bundle = u64::from(*kind);
                let filled = filled.entry(bundle).or_default();
                let at_block = *filled;
                *filled += u32::try_from(*count).unwrap();
                Action::Write(BundlePlace { bundle, at_block })
            }
        };
        stretches.push((range, action));
    }
    stretches
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_block_is_planned_once_and_the_watermark_holds(
        choices in proptest::collection::vec((0u8..8, 1u64..5), 1..60),
        parts_max in 1usize..20,
        answers in 1usize..6,
    ) {
        let stretches = script(&choices);
        let size = stretches.last().unwrap().0.end().0;
        let (mut from, mut parts, mut found) = (0, Vec::new(), Vec::new());
        while from < size {
            let mut actions = |rest: BlockRange| -> Result<Actions, ()> {
                let next = stretches.iter().filter(|(range, _)| range.start >= rest.start);
                Ok(next.take(answers).copied().collect())
            };
            let plan = Plan::make(BlockRange::new(from, size - from), parts_max, &mut actions).unwrap();
            assert!(plan.end > from);
            found.extend(plan.zeroes.iter().flat_map(|range| range.start.0..range.end().0).map(|at| (at, None)));
            let mut seen = Vec::new();
            for index in 0..plan.len() {
                let bundle = plan.bundle(index, &mut parts).unwrap();
                assert!(!seen.contains(&bundle), "a bundle stands in a plan twice");
                seen.push(bundle);
                assert!(parts.is_sorted_by_key(|part| part.range.start));
                for part in &parts {
                    let blocks = (part.range.start.0..part.range.end().0).zip(part.at_block..);
                    found.extend(blocks.map(|(at, place)| (at, Some((bundle, place)))));
                }
                // All that is planned from here on lies at or above the bundle's first block.
                let later: Vec<u64> = (index..plan.len()).map(|index| plan.first_block(index)).collect();
                assert!(later.iter().all(|first| *first >= plan.first_block(index)));
                assert_eq!(plan.first_block(index), parts[0].range.start.0);
            }
            assert_eq!(plan.first_block(plan.len()), plan.end);
            from = plan.end;
        }
        let mut expected = Vec::new();
        for (range, action) in &stretches {
            for (number, at) in (range.start.0..range.end().0).enumerate() {
                match action {
                    Action::Keep => {}
                    Action::Zero => expected.push((at, None)),
                    Action::Write(place) => {
                        let block = place.at_block + u32::try_from(number).unwrap();
                        expected.push((at, Some((place.bundle, block))));
                    }
                }
            }
        }
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}
