//! Index and view against a plain array, over random histories.

use std::sync::Arc;

use holdfast_common::{
    clock::Timestamp,
    frame::{
        Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, Frame, FrameIdentity, FrameSealer,
        ScanRecord,
        seal::{seal_cut, seal_scan},
    },
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockIndex, BlockRange},
};
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use tempfile::TempDir;

use super::{
    BlockMap, DiskIndex, PieceSource,
    batch::Batch,
    disk_index::NEWEST_RUNS_MAX,
    entry::IndexEntry,
    ladder::{FAN, Ladder, due, merged_name},
    room::Room,
    run_format::RunName,
};
use crate::{
    points::{
        FrameCache, PointView,
        view::{
            BUNDLE_BYTES_MAX, BlockView as _, BundlePart, BundleReader, HistoryPlace, StoredExtent, ViewError,
        },
    },
    store::{CheckOrder, DiskLog, DiskManifest, LogSink, NeededCuts, Store, StoreSettings, reclaim},
};

const DISK: DiskId = DiskId::from_bytes([0x66; 16]);
const BLOCKS: u64 = 200;
/// The last block is a partial one.
const SIZE: u64 = (BLOCKS - 1) * BLOCK_BYTES as u64 + 1000;

#[derive(Clone, Debug)]
enum Op {
    /// Blocks as (gap, count, fill); fill 0 is an extent of zeroes.
    Write(Vec<(u64, u64, u8)>),
    Cut,
    NewGeneration,
    Compact,
    Restart,
    Rebuild,
    /// Gives up the cuts for which the mask says so, from the oldest on, over and over; the newest stays.
    Retire(Vec<bool>),
    Reclaim,
    Check,
}

fn op() -> impl Strategy<Value = Op> {
    let extents = proptest::collection::vec((0u64..60, 1u64..40, 0u8..5), 1..6);
    prop_oneof![
        12 => extents.prop_map(Op::Write),
        6 => proptest::strategy::Just(Op::Cut),
        1 => proptest::strategy::Just(Op::NewGeneration),
        3 => proptest::strategy::Just(Op::Compact),
        1 => proptest::strategy::Just(Op::Restart),
        1 => proptest::strategy::Just(Op::Rebuild),
        2 => proptest::collection::vec(any::<bool>(), 1..5).prop_map(Op::Retire),
        1 => proptest::strategy::Just(Op::Reclaim),
        1 => proptest::strategy::Just(Op::Check),
    ]
}

/// A disk with its log, its index, and what they should say.
struct World {
    folder: TempDir,
    store: Arc<Store>,
    sink: Arc<LogSink>,
    index: Arc<DiskIndex>,
    cache: Arc<FrameCache>,
    identity: FrameIdentity,
    model: Vec<u8>,
    cuts: Vec<(Sequence, Vec<u8>)>,
    /// Which blocks each frame wrote.
    written: Vec<(Sequence, Vec<u64>)>,
    spill: usize,
    room: usize,
    runtime: tokio::runtime::Runtime,
}

/// So many runs of a class become one, so that a few cuts make some merges.
const FEW: usize = 2;

/// Bytes for runs in memory: of some intervals, so that others go into files at once.
const ROOM: usize = 16 << 10;

fn settings() -> StoreSettings {
    StoreSettings { segment_bytes: 2_000, reserve_bytes: 0, ..StoreSettings::default() }
}

fn open(
    folder: &TempDir,
    spill: usize,
    room: usize,
) -> (Arc<Store>, Arc<DiskLog>, Arc<LogSink>, Arc<DiskIndex>) {
    let (store, _) = Store::open(folder.path(), settings()).unwrap();
    let manifest = DiskManifest { disk: DISK, machine: MachineId::from_bytes([1; 16]), size_bytes: SIZE };
    let log = store.create_disk(&manifest).unwrap();
    let sink = log.sink().unwrap();
    let index = DiskIndex::open_with(Arc::clone(&log), spill, FEW, Room::new(room)).unwrap();
    (store, log, sink, index)
}

impl World {
    fn new(spill: usize) -> Self {
        Self::with_room(spill, ROOM)
    }

    fn with_room(spill: usize, room: usize) -> Self {
        let folder = TempDir::new().unwrap();
        let (store, _, sink, index) = open(&folder, spill, room);
        let identity = FrameIdentity {
            disk: DISK,
            generation: Generation(1),
            sequence: Sequence(0),
            interval: Interval(1),
        };
        Self {
            folder,
            store,
            sink,
            index,
            // So small that frames are dropped and read again all the time.
            cache: FrameCache::new(1 << 20),
            identity,
            model: vec![0; usize::try_from(BLOCKS).unwrap()],
            cuts: Vec::new(),
            written: Vec::new(),
            spill,
            room,
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
        }
    }

    fn append(&mut self, seal: impl FnOnce(FrameIdentity) -> bytes::Bytes) {
        self.identity.sequence = self.identity.sequence.next();
        let frame = Frame::verify(seal(self.identity)).unwrap();
        self.runtime.block_on(async {
            self.sink.append(vec![frame]).await.unwrap();
            self.sink.settle().await.unwrap();
        });
    }

    fn write(&mut self, blocks: &[(u64, u64, u8)]) {
        let (mut extents, mut plain, mut at) = (Vec::new(), Vec::new(), 0);
        for (gap, count, fill) in blocks {
            let start = (at + gap).min(BLOCKS - 1);
            if start < at {
                break;
            }
            let range = BlockRange::new(start, (*count).min(BLOCKS - start));
            at = range.end().0;
            for block in range.start.0..at {
                self.model[usize::try_from(block).unwrap()] = *fill;
            }
            if *fill == 0 {
                extents.push(Extent::zero(range));
            } else {
                extents.push(Extent::data(range));
                plain.extend(std::iter::repeat_n(*fill, usize::try_from(range.bytes()).unwrap()));
            }
            if at == BLOCKS {
                break;
            }
        }
        let blocks = extents.iter().flat_map(|extent| extent.range.start.0..extent.range.end().0).collect();
        self.written.push((self.identity.sequence.next(), blocks));
        self.append(|identity| {
            FrameSealer::new(Some(1)).unwrap().seal_data(identity, &extents, &plain).unwrap()
        });
    }

    fn cut(&mut self) {
        let record = CutRecord {
            point: PointId::from_bytes([9; 16]),
            machine: MachineId::from_bytes([1; 16]),
            at: Timestamp(5),
            hold_us: 0,
            method: CutMethod::QuietWindow,
            consistency: Consistency::Crash,
            members: vec![CutMember { disk: DISK, generation: self.identity.generation }],
            notes: Vec::new(),
            request: None,
            more: CutMore::default(),
        };
        self.append(|identity| seal_cut(identity, &record).unwrap());
        self.cuts.push((self.identity.sequence, self.model.clone()));
        self.identity.interval = self.identity.interval.next();
    }

