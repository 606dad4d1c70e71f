//! The reason that stands beside each newer cut.

use super::{PASSED_SHOWN, passed};
use crate::points::selection::{
    CandidateState, Selection, choose,
    tests::{candidate, history, point},
};

fn reasons(selection: Selection) -> Vec<String> {
    let history = history();
    let choice = choose(&history, selection).unwrap();
    passed(&history, &choice, selection).0.into_iter().map(|passed| passed.why).collect()
}

#[test]
fn each_newer_cut_says_why_it_was_not_chosen() {
    let common = [
        "incomplete: the cut of 1 disk has not arrived",
        "void: hold overran 2 s",
        "damaged: disk a blocks 1..2",
    ];
    assert_eq!(reasons(Selection::Latest), common);
    assert_eq!(reasons(Selection::LatestProcessed)[3..], ["complete, but not yet processed"]);
    assert_eq!(
        reasons(Selection::LatestAppConsistent)[3..],
        ["crash-consistent only", "crash-consistent only"]
    );
    assert_eq!(reasons(Selection::Point(point(3)))[3..], ["another point was asked for"]);
}

#[test]
fn only_the_newest_are_told_but_all_are_counted() {
    let count = u8::try_from(PASSED_SHOWN).unwrap() + 7;
    let mut long = vec![candidate(0, CandidateState::Processed)];
    long.extend((1..=count).map(|number| candidate(number, CandidateState::Arriving { disks_missing: 2 })));
    let choice = choose(&long, Selection::Latest).unwrap();
    let (told, all) = passed(&long, &choice, Selection::Latest);
    assert_eq!((told.len(), all), (PASSED_SHOWN, usize::from(count)));
    assert_eq!(told[0].point, point(count));
}
