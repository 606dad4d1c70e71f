//! Points in a real catalog: made once, processed when indexed, kept over restarts, pruned by age.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::{Clock as _, ManualClock, Timestamp},
    frame::{Consistency, CutMember, CutMethod, CutMore, CutRecord},
    ids::{DiskId, Generation, MachineId, PointId, Sequence},
    wire::DiskIdentity,
};

use super::{Arrival, PointCatalog};
use crate::{
    catalog::{
        Catalog as _, Change, SqliteCatalog,
        record::{DiskRecord, MachineRecord, MachineState, PointState},
    },
    points::{assembler::CutSeen, retention::Verdict},
};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const NOW: Arrival = Arrival::Now { clock_offset_us: 0 };

struct Fixture {
    folder: tempfile::TempDir,
    clock: ManualClock,
    points: PointCatalog,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(100));
        let catalog = SqliteCatalog::open(&folder.path().join("catalog.sqlite")).await.unwrap();
        let machine = MachineRecord {
            id: MACHINE,
            name: "web-1".to_owned(),
            state: MachineState::Enrolled,
            enrolled_at: Timestamp(0),
            last_seen_at: None,
            agent_version: String::new(),
            inventory: None,
        };
        let mut changes = vec![Change::PutMachine(machine)];
        for number in [1, 2] {
            changes.push(Change::PutDisk(DiskRecord {
                id: disk(number),
                machine: MACHINE,
                path: format!("/dev/vd{number}"),
                identity: DiskIdentity::default(),
                size_bytes: 1,
                generation: Generation(1),
                protected_at: Timestamp(0),
                unprotected_at: None,
            }));
        }
        catalog.apply(changes).await.unwrap();
        let points = PointCatalog::load(Arc::new(catalog), Arc::new(clock.clone())).await.unwrap();
        Self { folder, clock, points }
    }

    async fn restarted(self) -> Self {
        let catalog = SqliteCatalog::open(&self.folder.path().join("catalog.sqlite")).await.unwrap();
        let points = PointCatalog::load(Arc::new(catalog), Arc::new(self.clock.clone())).await.unwrap();
        Self { points, ..self }
    }

    async fn arrive(&self, point: u8) {
        for number in [1, 2] {
            self.points.observe(self.cut(point, number), NOW).await.unwrap();
        }
    }

    fn cut(&self, point: u8, number: u8) -> CutSeen {
        let members = [1, 2].map(|number| CutMember { disk: disk(number), generation: Generation(1) });
        CutSeen {
            disk: disk(number),
            generation: Generation(1),
            sequence: Sequence(u64::from(point) * 10),
            stored_bytes: 7,
            record: CutRecord {
                point: PointId::from_bytes([point; 16]),
                machine: MACHINE,
                at: Timestamp(self.clock.wall().0 - 2_000_000),
                hold_us: 1,
                method: CutMethod::Freeze,
                consistency: Consistency::Crash,
                members: members.to_vec(),
                notes: Vec::new(),
                request: None,
                more: CutMore::default(),
            },
        }
    }

    async fn states(&self) -> Vec<(u8, PointState)> {
        let points = self.points.list(MACHINE, 100).await.unwrap();
        points.iter().map(|point| (point.id.into_bytes()[0], point.state)).collect()
    }
}

fn disk(number: u8) -> DiskId {
    DiskId::from_bytes([number; 16])
}

#[tokio::test]
async fn a_point_is_pending_until_all_its_disks_are_indexed() {
    let fixture = Fixture::new().await;
    let cut = fixture.cut(1, 1);
    assert_eq!(fixture.points.observe(cut, NOW).await.unwrap(), None);
    assert_eq!(fixture.points.arriving(MACHINE).len(), 1);
    assert!(fixture.states().await.is_empty());
    let made =
        fixture.points.observe(fixture.cut(1, 2), Arrival::Now { clock_offset_us: 500_000 }).await.unwrap();
    assert_eq!(made.unwrap().rpo_us, 1_500_000);
    fixture.points.indexed(disk(1), Sequence(99)).await.unwrap();
    fixture.points.indexed(disk(2), Sequence(9)).await.unwrap();
    assert_eq!(fixture.states().await, [(1, PointState::Pending)]);
    assert_eq!(fixture.points.pending_count(MACHINE), 1);
    fixture.points.indexed(disk(2), Sequence(10)).await.unwrap();
    assert_eq!(fixture.states().await, [(1, PointState::Processed)]);
    assert_eq!(fixture.points.pending_count(MACHINE), 0);
}