    fn scanned(&mut self) {
        let record = ScanRecord { scanned_to: BlockIndex(BLOCKS), complete: true };
        self.append(|identity| seal_scan(identity, &record).unwrap());
    }

    fn restart(self) -> Self {
        let Self { folder, store, sink, index, spill, room, .. } = self;
        drop((index, sink));
        wait_for_owner(store);
        let (store, _, sink, index) = open(&folder, spill, room);
        Self { folder, store, sink, index, cache: FrameCache::new(1 << 20), ..self }
    }

    fn apply(mut self, op: &Op) -> Self {
        match op {
            Op::Write(blocks) => self.write(blocks),
            Op::Cut => self.cut(),
            Op::NewGeneration => {
                self.identity.generation = self.identity.generation.next();
                self.scanned();
            }
            Op::Compact => {
                self.index.catch_up().unwrap();
                self.index.compact().unwrap();
            }
            Op::Restart => return self.restart(),
            Op::Rebuild => self.index.rebuild().unwrap(),
            Op::Retire(mask) => self.retire(mask),
            Op::Reclaim => self.reclaim(),
            Op::Check => self.check(),
        }
        self
    }

    fn retire(&mut self, mask: &[bool]) {
        self.index.catch_up().unwrap();
        let newest = self.cuts.len().saturating_sub(1);
        let mut at = 0;
        self.cuts.retain(|_| {
            at += 1;
            at > newest || !mask[at % mask.len()]
        });
        self.give_up();
        while self.index.tidy().unwrap() {}
    }

    fn needed(&self) -> NeededCuts {
        let cuts: Vec<Sequence> = self.cuts.iter().map(|(cut, _)| *cut).collect();
        NeededCuts { horizon: cuts.last().copied().unwrap_or_default(), cuts }
    }

    fn give_up(&self) {
        while self.index.retire(&self.needed()).unwrap().more {}
    }

    fn reclaim(&self) {
        let log = self.index.log();
        // Until nothing is worth it any more: what was copied became smaller, and with it what may stay.
        loop {
            let plan = reclaim::plan(&log.census().unwrap(), 3_000);
            if plan.drop.is_empty() && plan.rewrite.is_empty() {
                return;
            }
            log.reclaim(&plan, &mut |_| true).unwrap();
        }
    }

    /// Whatever changed between this cut and every other one is said to have changed, and nothing that no frame in between
    /// wrote.
    fn check_changes(&self, view: &PointView, (cut, model): (Sequence, &[u8])) {
        let point = PointId::from_bytes([9; 16]);
        for (other, before) in &self.cuts {
            let place = HistoryPlace { point, cut: *other };
            let changes = view.changes_from(place).unwrap().expect("the point is known");
            let (mut said, mut at) = (vec![false; model.len()], 0);
            while at < BLOCKS {
                let (ranges, end) = changes.changed(BlockRange::new(at, BLOCKS - at)).unwrap();
                assert!(end > at);
                for block in ranges.iter().flat_map(|range| range.start.0..range.end().0) {
                    said[usize::try_from(block).unwrap()] = true;
                }
                at = end;
            }
            let between = (*other).min(cut)..(*other).max(cut);
            for (block, said) in said.iter().enumerate() {
                let written = self.written.iter().any(|(sequence, blocks)| {
                    *sequence > between.start && *sequence <= between.end && blocks.contains(&(block as u64))
                });
                assert_eq!(*said, written, "block {block} between {other} and {cut}");
                assert!(*said || model[block] == before[block]);
            }
        }
        let elsewhere = HistoryPlace { point: PointId::from_bytes([8; 16]), cut };
        assert!(view.changes_from(elsewhere).unwrap().is_none(), "another point of that number");
    }

    fn check(&self) {
        assert_eq!(self.index.catch_up().unwrap(), self.identity.sequence);
        let cuts: Vec<_> = self.index.cuts().iter().map(|cut| (cut.sequence, cut.whole)).collect();
        let expected: Vec<_> = self.cuts.iter().map(|(cut, _)| (*cut, true)).collect();
        assert_eq!(cuts, expected);
        for (cut, model) in &self.cuts {
            let view = PointView::at_cut(&self.index, Arc::clone(&self.cache), *cut).unwrap();
            check_view(&view, model);
            let frames = self.index.frames_between(Sequence(0), *cut).unwrap();
            let map = self.index.at_cut(*cut).unwrap();
            let pieces = map.resolve(BlockRange::new(0, BLOCKS)).unwrap();
            let used = pieces.iter().filter_map(|piece| match piece.source {
                PieceSource::Hole => None,
                PieceSource::Zero(sequence) | PieceSource::Frame { sequence, .. } => Some(sequence),
            });
            let used: std::collections::BTreeSet<_> = used.chain([*cut]).collect();
            assert!(frames.iter().eq(used), "other frames than a view takes from");
            check_bundles(&view, model);
            self.check_changes(&view, (*cut, model));
        }
        check_view(&PointView::newest(&self.index, Arc::clone(&self.cache)), &self.model);
    }
}

/// Everything read bundle by bundle equals the model.
fn check_bundles(view: &PointView, model: &[u8]) {
    let mut found = vec![0; model.len()];
    let (mut reader, mut output) = (BundleReader::default(), vec![0xee; BUNDLE_BYTES_MAX]);
    let mut at = 0;
    while at < BLOCKS {
        for StoredExtent { range, place } in view.stored(BlockRange::new(at, BLOCKS - at)).unwrap() {
            assert_eq!(range.start.0, at);
            at = range.end().0;
            let Some(place) = place else { continue };
            let part = BundlePart { range, at_block: place.at_block };
            view.read_bundle(place.bundle, &[part], &mut reader, &mut output).unwrap();
            let blocks = output.chunks(BLOCK_BYTES).skip(place.at_block as usize);
            for (block, bytes) in (range.start.0..at).zip(blocks) {
                assert!(bytes.iter().all(|byte| *byte == bytes[0]));
                found[usize::try_from(block).unwrap()] = bytes[0];
            }
        }
    }
    assert_eq!(found, model);
}

/// The writer's thread holds the log a little longer than its sink.
fn wait_for_owner(store: Arc<Store>) {
    for log in store.disks() {
        drop(log.sink().unwrap());
        while Arc::strong_count(&log) > 2 {
            std::thread::yield_now();
        }
    }
}

