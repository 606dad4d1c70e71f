//! 20,000 points of one disk over simulated months, under retention rules that change at random, with leases that come and end and
//! restarts in between: every point that is kept shows its disk and opens with few runs, exactly the frames that some kept point needs are
//! kept, and what is not needed gives its space back.
//!
//! The store is a real one, in memory if there is a folder for that. `HOLDFAST_TEST_POINTS` changes the number of points,
//! `HOLDFAST_TEST_SEED` the seed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
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
    store::{
        DiskLog, NeededCuts, StoreSettings,
        reclaim::{self, SegmentCensus},
    },
};
use holdfast_tests::{
    asked,
    history::{self, HistoryWriter},
};
use tempfile::TempDir;

const BLOCKS: u64 = 128;
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// Retention runs after so many points at most.
const RETAIN_EVERY_MAX: u64 = 800;
/// No rule ends a point that is younger.
const YOUNG: i64 = 1800 * SECOND;
/// Points that are looked at after each.
const LOOKS: usize = 12;
/// Small, so that there are many.
const SEGMENT_BYTES: u64 = 128 << 10;
/// What is kept at most when a rule becomes wider again.
const RULES: [&str; 5] = ["1h,10m:1d,1h:7d,1d:90d", "6h,1h:30d", "2d,6h:60d", "30m", "1d,1h:10d,1d:365d"];

/// A kept point: when it was made, the byte that each block is filled with, and the frame that wrote it.
struct Known {
    id: PointId,
    at: Timestamp,
    fills: Vec<u8>,
    frames: Vec<u64>,
}

struct World {
    folder: PathBuf,
    random: SeededEntropy,
    writer: HistoryWriter,
    log: Arc<DiskLog>,
    index: Arc<DiskIndex>,
    now: i64,
    fills: Vec<u8>,
    frames: Vec<u64>,
    points: BTreeMap<Sequence, Known>,
    /// Points that something depends on, and until when.
    leases: HashMap<PointId, i64>,
    made: u64,
    /// The log's last frame.
    written: u64,
    restarts: u64,
}

fn settings() -> StoreSettings {
    StoreSettings { segment_bytes: SEGMENT_BYTES, reserve_bytes: 0, ..StoreSettings::default() }
}

impl World {
    fn new(folder: &Path, seed: u64) -> Self {
        let writer = HistoryWriter::create(folder, BLOCKS * BLOCK_BYTES as u64, settings()).unwrap();
        let (_store, log) = writer.open_log();
        let index = DiskIndex::open(Arc::clone(&log)).unwrap();
        let blocks = usize::try_from(BLOCKS).unwrap();
        Self {
            folder: folder.to_owned(),
            random: SeededEntropy::new(seed),
            writer,
            log,
            index,
            now: 0,
            fills: vec![0; blocks],
            frames: vec![0; blocks],
            points: BTreeMap::new(),
            leases: HashMap::new(),
            made: 0,
            written: 0,
            restarts: 0,
        }
    }

    /// Everything is closed and opened again; now and then the index is gone meanwhile.
    fn restart(self) -> Self {
        let Self { writer, log, index, .. } = self;
        let runs = log.layout().index();
        drop((index, log));
        let writer = writer.reopen(&self.folder, settings()).unwrap();
        if self.random.next_u64().is_multiple_of(4) {
            fs::remove_dir_all(runs).unwrap();
        }
        let (_store, log) = writer.open_log();
        let index = history::index(&log);
        while index.compact().unwrap() {}
        Self { writer, log, index, restarts: self.restarts + 1, ..self }
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
        self.written += 1;
        for block in start..start + count {
            let block = usize::try_from(block).unwrap();
            (self.fills[block], self.frames[block]) = (fill, self.written);
        }
        let pause = if self.below(200) == 0 { 40_000 } else { 700 };
        self.now += i64::try_from(self.below(pause) + 1).unwrap() * SECOND;
        let (id, cut) = self.writer.cut().unwrap();
        self.written = cut.0;
        let (fills, frames) = (self.fills.clone(), self.frames.clone());
        self.points.insert(cut, Known { id, at: Timestamp(self.now), fills, frames });
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
        self.leases.retain(|_, until| *until > self.now);
        let until = |_: &Known| self.now + i64::try_from(self.below(20)).unwrap() * DAY;
        let chosen = self.points.values().filter(|_| self.below(300) == 0);
        let new: Vec<(PointId, i64)> = chosen.map(|known| (known.id, until(known))).collect();
        self.leases.extend(new);
        let leased: HashSet<PointId> = self.leases.keys().copied().collect();
        let removed: HashSet<PointId> =
            plan(&subjects, &leased, &rule, Timestamp(self.now)).removed().into_iter().collect();
        let newest = *self.points.keys().last().unwrap();
        self.points.retain(|cut, known| {
            let goes = removed.contains(&known.id);
            let stays = *cut == newest || leased.contains(&known.id) || self.now - known.at.0 < YOUNG;
            assert!(!(goes && stays), "cut {cut} must not go");
            !goes
        });
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

    /// Frames are named as needless exactly if no kept point shows a block of theirs, and what they took is given back.
    fn check_space(&self) {
        let kept = self.log.kept();
        let horizon = kept.needed().horizon;
        let needed: HashSet<u64> =
            self.points.values().flat_map(|known| known.frames.iter().copied()).collect();
        for frame in 1..=horizon.0 {
            let is_needed = needed.contains(&frame) || self.points.contains_key(&Sequence(frame));
            assert_eq!(kept.is_gone(Sequence(frame)), !is_needed, "frame {frame}");
        }
        let census = self.log.census().unwrap();
        let of = |bytes: fn(&SegmentCensus) -> u64| census.values().map(bytes).sum::<u64>();
        let (live, dead) = (of(|segment| segment.live_bytes), of(|segment| segment.dead_bytes));
        let slack = live * reclaim::SLACK_PERCENT / 100 + 2 * SEGMENT_BYTES;
        assert!(dead <= slack, "{dead} bytes that nobody needs beside {live} that somebody does");
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
    let mut largest = 0;
    while world.made < points {
        let more = world.below(RETAIN_EVERY_MAX) + 1;
        for _ in 0..more.min(points - world.made) {
            world.point();
        }
        largest = largest.max(world.log.journal_bytes());
        world.retain();
        world.check_space();
        world.look_at_some();
        if world.below(4) == 0 {
            world = world.restart();
            world.look_at_some();
        }
    }
    let days = world.now / SECOND / 86_400;
    let files = std::fs::read_dir(world.log.layout().index()).unwrap().count();
    let kept = world.points.len();
    let restarts = world.restarts;
    eprintln!(
        "{points} points over {days} days with {restarts} restarts, {kept} are kept, in {files} runs; {largest} bytes at most"
    );
    assert!(files < kept * 5 + 100, "{files} runs for {kept} points");
    // From the journal alone the same comes out.
    let cuts: Vec<Sequence> = world.points.keys().copied().collect();
    world.index = history::index(&world.log);
    world.index.rebuild().unwrap();
    world.index.catch_up().unwrap();
    while world.index.compact().unwrap() {}
    cuts.iter().for_each(|cut| world.look(*cut));
}
