//! The checks on a real log with a real catalog: what is called verified was read, what is damaged is not.

use std::{os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use holdfast_common::{
    clock::{ManualClock, Timestamp},
    frame::{
        Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, Frame, FrameIdentity, FrameSealer,
        seal::seal_cut,
    },
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
    wire::DiskIdentity,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::Checks;
use crate::{
    api::port::StoreChecks as _,
    app::logs::Logs,
    catalog::{
        Catalog, Change, SqliteCatalog,
        record::{DiskRecord, MachineRecord, MachineState, PointRecord},
    },
    points::{
        catalog::PointCatalog,
        checks::CheckPolicy,
        damage::{DamageLedger, DamagedFrame, DiskDamage},
    },
    store::{DiskLog, DiskManifest, LogSink, Store, StoreSettings},
};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const DISK: DiskId = DiskId::from_bytes([2; 16]);
const DAY: Duration = Duration::from_hours(24);

/// A coordinator's parts around one log.
struct World {
    folder: TempDir,
    clock: ManualClock,
    logs: Arc<Logs>,
    points: Arc<PointCatalog>,
    ledger: Arc<DamageLedger>,
    checks: Arc<Checks>,
    sink: Arc<LogSink>,
    identity: FrameIdentity,
}

impl World {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let catalog = SqliteCatalog::open(&folder.path().join("catalog")).await.unwrap();
        let machine = MachineRecord {
            id: MACHINE,
            name: "web-1".to_owned(),
            state: MachineState::Enrolled,
            enrolled_at: Timestamp(0),
            last_seen_at: None,
            agent_version: String::new(),
            inventory: None,
        };
        let disk = DiskRecord {
            id: DISK,
            machine: MACHINE,
            path: "/dev/vda".to_owned(),
            identity: DiskIdentity::default(),
            size_bytes: 1 << 20,
            generation: Generation(1),
            protected_at: Timestamp(0),
            unprotected_at: None,
        };
        catalog.apply(vec![Change::PutMachine(machine), Change::PutDisk(disk)]).await.unwrap();
        let clock = ManualClock::default();
        Self::open(folder, Arc::new(catalog), clock).await
    }

    async fn open(folder: TempDir, catalog: Arc<dyn Catalog>, clock: ManualClock) -> Self {
        let settings = StoreSettings { reserve_bytes: 0, ..StoreSettings::default() };
        let (store, _) = Store::open(&folder.path().join("store"), settings).unwrap();
        let log =
            store.create_disk(&DiskManifest { disk: DISK, machine: MACHINE, size_bytes: 1 << 20 }).unwrap();
        let points = PointCatalog::load(catalog, Arc::new(clock.clone())).await.unwrap();
        let points = Arc::new(points);
        let logs = Logs::new(store, Arc::clone(&points)).unwrap();
        logs.follow(DISK).await.unwrap();
        let ledger = Arc::new(DamageLedger::default());
        let policy =
            CheckPolicy { scrub_days: 7, scrub_bytes_per_second_min: 1 << 40, verify_bytes_per_second: 0 };
        let (shared_points, shared_ledger) = (Arc::clone(&points), Arc::clone(&ledger));
        let checks =
            Checks::new(Arc::clone(&logs), shared_points, shared_ledger, Arc::new(clock.clone()), policy, 2);
        let identity = FrameIdentity {
            disk: DISK,
            generation: Generation(1),
            sequence: log.tail().sequence,
            interval: Interval(1),
        };
        let sink = log.sink().unwrap();
        Self { folder, clock, logs, points, ledger, checks, sink, identity }
    }

    fn log(&self) -> Arc<DiskLog> {
        self.logs.store.disk(DISK).unwrap()
    }

    async fn append(&mut self, seal: impl FnOnce(FrameIdentity) -> bytes::Bytes) -> Sequence {
        self.identity.sequence = self.identity.sequence.next();
        self.sink.append(vec![Frame::verify(seal(self.identity)).unwrap()]).await.unwrap();
        self.sink.settle().await.unwrap()
    }

    async fn write(&mut self, block: u64) -> Sequence {
        let fill = u8::try_from(self.identity.sequence.0 + 1).unwrap();
        let extents = [Extent::data(BlockRange::new(block, 1))];
        let mut sealer = FrameSealer::new(None).unwrap();
        self.append(|identity| sealer.seal_data(identity, &extents, &[fill; BLOCK_BYTES]).unwrap()).await
    }

    /// Makes a point and waits until it is in the catalog and processed.
    async fn point(&mut self, number: u8) -> PointRecord {
        let record = CutRecord {
            point: PointId::from_bytes([number; 16]),
            machine: MACHINE,
            at: Timestamp(i64::from(number)),
            hold_us: 0,
            method: CutMethod::QuietWindow,
            consistency: Consistency::Crash,
            members: vec![CutMember { disk: DISK, generation: Generation(1) }],
            notes: Vec::new(),
            request: None,
            more: CutMore::default(),
        };
        self.append(|identity| seal_cut(identity, &record).unwrap()).await;
        self.identity.interval = self.identity.interval.next();
        self.logs.state(DISK, Generation(1)).await.unwrap();
        self.points.get(record.point).await.unwrap().unwrap()
    }

    /// Flips a bit of a frame where it lies.
    fn damage(&self, sequence: Sequence) {
        let log = self.log();
        let frame = log.read(sequence).unwrap().bytes().clone();
        let path = log.layout().segment(Sequence(1));
        let at = std::fs::read(&path).unwrap().windows(frame.len()).position(|bytes| bytes == frame).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[frame[frame.len() - 1] ^ 1], (at + frame.len() - 1) as u64).unwrap();
    }

    /// Works until nothing is left.
    async fn work(&self) {
        let closing = CancellationToken::new();
        loop {
            let (checks, stop) = (Arc::clone(&self.checks), closing.clone());
            let busy = tokio::task::spawn_blocking(move || checks.step(&stop)).await.unwrap();
            self.checks.settle().await;
            if !busy {
                return;
            }
        }
    }

    async fn verified(&self) -> Vec<u8> {
        let points = self.points.list(MACHINE, 100).await.unwrap();
        let mut verified: Vec<u8> = points
            .iter()
            .filter(|point| point.verified_at.is_some())
            .map(|point| point.id.into_bytes()[0])
            .collect();
        verified.sort_unstable();
        verified
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_are_verified_one_after_another_and_damaged_ones_are_not() {
    let mut world = World::new().await;
    let covered = world.write(5).await;
    world.write(5).await;
    world.point(1).await;
    let needed = world.write(6).await;
    world.point(2).await;
    world.write(6).await;
    world.point(3).await;
    // Nobody needs the one, two of three points do without the other.
    world.damage(covered);
    world.damage(needed);
    assert!(world.verified().await.is_empty());
    world.work().await;
    assert_eq!(world.log().bad_frames().list(), [needed]);
    // Until it is known who needs the frame, no point behind it is called good.
    assert_eq!(world.verified().await, [1]);
    let index = world.logs.index(DISK).unwrap();
    let assessed = DamagedFrame::assess(&index, needed).unwrap().unwrap();
    world.ledger.set(DISK, DiskDamage { frames: vec![assessed] });
    world.checks.settle().await;
    assert_eq!(world.verified().await, [1, 3]);
    let figures = world.checks.figures(DISK).unwrap();
    assert_eq!((figures.verified, figures.damaged_frames), (world.log().tail().sequence, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_in_a_hurry_is_verified_alone_and_its_frames_are_not_read_twice() {
    let mut world = World::new().await;
    let first = world.write(1).await;
    world.point(1).await;
    world.write(1).await;
    world.write(2).await;
    let latest = world.point(2).await;
    // Point 1 needs it, point 2 does not.
    world.damage(first);
    world.checks.hurry(&latest);
    let (checks, stop) = (Arc::clone(&world.checks), CancellationToken::new());
    assert!(tokio::task::spawn_blocking(move || checks.step(&stop)).await.unwrap());
    world.checks.settle().await;
    assert_eq!(world.verified().await, [2]);
    assert!(world.log().bad_frames().list().is_empty());
    let found = world.checks.progress(latest.id).unwrap();
    assert_eq!(found.good, Some(true));
    assert_eq!(found.progress.done_bytes, found.progress.total_bytes);
    // Two data frames and the cut; a mark stands behind each of them.
    assert!(found.progress.done_bytes > 2 * BLOCK_BYTES as u64);
    assert!(found.progress.done_bytes < 3 * BLOCK_BYTES as u64);
    // Damage that comes after a frame was read is for the scrub to find.
    world.damage(Sequence(first.0 + 2));
    world.work().await;
    assert_eq!(world.log().bad_frames().list(), [first]);
    assert_eq!(world.verified().await, [2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_comes_by_itself_finds_what_went_bad_and_is_remembered() {
    let mut world = World::new().await;
    world.write(1).await;
    let second = world.write(2).await;
    world.point(1).await;
    world.work().await;
    assert_eq!(world.verified().await, [1]);
    world.damage(second);
    world.work().await;
    assert!(world.log().bad_frames().list().is_empty());
    world.clock.advance(7 * DAY);
    world.work().await;
    assert_eq!(world.log().bad_frames().list(), [second]);
    let last = world.checks.figures(DISK).unwrap().last.unwrap();
    assert_eq!(last.bad_frames, 1);
    world.checks.record_all();
    let path = world.log().layout().checks();
    let World { folder, clock, logs, sink, points, checks, .. } = world;
    logs.stop().await;
    let (record, disk) = (std::fs::read_to_string(path).unwrap(), DISK);
    drop((logs, sink, points, checks, clock));
    assert!(record.contains("\"bad_frames\":1"), "{record} of {disk} in {folder:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_ask_for_a_scrub() {
    let mut world = World::new().await;
    assert!(!world.checks.start(DISK));
    world.write(1).await;
    world.point(1).await;
    world.work().await;
    world.damage(Sequence(1));
    assert!(world.checks.start(DISK));
    assert!(world.checks.figures(DISK).unwrap().pass.is_some());
    world.work().await;
    assert_eq!(world.log().bad_frames().list(), [Sequence(1)]);
    assert!(world.checks.figures(DISK).unwrap().pass.is_none());
}
