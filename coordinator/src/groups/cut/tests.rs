//! The coordinator's side, step by step.

use std::time::Duration;

use holdfast_common::{
    ids::{GroupCutId, GroupId, MachineId, PointId},
    wire::{AnswerStep, GroupAnswer, MarkOrder, OrderStep},
};

use super::{Group, GroupCut, Outcome, Output, Terms, VoidReason};

const MS: Duration = Duration::from_millis(1);
const ONE: MachineId = MachineId::from_bytes([1; 16]);
const TWO: MachineId = MachineId::from_bytes([2; 16]);

fn begin() -> GroupCut {
    let terms = Terms {
        arming: 1_000 * MS,
        holding: 100 * MS,
        releasing: 500 * MS,
        wait: 50 * MS,
        application: false,
    };
    let group = Group { id: GroupId::from_bytes([9; 16]), name: "shop".into() };
    let (cut, orders) =
        GroupCut::begin(GroupCutId::from_bytes([7; 16]), group, [ONE, TWO], terms, 1_000 * MS);
    assert_eq!(steps(&orders).len(), 2);
    assert!(matches!(steps(&orders)[0], (ONE, OrderStep::Arm(arm)) if arm.wait_ms_max == 50));
    cut
}

fn steps(outputs: &[Output]) -> Vec<(MachineId, OrderStep)> {
    let step = |output: &Output| match output {
        Output::Send(machine, order) => Some((*machine, order.step.clone())),
        Output::Over(_) => None,
    };
    outputs.iter().filter_map(step).collect()
}

fn void(outputs: &[Output]) -> Option<(Option<MachineId>, VoidReason)> {
    match outputs.last() {
        Some(Output::Over(Outcome::Void(void))) => Some((void.member, void.reason.clone())),
        _ => None,
    }
}

fn say(step: AnswerStep) -> GroupAnswer {
    GroupAnswer { cut: GroupCutId::from_bytes([7; 16]), step }
}

fn held(number: u8, took_us: u64) -> GroupAnswer {
    say(AnswerStep::Held { hold: PointId::from_bytes([number; 16]), took_us })
}

fn holding() -> GroupCut {
    let mut cut = begin();
    assert_eq!(cut.answer(ONE, &say(AnswerStep::Armed), 1_010 * MS), []);
    let orders = cut.answer(TWO, &say(AnswerStep::Armed), 1_020 * MS);
    assert_eq!(steps(&orders), [(ONE, OrderStep::Hold), (TWO, OrderStep::Hold)]);
    cut
}

#[test]
fn the_mark_follows_the_last_hold_and_names_each_members_own() {
    let mut cut = holding();
    assert_eq!(cut.answer(ONE, &held(1, 4_000), 1_025 * MS), []);
    let marks = steps(&cut.answer(TWO, &held(2, 9_000), 1_032 * MS));
    let mark = |number: u8, since_held_us| {
        OrderStep::Mark(MarkOrder {
            hold: PointId::from_bytes([number; 16]),
            since_held_us,
            // The first began no sooner than 3 ms after the order (4 ms, less drift and slack), the last by its report.
            spread_us: 9_004,
            group: GroupId::from_bytes([9; 16]),
            name: "shop".into(),
            members: vec![ONE, TWO],
        })
    };
    assert_eq!(marks, [(ONE, mark(1, 7_000)), (TWO, mark(2, 0))]);
    let released = |number: u8| {
        say(AnswerStep::Released { hold: PointId::from_bytes([number; 16]), marked: true, held_us: 10 })
    };
    assert_eq!(cut.answer(ONE, &released(1), 1_040 * MS), []);
    assert_eq!(cut.answer(ONE, &released(1), 1_040 * MS), [], "said twice");
    let done = cut.answer(TWO, &released(2), 1_041 * MS);
    assert!(matches!(&done[..], [Output::Over(Outcome::Marked(holds))] if holds.len() == 2));
    assert!(cut.is_over());
}

