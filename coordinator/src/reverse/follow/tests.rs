//! A target in branches of real logs: what a follower leaves in the logs is what the branches hold, whatever the source wrote.

use std::sync::Arc;

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

use super::{FollowError, Follower, TargetDisk, joined};
use crate::{
    compute::{
        branch::{Branch, Origin},
        port::Task,
    },
    index::DiskIndex,
    points::{
        frame_cache::FrameCache,
        point_view::PointView,
        view::{BlockView as _, HistoryPlace},
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
    fn targets(&self, begins: PointId, at: &[Sequence]) -> Vec<TargetDisk> {
        let target = |(index, cut): (&Arc<DiskIndex>, &Sequence)| {
            let cache = FrameCache::new(1 << 20);
            let base = Arc::new(PointView::at_cut(index, cache, *cut).unwrap());
            let disk = index.log().disk();
            let path = self.folder.path().join(format!("{disk}.branch"));
            let origin = Origin { point: begins, turn: Some(0) };
            let branch = Arc::new(Branch::open(&path, origin, base, "boot").unwrap());
            let (begins, generation) = (HistoryPlace { point: begins, cut: *cut }, Generation(2));
            TargetDisk { disk, branch, begins, index: Arc::clone(index), generation }
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

fn follower(disks: Vec<TargetDisk>) -> Follower {
    let (clock, entropy) = (Arc::new(SystemClock::new()), Arc::new(SystemEntropy::new()));
    Follower::new(MACHINE, disks, FrameCache::new(1 << 20), clock, entropy)
}

fn branches(disks: &[TargetDisk]) -> Vec<Vec<u8>> {
    disks
        .iter()
        .map(|disk| {
            let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
            disk.branch.read(0, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

fn write(disks: &[TargetDisk], block: u64, byte: u8) {
    for disk in disks {
        let offset = block * BLOCK_BYTES as u64;
        let bytes = usize::try_from((SIZE - offset).min(BLOCK_BYTES as u64)).unwrap();
        disk.branch.write(offset, &vec![byte; bytes]).unwrap();
    }
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