fn check_view(view: &PointView, model: &[u8]) {
    let mut expected: Vec<u8> = model.iter().flat_map(|fill| [*fill; BLOCK_BYTES]).collect();
    expected.truncate(usize::try_from(SIZE).unwrap());
    let mut found = vec![0xff; expected.len()];
    view.read(0, &mut found).unwrap();
    assert!(found == expected, "the view differs from the model");
    for (offset, length) in [(1, 1), (4095, 2), (10_000, 70_001), (expected.len() - 1, 1)] {
        let mut part = vec![0xff; length];
        view.read(offset as u64, &mut part).unwrap();
        assert!(part == expected[offset..offset + length]);
    }
    let mut at = 0;
    while at < BLOCKS {
        for extent in view.extents(BlockRange::new(at, BLOCKS - at)).unwrap() {
            assert_eq!(extent.range.start.0, at);
            at = extent.range.end().0;
            if extent.hole {
                let blocks = usize::try_from(extent.range.start.0).unwrap()..usize::try_from(at).unwrap();
                assert!(model[blocks].iter().all(|fill| *fill == 0));
            }
        }
    }
    let digests = view.digest_ranges(BlockRange::new(64, BLOCKS - 64)).unwrap();
    let mut padded = expected;
    padded.resize(model.len() * BLOCK_BYTES, 0);
    let chunks = padded[64 * BLOCK_BYTES..].chunks(64 * BLOCK_BYTES);
    let expected: Vec<_> = chunks.map(|chunk| Some(*blake3::hash(chunk).as_bytes())).collect();
    assert_eq!(digests, expected);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn views_equal_a_plain_array(
        ops in proptest::collection::vec(op(), 1..60),
        spill in prop_oneof![proptest::strategy::Just(5usize), proptest::strategy::Just(1000)],
        // None; some for an open interval; some for closed ones too.
        room in prop_oneof![
            proptest::strategy::Just(0usize),
            proptest::strategy::Just(500),
            proptest::strategy::Just(ROOM)
        ],
    ) {
        let mut world = World::with_room(spill, room);
        for op in &ops {
            world = world.apply(op);
        }
        world.check();
        world = world.restart();
        world.check();
    }

    #[test]
    fn packing_loses_nothing(
        start in 0u64..(1 << 42), count in 1u64..=(1 << 22), sequence in 0u64..(1 << 48),
        plain in proptest::option::of(0u32..(1 << 15)),
    ) {
        let entry = IndexEntry { start, count, sequence: Sequence(sequence), plain };
        assert_eq!(IndexEntry::unpack(entry.pack()), entry);
    }

    #[test]
    fn a_cut_opens_with_few_runs_and_is_copied_few_times(
        sizes in proptest::collection::vec((0u32..24, 1u64..8), 1..800), at_once in 1usize..50, kept in 1u64..100,
    ) {
        let sizes: Vec<u64> = sizes.iter().map(|(power, factor)| factor << power.saturating_sub(12)).collect();
        let mut history = History::new(kept);
        for tiles in sizes.chunks(at_once) {
            history.extend(tiles);
        }
        history.check();
    }

    #[test]
    fn whatever_stack_there_is_gets_into_order(stack in proptest::collection::vec(any::<u64>(), 0..300)) {
        let mut stack: Vec<u64> = stack.iter().map(|size| size >> (size % 64)).collect();
        let before = stack.clone();
        while let Some(places) = due(&stack, FAN) {
            assert!(places.len() > 1);
            let merged = stack[places.clone()].iter().fold(0u64, |sum, size| sum.saturating_add(*size));
            stack.splice(places, [merged]);
        }
        assert!(stack.len() <= runs_max(&before), "{} runs", stack.len());
    }
}

/// The most runs that a stack in order has, by the sizes of the runs in it and of those that were merged into it.
fn runs_max(sizes: &[u64]) -> usize {
    let class = |size: u64| size.max(1).ilog(FAN as u64) as usize;
    let all = sizes.iter().fold(0u64, |sum, size| sum.saturating_add(*size));
    let least = sizes.iter().min().copied().unwrap_or(0);
    (class(all) - class(least) + 1) * (FAN - 1)
}

/// A ladder, and the runs' sizes.
struct History {
    ladder: Ladder,
    stack: Vec<RunName>,
    sizes: std::collections::HashMap<RunName, u64>,
    tiles: Vec<u64>,
    /// Of the bytes of merged runs so many in a hundred stay: the rest was written over.
    kept: u64,
}

impl History {
    fn new(kept: u64) -> Self {
        let (stack, tiles) = (Vec::new(), Vec::new());
        Self { ladder: Ladder::default(), stack, sizes: std::collections::HashMap::new(), tiles, kept }
    }

    /// Tiles of these sizes, and all merges that are due then.
    fn extend(&mut self, tiles: &[u64]) {
        for size in tiles {
            self.tiles.push(*size);
            let cut = self.tiles.len() as u64;
            let (from, to) = (Sequence(cut - 1), Sequence(cut));
            let name = RunName { part: false, level: 0, last_cut: cut, from, to };
            self.ladder.add(name);
            self.sizes.insert(name, *size);
            self.stack.push(name);
        }
        while let Some(places) = due(&self.stack.iter().map(|name| self.sizes[name]).collect::<Vec<_>>(), FAN)
        {
            let inputs = &self.stack[places.clone()];
            let merged = merged_name(inputs).unwrap();
            let all: u64 = inputs.iter().map(|name| self.sizes[name]).sum();
            let largest = inputs.iter().map(|name| self.sizes[name]).max().unwrap();
            self.sizes.insert(merged, largest + (all - largest) * self.kept / 100);
            self.ladder.add(merged);
            for name in self.ladder.remove_merged(inputs, merged) {
                self.sizes.remove(&name);
            }
            self.stack.splice(places, [merged]);
        }
    }

    /// Whether any cut stands on few runs, and all runs together are few times as large as the tiles.
    fn check(&mut self) {
        self.ladder.settle();
        let least = self.tiles.iter().min().copied().unwrap();
        for cut in 1..=self.tiles.len() {
            let chain = self.ladder.chain(Sequence(cut as u64)).unwrap();
            assert_eq!((chain[0].from, chain.last().unwrap().to), (Sequence(0), Sequence(cut as u64)));
            assert!(chain.iter().zip(chain.iter().skip(1)).all(|(older, newer)| older.to == newer.from));
            let runs_max = runs_max(&self.tiles[..cut]);
            assert!(chain.len() <= runs_max, "cut {cut} takes {} runs, not {runs_max}", chain.len());
        }
        assert!(self.ladder.chain(self.ladder.end()).unwrap().len() <= self.stack.len());
        let (tiles, runs): (u64, u64) = (self.tiles.iter().sum(), self.sizes.values().sum());
        // One tile, and per class about one copy; twice that if sizes are the worst.
        let classes = u64::from((tiles.max(1) / least.max(1)).max(1).ilog(FAN as u64)) + 1;
        assert!(
            runs <= tiles * (1 + 2 * classes),
            "{runs} bytes for {tiles} bytes of tiles, {classes} classes"
        );
    }
}