#[tokio::test]
async fn cuts_replayed_after_a_restart_make_no_second_point() {
    let fixture = Fixture::new().await;
    fixture.arrive(1).await;
    fixture.points.observe(fixture.cut(2, 1), NOW).await.unwrap();
    let fixture = fixture.restarted().await;
    assert_eq!(fixture.points.newest(MACHINE).unwrap().id, PointId::from_bytes([1; 16]));
    fixture.arrive(1).await;
    fixture.arrive(2).await;
    assert_eq!(fixture.states().await, [(2, PointState::Pending), (1, PointState::Pending)]);
    fixture.points.indexed(disk(1), Sequence(10)).await.unwrap();
    fixture.points.indexed(disk(2), Sequence(20)).await.unwrap();
    assert_eq!(fixture.states().await, [(2, PointState::Pending), (1, PointState::Processed)]);
}

#[tokio::test]
async fn points_keep_their_order_when_the_clock_steps_back() {
    let fixture = Fixture::new().await;
    fixture.arrive(8).await;
    fixture.clock.step_wall(Timestamp(5_000_000));
    fixture.arrive(9).await;
    assert_eq!(fixture.states().await, [(9, PointState::Pending), (8, PointState::Pending)]);
    assert_eq!(fixture.points.newest(MACHINE).unwrap().id, PointId::from_bytes([9; 16]));
}

#[tokio::test]
async fn old_points_go_but_not_the_newest_nor_leased_ones() {
    let fixture = Fixture::new().await;
    for point in 1..=4 {
        fixture.arrive(point).await;
    }
    for number in [1, 2] {
        fixture.points.indexed(disk(number), Sequence(40)).await.unwrap();
    }
    assert!(fixture.points.lease(PointId::from_bytes([2; 16]), "job 1".to_owned()).await.unwrap());
    assert!(!fixture.points.lease(PointId::from_bytes([9; 16]), "job 1".to_owned()).await.unwrap());
    fixture.clock.advance(Duration::from_secs(3_600));
    let rule = "1m".parse().unwrap();
    let needed = fixture.points.needed(disk(1)).await.unwrap();
    assert_eq!((needed.horizon, needed.cuts), (Sequence(40), [10, 20, 30, 40].map(Sequence).to_vec()));
    let plan = fixture.points.prune(MACHINE, &rule, &|_, _| false).await.unwrap();
    assert_eq!((plan.removed().len(), plan.verdicts[1].1), (2, Verdict::Held));
    assert_eq!(fixture.states().await, [(4, PointState::Processed), (2, PointState::Processed)]);
    assert_eq!(fixture.points.needed(disk(1)).await.unwrap().cuts, [20, 40].map(Sequence));
    fixture.points.release("job 1".to_owned()).await.unwrap();
    fixture.points.prune(MACHINE, &rule, &|_, _| false).await.unwrap();
    assert_eq!(fixture.states().await, [(4, PointState::Processed)]);
    // Their cuts may still be in the log: they do not come back, least of all as the newest.
    let fixture = fixture.restarted().await;
    for point in 1..=4 {
        fixture.arrive(point).await;
    }
    assert_eq!(fixture.states().await, [(4, PointState::Processed)]);
    assert_eq!(fixture.points.newest(MACHINE).unwrap().id, PointId::from_bytes([4; 16]));
}

#[tokio::test]
async fn points_beyond_the_end_of_a_log_are_void_and_say_so() {
    let fixture = Fixture::new().await;
    fixture.arrive(1).await;
    fixture.arrive(2).await;
    let voided = fixture.points.void_beyond(disk(2), Sequence(15)).await.unwrap();
    assert_eq!(voided, [PointId::from_bytes([2; 16])]);
    assert_eq!(fixture.states().await, [(2, PointState::Void), (1, PointState::Pending)]);
}

#[tokio::test]
async fn a_cut_that_a_disk_went_past_is_recorded_as_void() {
    let fixture = Fixture::new().await;
    fixture.points.observe(fixture.cut(1, 1), NOW).await.unwrap();
    fixture.points.observe(fixture.cut(2, 2), NOW).await.unwrap();
    let voided = fixture.points.catalog.voided_cuts(MACHINE, 10).await.unwrap();
    assert_eq!(voided.len(), 1);
}
