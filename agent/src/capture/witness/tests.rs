//! Every block has its turn, none twice, and slow disks are asked for little.

use std::{collections::BTreeMap, time::Duration};

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    units::{BlockCount, BlockIndex, BlockRange},
};

use super::{BLOCKS_MAX, Chosen, Field, Pace, TIME_MAX, choose, goes_on};

fn field(size: u64, without: &[BlockRange]) -> Field {
    Field { size: BlockCount(size), without: without.to_vec() }
}

#[test]
fn every_block_of_every_disk_is_as_likely_as_any_other() {
    let fields = [field(30, &[]), field(0, &[]), field(10, &[])];
    let entropy = SeededEntropy::new(7);
    let mut seen: BTreeMap<Chosen, u32> = BTreeMap::new();
    for _ in 0..2000 {
        for chosen in choose(&fields, 4, &mut || entropy.next_u64()) {
            *seen.entry(chosen).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 40);
    // 8000 draws over 40 blocks: 200 each, with a deviation of 14.
    assert!(seen.values().all(|count| (120..280).contains(count)), "{seen:?}");
    assert!(seen.keys().all(|chosen| chosen.disk == 0 || (chosen.disk == 2 && chosen.block.0 < 10)));
}

#[test]
fn none_is_chosen_twice_and_none_of_a_swap_area() {
    let fields = [field(8, &[BlockRange::new(2, 3)])];
    let entropy = SeededEntropy::new(1);
    for _ in 0..200 {
        let mut chosen = choose(&fields, BLOCKS_MAX, &mut || entropy.next_u64());
        chosen.sort_unstable();
        assert!(chosen.windows(2).all(|pair| pair[0] != pair[1]), "{chosen:?}");
        assert!(chosen.iter().all(|chosen| !(2..5).contains(&chosen.block.0)), "{chosen:?}");
    }
    assert!(choose(&[field(0, &[])], 4, &mut || 1).is_empty());
    assert_eq!(choose(&fields, 1, &mut || u64::MAX), [Chosen { disk: 0, block: BlockIndex(7) }]);
}

#[test]
fn the_first_of_a_choice_are_not_the_first_of_the_disk() {
    let fields = [field(1000, &[]), field(1000, &[])];
    let entropy = SeededEntropy::new(2);
    let first = (0..400).filter_map(|_| choose(&fields, 8, &mut || entropy.next_u64()).first().copied());
    let behind = first.filter(|chosen| chosen.disk == 1).count();
    assert!((140..260).contains(&behind), "{behind} of 400");
}

#[test]
fn a_slow_disk_is_asked_for_less_and_then_seldom() {
    let mut pace = Pace::default();
    let mut asked = Vec::new();
    for _ in 0..20 {
        let blocks = pace.next();
        asked.push(blocks);
        pace.learn(blocks, TIME_MAX * 3);
    }
    assert_eq!(asked[..9], [16, 8, 4, 2, 1, 0, 1, 0, 0]);
    assert_eq!(asked.iter().filter(|blocks| **blocks > 0).count(), 8, "{asked:?}");
}

#[test]
fn a_disk_that_got_fast_is_asked_for_all_again() {
    let mut pace = Pace::default();
    pace.learn(2, TIME_MAX * 2);
    assert_eq!(pace.next(), 1);
    let asked: Vec<usize> = (0..5)
        .map(|_| {
            pace.learn(1, TIME_MAX / 2);
            pace.next()
        })
        .collect();
    assert_eq!(asked, [2, 4, 8, 16, 16]);
}

#[test]
fn reads_that_would_not_fit_are_not_begun() {
    let ms = Duration::from_millis;
    assert!(goes_on(ms(1), ms(1)));
    assert!(!goes_on(ms(1), ms(2)));
}