#[test]
fn a_large_first_interval_is_never_copied() {
    let mut history = History::new(100);
    history.extend(&[1_000_000]);
    (0..999).for_each(|_| history.extend(&[1000]));
    history.check();
    assert!(history.sizes.keys().all(|name| name.level == 0 || name.from > Sequence(0)));
    let (tiles, runs): (u64, u64) = (history.tiles.iter().sum(), history.sizes.values().sum());
    assert!(runs * 10 <= tiles * 22, "{runs} bytes for {tiles} bytes of tiles");
    let longest = (1..=1000).map(|cut| history.ladder.chain(Sequence(cut)).unwrap().len()).max().unwrap();
    // The first one, and as many as the digits of 999 are together at most, to the base 8.
    assert_eq!(longest, 1 + 3 * 7);
}

#[test]
fn merges_in_the_middle_of_a_history_count_once_they_are_settled() {
    let mut history = History::new(50);
    history.extend(&(0..3000).map(|tile| 100 + tile % 7).collect::<Vec<_>>());
    assert!(!history.ladder.is_settled());
    let cuts = history.ladder.end();
    assert_eq!(history.ladder.chain(cuts).unwrap().last().unwrap().to, cuts);
    history.check();
    assert!(history.ladder.is_settled());
}

#[test]
fn golden_bytes_of_an_entry() {
    let entry = IndexEntry { start: 5, count: 3, sequence: Sequence(9), plain: Some(2) };
    let words = [(5u64 << 22 | 2).to_le_bytes(), (9u64 << 16 | 4).to_le_bytes()].concat();
    assert_eq!(entry.pack().as_slice(), words);
    let zero = IndexEntry { plain: None, ..entry };
    assert_eq!(zero.pack()[8], 1);
}

#[test]
fn a_run_takes_few_bytes_per_extent() {
    let mut world = World::new(100_000);
    for round in 0..40 {
        // Every other block alone, in changing order, so that nothing can be joined.
        let blocks: Vec<_> = (0..100).map(|at| (u64::from(at > 0), 1, (round % 4 + 1) as u8)).collect();
        world.write(&blocks);
    }
    world.cut();
    world.index.catch_up().unwrap();
    let cut = world.index.at_cut(world.identity.sequence).unwrap();
    let run = &cut.runs[0];
    assert_eq!(run.len(), 100);
    // Header, a page's head and end, one first, and the records (the cut) are what is not per extent.
    let records = run.records().unwrap().to_bytes().unwrap().len() as u64;
    // All are of one frame; starts are below 256, places below 128.
    world.index.compact().unwrap();
    let cut = world.index.at_cut(world.identity.sequence).unwrap();
    let file = cut.runs[0].file().unwrap();
    assert_eq!(file.file_bytes(), 192 + 32 + (100 * (8 + 7_u64)).div_ceil(8) + 15 + 16 + records);
}

#[test]
fn only_frames_that_a_cut_needs_are_named() {
    let mut world = World::new(1000);
    world.write(&[(0, 10, 1)]);
    world.write(&[(0, 10, 2)]);
    world.write(&[(20, 4, 3)]);
    world.cut();
    world.write(&[(20, 2, 4)]);
    world.write(&[(0, 4, 0)]);
    world.cut();
    world.index.catch_up().unwrap();
    let between = |world: &World, after, cut| {
        let frames = world.index.frames_between(Sequence(after), Sequence(cut)).unwrap();
        frames.iter().map(|frame| frame.0).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(between(&world, 0, 4), [2, 3, 4]);
        assert_eq!(between(&world, 4, 7), [5, 6, 7]);
        assert_eq!(between(&world, 0, 7), [2, 3, 5, 6, 7]);
        // Also from a place that is no cut, and whatever was merged.
        assert_eq!(between(&world, 2, 7), [3, 5, 6, 7]);
        while world.index.compact().unwrap() {}
    }
}

#[test]
fn the_newest_state_stands_on_few_runs_after_each_merge() {
    let mut world = World::new(1000);
    for round in 0..64u64 {
        world.write(&[(round % 7, 5, (round % 250 + 1) as u8), (round % 11, 3, (round % 5) as u8)]);
        world.cut();
    }
    assert_eq!(world.index.catch_up().unwrap(), world.identity.sequence);
    assert_eq!(world.index.newest_runs().len(), 64);
    loop {
        check_view(&PointView::newest(&world.index, Arc::clone(&world.cache)), &world.model);
        let merged = world.index.compact().unwrap();
        assert_eq!(world.index.newest_runs(), world.index.newest_chain());
        if !merged {
            break;
        }
    }
    let left = world.index.newest_runs().len();
    assert!(left < 10, "{left} runs");
    world.check();
}

#[test]
fn a_cut_can_be_had_before_its_run_has_a_file_and_afterwards() {
    let mut world = World::new(1000);
    for round in 1..=3u8 {
        world.write(&[(u64::from(round), 20, round), (7, 3, 0)]);
        world.cut();
    }
    world.check();
    assert_eq!(index_files(&world), [] as [std::path::PathBuf; 0]);
    assert_eq!(world.index.tables(), 3);
    // What a crash takes of it is made again.
    world = world.restart();
    world.check();
    let before = PointView::at_cut(&world.index, Arc::clone(&world.cache), world.cuts[0].0).unwrap();
    while world.index.compact().unwrap() {}
    assert!(index_files(&world).len() >= 3);
    world.check();
    // Nobody but the view keeps memory, and that counts as long as it does.
    assert_eq!(world.index.tables(), 0);
    assert!(world.index.room().free_bytes() < ROOM);
    check_view(&before, &world.cuts[0].1);
    drop(before);
    assert_eq!(world.index.room().free_bytes(), ROOM);
    world = world.restart();
    world.check();
}

#[test]
fn runs_without_a_file_take_no_more_than_some_memory() {
    let mut world = World::new(5);
    for round in 0..30u64 {
        // Apart from each other.
        world.write(&[(round, 1, 1), (3, 1, 2), (3, 1, 3)]);
        world.cut();
        world.index.catch_up().unwrap();
    }
    // Room is made for 256 entries at least.
    assert_eq!(world.index.tables(), ROOM / 4096);
    assert_eq!(world.index.room().free_bytes(), 0);
    assert!(!index_files(&world).is_empty());
    world.check();
    while world.index.compact().unwrap() {}
    assert_eq!((world.index.tables(), world.index.room().free_bytes()), (0, ROOM));
    world.check();
}

#[test]
fn an_open_interval_grows_in_memory_while_there_is_room() {
    let spill = 100;
    let room = 3 * spill * 40;
    let mut world = World::with_room(spill, room);
    world.write(&[(0, 1, 1)]);
    world.cut();
    world.index.catch_up().unwrap();
    while world.index.compact().unwrap() {}
    let before = index_files(&world);
    let frames = |world: &mut World, count: usize| {
        for number in 0..count {
            let blocks = [(number as u64 % 3, 1, 1)].into_iter();
            // Ten extents that do not touch.
            let blocks: Vec<_> = blocks.chain((0..9).map(|fill| (3, 1, fill))).collect();
            world.write(&blocks);
        }
        world.index.catch_up().unwrap();
    };
    frames(&mut world, 40);
    assert_eq!(world.index.room().free_bytes(), 0);
    assert_eq!(index_files(&world), before, "there is room for all of them");
    // In these ten places in all only the newest count.
    frames(&mut world, 40);
    assert_eq!(index_files(&world), before, "what was overwritten is dropped first");
    world.write(&(0..99).map(|_| (1, 1, 7)).collect::<Vec<_>>());
    frames(&mut world, 80);
    world.check();
    world.cut();
    world.index.catch_up().unwrap();
    while world.index.compact().unwrap() {}
    assert_eq!((world.index.tables(), world.index.room().free_bytes()), (0, room));
    world.check();
}

