//! A set with a group of two and a machine of no group.

use std::collections::BTreeMap;

use holdfast_common::{
    clock::Timestamp,
    frame::cut::Consistency,
    ids::{MachineId, PointId},
};
use uuid::Uuid;

use super::{Candidates, choose_set, mates};
use crate::points::selection::{Candidate, CandidateState, GroupCut, Refusal, Selection};

const WEB: MachineId = MachineId::from_bytes([1; 16]);
const DATABASE: MachineId = MachineId::from_bytes([2; 16]);
const ALONE: MachineId = MachineId::from_bytes([3; 16]);
const SET: [MachineId; 3] = [WEB, DATABASE, ALONE];

fn point(machine: MachineId, number: u8) -> PointId {
    let mut bytes = [number; 16];
    bytes[0] = machine.into_bytes()[0];
    PointId::from_bytes(bytes)
}

/// A processed candidate; group cut `number` if it is one.
fn own(machine: MachineId, number: u8) -> Candidate {
    Candidate {
        point: point(machine, number),
        at: Timestamp(i64::from(number)),
        consistency: Consistency::Crash,
        state: CandidateState::Processed,
        group: None,
    }
}

fn grouped(machine: MachineId, number: u8, consistency: Consistency) -> Candidate {
    let cut = Uuid::from_bytes([number; 16]);
    let group = Some(GroupCut { cut, group: Uuid::nil(), members: vec![WEB, DATABASE] });
    Candidate { consistency, group, ..own(machine, number) }
}

/// Both of the group have 1 (app-consistent), 3 and 5; the database's part of 5 is still arriving. Each has own points
/// between them.
fn all() -> Candidates {
    let history = |machine| {
        let (app, crash) = (Consistency::App, Consistency::Crash);
        vec![
            grouped(machine, 1, app),
            own(machine, 2),
            grouped(machine, 3, crash),
            grouped(machine, 5, crash),
        ]
    };
    let mut all: Candidates = [(WEB, history(WEB)), (DATABASE, history(DATABASE))].into();
    all.get_mut(&DATABASE).unwrap()[3].state = CandidateState::Arriving { disks_missing: 1 };
    all.get_mut(&WEB).unwrap().push(own(WEB, 6));
    all.insert(ALONE, vec![own(ALONE, 8), own(ALONE, 9)]);
    all
}

fn check(all: &Candidates, selection: Selection, expected: [Option<u8>; 3]) {
    let chosen = choose_set(&SET, all, selection);
    for (machine, expected) in SET.into_iter().zip(expected) {
        let found = chosen[&machine].as_ref().ok().map(|choice| choice.point);
        assert_eq!(found, expected.map(|number| point(machine, number)), "{machine}: {chosen:?}");
    }
}

#[test]
fn members_go_to_the_newest_common_point_and_others_to_their_own() {
    check(&all(), Selection::LatestMultiVm, [Some(3), Some(3), Some(9)]);
    check(&all(), Selection::LatestMultiVmAppConsistent, [Some(1), Some(1), None]);
    check(&all(), Selection::Latest, [Some(6), Some(3), Some(9)]);
    check(&all(), Selection::AtOrBefore(Timestamp(2)), [Some(2), Some(2), None]);
}

#[test]
fn what_one_member_lost_is_nobodys() {
    let mut all = all();
    all.get_mut(&DATABASE).unwrap()[2].state = CandidateState::Damaged { detail: "a range".to_owned() };
    check(&all, Selection::LatestMultiVm, [Some(1), Some(1), Some(9)]);
    // A member that is not asked for counts, too: without it the cut is no point of the group.
    all.remove(&DATABASE);
    let chosen = choose_set(&[WEB], &all, Selection::LatestMultiVm);
    assert_eq!(chosen[&WEB], Err(Refusal::NoneCommon { wanted: "common", machines: 2 }));
}

#[test]
fn the_remark_says_how_much_newer_the_machines_own_points_are() {
    let chosen = choose_set(&SET, &all(), Selection::LatestMultiVm);
    let remarks = |machine| chosen[&machine].as_ref().unwrap().remarks.join("");
    assert!(remarks(WEB).contains("2 newer cuts"), "{}", remarks(WEB));
    assert_eq!(remarks(ALONE), "");
}

#[test]
fn mates_are_all_machines_of_all_cuts() {
    assert_eq!(mates(&all()[&WEB]), [WEB, DATABASE]);
    assert_eq!(mates(&all()[&ALONE]), []);
    assert_eq!(choose_set(&SET, &BTreeMap::new(), Selection::Latest).len(), 3);
}
