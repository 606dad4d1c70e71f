//! The member's side, step by step.

use std::time::Duration;

use holdfast_common::{
    ids::{GroupCutId, GroupId, MachineId, PointId},
    wire::{AnswerStep, Applications, GroupArm, GroupOrder, MarkOrder, OrderStep},
};

use super::{Heard, HeldTurn, Marks, Missed, Turn};

const MS: Duration = Duration::from_millis(1);
const HOLD: PointId = PointId::from_bytes([3; 16]);

fn order(cut: u8, step: OrderStep) -> GroupOrder {
    GroupOrder { cut: GroupCutId::from_bytes([cut; 16]), step }
}

fn arm(cut: u8) -> GroupOrder {
    let arm = GroupArm {
        group: GroupId::from_bytes([9; 16]),
        ready_ms_max: 1_000,
        wait_ms_max: 50,
        application: Applications::AsTheyAre,
    };
    order(cut, OrderStep::Arm(arm))
}

fn mark(cut: u8, hold: PointId, since_held_us: u64) -> GroupOrder {
    let mark = MarkOrder {
        hold,
        since_held_us,
        spread_us: 2,
        group: GroupId::from_bytes([9; 16]),
        name: "shop".into(),
        members: vec![MachineId::from_bytes([1; 16])],
    };
    order(cut, OrderStep::Mark(mark))
}

fn turn(cut: u8) -> Turn {
    match Turn::hear(None, &arm(cut), 10 * MS) {
        Heard::Begin(turn) => turn,
        other => panic!("{other:?}"),
    }
}

fn holding() -> HeldTurn {
    let mut turn = turn(1);
    assert!(turn.ready().is_some());
    assert_eq!(Turn::hear(Some(&mut turn), &order(1, OrderStep::Hold), 100 * MS), Heard::Hold);
    turn.hold().unwrap()
}

#[test]
fn a_machine_holds_only_when_it_was_ready_and_is_told() {
    let mut turn = turn(1);
    assert_eq!(turn.until(), 1_010 * MS);
    assert_eq!(Turn::hear(Some(&mut turn), &order(1, OrderStep::Hold), 20 * MS), Heard::Nothing);
    assert_eq!(turn.hold(), None, "it was not ready");
    assert_eq!(turn.ready().unwrap().step, AnswerStep::Armed);
    assert_eq!(turn.ready(), None, "said once");
    assert_eq!(Turn::hear(Some(&mut turn), &arm(1), 30 * MS), Heard::Nothing, "said twice on the way");
    assert_eq!(Turn::hear(Some(&mut turn), &order(2, OrderStep::Hold), 40 * MS), Heard::Nothing);
    assert_eq!(turn.hold(), None);
    assert_eq!(Turn::hear(Some(&mut turn), &order(1, OrderStep::Hold), 50 * MS), Heard::Hold);
    assert!(turn.hold().is_some());
    assert_eq!(Turn::hear(None, &order(1, OrderStep::Hold), 60 * MS), Heard::Nothing, "after a restart");
}

#[test]
fn a_new_group_cut_takes_the_place_of_one_that_was_forgotten() {
    let mut old = turn(1);
    assert!(matches!(Turn::hear(Some(&mut old), &arm(2), 20 * MS), Heard::Begin(_)));
    let cancel = OrderStep::Cancel { reason: "late".into() };
    assert_eq!(Turn::hear(Some(&mut old), &order(2, cancel.clone()), 30 * MS), Heard::Nothing);
    assert_eq!(Turn::hear(Some(&mut old), &order(1, cancel), 30 * MS), Heard::Over("late".into()));
}

#[test]
fn only_the_mark_of_this_hold_counts() {
    let mut held = holding();
    assert!(!held.order(&mark(1, HOLD, 0), 105 * MS), "not held yet");
    let answer = held.held(HOLD, 110 * MS);
    assert_eq!(answer.step, AnswerStep::Held { hold: HOLD, took_us: 10_000 });
    assert!(!held.order(&mark(1, PointId::from_bytes([4; 16]), 0), 111 * MS), "of an earlier hold");
    assert!(!held.order(&mark(2, HOLD, 0), 111 * MS), "of another group cut");
    assert!(held.order(&mark(1, HOLD, 5_000), 120 * MS));
    let mark = held.verdict().unwrap();
    assert_eq!((mark.since_held_us, mark.waited_us, mark.spread_us), (5_000, 10_000, 2));
    let released = AnswerStep::Released { hold: HOLD, marked: true, held_us: 12_000 };
    assert_eq!(held.released(12 * MS).step, released);
}

#[test]
fn a_machine_waits_no_longer_than_its_own_timer_says() {
    let mut held = holding();
    held.held(HOLD, 110 * MS);
    assert_eq!(held.until(), 160 * MS);
    assert!(!held.order(&mark(1, HOLD, 0), 161 * MS));
    assert_eq!(held.verdict(), Err(Missed::Late { wait: 50 * MS }));
    assert!(matches!(held.released(MS).step, AnswerStep::Released { marked: false, .. }));
}

#[test]
fn a_clock_that_stood_still_gets_no_mark() {
    let mut held = holding();
    held.held(HOLD, 110 * MS);
    assert!(held.order(&mark(1, HOLD, 30_000), 115 * MS));
    assert_eq!(held.verdict(), Err(Missed::Clock));
}

#[test]
fn a_cancel_ends_the_wait() {
    let mut held = holding();
    held.held(HOLD, 110 * MS);
    assert!(held.order(&order(1, OrderStep::Cancel { reason: "two is late".into() }), 111 * MS));
    assert!(held.verdict().is_err());
    assert!(held.order(&mark(1, HOLD, 0), 112 * MS), "decided is decided");
    assert!(held.verdict().is_err());
}

#[test]
fn the_box_keeps_the_newest_orders() {
    let marks = Marks::default();
    assert_eq!(marks.take(Duration::ZERO), None);
    (1..=10).for_each(|cut| marks.put(order(cut, OrderStep::Hold)));
    assert_eq!(marks.take(MS).unwrap().cut, GroupCutId::from_bytes([3; 16]));
}
