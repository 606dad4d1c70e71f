//! Which points make group points.

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMethod, CutMore, GroupMark},
    ids::{GroupCutId, GroupId, MachineId, PointId},
};

use super::assemble;
use crate::catalog::record::{PointRecord, PointState, WitnessRecord};

fn machine(number: u8) -> MachineId {
    MachineId::from_bytes([number; 16])
}

fn point(cut: u8, number: u8, members: &[u8]) -> PointRecord {
    let mark = GroupMark {
        cut: GroupCutId::from_bytes([cut; 16]),
        group: GroupId::from_bytes([9; 16]),
        name: "shop".to_owned(),
        members: members.iter().map(|number| machine(*number)).collect(),
        since_held_us: 5,
        waited_us: 6,
        spread_us: 7,
    };
    PointRecord {
        id: PointId::from_bytes([cut * 16 + number; 16]),
        machine: machine(number),
        state: PointState::Processed,
        void_reason: None,
        cut_at: Timestamp(100 - i64::from(number)),
        durable_at: Timestamp(i64::from(cut) * 1_000 + i64::from(number)),
        rpo_us: 0,
        method: CutMethod::Freeze,
        consistency: Consistency::App,
        hold_us: 3,
        request: None,
        notes: Vec::new(),
        disks: Vec::new(),
        verified_at: None,
        witness: WitnessRecord::default(),
        more: CutMore { group: Some(mark), ..CutMore::default() },
    }
}

fn cuts(points: &[PointRecord]) -> (Vec<u8>, usize) {
    let (whole, partial) = assemble(points);
    (whole.iter().map(|point| point.cut.into_bytes()[0]).collect(), partial)
}

#[test]
fn a_group_point_needs_every_member_of_its_mark() {
    let all = [point(1, 1, &[1, 2]), point(1, 2, &[1, 2]), point(2, 1, &[1, 2]), point(3, 2, &[1, 2])];
    assert_eq!(cuts(&all), (vec![1], 2));
    assert_eq!(cuts(&all[1..]), (vec![], 3), "retention or damage took a part");
}

#[test]
fn the_newest_comes_first_and_is_what_its_weakest_member_is() {
    let mut points =
        vec![point(1, 1, &[1, 2]), point(1, 2, &[1, 2]), point(2, 1, &[1, 2]), point(2, 2, &[1, 2])];
    points[3].consistency = Consistency::Crash;
    points[3].state = PointState::Pending;
    let (whole, partial) = assemble(&points);
    assert_eq!(partial, 0);
    assert_eq!(whole[0].cut, GroupCutId::from_bytes([2; 16]));
    assert_eq!((whole[0].consistency, whole[0].processed), (Consistency::Crash, false));
    assert_eq!((whole[1].consistency, whole[1].processed), (Consistency::App, true));
    assert_eq!((whole[1].at, whole[1].durable_at), (Timestamp(98), Timestamp(1_002)));
    assert_eq!(whole[1].members.len(), 2);
}

#[test]
fn void_points_and_marks_that_disagree_make_none() {
    let mut points = vec![point(1, 1, &[1, 2]), point(1, 2, &[1, 2])];
    points[1].state = PointState::Void;
    assert_eq!(cuts(&points), (vec![], 1));
    assert_eq!(cuts(&[point(1, 1, &[1, 2]), point(1, 2, &[1, 2, 3])]), (vec![], 1));
    let mut plain = point(1, 1, &[1]);
    plain.more.group = None;
    assert_eq!(cuts(&[plain]), (vec![], 0));
}
