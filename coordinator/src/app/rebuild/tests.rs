//! Groups out of the marks of points.

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMethod, CutMore, GroupMark},
    ids::{GroupCutId, GroupId, MachineId, PointId},
};

use super::groups_of;
use crate::catalog::{
    Change,
    record::{PointRecord, PointState, WitnessRecord},
};

fn point(machine: u8, group: u8, name: &str, at: i64, members: &[u8]) -> PointRecord {
    let mark = GroupMark {
        cut: GroupCutId::from_bytes([1; 16]),
        group: GroupId::from_bytes([group; 16]),
        name: name.to_owned(),
        members: members.iter().map(|number| MachineId::from_bytes([*number; 16])).collect(),
        since_held_us: 0,
        waited_us: 0,
        spread_us: 0,
    };
    PointRecord {
        id: PointId::from_bytes([2; 16]),
        machine: MachineId::from_bytes([machine; 16]),
        state: PointState::Processed,
        void_reason: None,
        cut_at: Timestamp(at),
        durable_at: Timestamp(at),
        rpo_us: 0,
        method: CutMethod::Freeze,
        consistency: Consistency::Crash,
        hold_us: 0,
        request: None,
        notes: Vec::new(),
        disks: Vec::new(),
        verified_at: None,
        witness: WitnessRecord::default(),
        more: CutMore { group: Some(mark), ..CutMore::default() },
    }
}

/// Group names with the first bytes of their machines' ids.
fn found(points: &[PointRecord]) -> Vec<(String, Vec<u8>)> {
    let mut groups: Vec<(String, Vec<u8>)> = Vec::new();
    for change in groups_of(points, Timestamp(0)) {
        match change {
            Change::PutGroup(group) => groups.push((group.name, Vec::new())),
            Change::PutGroupMember(member) => {
                groups.last_mut().unwrap().1.push(member.machine.into_bytes()[0]);
            }
            other => panic!("{other:?}"),
        }
    }
    groups
}

#[test]
fn a_group_is_what_its_newest_cut_says() {
    let points = [
        point(1, 7, "old-name", 10, &[1, 2, 3]),
        point(1, 7, "shop", 30, &[1, 2]),
        point(2, 7, "shop", 29, &[1, 2, 3]),
        point(3, 8, "bank", 5, &[3, 4]),
    ];
    // Machine 4 is known by nothing but its name in the mark.
    assert_eq!(found(&points), [("shop".to_owned(), vec![1, 2]), ("bank".to_owned(), vec![3])]);
}

#[test]
fn two_groups_never_get_the_same_name() {
    let names: Vec<String> = found(&[point(1, 7, "shop", 1, &[1]), point(2, 8, "shop", 1, &[2])])
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names[0], "shop");
    assert!(names[1].starts_with("shop-0808"), "{names:?}");
}
