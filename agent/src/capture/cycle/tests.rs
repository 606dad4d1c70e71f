//! Decisions of the cycle that the simulation of the engine does not single out.

use std::time::Duration;

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    units::{BlockCount, BlockIndex},
    wire::{Assignment, Capture, DiskHealth, DiskIdentity, MachineSettings, Welcome},
};

use super::{Action, Copied, Cycle, Event, REQUESTS_MAX, Trouble};
use crate::ship::port::Inbound;

pub(super) fn capture(number: u8, scan_complete: bool) -> Capture {
    Capture {
        disk: DiskId::from_bytes([number; 16]),
        identity: DiskIdentity::default(),
        path: format!("/dev/disk{number}"),
        size_bytes: 1 << 20,
        generation: Generation(1),
        durable: Sequence(0),
        interval: Interval(1),
        scanned_to: BlockIndex(0),
        scan_complete,
        replica_empty: false,
    }
}

pub(super) fn connected(disks: Vec<Capture>) -> Inbound {
    let settings = MachineSettings {
        cut_interval_ms: 1000,
        hold_ms_max: 2000,
        send_bytes_per_second_max: 0,
        scan_bytes_per_second_max: 0,
    };
    Inbound::Connected(Box::new(Welcome {
        protocol_version: 1,
        coordinator_version: String::new(),
        machine: MachineId::from_bytes([9; 16]),
        now: Timestamp(0),
        assignment: Assignment { settings, disks },
    }))
}

pub(super) fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

#[test]
fn a_missing_disk_is_reported_once_and_looked_for_again() {
    let mut cycle = Cycle::new();
    let disk = capture(1, true).disk;
    cycle.inbound(&connected(vec![capture(1, true)]), at(0));
    assert!(matches!(cycle.next(at(0)), Action::Open(_)));
    cycle.on(Event::Opened { disk, result: Err(Trouble::Gone) }, at(0));
    assert_eq!(cycle.health(disk), Some(DiskHealth::Missing));
    let Action::Void { reason, .. } = cycle.next(at(1)) else { panic!("the reason is told") };
    assert!(reason.contains("/dev/disk1 is missing"), "{reason}");
    assert!(matches!(cycle.next(at(2)), Action::Wait { .. }), "not told again");
    assert!(matches!(cycle.next(at(6000)), Action::Open(_)));
}

#[test]
fn lost_trust_is_told_again_after_a_reconnect_and_ends_with_a_new_generation() {
    let mut cycle = Cycle::new();
    let disk = capture(1, true).disk;
    cycle.inbound(&connected(vec![capture(1, true)]), at(0));
    cycle.next(at(0));
    cycle.on(Event::Opened { disk, result: Err(Trouble::Distrust("rebooted".into())) }, at(0));
    assert!(matches!(cycle.next(at(1)), Action::TellTrustLost(_)));
    cycle.inbound(&connected(vec![capture(1, true)]), at(2));
    assert!(matches!(cycle.next(at(2)), Action::TellTrustLost(_)));
    let raised = Capture { generation: Generation(2), scan_complete: false, ..capture(1, false) };
    cycle.inbound(&connected(vec![raised]), at(3));
    assert!(matches!(cycle.next(at(3)), Action::Close { .. }));
    assert!(matches!(cycle.next(at(3)), Action::Open(_)));
}

#[test]
fn a_point_asked_for_during_a_scan_is_refused_with_the_reason() {
    let mut cycle = Cycle::new();
    let disk = capture(1, false).disk;
    cycle.inbound(&connected(vec![capture(1, false)]), at(0));
    cycle.next(at(0));
    cycle.on(Event::Opened { disk, result: Ok(()) }, at(0));
    cycle.inbound(&Inbound::MakePoint { request: 5, application: None }, at(1));
    let Action::Void { request, reason } = cycle.next(at(1)) else { panic!("it is refused") };
    assert_eq!(request, Some(5));
    assert!(reason.contains("scan is complete"), "{reason}");
}

#[test]
fn requests_are_bounded() {
    let mut cycle = Cycle::new();
    for request in 0..=REQUESTS_MAX as u64 {
        cycle.inbound(&Inbound::MakePoint { request, application: None }, at(0));
    }
    let Action::Void { request, .. } = cycle.next(at(0)) else { panic!("one too many") };
    assert_eq!(request, Some(REQUESTS_MAX as u64));
}

/// Rounds between the last syncfs and the cut, of which each takes so many blocks.
fn last_rounds(taken: &[u64]) -> usize {
    let mut cycle = Cycle::new();
    cycle.inbound(&connected(vec![capture(1, true)]), at(0));
    let (mut now, mut synced, mut rounds) = (at(0), false, 0);
    for _ in 0..1000 {
        let event = match cycle.next(now) {
            Action::Wait { until } => {
                now = until.max(now + at(1));
                continue;
            }
            Action::Open(capture) => Event::Opened { disk: capture.disk, result: Ok(()) },
            Action::Take { disk, .. } => {
                let blocks = if synced { taken.get(rounds).copied().unwrap_or(0) } else { 0 };
                rounds += usize::from(synced);
                Event::Taken { disk, result: Ok(BlockCount(blocks)) }
            }
            Action::Copy { disk } => {
                Event::Copied { disk, result: Ok(Copied { left: BlockCount(0), blocked: false }) }
            }
            Action::PlanHold => Event::HoldPlanned(Ok(true)),
            Action::Sync => {
                synced = true;
                Event::Synced(Ok(at(1)))
            }
            Action::Cut { .. } => return rounds,
            other => panic!("{other:?}"),
        };
        cycle.on(event, now);
    }
    panic!("no cut");
}

#[test]
fn the_last_rounds_go_on_while_they_shrink() {
    assert_eq!(last_rounds(&[10]), 1, "there is hardly anything left");
    assert_eq!(last_rounds(&[300, 60, 40]), 2);
    assert_eq!(last_rounds(&[4000, 1000, 300, 100, 80, 70]), 5, "they end");
    assert_eq!(last_rounds(&[4000, 4000, 4000]), 2, "the disk is written faster than it is read");
    assert_eq!(last_rounds(&[4000, 1000, 900]), 3);
}
