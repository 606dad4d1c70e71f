//! Points come together whatever the order in which disks' cuts arrive, once each, and never half.

use std::collections::BTreeSet;

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMember, CutMethod, CutMore, CutRecord},
    ids::{DiskId, Generation, MachineId, PointId, Sequence},
};
use proptest::{prelude::any, prop_assert, prop_assert_eq, proptest};

use super::{Assembler, CutSeen, Outcome};

fn cut(point: u8, disk: u8, members: &[u8]) -> CutSeen {
    let members = members
        .iter()
        .map(|disk| CutMember { disk: DiskId::from_bytes([*disk; 16]), generation: Generation(1) })
        .collect();
    CutSeen {
        disk: DiskId::from_bytes([disk; 16]),
        generation: Generation(1),
        sequence: Sequence(u64::from(point) * 10),
        stored_bytes: 1,
        record: CutRecord {
            point: PointId::from_bytes([point; 16]),
            machine: MachineId::from_bytes([1; 16]),
            at: Timestamp(i64::from(point)),
            hold_us: 1,
            method: CutMethod::Freeze,
            consistency: Consistency::Crash,
            members,
            notes: Vec::new(),
            request: None,
            more: CutMore::default(),
        },
    }
}

/// Numbers of the points that became complete and that were given up.
fn numbers(outcomes: Vec<Outcome>) -> (Vec<u8>, Vec<u8>) {
    let (mut complete, mut given_up) = (Vec::new(), Vec::new());
    for outcome in outcomes {
        match outcome {
            Outcome::Complete { record, .. } => complete.push(record.point.into_bytes()[0]),
            Outcome::GivenUp { record, .. } => given_up.push(record.point.into_bytes()[0]),
        }
    }
    (complete, given_up)
}

#[test]
fn a_point_needs_every_disk() {
    let mut assembler = Assembler::default();
    assert!(assembler.observe(cut(1, 1, &[1, 2])).is_empty());
    let arriving = assembler.arriving(MachineId::from_bytes([1; 16]));
    assert_eq!(arriving.first().unwrap().missing, [DiskId::from_bytes([2; 16])]);
    assert_eq!(numbers(assembler.observe(cut(1, 2, &[1, 2]))), (vec![1], vec![]));
    assert!(assembler.arriving(MachineId::from_bytes([1; 16])).is_empty());
}

#[test]
fn what_a_disk_went_past_is_given_up() {
    let mut assembler = Assembler::default();
    assembler.observe(cut(1, 1, &[1, 2]));
    assembler.observe(cut(2, 1, &[1, 2]));
    assert_eq!(numbers(assembler.observe(cut(2, 2, &[1, 2]))), (vec![2], vec![1]));
}

#[test]
fn a_cut_of_which_the_disk_is_no_member_makes_no_point() {
    let mut assembler = Assembler::default();
    assert_eq!(numbers(assembler.observe(cut(1, 3, &[1, 2]))), (vec![], vec![1]));
    let fenced = CutSeen { generation: Generation(2), ..cut(1, 1, &[1]) };
    assert_eq!(numbers(assembler.observe(fenced)), (vec![], vec![1]));
}

proptest! {
    /// Three disks deliver the same cuts, each in order, interleaved at random; some disks repeat all from the beginning, as
    /// after a restart.
    #[test]
    fn every_cut_becomes_a_point_in_any_interleaving(choices in proptest::collection::vec(any::<u8>(), 90)) {
        const POINTS: u8 = 10;
        let mut assembler = Assembler::default();
        let mut next = [1_u8; 3];
        let mut made: Vec<u8> = Vec::new();
        let mut deliver = |disk: usize, next: &mut [u8; 3]| {
            let point = next[disk];
            if point > POINTS {
                return (Vec::new(), Vec::new());
            }
            next[disk] += 1;
            let number = u8::try_from(disk).unwrap();
            numbers(assembler.observe(cut(point, number, &[0, 1, 2])))
        };
        for choice in choices {
            let (complete, given_up) = deliver(usize::from(choice % 3), &mut next);
            prop_assert!(given_up.is_empty());
            made.extend(complete);
        }
        for disk in 0..3 {
            while next[disk] <= POINTS {
                let (complete, given_up) = deliver(disk, &mut next);
                prop_assert!(given_up.is_empty());
                made.extend(complete);
            }
        }
        prop_assert_eq!(made.len(), usize::from(POINTS));
        prop_assert_eq!(made.iter().copied().collect::<BTreeSet<_>>().len(), usize::from(POINTS));
    }
}