/// Several runs are written and synced together; power may fail at any moment of that.
#[test]
fn whatever_a_crash_leaves_of_runs_that_were_in_memory_is_made_up_for() {
    let mut world = World::new(1000);
    for round in 1..=4u8 {
        world.write(&[(u64::from(round), 20, round), (7, 3, 0)]);
        world.cut();
    }
    world.index.catch_up().unwrap();
    assert_eq!((world.index.tables(), index_files(&world).len()), (4, 0));
    while world.index.compact().unwrap() {}
    let written: Vec<_> =
        index_files(&world).into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    assert!(written.len() > 4);
    for left in 0..1 << written.len() {
        for (number, (bytes, path)) in written.iter().enumerate() {
            if left >> number & 1 == 1 {
                std::fs::write(path, bytes).unwrap();
            } else {
                // It has not got its name yet.
                std::fs::write(path.with_extension("new"), bytes).unwrap();
                let _was_not_there = std::fs::remove_file(path);
            }
        }
        world = world.restart();
        world.check();
    }
}

#[test]
fn frames_that_somebody_else_took_in_meanwhile_are_passed_over() {
    let mut world = World::new(1000);
    world.write(&[(1, 3, 1)]);
    world.write(&[(2, 3, 2)]);
    world.index.catch_up().unwrap();
    let read = |world: &World| {
        let mut batch = Batch::default();
        batch.read(world.index.log(), Sequence(0)).unwrap();
        assert_eq!(batch.up_to, world.identity.sequence, "all is in one segment");
        batch
    };
    world.write(&[(3, 3, 0)]);
    world.cut();
    world.write(&[(4, 3, 4)]);
    // Two of its frames are known, then all of them.
    let batch = read(&world);
    for _ in 0..2 {
        world.index.take_in(&batch).unwrap();
        assert_eq!(world.index.progress().processed, world.identity.sequence);
        world.check();
    }
}

#[test]
fn several_catch_up_while_all_is_made_again() {
    let mut world = World::new(7);
    for round in 0..240u64 {
        world.write(&[(round % 50, 5, (round % 250 + 1) as u8), (3, 2, 0)]);
        if round % 6 == 5 {
            world.cut();
        }
    }
    assert!(world.index.log().usage().segments > 20, "one batch takes one segment at most");
    for _ in 0..4 {
        world.index.rebuild().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| world.index.catch_up().unwrap());
            }
            scope.spawn(|| while world.index.advance().unwrap() {});
            // In the middle of it, by the index's own position and not by time.
            while world.index.progress().processed.0 < 60 {
                std::thread::yield_now();
            }
            world.index.rebuild().unwrap();
        });
        assert!(world.index.losses().is_empty(), "{:?}", world.index.losses());
    }
    world.check();
}

#[test]
fn cuts_that_are_pending_by_the_thousand_do_not_pile_up_as_mappings() {
    let mut world = World::new(1000);
    for number in 0..NEWEST_RUNS_MAX as u64 + 100 {
        // Each frame waits for the disk here.
        if number % 16 == 0 {
            world.write(&[(number % BLOCKS, 1, 1 + u8::try_from(number % 200).unwrap())]);
        }
        world.cut();
    }
    world.index.catch_up().unwrap();
    assert!(world.index.newest_runs().len() <= NEWEST_RUNS_MAX, "{}", world.index.newest_runs().len());
    for (cut, model) in world.cuts.iter().step_by(200).chain(world.cuts.last()) {
        let view = PointView::at_cut(&world.index, Arc::clone(&world.cache), *cut).unwrap();
        let mut bytes = vec![0xee; usize::try_from(SIZE).unwrap()];
        view.read(0, &mut bytes).unwrap();
        let right =
            bytes.chunks(BLOCK_BYTES).zip(model).all(|(block, fill)| block.iter().all(|byte| byte == fill));
        assert!(right, "the cut at {cut}");
    }
}

#[test]
fn a_damaged_run_is_made_up_for() {
    let mut world = World::new(1000);
    for fill in 1..=4 {
        world.write(&[(u64::from(fill), 10, fill)]);
        world.cut();
        world.index.catch_up().unwrap();
        while world.index.compact().unwrap() {}
    }
    let folder = world.index.log().layout().index();
    let name = *world.index.newest_runs().last().unwrap();
    assert!(name.level > 0 && name.from == Sequence(0), "{name:?}");
    let good = std::fs::read(name.path(&folder)).unwrap();
    for flipped in [0, 100, 170, 200, 210, good.len() - 1] {
        let mut bytes = good.clone();
        bytes[flipped] ^= 1;
        std::fs::write(name.path(&folder), &bytes).unwrap();
        world = world.restart();
        let outcome = PointView::at_cut(&world.index, Arc::clone(&world.cache), world.identity.sequence);
        let read = outcome.map_err(drop).and_then(|view| view.read(0, &mut [0; 8192]).map_err(drop));
        if read.is_err() || flipped == 200 || flipped == 210 {
            // Damage in a page is found when the page is used.
            world.index.rebuild().unwrap();
        }
        world.check();
        while world.index.compact().unwrap() {}
        world.check();
    }
}

#[test]
fn an_index_whose_folder_is_gone_is_made_again() {
    let world = with_runs_and_parts();
    std::fs::remove_dir_all(world.index.log().layout().index()).unwrap();
    let world = world.restart();
    world.index.catch_up().unwrap();
    assert!(!index_files(&world).is_empty());
    world.check();
}

#[test]
fn a_view_looks_its_cut_up_again_when_the_index_was_made_again() {
    let mut world = World::new(1000);
    world.write(&[(3, 10, 7)]);
    world.cut();
    world.index.catch_up().unwrap();
    while world.index.compact().unwrap() {}
    world = world.restart();
    let (path, mut buffer) = (index_files(&world)[0].clone(), [0; 8192]);
    let mut bytes = std::fs::read(&path).unwrap();
    // An entry in the first page, behind header and page head: it is looked at when it is needed, not when the file is opened.
    bytes[210] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    world = world.restart();
    let cut = world.identity.sequence;
    let view = PointView::at_cut(&world.index, Arc::clone(&world.cache), cut).unwrap();
    assert!(matches!(view.read(3 * 4096, &mut buffer), Err(ViewError::Io { .. })));
    assert!(world.index.heal().unwrap());
    assert!(view.read(3 * 4096, &mut buffer).is_err(), "there is no such cut until it was indexed again");
    world.index.catch_up().unwrap();
    view.read(3 * 4096, &mut buffer).unwrap();
    assert_eq!(buffer, [7; 8192]);
}