#[test]
fn whoever_declines_is_lost_or_late_voids_the_group_cut_only() {
    let declined = begin().answer(TWO, &say(AnswerStep::Declined { reason: "no disk".into() }), 1_001 * MS);
    assert_eq!(void(&declined), Some((Some(TWO), VoidReason::Declined("no disk".into()))));
    assert!(matches!(
        &steps(&declined)[..],
        [(ONE, OrderStep::Cancel { .. }), (TWO, OrderStep::Cancel { .. })]
    ));

    let lost = holding().lost(ONE, "gone");
    assert_eq!(void(&lost), Some((Some(ONE), VoidReason::Lost("gone".into()))));

    let mut cut = begin();
    cut.answer(ONE, &say(AnswerStep::Armed), 1_001 * MS);
    assert_eq!(cut.tick(1_999 * MS), []);
    assert!(matches!(void(&cut.tick(2_000 * MS)), Some((Some(TWO), VoidReason::Late(_)))));
    assert_eq!(cut.tick(9_000 * MS), [], "over is over");

    let mut cut = holding();
    cut.answer(TWO, &held(2, 1), 1_021 * MS);
    assert!(matches!(void(&cut.tick(1_120 * MS)), Some((Some(ONE), VoidReason::Late(_)))));
}

#[test]
fn after_the_mark_a_lost_member_changes_nothing_but_an_unmarked_one_does() {
    let mut cut = holding();
    cut.answer(ONE, &held(1, 1), 1_021 * MS);
    cut.answer(TWO, &held(2, 1), 1_021 * MS);
    assert_eq!(cut.lost(ONE, "gone"), []);
    assert_eq!(cut.tick(1_100 * MS), []);
    let unmarked =
        say(AnswerStep::Released { hold: PointId::from_bytes([1; 16]), marked: false, held_us: 9 });
    assert_eq!(void(&cut.answer(ONE, &unmarked, 1_022 * MS)), Some((Some(ONE), VoidReason::Unmarked)));
}

#[test]
fn a_word_that_is_missing_after_the_mark_proves_nothing() {
    let mut cut = holding();
    cut.answer(ONE, &held(1, 1), 1_021 * MS);
    cut.answer(TWO, &held(2, 1), 1_021 * MS);
    let released = say(AnswerStep::Released { hold: PointId::from_bytes([1; 16]), marked: true, held_us: 9 });
    assert_eq!(cut.answer(ONE, &released, 1_022 * MS), []);
    let over = cut.tick(1_521 * MS);
    assert!(matches!(&over[..], [Output::Over(Outcome::Marked(holds))] if holds.len() == 2), "{over:?}");
}

#[test]
fn a_second_hold_of_a_member_never_takes_the_place_of_the_first() {
    let mut cut = holding();
    cut.answer(ONE, &held(1, 1), 1_021 * MS);
    assert_eq!(cut.answer(ONE, &held(3, 1), 1_022 * MS), []);
    let marks = steps(&cut.answer(TWO, &held(2, 1), 1_023 * MS));
    assert!(matches!(&marks[0], (ONE, OrderStep::Mark(mark)) if mark.hold == PointId::from_bytes([1; 16])));
}

#[test]
fn a_clock_that_shows_more_than_the_exchange_took_is_not_believed() {
    let outputs = holding().answer(ONE, &held(1, 90_000), 1_030 * MS);
    assert_eq!(void(&outputs), Some((Some(ONE), VoidReason::Clock)));
}

#[test]
fn other_attempts_and_strangers_mean_nothing() {
    let mut cut = begin();
    let other = GroupAnswer { cut: GroupCutId::from_bytes([8; 16]), step: AnswerStep::Armed };
    assert_eq!(cut.answer(ONE, &other, 1_001 * MS), []);
    let stranger = MachineId::from_bytes([5; 16]);
    assert_eq!(cut.answer(stranger, &say(AnswerStep::Declined { reason: String::new() }), 1_001 * MS), []);
    assert_eq!(cut.answer(ONE, &held(1, 1), 1_001 * MS), [], "a hold that nobody ordered");
    assert!(!cut.is_over());
}
