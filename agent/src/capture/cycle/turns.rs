//! Turns in group cuts and freezes of hooks, through the whole cycle.

use std::time::Duration;

use holdfast_common::{
    clock::Timestamp,
    frame::{CutMethod, CutMore},
    ids::{DiskId, GroupCutId, GroupId, PointId},
    units::BlockCount,
    wire::{AnswerStep, Applications, GroupArm, GroupOrder, OrderStep},
};

use super::{
    Action, Copied, CutFailure, CutMade, Cycle, Event,
    tests::{at, capture, connected},
};
use crate::{
    hooks::HookState,
    ship::port::{Inbound, Strictness},
};

/// A cycle whose only disk is open, its first own point made, and an executor that finds nothing to copy.
struct Scene {
    cycle: Cycle,
    now: Duration,
    /// What every hook says.
    hooks: HookState,
    /// Actions but waits, takes and copies.
    seen: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let mut cycle = Cycle::new();
        cycle.inbound(&connected(vec![capture(1, true)]), at(0));
        let mut scene = Self { cycle, now: at(0), hooks: HookState::Frozen, seen: Vec::new() };
        scene.run_until("sent");
        scene.seen.clear();
        scene
    }

    fn order(&mut self, step: OrderStep) {
        let order = GroupOrder { cut: GroupCutId::from_bytes([7; 16]), step };
        self.cycle.inbound(&Inbound::GroupCut(Box::new(order)), self.now);
    }

    fn arm(&mut self, application: Applications) {
        let group = GroupId::from_bytes([8; 16]);
        self.order(OrderStep::Arm(GroupArm { group, ready_ms_max: 5_000, wait_ms_max: 100, application }));
    }

    /// Goes on until this has been seen.
    fn run_until(&mut self, what: &str) {
        for _ in 0..10_000 {
            if self.seen.iter().any(|seen| seen.starts_with(what)) {
                return;
            }
            self.step();
        }
        panic!("no {what} in {:?}", self.seen);
    }

    fn step(&mut self) {
        let action = self.cycle.next(self.now);
        let disk = DiskId::from_bytes([1; 16]);
        let event = match action {
            Action::Wait { until } => {
                self.now = until.max(self.now + at(1));
                return;
            }
            Action::Open(_) => Event::Opened { disk, result: Ok(()) },
            Action::Take { disk, .. } => Event::Taken { disk, result: Ok(BlockCount(0)) },
            Action::Copy { disk } => {
                Event::Copied { disk, result: Ok(Copied { left: BlockCount(0), blocked: false }) }
            }
            Action::PlanHold => Event::HoldPlanned(Ok(true)),
            Action::Sync => Event::Synced(Ok(at(1))),
            Action::FreezeHooks => {
                self.see("freeze hooks");
                Event::Hooks(HookState::Running)
            }
            Action::AskHooks => Event::Hooks(self.hooks.clone()),
            Action::ThawHooks => return self.see("thaw hooks"),
            Action::Acknowledge { .. } => return,
            Action::Cut { group, strict, .. } => {
                self.see(&format!("cut group={} strict={strict}", group.is_some()));
                Event::CutTried(Box::new(Ok(made())))
            }
            Action::SendResidue { .. } => Event::ResidueSent { left: 0, blocked: false },
            Action::SendCut { disk, record } => {
                self.see(&format!("sent {:?}", record.notes));
                Event::CutSent { disk, sequence: holdfast_common::ids::Sequence(1) }
            }
            Action::TellGroup(answer) => return self.see(&format!("tell {:?}", answer.step)),
            Action::Void { reason, .. } => return self.see(&format!("void {reason}")),
            other => return self.see(&format!("{other:?}")),
        };
        self.cycle.on(event, self.now);
        if self.seen.last().is_some_and(|seen| seen.starts_with("sent")) {
            let sequence = holdfast_common::ids::Sequence(1);
            self.cycle.inbound(&Inbound::Acknowledged { disk, sequence }, self.now);
        }
    }

    fn see(&mut self, what: &str) {
        self.seen.push(what.to_owned());
    }

    fn armed(&self) -> usize {
        self.seen.iter().filter(|seen| **seen == format!("tell {:?}", AnswerStep::Armed)).count()
    }
}

fn made() -> CutMade {
    CutMade {
        point: PointId::from_bytes([3; 16]),
        at: Timestamp(0),
        held: at(5),
        method: CutMethod::Freeze,
        notes: Vec::new(),
        more: CutMore::default(),
    }
}

#[test]
fn a_member_says_that_it_is_ready_and_holds_when_it_is_told() {
    let mut scene = Scene::new();
    scene.arm(Applications::AsTheyAre);
    scene.run_until("tell Armed");
    let armed_at = scene.now;
    for _ in 0..20 {
        scene.step();
    }
    assert!(scene.now > armed_at, "it waits");
    assert_eq!((scene.armed(), scene.seen.len()), (1, 1), "{:?}", scene.seen);
    scene.order(OrderStep::Hold);
    scene.run_until("cut");
    assert_eq!(scene.seen.last().unwrap(), "cut group=true strict=false");
}

