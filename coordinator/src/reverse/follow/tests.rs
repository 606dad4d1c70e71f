//! A target in branches of real logs: what a follower leaves in the logs is what the branches hold, whatever the source wrote.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use holdfast_common::{
    clock::{SystemClock, Timestamp},
    entropy::SystemEntropy,
    frame::{Consistency, CutMember, CutMethod, CutMore, CutRecord},
    ids::{DiskId, Generation, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockIndex, BlockRange},
};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

use super::{FollowError, Follower, Target, TargetDisk, joined};
use crate::{
    compute::{
        branch::{Branch, Origin},
        machines::{InstantDisk, MachineInstant, Mark, OwnImages, Written},
        port::{BoxFuture, ComputeError, Task},
    },
    index::DiskIndex,
    points::{
        frame_cache::FrameCache,
        point_view::PointView,
        view::{BlockView, HistoryPlace, ViewError, ViewExtent},
    },
    reverse::log_writer::LogWriter,
    store::{DiskLog, DiskManifest, Store, StoreSettings},
};

const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
const BLOCKS: u64 = 40;
/// The last block is not whole.
const SIZE: u64 = BLOCKS * BLOCK_BYTES as u64 - 1000;

/// Two disks of a machine, and what runs them.
struct World {
    folder: TempDir,
    _store: Arc<Store>,
    runtime: Runtime,
    indexes: Vec<Arc<DiskIndex>>,
}

impl World {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let settings = StoreSettings { reserve_bytes: 0, ..StoreSettings::default() };
        let (store, _) = Store::open(&folder.path().join("store"), settings).unwrap();
        let log = |number| {
            let disk = DiskId::from_bytes([number; 16]);
            store.create_disk(&DiskManifest { disk, machine: MACHINE, size_bytes: SIZE }).unwrap()
        };
        let indexes = [2, 3].map(|number| DiskIndex::open(log(number)).unwrap()).into();
        Self { folder, _store: store, runtime: Runtime::new().unwrap(), indexes }
    }

    fn source(&self, log: &Arc<DiskLog>) -> LogWriter {
        LogWriter::open(log, Generation(1), self.runtime.handle().clone()).unwrap()
    }

    /// The source writes blocks of both disks, each full of one byte; a cut ends that if it is to be a point.
    fn source_writes(&self, blocks: &[(u64, u8)], point: Option<u8>) {
        for index in &self.indexes {
            let mut writer = self.source(index.log());
            for (block, byte) in blocks {
                writer.put(BlockIndex(*block), &[*byte; BLOCK_BYTES]).unwrap();
            }
            if let Some(number) = point {
                writer.cut(&record(PointId::from_bytes([number; 16]))).unwrap();
            }
            writer.settle().unwrap();
            index.catch_up().unwrap();
        }
    }

    /// Branches that begin at the newest cuts; those that are there go on.
    fn targets(&self, begins: PointId, at: &[Sequence]) -> Vec<(TargetDisk, Arc<Branch>)> {
        let target = |(index, cut): (&Arc<DiskIndex>, &Sequence)| {
            let cache = FrameCache::new(1 << 20);
            let base = Arc::new(PointView::at_cut(index, cache, *cut).unwrap());
            let disk = index.log().disk();
            let path = self.folder.path().join(format!("{disk}.branch"));
            let origin = Origin { point: begins, turn: Some(0) };
            let branch = Arc::new(Branch::open(&path, origin, base, "boot").unwrap());
            let (begins, generation) = (HistoryPlace { point: begins, cut: *cut }, Generation(2));
            (TargetDisk { disk, begins, index: Arc::clone(index), generation }, branch)
        };
        self.indexes.iter().zip(at).map(target).collect()
    }

    fn newest_cuts(&self) -> Vec<Sequence> {
        self.indexes.iter().map(|index| index.cuts().last().unwrap().sequence).collect()
    }

    /// What the logs have at a point.
    fn content(&self, point: PointId) -> Vec<Vec<u8>> {
        self.indexes
            .iter()
            .map(|index| {
                index.catch_up().unwrap();
                let cuts = index.cuts();
                let cut = cuts.iter().find(|cut| cut.record.point == point).unwrap();
                let view = PointView::at_cut(index, FrameCache::new(1 << 20), cut.sequence).unwrap();
                let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
                view.read(0, &mut bytes).unwrap();
                bytes
            })
            .collect()
    }
}

