//! 20,000 points of one disk over simulated months, under retention rules that change at random: every point that is kept shows its
//! disk, opens with few runs, and what is not kept gives its space back.
//!
//! The store is a real one, in memory if there is a folder for that. `HOLDFAST_TEST_POINTS` changes the number of points,
//! `HOLDFAST_TEST_SEED` the seed.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};

use holdfast_common::{
    clock::Timestamp,
    entropy::{Entropy as _, SeededEntropy},
    frame::Extent,
    ids::{PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    index::{DiskIndex, ladder::FAN},
    points::{
        FrameCache, PointView,
        retention::{RetentionRule, Subject, plan},
        view::BlockView as _,
    },
    store::{DiskLog, NeededCuts, StoreSettings, reclaim},
};
use holdfast_tests::{
    asked,
    history::{self, HistoryWriter},
};
use tempfile::TempDir;

const BLOCKS: u64 = 128;
const SECOND: i64 = 1_000_000;
/// Retention runs after so many points.
const RETAIN_EVERY: u64 = 500;
/// Points that are looked at after each.
const LOOKS: usize = 12;
/// Small, so that there are many.
const SEGMENT_BYTES: u64 = 1 << 20;
/// What is kept at most when a rule becomes wider again.
const RULES: [&str; 5] = ["1h,10m:1d,1h:7d,1d:90d", "6h,1h:30d", "2d,6h:60d", "30m", "1d,1h:10d,1d:365d"];

/// A kept point: when it was made, and the byte that each block is filled with.
struct Known {
    id: PointId,
    at: Timestamp,
    fills: Vec<u8>,
}

struct World {
    random: SeededEntropy,
    writer: HistoryWriter,
    log: Arc<DiskLog>,
    index: Arc<DiskIndex>,
    now: i64,
    fills: Vec<u8>,
    points: BTreeMap<Sequence, Known>,
    made: u64,
}

impl World {
    fn new(folder: &Path, seed: u64) -> Self {
        let settings =
            StoreSettings { segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, ..StoreSettings::default() };
        let writer = HistoryWriter::create(folder, BLOCKS * BLOCK_BYTES as u64, settings).unwrap();
        let (_store, log) = writer.open_log();
        let index = DiskIndex::open(Arc::clone(&log)).unwrap();
        let fills = vec![0; usize::try_from(BLOCKS).unwrap()];
        let random = SeededEntropy::new(seed);
        Self { random, writer, log, index, now: 0, fills, points: BTreeMap::new(), made: 0 }
    }

    fn below(&self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    /// Some blocks, then a cut, after anything from a second to some hours.
    fn point(&mut self) {
        let count = self.below(3) + 1;
        let start = self.below(BLOCKS - count);
        let fill = u8::try_from(self.below(256)).unwrap();
        let range = BlockRange::new(start, count);
        if fill == 0 {
            self.writer.write(&[Extent::zero(range)], &[]).unwrap();
        } else {
            let plain = vec![fill; usize::try_from(range.bytes()).unwrap()];
            self.writer.write(&[Extent::data(range)], &plain).unwrap();
        }
        for block in start..start + count {
            self.fills[usize::try_from(block).unwrap()] = fill;
        }
        let pause = if self.below(200) == 0 { 40_000 } else { 700 };
        self.now += i64::try_from(self.below(pause) + 1).unwrap() * SECOND;
        let (id, cut) = self.writer.cut().unwrap();
        self.points.insert(cut, Known { id, at: Timestamp(self.now), fills: self.fills.clone() });
        self.made += 1;
    }

    /// Plans by a rule drawn at random, with some points leased, and applies the plan.
    fn retain(&mut self) {
        self.writer.settle().unwrap();
        self.index.catch_up().unwrap();
        while self.index.compact().unwrap() {}
        let rule: RetentionRule =
            RULES[usize::try_from(self.below(RULES.len() as u64)).unwrap()].parse().unwrap();
        let subjects: Vec<Subject> = self.points.values().map(subject).collect();
        let leased: HashSet<PointId> =
            self.points.values().filter(|_| self.below(100) == 0).map(|known| known.id).collect();
        let removed: HashSet<PointId> =
            plan(&subjects, &leased, &rule, Timestamp(self.now)).removed().into_iter().collect();
        assert!(leased.is_disjoint(&removed));
        self.points.retain(|_, known| !removed.contains(&known.id));
        let cuts: Vec<Sequence> = self.points.keys().copied().collect();
        let needed = NeededCuts { horizon: *cuts.last().unwrap(), cuts };
        while self.index.retire(&needed).unwrap().more {}
        while self.index.tidy().unwrap() {}
        loop {
            let plan = reclaim::plan(&self.log.census().unwrap(), SEGMENT_BYTES);
            if self.log.reclaim(&plan, &mut |_| true).unwrap().freed_bytes == 0 {
                break;
            }
        }
    }

    fn look(&self, cut: Sequence) {
        let map = self.index.at_cut(cut).unwrap();
        // A tile of a few blocks takes about as much as its cut's record, so sizes go by cuts.
        let runs_max = (FAN - 1) * (self.made.ilog(FAN as u64) as usize + 2);
        assert!(map.run_count() <= runs_max, "cut {cut} of {} takes {} runs", self.made, map.run_count());
        let view = PointView::at_cut(&self.index, FrameCache::new(1 << 20), cut).unwrap();
        let mut bytes = vec![0xee; usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES];
        view.read(0, &mut bytes).unwrap();
        let fills = &self.points[&cut].fills;
        let same =
            bytes.chunks(BLOCK_BYTES).zip(fills).all(|(block, fill)| block.iter().all(|byte| byte == fill));
        assert!(same, "cut {cut} shows something else");
    }

    fn look_at_some(&self) {
        let cuts: Vec<Sequence> = self.points.keys().copied().collect();
        assert_eq!(self.index.cuts().iter().map(|cut| cut.sequence).collect::<Vec<_>>(), cuts);
        for _ in 0..LOOKS {
            self.look(cuts[usize::try_from(self.below(cuts.len() as u64)).unwrap()]);
        }
        self.look(*cuts.last().unwrap());
    }
}

fn subject(known: &Known) -> Subject {
    Subject {
        id: known.id,
        durable_at: known.at,
        usable: true,
        processed: true,
        app: false,
        intact: true,
        group: None,
    }
}

#[test]
fn twenty_thousand_points_over_months_of_changing_retention() {
    let seed = asked::seed();
    let points = asked::number("HOLDFAST_TEST_POINTS").unwrap_or(20_000);
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
    let mut world = World::new(folder.path(), seed);
    let mut written = 0;
    while world.made < points {
        for _ in 0..RETAIN_EVERY.min(points - world.made) {
            world.point();
        }
        written = written.max(world.log.journal_bytes());
        world.retain();
        world.look_at_some();
    }
    let days = world.now / SECOND / 86_400;
    let files = std::fs::read_dir(world.log.layout().index()).unwrap().count();
    let kept = world.points.len();
    eprintln!("{points} points over {days} days, {kept} are kept, in {files} runs; {written} bytes at most");
    assert!(files < kept * 5 + 100, "{files} runs for {kept} points");
    // From the journal alone the same comes out.
    let cuts: Vec<Sequence> = world.points.keys().copied().collect();
    world.index = history::index(&world.log);
    world.index.rebuild().unwrap();
    world.index.catch_up().unwrap();
    while world.index.compact().unwrap() {}
    for cut in cuts.iter().step_by(cuts.len().div_ceil(40)) {
        world.look(*cut);
    }
}