#[test]
fn a_cancel_and_a_group_that_never_holds_leave_the_machine_its_own_cut() {
    let mut scene = Scene::new();
    scene.arm(Applications::AsTheyAre);
    scene.run_until("tell Armed");
    scene.order(OrderStep::Cancel { reason: "two is late".into() });
    scene.run_until("cut group=false");

    let mut scene = Scene::new();
    scene.arm(Applications::AsTheyAre);
    scene.run_until("tell Declined");
    assert!(scene.now >= at(5_000), "after its own time: {:?}", scene.now);
    scene.run_until("cut group=false");
}

#[test]
fn a_lost_link_ends_a_turn() {
    let mut scene = Scene::new();
    scene.arm(Applications::AsTheyAre);
    scene.run_until("tell Armed");
    scene.cycle.inbound(&Inbound::Disconnected, scene.now);
    scene.run_until("cut group=false");
}

#[test]
fn hooks_are_frozen_before_the_cut_and_for_no_other() {
    let mut scene = Scene::new();
    scene.cycle.inbound(&Inbound::MakePoint { request: 5, application: Some(Strictness::Strict) }, scene.now);
    scene.run_until("sent");
    assert_eq!(scene.seen, ["freeze hooks", "cut group=false strict=true", "sent []"]);
    scene.seen.clear();
    scene.run_until("sent");
    assert_eq!(scene.seen, ["cut group=false strict=false", "sent []"], "the next one is a usual one");
}

#[test]
fn a_hook_that_fails_voids_what_must_be_app_consistent_and_marks_what_need_not() {
    let mut scene = Scene::new();
    scene.hooks = HookState::Failed("10-db: no".into());
    scene.cycle.inbound(&Inbound::MakePoint { request: 5, application: Some(Strictness::Strict) }, scene.now);
    scene.run_until("void");
    assert_eq!(scene.seen, ["freeze hooks", "void it cannot be app-consistent: 10-db: no"]);

    scene.seen.clear();
    scene.arm(Applications::Required);
    scene.run_until("sent");
    assert_eq!(scene.seen[0], "freeze hooks");
    assert!(
        scene.seen[1].starts_with("tell Declined") && scene.seen[1].contains("10-db: no"),
        "{:?}",
        scene.seen
    );
    assert_eq!(scene.seen[2..], ["cut group=false strict=false", "sent []"], "its own point goes on");

    scene.seen.clear();
    scene.arm(Applications::Consistent);
    scene.run_until("tell Armed");
    scene.order(OrderStep::Hold);
    scene.run_until("sent");
    assert_eq!(scene.seen[0], "freeze hooks");
    assert_eq!(scene.seen[2..], ["cut group=true strict=false", "sent [\"not app-consistent: 10-db: no\"]"]);
}

#[test]
fn hooks_are_let_go_when_the_cut_comes_to_nothing() {
    let mut scene = Scene::new();
    scene
        .cycle
        .inbound(&Inbound::MakePoint { request: 5, application: Some(Strictness::Lenient) }, scene.now);
    scene.run_until("freeze hooks");
    // Another disk is assigned: the cut begins anew, and so do the hooks.
    scene.cycle.inbound(&connected(vec![capture(1, true), capture(2, true)]), scene.now);
    scene.run_until("thaw hooks");
    assert_eq!(scene.seen, ["freeze hooks", "thaw hooks"]);
}

#[test]
fn a_cut_that_failed_with_frozen_hooks_is_not_tried_again_without_them() {
    let mut scene = Scene::new();
    scene.cycle.inbound(&Inbound::MakePoint { request: 5, application: Some(Strictness::Strict) }, scene.now);
    loop {
        match scene.cycle.next(scene.now) {
            Action::Cut { .. } => break,
            Action::Wait { until } => scene.now = until,
            Action::Acknowledge { .. } => {}
            Action::Take { disk, .. } => {
                scene.cycle.on(Event::Taken { disk, result: Ok(BlockCount(0)) }, scene.now)
            }
            Action::FreezeHooks | Action::AskHooks => {
                scene.cycle.on(Event::Hooks(HookState::Frozen), scene.now)
            }
            Action::PlanHold => scene.cycle.on(Event::HoldPlanned(Ok(true)), scene.now),
            Action::Sync => scene.cycle.on(Event::Synced(Ok(at(1))), scene.now),
            other => panic!("{other:?}"),
        }
    }
    let failure = CutFailure::TooMuch("much".into());
    scene.cycle.on(Event::CutTried(Box::new(Err(failure))), scene.now);
    scene.run_until("void much");
}