fn record(point: PointId) -> CutRecord {
    CutRecord {
        point,
        machine: MACHINE,
        at: Timestamp(1),
        hold_us: 0,
        method: CutMethod::QuietWindow,
        consistency: Consistency::Crash,
        members: [2, 3]
            .map(|number| CutMember { disk: DiskId::from_bytes([number; 16]), generation: Generation(1) })
            .into(),
        notes: Vec::new(),
        request: None,
        more: CutMore::default(),
    }
}

fn follower(targets: Vec<(TargetDisk, Arc<Branch>)>) -> Follower {
    let (disks, branches) = targets.into_iter().unzip();
    following(disks, Target::Branches(branches))
}

fn following(disks: Vec<TargetDisk>, target: Target) -> Follower {
    let (clock, entropy) = (Arc::new(SystemClock::new()), Arc::new(SystemEntropy::new()));
    Follower::new(MACHINE, disks, target, FrameCache::new(1 << 20), clock, entropy)
}

fn branches(targets: &[(TargetDisk, Arc<Branch>)]) -> Vec<Vec<u8>> {
    targets
        .iter()
        .map(|(_, branch)| {
            let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
            branch.read(0, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

fn write(targets: &[(TargetDisk, Arc<Branch>)], block: u64, byte: u8) {
    for (_, branch) in targets {
        let offset = block * BLOCK_BYTES as u64;
        let bytes = usize::try_from((SIZE - offset).min(BLOCK_BYTES as u64)).unwrap();
        branch.write(offset, &vec![byte; bytes]).unwrap();
    }
}

/// A machine's own images, in memory. Each goes wrong where it is told to.
#[derive(Debug)]
struct Images {
    ids: Vec<DiskId>,
    state: Mutex<ImagesState>,
}

#[derive(Debug, Default)]
struct ImagesState {
    bytes: Vec<Vec<u8>>,
    /// Blocks written since the machine was made, and since the newest instant; of all disks.
    since_point: BTreeSet<u64>,
    since_mark: BTreeSet<u64>,
    mark: Option<Mark>,
    marks: u32,
    /// The machine was killed: nothing is known.
    lost: bool,
    /// Bytes of the next instant that can be read; all if `None`.
    breaks_at: Option<u64>,
    open: u32,
}

/// What an image held, up to where it breaks.
#[derive(Debug)]
struct Held(Vec<u8>, Option<u64>);

impl BlockView for Held {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        if self.1.is_some_and(|breaks_at| offset >= breaks_at) {
            let source = std::io::ErrorKind::ConnectionReset.into();
            return Err(ViewError::Io { place: "an image".into(), source });
        }
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.0[start..start + buffer.len()]);
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }
}

impl Images {
    /// Images that begin as the newest cuts of both logs.
    fn new(world: &World, begins: PointId) -> Arc<Self> {
        let ids = world.indexes.iter().map(|index| index.log().disk()).collect();
        let state = ImagesState { bytes: world.content(begins), ..ImagesState::default() };
        Arc::new(Self { ids, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, ImagesState> {
        self.state.lock().unwrap()
    }

    fn write(&self, block: u64, byte: u8) {
        let mut state = self.state();
        let start = usize::try_from(block * BLOCK_BYTES as u64).unwrap();
        let end = (start + BLOCK_BYTES).min(usize::try_from(SIZE).unwrap());
        state.bytes.iter_mut().for_each(|bytes| bytes[start..end].fill(byte));
        state.since_point.insert(block);
        state.since_mark.insert(block);
    }

    fn follower(self: &Arc<Self>, disks: Vec<TargetDisk>) -> Follower {
        let images: Arc<dyn OwnImages> = Arc::clone(self) as Arc<dyn OwnImages>;
        following(disks, Target::Images { images, owner: "job".to_owned() })
    }
}

impl OwnImages for Images {
    fn own_disks(&self, _owner: String) -> BoxFuture<'_, Result<Vec<DiskId>, ComputeError>> {
        Box::pin(async { Ok(self.ids.clone()) })
    }

    fn instant(
        &self,
        _owner: String,
        since: Option<Mark>,
    ) -> BoxFuture<'_, Result<MachineInstant, ComputeError>> {
        Box::pin(async move {
            let mut state = self.state();
            let ranges =
                |blocks: &BTreeSet<u64>| blocks.iter().map(|block| BlockRange::new(*block, 1)).collect();
            let known = since.is_some() && since == state.mark && !state.lost;
            let written = match () {
                () if known => Written::SinceMark(ranges(&state.since_mark)),
                () if state.lost => Written::Unknown,
                () => Written::SincePoint(ranges(&state.since_point)),
            };
            state.since_mark.clear();
            state.marks += 1;
            state.open += 1;
            state.mark = (!state.lost).then(|| Mark(state.marks.to_string()));
            let breaks_at = state.breaks_at.take();
            let disk = |(disk, bytes): (&DiskId, &Vec<u8>)| InstantDisk {
                disk: *disk,
                view: Arc::new(Held(bytes.clone(), breaks_at)),
                written: written.clone(),
            };
            // In another order than the logs'.
            let disks = self.ids.iter().zip(&state.bytes).rev().map(disk).collect();
            let (at, hold) = (tokio::time::Instant::now(), Duration::from_millis(1));
            Ok(MachineInstant { at, hold, mark: state.mark.clone(), disks })
        })
    }

    fn end_instant(&self, _owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async {
            self.state().open = 0;
            Ok(())
        })
    }

    fn seal(&self, _owner: String, _sealed: bool) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async { Ok(()) })
    }

    fn is_sealed(&self, _owner: String) -> BoxFuture<'_, Result<bool, ComputeError>> {
        Box::pin(async { Ok(false) })
    }
}