#[test]
fn a_frame_that_was_made_good_is_read_by_views_that_met_its_damage() {
    let mut world = World::new(1000);
    world.write(&[(3, 10, 7)]);
    world.cut();
    world.index.catch_up().unwrap();
    let cut = world.identity.sequence;
    let view = PointView::at_cut(&world.index, Arc::clone(&world.cache), cut).unwrap();
    let log = world.index.log();
    let path = log.layout().segment(log.layout().list_segments().unwrap()[0].0);
    let (good, mut buffer) = (std::fs::read(&path).unwrap(), [0; 8192]);
    let mut bad = good.clone();
    // The frame's digest covers its header: behind segment header and mark.
    bad[96 + 64 + 20] ^= 1;
    std::fs::write(&path, &bad).unwrap();
    assert!(matches!(view.read(3 * 4096, &mut buffer), Err(ViewError::Damaged { .. })));
    assert_eq!(log.bad_frames().list(), [Sequence(1)]);
    std::fs::write(&path, &good).unwrap();
    view.read(3 * 4096 + 100, &mut buffer[..5000]).unwrap();
    assert_eq!(buffer[..5000], [7; 5000]);
}

/// Files of the index, with what kind each is.
fn index_files(world: &World) -> Vec<std::path::PathBuf> {
    let folder = world.index.log().layout().index();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs of several levels, and parts of the interval that is still open.
fn with_runs_and_parts() -> World {
    let mut world = World::with_room(6, 0);
    for round in 1..=5u8 {
        for start in 0..9 {
            world.write(&[(start * 20 + u64::from(round), 3, round), (1, 2, 0)]);
        }
        if round < 5 {
            world.cut();
        }
        world.index.catch_up().unwrap();
        while world.index.compact().unwrap() {}
    }
    let names: Vec<_> = index_files(&world)
        .iter()
        .filter_map(|path| RunName::parse(path.file_name().unwrap().to_str().unwrap()))
        .collect();
    assert!(names.iter().any(|name| name.part) && names.iter().any(|name| name.level == 2));
    world
}

/// So many parts that eight are merged, and eight of those again, each of them over what the ones before it wrote.
#[test]
fn parts_of_a_long_interval_are_merged_in_order_and_what_a_crash_leaves_of_them_is_passed_over() {
    let mut world = World::with_room(5, 0);
    world.write(&[(0, BLOCKS, 1)]);
    world.cut();
    let mut seen = std::collections::BTreeMap::new();
    let mut spills = 0;
    for round in 0..100u64 {
        // Seven extents that do not touch; every round begins elsewhere, so that parts overlap each other only in places.
        let fill = (2 + round % 200) as u8;
        let extents: Vec<_> = (0..7).map(|at| (if at == 0 { round * 7 % 50 } else { 19 }, 2, fill)).collect();
        world.write(&extents);
        world.index.catch_up().unwrap();
        // Syncs what was written.
        while world.index.compact().unwrap() {}
        let before = seen.len();
        for path in index_files(&world) {
            let name = RunName::parse(path.file_name().unwrap().to_str().unwrap());
            if name.is_some_and(|name| name.part) && !seen.contains_key(&path) {
                seen.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
        spills += usize::from(seen.len() > before);
        if round == 37 || round == 80 {
            world = world.restart();
        }
    }
    let parts = |world: &World| -> Vec<RunName> {
        let files = index_files(world);
        let names =
            files.iter().filter_map(|path| RunName::parse(path.file_name().unwrap().to_str().unwrap()));
        names.filter(|name| name.part).collect()
    };
    let levels: Vec<_> = parts(&world).iter().map(|name| name.level).collect();
    assert!(spills >= 64 && levels.contains(&2), "{spills} spills made parts of the levels {levels:?}");
    world.check();

    // A crash may come before what was merged is deleted.
    for (path, bytes) in &seen {
        std::fs::write(path, bytes).unwrap();
    }
    world = world.restart();
    world.check();
    assert_eq!(parts(&world).iter().map(|name| name.level).collect::<Vec<_>>(), levels);
    world.cut();
    world.check();
    assert_eq!(parts(&world), []);
    world = world.restart();
    world.check();
}

/// Reads everything; what is damaged is found and made again.
fn check_healed(world: &World) {
    let read = |world: &World| {
        world.index.catch_up()?;
        let blocks = BlockRange::new(0, BLOCKS);
        world.index.resolve(blocks)?;
        for (cut, _) in &world.cuts {
            world.index.at_cut(*cut)?.resolve(blocks)?;
            for (other, _) in &world.cuts {
                world.index.written_between((*other).min(*cut), (*other).max(*cut))?.resolve(blocks)?;
            }
        }
        Ok::<(), super::IndexError>(())
    };
    if let Err(error) = read(world) {
        assert!(error.is_damage(), "{error}");
        if !world.index.heal().unwrap() {
            world.index.rebuild().unwrap();
        }
    }
    world.check();
    while world.index.compact().unwrap() {}
    world.check();
}

#[test]
fn a_full_disk_holds_the_index_up_and_harms_nothing() {
    let mut world = World::new(1000);
    world.write(&[(0, 5, 1)]);
    world.cut();
    world.index.catch_up().unwrap();
    world.write(&[(3, 5, 2)]);
    world.cut();
    let name = RunName { part: false, level: 0, last_cut: 2, from: Sequence(2), to: Sequence(4) };
    let temporary = name.path(&world.index.log().layout().index()).with_extension("new");
    std::os::unix::fs::symlink("/dev/full", &temporary).unwrap();
    // The cut is there, from memory.
    world.check();
    let error = loop {
        match world.index.compact() {
            Ok(more) => assert!(more, "the file was written"),
            Err(error) => break error,
        }
    };
    let full = matches!(&error, super::IndexError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
    assert!(full && !error.is_damage(), "{error:?}");
    assert!(temporary.symlink_metadata().is_err(), "what was half written takes space");
    world.check();
    // There is space again.
    while world.index.compact().unwrap() {}
    assert_eq!(world.index.tables(), 0);
    world.check();
    world.restart().check();
}

#[test]
fn any_damaged_byte_of_any_file_is_found_and_made_good() {
    let mut world = with_runs_and_parts();
    for file in 0..index_files(&world).len() {
        for place in [0.0, 0.3, 0.5, 0.8, 0.999] {
            let files = index_files(&world);
            let path = files.get(file % files.len()).unwrap();
            let mut bytes = std::fs::read(path).unwrap();
            let at = (bytes.len() as f64 * place) as usize;
            bytes[at] ^= 0x10;
            std::fs::write(path, bytes).unwrap();
            world = world.restart();
            check_healed(&world);
        }
    }
}

#[test]
fn whatever_a_crash_leaves_of_any_file_the_views_stay_right() {
    let mut world = with_runs_and_parts();
    for file in 0..index_files(&world).len() {
        for crash in ["gone", "empty", "half", "not renamed", "merged and not deleted"] {
            let files = index_files(&world);
            let path = files.get(file % files.len()).unwrap();
            let bytes = std::fs::read(path).unwrap();
            match crash {
                "gone" => std::fs::remove_file(path).unwrap(),
                "empty" => std::fs::write(path, []).unwrap(),
                "half" => std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                "not renamed" => {
                    std::fs::write(path.with_extension("new"), &bytes).unwrap();
                    std::fs::remove_file(path).unwrap();
                }
                _ => {}
            }
            world = world.restart();
            if crash == "merged and not deleted" {
                std::fs::write(path, bytes).unwrap();
                world = world.restart();
            }
            check_healed(&world);
            assert!(index_files(&world).iter().all(|path| path.extension().is_none()), "a leftover stays");
        }
    }
}

#[test]
fn a_damaged_frame_is_an_error_for_its_blocks_only() {
    let mut world = World::new(1000);
    world.write(&[(0, 4, 1)]);
    world.write(&[(8, 4, 2)]);
    world.cut();
    world.check();
    let log = Arc::clone(world.index.log());
    let path = log.layout().segment(Sequence(1));
    let mut bytes = std::fs::read(&path).unwrap();
    // Both frames are small (they compress); hit the first one's payload: header 96, mark 64, frame header 96, table 16.
    let at = 96 + 64 + 96 + 16 + 3;
    bytes[at] ^= 0x40;
    std::fs::write(&path, &bytes).unwrap();
    let view = PointView::at_cut(&world.index, FrameCache::new(1 << 20), world.identity.sequence).unwrap();
    let mut buffer = vec![0; 4 * BLOCK_BYTES];
    let error = view.read(2 * BLOCK_BYTES as u64, &mut buffer[..100]).unwrap_err();
    assert!(matches!(error, ViewError::Damaged { sequence: Sequence(1), .. }), "{error:?}");
    view.read(4 * BLOCK_BYTES as u64, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 0));
    view.read(8 * BLOCK_BYTES as u64, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 2));
    assert_eq!(
        view.digest_ranges(BlockRange::new(0, 128)).unwrap().iter().filter(|digest| digest.is_none()).count(),
        1
    );
    // Repaired by the same blocks being sent again.
    world.write(&[(0, 4, 3)]);
    world.cut();
    world.index.catch_up().unwrap();
    let view = PointView::at_cut(&world.index, FrameCache::new(1 << 20), world.identity.sequence).unwrap();
    view.read(0, &mut buffer).unwrap();
    assert!(buffer.iter().all(|byte| *byte == 3));
}

#[test]
fn after_lost_frames_no_cut_is_whole_until_a_newer_generation_was_compared() {
    let mut world = World::new(1000);
    world.write(&[(0, 4, 1)]);
    world.cut();
    world.write(&[(8, 4, 2)]);
    world.cut();
    let path = world.index.log().layout().segment(Sequence(1));
    let Found { at, bytes } = third_frame(&path);
    let mut damaged = bytes;
    damaged[at + 10] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    std::fs::remove_dir_all(world.index.log().layout().index()).unwrap();
    std::fs::create_dir(world.index.log().layout().index()).unwrap();
    world = world.restart();
    let whole = |world: &World| {
        world.index.catch_up().unwrap();
        world.index.cuts().iter().map(|cut| cut.whole).collect::<Vec<_>>()
    };
    assert_eq!(whole(&world), [true, false]);
    assert_eq!(world.index.losses().len(), 1);
    assert_eq!(world.index.unhealed(), Some(Generation(1)));
    world.scanned();
    world.cut();
    assert_eq!(whole(&world), [true, false, false]);
    world = world.restart();
    world.identity.generation = Generation(2);
    world.scanned();
    world.cut();
    assert_eq!(whole(&world), [true, false, false, true]);
    assert_eq!(world.index.unhealed(), None);
}

struct Found {
    at: usize,
    bytes: Vec<u8>,
}

/// Offset of the third frame in a segment.
fn third_frame(path: &std::path::Path) -> Found {
    let bytes = std::fs::read(path).unwrap();
    let magic = holdfast_common::frame::header::FRAME_MAGIC;
    let at =
        bytes.windows(4).enumerate().filter(|(_, four)| *four == magic).map(|(at, _)| at).nth(2).unwrap();
    Found { at, bytes }
}

/// A world whose blocks are written again and again, with three cuts in four given up.
fn thinned() -> World {
    let mut world = World::new(1000);
    for round in 0..40u64 {
        world.write(&[(0, 5, (round % 4 + 1) as u8), (round % 30, 9, (round % 3 + 1) as u8)]);
        world.write(&[(60 + round % 50, 3, 2)]);
        world.cut();
    }
    world.retire(&[true, true, false, true]);
    world
}

#[test]
fn what_is_given_up_goes_from_index_and_journal() {
    let mut world = thinned();
    let log = Arc::clone(world.index.log());
    let before = (log.usage(), std::fs::read_dir(log.layout().index()).unwrap().count());
    world.reclaim();
    let after = (log.usage(), std::fs::read_dir(log.layout().index()).unwrap().count());
    assert!(after.0.journal_bytes < before.0.journal_bytes, "{before:?} {after:?}");
    assert!(after.0.segments < before.0.segments);
    world.check();
    let census = log.census().unwrap();
    let sum = |figure: fn(&reclaim::SegmentCensus) -> u64| census.values().map(figure).sum::<u64>();
    // These frames are so small that the marks between them count: with fewer marks the needed bytes are fewer, too.
    assert!(sum(|one| one.dead_bytes) * 100 <= sum(|one| one.live_bytes) * reclaim::SLACK_PERCENT * 2);
    // All but the newest cut: what only older ones needed goes too.
    world.retire(&[true]);
    assert_eq!(world.cuts.len(), 1);
    world.reclaim();
    world.check();
    // One tile, and the ladder of the newest cut.
    assert!(std::fs::read_dir(log.layout().index()).unwrap().count() <= 1 + 6);
    assert!(log.check(&CheckOrder::all(2), &|_| true).unwrap().bad.is_empty());
    drop(log);
    world.index.rebuild().unwrap();
    world.check();
    world = world.restart();
    world.check();
    assert!(world.index.losses().is_empty());
}

#[test]
fn every_frame_that_is_still_there_is_needed_by_somebody() {
    let mut world = thinned();
    world.write(&[(0, 200, 3)]);
    world.cut();
    world.retire(&[true, false]);
    let log = world.index.log();
    let newest: &dyn BlockMap = world.index.as_ref();
    let cuts: Vec<_> = world.cuts.iter().map(|(cut, _)| world.index.at_cut(*cut).unwrap()).collect();
    let maps = cuts.iter().map(|cut| -> &dyn BlockMap { cut }).chain([newest]);
    let mut taken = std::collections::BTreeSet::new();
    for map in maps {
        let mut at = 0;
        while at < BLOCKS {
            for piece in map.resolve(BlockRange::new(at, BLOCKS - at)).unwrap() {
                at = piece.range.end().0;
                if let PieceSource::Frame { sequence, .. } | PieceSource::Zero(sequence) = piece.source {
                    taken.insert(sequence);
                }
            }
        }
    }
    let heads = log.heads_after(Sequence(0), usize::MAX);
    let mut heads = heads.unwrap();
    while heads.up_to < world.identity.sequence {
        let more = log.heads_after(heads.up_to, usize::MAX).unwrap();
        heads.heads.extend(more.heads);
        heads.up_to = more.up_to;
    }
    let kept = log.kept();
    for head in heads.heads.iter().filter(|head| head.header.kind == holdfast_common::frame::FrameKind::Data)
    {
        let sequence = head.header.sequence;
        assert_eq!(kept.is_gone(sequence), !taken.contains(&sequence), "frame {sequence}");
    }
}

/// Copies a folder's files.
fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_crash_at_any_step_of_reclaim_loses_nothing() {
    let world = thinned();
    let log = Arc::clone(world.index.log());
    let states = TempDir::new().unwrap();
    let mut count = 0;
    let mut save = |what: &dyn Fn(&std::path::Path)| {
        count += 1;
        let folder = states.path().join(count.to_string());
        copy_folder(world.folder.path(), &folder);
        what(&folder);
    };
    save(&|_| {});
    let plan = reclaim::plan(&log.census().unwrap(), 3_000);
    assert!(plan.rewrite.iter().any(|group| group.len() > 1));
    let sources = TempDir::new().unwrap();
    copy_folder(&log.layout().journal(), sources.path());
    log.reclaim(&plan, &mut |_| {
        // The segment in the making is there, but has no frames or not all of them.
        save(&|_| {});
        true
    })
    .unwrap();
    save(&|_| {});
    // As if the segments that were joined to others, or dropped, had not been deleted yet.
    save(&|folder| {
        let journal = folder.join(log.layout().journal().strip_prefix(world.folder.path()).unwrap());
        for entry in std::fs::read_dir(sources.path()).unwrap() {
            let entry = entry.unwrap();
            let target = journal.join(entry.file_name());
            if !target.exists() {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    });
    for state in 1..=count {
        for without_index in [false, true] {
            let folder = TempDir::new().unwrap();
            copy_folder(&states.path().join(state.to_string()), folder.path());
            if without_index {
                let index = log.layout().index();
                let index = folder.path().join(index.strip_prefix(world.folder.path()).unwrap());
                std::fs::remove_dir_all(&index).unwrap();
                std::fs::create_dir(&index).unwrap();
            }
            let (store, _, sink, index) = open(&folder, 1000, ROOM);
            let found = World {
                folder,
                store,
                sink,
                index,
                cache: FrameCache::new(1 << 20),
                model: world.model.clone(),
                cuts: world.cuts.clone(),
                written: world.written.clone(),
                identity: world.identity,
                room: ROOM,
                spill: 1000,
                runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            };
            found.check();
            assert!(found.index.losses().is_empty());
            let journal = found.index.log().layout().journal();
            let beside = std::fs::read_dir(journal).unwrap().any(|entry| {
                entry.unwrap().path().extension().is_some_and(|extension| extension == "beside")
            });
            assert!(!beside, "a segment in the making is left in state {state}");
            found.reclaim();
            found.check();
        }
    }
}

/// Gives up all but the newest 2,000 cuts and one of about 50 (odd ones too), joins the tiles between, and drops what is needless.
fn thin(ladder: &mut Ladder, needed: &mut Vec<u64>, last: u64) {
    needed.retain(|cut| cut + 2_000 > last || (cut.wrapping_mul(0x9e37_79b1) >> 7).is_multiple_of(50));
    let (mut joined, mut from) = (Vec::new(), 0);
    for cut in needed.iter().copied() {
        let tiles = ladder.tiles(Sequence(from), Sequence(cut)).unwrap();
        if tiles.len() > 1 {
            joined.extend(super::ladder::joined_name(&tiles));
        }
        from = cut;
    }
    ladder.add_all(joined);
    let needless = ladder.needless(needed.iter().copied().map(Sequence));
    ladder.remove_all(&needless);
}

#[test]
fn thinned_cuts_open_with_few_runs_too_and_few_are_kept() {
    let (mut history, mut needed) = (History::new(100), Vec::new());
    let cuts = 100_000u64;
    for cut in 1..=cuts {
        history.extend(&[300]);
        needed.push(cut);
        if cut % 4_000 == 0 {
            thin(&mut history.ladder, &mut needed, cut);
        }
    }
    let ladder = &history.ladder;
    assert_eq!(ladder.end(), Sequence(cuts));
    assert!(needed.len() < 5_000);
    let steps_max = runs_max(&history.tiles);
    for cut in &needed {
        let chain = ladder.chain(Sequence(*cut)).unwrap();
        assert!(chain.len() <= steps_max, "cut {cut} takes {} runs", chain.len());
        assert!(chain.iter().zip(chain.iter().skip(1)).all(|(older, newer)| older.to == newer.from));
    }
    assert!(ladder.len() < needed.len() * 5, "{} runs for {} cuts", ladder.len(), needed.len());
}

#[test]
fn what_a_frames_own_table_does_not_say_is_not_believed() {
    let mut world = World::new(1000);
    world.write(&[(3, 2, 7), (5, 4, 8)]);
    world.cut();
    world.index.catch_up().unwrap();
    let view = PointView::at_cut(&world.index, Arc::clone(&world.cache), world.identity.sequence).unwrap();
    let (mut reader, mut output) = (BundleReader::default(), vec![0; BUNDLE_BYTES_MAX]);
    let mut read = |start, count, at_block| {
        let part = BundlePart { range: BlockRange::new(start, count), at_block };
        view.read_bundle(1, &[part], &mut reader, &mut output).map(|bytes| bytes / BLOCK_BYTES)
    };
    assert_eq!((read(3, 2, 0).unwrap(), read(10, 4, 2).unwrap(), read(12, 1, 4).unwrap()), (6, 6, 6));
    for (start, count, at_block) in [(3, 2, 1), (4, 2, 1), (5, 1, 2), (10, 5, 2), (0, 1, 0)] {
        let refused = read(start, count, at_block);
        assert!(matches!(refused, Err(ViewError::Damaged { .. })), "{start} {count} {at_block}");
    }
    assert!(!world.index.log().bad_frames().list().is_empty(), "the damage is noted");
}
