//! Each selection against a history with points in every state.

use holdfast_common::{clock::Timestamp, frame::cut::Consistency, ids::PointId};

use super::{Candidate, CandidateState, Refusal, Selection, choose};

pub(super) fn point(number: u8) -> PointId {
    PointId::from_bytes([number; 16])
}

pub(super) fn candidate(number: u8, state: CandidateState) -> Candidate {
    let consistency = if number == 2 { Consistency::App } else { Consistency::Crash };
    Candidate { point: point(number), at: Timestamp(i64::from(number) * 10), consistency, state, group: None }
}

pub(super) fn history() -> Vec<Candidate> {
    vec![
        candidate(1, CandidateState::Processed),
        candidate(2, CandidateState::Processed),
        candidate(3, CandidateState::Processed),
        candidate(4, CandidateState::Pending),
        candidate(5, CandidateState::Damaged { detail: "disk a blocks 1..2".into() }),
        candidate(6, CandidateState::Void { reason: "hold overran 2 s".into() }),
        candidate(7, CandidateState::Arriving { disks_missing: 1 }),
    ]
}

fn check(selection: Selection, expected: u8, pending: bool, remarks: usize) {
    let choice = choose(&history(), selection).unwrap();
    assert_eq!((choice.point, choice.pending, choice.remarks.len()), (point(expected), pending, remarks));
}

#[test]
fn each_selection_finds_its_point() {
    check(Selection::Latest, 4, true, 1);
    check(Selection::LatestProcessed, 3, false, 1);
    check(Selection::LatestAppConsistent, 2, false, 1);
    check(Selection::AtOrBefore(Timestamp(29)), 2, false, 1);
    check(Selection::Point(point(1)), 1, false, 0);
    check(Selection::Point(point(5)), 5, false, 1);
}

#[test]
fn refusals_say_why() {
    let refused = |candidates: &[Candidate], selection| choose(candidates, selection).unwrap_err();
    let all = history();
    assert_eq!(
        refused(&all, Selection::Point(point(7))),
        Refusal::Incomplete { point: point(7), disks_missing: 1 }
    );
    assert!(matches!(refused(&all, Selection::Point(point(6))), Refusal::Void { .. }));
    assert_eq!(refused(&all, Selection::Point(point(9))), Refusal::Unknown { point: point(9) });
    assert_eq!(refused(&all, Selection::AtOrBefore(Timestamp(9))), Refusal::NoneSoOld);
    assert_eq!(refused(&[], Selection::Latest), Refusal::NoneComplete { arriving: 0 });
    assert_eq!(refused(&all[6..], Selection::Latest), Refusal::NoneComplete { arriving: 1 });
    assert_eq!(
        refused(&all[3..4], Selection::LatestProcessed),
        Refusal::NoneOfKind { wanted: "processed", complete: 1 }
    );
}

#[test]
fn order_is_the_logs_not_the_clocks() {
    let mut stepped = history();
    stepped[0].at = Timestamp(1_000);
    assert_eq!(choose(&stepped, Selection::Latest).unwrap().point, point(4));
}

#[test]
fn text_round_trips() {
    for selection in [
        Selection::Latest,
        Selection::LatestProcessed,
        Selection::LatestAppConsistent,
        Selection::LatestMultiVm,
        Selection::LatestMultiVmAppConsistent,
        Selection::Point(point(3)),
        Selection::AtOrBefore(Timestamp(1_700_000_000_123_456)),
    ] {
        assert_eq!(selection.to_string().parse(), Ok(selection));
    }
    let time = "2023-11-14T22:13:20+01:00".parse();
    assert_eq!(time, Ok(Selection::AtOrBefore(Timestamp(1_699_996_400_000_000))));
    assert!("newest".parse::<Selection>().is_err());
}