#[test]
fn a_point_of_own_images_is_their_instant_and_takes_what_was_written_since_the_one_before() {
    let world = World::new();
    let handle: Handle = world.runtime.handle().clone();
    world.source_writes(&[(0, 1), (5, 1), (39, 1)], Some(1));
    let (begins, cuts) = (PointId::from_bytes([1; 16]), world.newest_cuts());
    let images = Images::new(&world, begins);
    world.source_writes(&[(5, 2), (6, 2), (7, 2)], Some(2));
    let disks = || world.targets(begins, &cuts).into_iter().map(|(disk, _)| disk).collect::<Vec<_>>();
    images.write(7, 2);
    images.write(20, 9);
    let mut follower = images.follower(disks());
    let made = follower.point(&handle, &Task::default()).unwrap();
    // Of each disk: 5 and 6 are taken back, 20 is new; 7 is the same on both sides.
    assert_eq!((made.blocks, made.hold_us), (2 * 3, 1000));
    assert_eq!(world.content(made.point), images.state().bytes);
    assert_eq!(images.state().open, 0, "the instant was not ended");
    let scan = world.indexes[0].newest_scan().unwrap();
    assert!(scan.record.complete && scan.generation == Generation(2));

    // Only what was written since, and without looking whether it differs.
    images.write(39, 7);
    images.write(20, 9);
    let made = follower.point(&handle, &Task::default()).unwrap();
    assert_eq!((made.blocks, world.content(made.point)), (2 * 2, images.state().bytes.clone()));

    // An instant that cannot be read to its end is no point, and nothing of it is missed by the next.
    let known = world.newest_cuts();
    images.write(1, 3);
    images.write(30, 3);
    images.state().breaks_at = Some(20 * BLOCK_BYTES as u64);
    let broken = follower.point(&handle, &Task::default());
    assert!(matches!(broken, Err(FollowError::View(_))), "{broken:?}");
    assert_eq!((world.newest_cuts(), images.state().open), (known, 0));
    let made = follower.point(&handle, &Task::default()).unwrap();
    assert_eq!(world.content(made.point), images.state().bytes);

    // The coordinator is started again: another follower has no mark, and finds nothing new.
    let mut follower = images.follower(disks());
    let made = follower.point(&handle, &Task::default()).unwrap();
    assert_eq!((made.blocks, world.content(made.point)), (0, images.state().bytes.clone()));
}

#[test]
fn where_nothing_is_known_of_what_was_written_to_images_every_block_is_compared() {
    let world = World::new();
    let handle: Handle = world.runtime.handle().clone();
    world.source_writes(&[(0, 1), (5, 1)], Some(1));
    let (begins, cuts) = (PointId::from_bytes([1; 16]), world.newest_cuts());
    let images = Images::new(&world, begins);
    let disks: Vec<_> = world.targets(begins, &cuts).into_iter().map(|(disk, _)| disk).collect();
    let mut follower = images.follower(disks);
    follower.point(&handle, &Task::default()).unwrap();
    // Killed, with all that it knew.
    images.write(11, 4);
    {
        let mut state = images.state();
        (state.lost, state.mark) = (true, None);
        state.since_point.clear();
        state.since_mark.clear();
    }
    let made = follower.point(&handle, &Task::default()).unwrap();
    assert_eq!((made.blocks, world.content(made.point)), (2, images.state().bytes.clone()));
}

