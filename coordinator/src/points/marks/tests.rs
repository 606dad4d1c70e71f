//! The newest whole cut of a group, whatever comes and goes.

use holdfast_common::{
    clock::Timestamp,
    entropy::{Entropy as _, SeededEntropy},
    frame::{Consistency, CutMethod, CutMore, GroupMark},
    ids::{GroupCutId, GroupId, MachineId, PointId},
};

use super::Marks;
use crate::{
    catalog::record::{PointRecord, PointState, WitnessRecord},
    groups::points::assemble,
};

const GROUP: GroupId = GroupId::from_bytes([9; 16]);

fn machine(number: u8) -> MachineId {
    MachineId::from_bytes([number; 16])
}

/// A point of a machine; with a cut, a part of the group's cut of these machines.
fn point(number: u8, of: u8, at: i64, cut: Option<(u8, &[u8])>, consistency: Consistency) -> PointRecord {
    let mark = cut.map(|(cut, members)| GroupMark {
        cut: GroupCutId::from_bytes([cut; 16]),
        group: GROUP,
        name: "shop".to_owned(),
        members: members.iter().map(|number| machine(*number)).collect(),
        since_held_us: 1,
        waited_us: 2,
        spread_us: 3,
    });
    PointRecord {
        id: PointId::from_bytes([number; 16]),
        machine: machine(of),
        state: PointState::Processed,
        void_reason: None,
        cut_at: Timestamp(at),
        durable_at: Timestamp(at),
        rpo_us: 0,
        method: CutMethod::Freeze,
        consistency,
        hold_us: 3,
        request: None,
        notes: Vec::new(),
        disks: Vec::new(),
        verified_at: None,
        witness: WitnessRecord::default(),
        more: CutMore { group: mark, ..CutMore::default() },
    }
}

/// The newest cut by its parts, as numbers.
fn newest(marks: &Marks, application: bool) -> Option<Vec<u8>> {
    let parts = marks.newest(GROUP, application).next()?;
    Some(parts.iter().map(|point| point.into_bytes()[0]).collect())
}

#[test]
fn a_cut_counts_from_its_last_part_to_the_first_that_goes() {
    let mut marks = Marks::default();
    assert_eq!(newest(&marks, false), None);
    marks.insert(&point(1, 1, 10, Some((1, &[1, 2])), Consistency::App));
    assert_eq!((newest(&marks, false), marks.incomplete(GROUP)), (None, 1));
    marks.insert(&point(2, 2, 11, Some((1, &[1, 2])), Consistency::App));
    marks.insert(&point(3, 1, 20, Some((2, &[1, 2])), Consistency::App));
    marks.insert(&point(4, 2, 21, Some((2, &[1, 2])), Consistency::Crash));
    marks.insert(&point(5, 1, 30, None, Consistency::App));
    assert_eq!(newest(&marks, false), Some(vec![3, 4]));
    assert_eq!(newest(&marks, true), Some(vec![1, 2]), "one crash-consistent part makes the whole so");
    assert_eq!(marks.newest(GROUP, false).count(), 2);

    marks.remove(PointId::from_bytes([3; 16]));
    assert_eq!((newest(&marks, false), marks.incomplete(GROUP)), (Some(vec![1, 2]), 1));
    for number in [1, 2, 4] {
        marks.remove(PointId::from_bytes([number; 16]));
    }
    assert_eq!((newest(&marks, false), marks.incomplete(GROUP)), (None, 0));
    assert!(marks.groups.is_empty() && marks.places.is_empty(), "nothing is kept of what is gone");
}

#[test]
fn the_memory_and_the_rule_of_group_points_agree() {
    for seed in 0..200 {
        let entropy = SeededEntropy::new(seed);
        let mut marks = Marks::default();
        let mut points: Vec<PointRecord> = Vec::new();
        for number in 1..=60 {
            let draw = |below: u64| u8::try_from(entropy.next_u64() % below).unwrap();
            let members: &[u8] = [&[1, 2][..], &[1, 2, 3], &[1, 2]][usize::from(draw(3))];
            let cut = (draw(4) > 0).then(|| (1 + draw(8), members));
            let consistency = if draw(2) == 0 { Consistency::App } else { Consistency::Crash };
            let mut made = point(number, 1 + draw(3), i64::from(number), cut, consistency);
            // A machine has one point of a cut.
            let cut_of =
                |point: &PointRecord| point.more.group.as_ref().map(|mark| (mark.cut, point.machine));
            if cut_of(&made).is_some() && points.iter().any(|point| cut_of(point) == cut_of(&made)) {
                continue;
            }
            if draw(10) == 0 {
                made.state = PointState::Void;
            }
            marks.insert(&made);
            points.push(made);
            if draw(4) == 0 {
                let gone = points.remove(usize::from(draw(points.len() as u64)));
                marks.remove(gone.id);
            }
            let (whole, partial) = assemble(&points);
            let by_rule = |point: &crate::groups::points::GroupPoint| -> Vec<PointId> {
                point.members.iter().map(|member| member.point).collect()
            };
            let expected: Vec<_> = whole.iter().map(by_rule).collect();
            assert_eq!(marks.newest(GROUP, false).collect::<Vec<_>>(), expected, "seed {seed}");
            let app = whole.iter().filter(|point| point.consistency == Consistency::App);
            let expected: Vec<_> = app.map(by_rule).collect();
            assert_eq!(marks.newest(GROUP, true).collect::<Vec<_>>(), expected, "seed {seed}");
            assert_eq!(marks.incomplete(GROUP), partial, "seed {seed}");
        }
    }
}
