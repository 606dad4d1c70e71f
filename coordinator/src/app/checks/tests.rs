//! The checks on a real log with a real catalog: what is called verified was read, what is damaged is not.

use std::{os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use holdfast_common::{
    clock::{Clock as _, ManualClock, Timestamp},
    frame::{
        Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, Frame, FrameIdentity, FrameSealer,
        Witness, WitnessBlock, seal::seal_cut, witness_digest,
    },
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockIndex, BlockRange},
    wire::DiskIdentity,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{Checks, HEAD_START};
use crate::{
    api::port::StoreChecks as _,
    app::logs::Logs,
    catalog::{
        Catalog, Change, SqliteCatalog,
        record::{DiskRecord, MachineRecord, MachineState, PointRecord, WitnessRecord},
    },
    points::{
        catalog::PointCatalog,
        checks::CheckPolicy,
        damage::{DamageLedger, DamagedFrame, Differing, DiskDamage},
        frame_cache::FrameCache,
        point_view::PointView,
        view::{BlockView as _, HistoryPlace, ViewError},
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
        let catalog = Self::catalog(&folder, "catalog").await;
        Self::open(folder, Arc::new(catalog), ManualClock::default()).await
    }

    async fn catalog(folder: &TempDir, name: &str) -> SqliteCatalog {
        let catalog = SqliteCatalog::open(&folder.path().join(name)).await.unwrap();
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
        catalog
    }

    /// The same logs with a catalog that knows none of their points.
    async fn with_a_new_catalog(self) -> Self {
        let Self { folder, clock, logs, points, checks, sink, .. } = self;
        logs.stop().await;
        drop((points, checks, sink));
        let store = Arc::clone(&logs.store);
        drop(logs);
        while Arc::strong_count(&store) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(store);
        let catalog = Self::catalog(&folder, "another").await;
        Self::open(folder, Arc::new(catalog), clock).await
    }

    async fn open(folder: TempDir, catalog: Arc<dyn Catalog>, clock: ManualClock) -> Self {
        let settings = StoreSettings { reserve_bytes: 0, ..StoreSettings::default() };
        let (store, _) = Store::open(&folder.path().join("store"), settings).unwrap();
        let log = match store.disk(DISK) {
            Some(log) => log,
            None => store
                .create_disk(&DiskManifest { disk: DISK, machine: MACHINE, size_bytes: 1 << 20 })
                .unwrap(),
        };
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
        self.witnessed_point(number, &[]).await
    }

    /// The same, with blocks that the source is said to have held: each full of one byte.
    async fn witnessed_point(&mut self, number: u8, blocks: &[(u64, u8)]) -> PointRecord {
        let block = |(block, fill): &(u64, u8)| WitnessBlock {
            disk: DISK,
            block: BlockIndex(*block),
            digest: witness_digest(&[*fill; BLOCK_BYTES]),
        };
        let witness = Witness { blocks: blocks.iter().map(block).collect() };
        let witness = (!blocks.is_empty()).then_some(witness);
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
            more: CutMore { witness, ..CutMore::default() },
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
        loop {
            let busy = self.step().await;
            self.checks.settle().await;
            if !busy {
                return;
            }
        }
    }

    /// Brings what is known of differences up to date.
    fn assess(&self) -> DiskDamage {
        let index = self.logs.index(DISK).unwrap();
        let differing = crate::app::damage::differing(&self.log()).into_iter();
        let differing = differing.filter_map(|(cut, ranges)| Differing::assess(&index, cut, ranges).unwrap());
        let damage = DiskDamage { differing: differing.collect(), ..DiskDamage::default() };
        self.ledger.set(DISK, damage.clone());
        damage
    }

    fn read(&self, point: &PointRecord, block: u64) -> Result<u8, ViewError> {
        let index = self.logs.index(DISK).unwrap();
        let view = PointView::at_cut(&index, FrameCache::new(1 << 20), point.disks[0].sequence).unwrap();
        let mut buffer = [0; BLOCK_BYTES];
        view.read(block * BLOCK_BYTES as u64, &mut buffer).map(|()| buffer[0])
    }

    async fn step(&self) -> bool {
        let (checks, stop) = (Arc::clone(&self.checks), CancellationToken::new());
        tokio::task::spawn_blocking(move || checks.step(&stop)).await.unwrap()
    }

    async fn witness(&self, point: &PointRecord) -> WitnessRecord {
        self.points.get(point.id).await.unwrap().unwrap().witness
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
    world.ledger.set(DISK, DiskDamage { frames: vec![assessed], ..DiskDamage::default() });
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
    // What is started from it reads first; nothing else is checked meanwhile either.
    assert!(!world.step().await);
    world.clock.advance(HEAD_START - Duration::from_millis(1));
    assert!(!world.step().await);
    assert_eq!(world.checks.progress(latest.id).unwrap().progress.done_bytes, 0);
    world.clock.advance(Duration::from_millis(1));
    assert!(world.step().await);
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
async fn what_the_source_witnessed_is_compared_and_recorded_with_the_point() {
    let mut world = World::new().await;
    world.write(5).await;
    let plain = world.point(1).await;
    // Frame 1 filled it with its number; a block that was never written counts too, and so does one outside the disk.
    let point = world.witnessed_point(2, &[(5, 1), (77, 0), (1 << 40, 0)]).await;
    assert_eq!((point.witness.blocks, point.witness.compared_at), (3, None));
    assert_eq!(point.more.witness, None, "digests are not for the catalog");
    world.clock.advance(DAY);
    world.work().await;
    let witness = world.witness(&point).await;
    assert_eq!((witness.blocks, witness.differed, witness.compared_at), (3, 1, Some(world.clock.wall())));
    assert_eq!(world.witness(&plain).await, WitnessRecord::default());
    assert!(world.log().differences().list().is_empty(), "what cannot be read is no difference");
    assert!(world.points.unwitnessed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_hits_its_point_and_all_behind_it_until_the_blocks_were_sent_again() {
    let mut world = World::new().await;
    world.write(5).await;
    let before = world.point(1).await;
    let found = world.witnessed_point(2, &[(5, 99), (6, 0), (7, 99)]).await;
    world.write(9).await;
    let behind = world.witnessed_point(3, &[(5, 99)]).await;
    world.work().await;
    let alarm = world.log().differences().alarm().unwrap();
    assert_eq!(alarm.blocks, 2, "what is known is not counted again");
    assert_eq!(world.witness(&found).await.differed, 2);
    assert_eq!(world.witness(&behind).await.differed, 1);
    let damage = world.assess();
    let cuts = [&before, &found, &behind].map(|point| point.disks[0].sequence);
    assert_eq!(cuts.map(|cut| damage.hits(cut)), [false, true, true]);
    assert_eq!(damage.differing[0].wanted, [BlockRange::new(5, 1), BlockRange::new(7, 1)]);
    // Exactly these blocks give errors, also where nothing was ever written.
    for block in [5, 7] {
        assert!(matches!(world.read(&found, block), Err(ViewError::Differs { .. })));
        assert!(world.read(&before, block).is_ok());
    }
    assert_eq!((world.read(&found, 6).unwrap(), world.read(&behind, 9).unwrap()), (0, 4));
    // Half of it sent again is not enough for a point to be right.
    world.write(5).await;
    let half = world.point(4).await;
    world.write(7).await;
    let whole = world.witnessed_point(5, &[(5, 6), (7, 8)]).await;
    world.work().await;
    let damage = world.assess();
    assert!(damage.hits(half.disks[0].sequence) && !damage.hits(whole.disks[0].sequence));
    assert!(damage.is_repaired() && damage.differing[0].wanted.is_empty());
    assert_eq!(world.witness(&whole).await.differed, 0);
    assert_eq!(world.read(&half, 5).unwrap(), 6);
    assert!(world.read(&half, 7).is_err() && world.read(&whole, 7).is_ok());
    assert!(world.log().differences().alarm().is_some(), "the alarm stays until all was compared");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_catalog_learns_again_what_stands_behind_cut_records() {
    let mut world = World::new().await;
    world.write(5).await;
    let point = world.witnessed_point(1, &[(5, 1), (6, 0)]).await;
    // The index has the cut in a run by now, without what stands behind its record.
    world.logs.index(DISK).unwrap().compact().unwrap();
    let world = world.with_a_new_catalog().await;
    let again = world.points.get(point.id).await.unwrap().unwrap();
    assert_eq!(again.witness, WitnessRecord { blocks: 2, ..WitnessRecord::default() });
    world.work().await;
    assert!(world.witness(&point).await.compared_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_not_skipped_as_a_hole_nor_written_out() {
    let mut world = World::new().await;
    world.write(5).await;
    let older = world.point(1).await;
    let point = world.witnessed_point(2, &[(7, 99)]).await;
    world.work().await;
    let index = world.logs.index(DISK).unwrap();
    let cache = FrameCache::new(1 << 20);
    let view = PointView::at_cut(&index, cache, point.disks[0].sequence).unwrap();
    let hole = |block| view.extents(BlockRange::new(block, 1)).unwrap()[0].hole;
    assert!(hole(6) && !hole(7) && hole(8));
    assert!(view.stored(BlockRange::new(0, 20)).is_err());
    let place = HistoryPlace { point: older.id, cut: older.disks[0].sequence };
    let changes = view.changes_from(place).unwrap().unwrap();
    let (changed, _) = changes.changed(BlockRange::new(0, 20)).unwrap();
    assert!(changed.iter().any(|range| range.contains(BlockIndex(7))), "{changed:?}");
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