#[test]
fn images_that_lack_a_disk_are_not_followed() {
    let world = World::new();
    world.source_writes(&[(0, 1)], Some(1));
    let begins = PointId::from_bytes([1; 16]);
    let images = Images::new(&world, begins);
    let disks = world.targets(begins, &world.newest_cuts()).into_iter().map(|(disk, _)| disk).collect();
    let one = Arc::new(Images {
        ids: images.ids[..1].to_vec(),
        state: Mutex::new(ImagesState {
            bytes: images.state().bytes[..1].to_vec(),
            ..ImagesState::default()
        }),
    });
    let refused = one.follower(disks).point(world.runtime.handle(), &Task::default());
    assert!(matches!(refused, Err(FollowError::NoImage(_))), "{refused:?}");
}

#[test]
fn a_point_of_the_target_is_what_its_branches_hold_and_only_what_differs_is_appended() {
    let world = World::new();
    let handle: Handle = world.runtime.handle().clone();
    world.source_writes(&[(0, 1), (5, 1), (39, 1)], Some(1));
    let (begins, cuts) = (PointId::from_bytes([1; 16]), world.newest_cuts());
    // Behind the point the source goes on, also in an interval that has no cut.
    world.source_writes(&[(5, 2), (6, 2), (7, 2)], Some(2));
    world.source_writes(&[(8, 3), (6, 0)], None);
    let disks = world.targets(begins, &cuts);
    write(&disks, 7, 2);
    write(&disks, 20, 9);
    let truth = branches(&disks);
    let mut following = follower(disks.clone());
    let made = following.point(&handle, &Task::default()).unwrap();
    // Of each disk: 5 and 8 are taken back, 20 is new; 6 and 7 are the same on both sides.
    assert_eq!(made.blocks, 2 * 3);
    assert_eq!(world.content(made.point), truth);

    write(&disks, 39, 7);
    write(&disks, 0, 0);
    let made = following.point(&handle, &Task::default()).unwrap();
    assert_eq!(made.blocks, 2 * 2);
    assert_eq!(world.content(made.point), branches(&disks));
    let made = following.point(&handle, &Task::default()).unwrap();
    assert_eq!(made.blocks, 0);

    // Another follower knows nothing, and finds nothing.
    let disks = world.targets(begins, &cuts);
    let mut following = follower(disks.clone());
    let made = following.point(&handle, &Task::default()).unwrap();
    assert_eq!(made.blocks, 0);
    assert_eq!(world.content(made.point), branches(&disks));
    // The points of before are what they were.
    assert_eq!(world.content(begins)[0][5 * BLOCK_BYTES], 1);
    assert!(
        world.indexes[0]
            .newest_scan()
            .is_some_and(|scan| scan.record.complete && scan.generation == Generation(2))
    );
}

#[test]
fn a_pass_that_was_cancelled_is_made_again_from_its_beginning() {
    let world = World::new();
    let handle = world.runtime.handle().clone();
    world.source_writes(&[(0, 1), (5, 1)], Some(1));
    let disks = world.targets(PointId::from_bytes([1; 16]), &world.newest_cuts());
    write(&disks, 30, 4);
    let mut following = follower(disks.clone());
    let task = Task::default();
    task.cancel();
    let cuts = world.newest_cuts();
    let ended = following.point(&handle, &task);
    assert!(matches!(ended, Err(FollowError::Cancelled)), "{ended:?}");
    assert_eq!(world.newest_cuts(), cuts);
    let made = following.point(&handle, &Task::default()).unwrap();
    assert_eq!((made.blocks, world.content(made.point)), (2, branches(&disks)));
}

proptest! {
    #[test]
    fn joined_ranges_are_the_same_blocks_in_few_ranges(
        ranges in prop::collection::vec((0_u64..72, 0_u64..12), 0..12)
    ) {
        let ranges: Vec<_> = ranges.into_iter().map(|(start, count)| BlockRange::new(start, count)).collect();
        let has = |ranges: &[BlockRange], block| ranges.iter().any(|range| range.contains(block));
        let few = joined(64, ranges.clone());
        for block in (0..80).map(holdfast_common::units::BlockIndex) {
            prop_assert_eq!(has(&few, block), block.0 < 64 && has(&ranges, block));
        }
        prop_assert!(few.iter().all(|range| !range.is_empty()));
        prop_assert!(few.windows(2).all(|pair| pair[0].end() < pair[1].start), "{:?}", few);
    }
}
