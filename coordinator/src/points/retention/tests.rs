//! Retention by age, and what it never takes.

use std::{collections::HashSet, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMethod},
    ids::{MachineId, PointId},
};

use super::{RetentionPlan, plan};
use crate::catalog::record::{PointRecord, PointState};

fn point(number: u8, state: PointState) -> PointRecord {
    PointRecord {
        id: PointId::from_bytes([number; 16]),
        machine: MachineId::from_bytes([1; 16]),
        state,
        void_reason: None,
        cut_at: Timestamp(i64::MAX),
        durable_at: Timestamp(i64::from(number) * 1_000_000),
        rpo_us: 0,
        method: CutMethod::Freeze,
        consistency: Consistency::Crash,
        hold_us: 0,
        request: None,
        notes: Vec::new(),
        disks: Vec::new(),
    }
}

/// Plans at second 100 with ten seconds of retention.
fn check(points: &[PointRecord], leased: &[u8], remove: &[u8], held: &[u8]) {
    let ids =
        |numbers: &[u8]| numbers.iter().map(|number| PointId::from_bytes([*number; 16])).collect::<Vec<_>>();
    let leased: HashSet<PointId> = ids(leased).into_iter().collect();
    let found = plan(points, &leased, Duration::from_secs(10), Timestamp(100_000_000));
    assert_eq!(found, RetentionPlan { remove: ids(remove), held: ids(held) });
}

#[test]
fn points_go_by_age_and_leased_ones_stay() {
    let points = [95, 80, 90, 89, 70].map(|number| point(number, PointState::Processed));
    check(&points, &[], &[70, 80, 89], &[]);
    check(&points, &[80], &[70, 89], &[80]);
}

#[test]
fn the_newest_complete_and_the_newest_processed_point_stay_however_old() {
    use PointState::{Pending, Processed, Void};
    check(&[point(1, Processed), point(2, Processed), point(3, Pending), point(4, Void)], &[], &[1, 4], &[]);
    check(&[point(7, Void)], &[], &[7], &[]);
    check(&[], &[], &[], &[]);
}
