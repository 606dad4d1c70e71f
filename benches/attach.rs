//! From the trigger to the first byte: opening a point and serving it, until a client has read its first block.
//!
//! Owns stores in temporary folders. Histories are written straight through the store. Frames hold 64 KiB that compress to
//! almost nothing, since neither indexing nor opening reads payload; segments are made smaller in proportion, so that
//! there are as many of them, and as many tables, as with a usual payload. All points are made first and then attached in
//! turn, round by round, so that whatever else the machine does hits all of them alike.

use std::{sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    frame::Extent,
    ids::Sequence,
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    compute::{
        nbd::{
            attach::NbdAttach,
            server::{LogDamage, Settings},
        },
        port::{Attach as _, DiskView},
    },
    index::DiskIndex,
    points::{FrameCache, PointView},
    store::StoreSettings,
};
use holdfast_tests::history::{self, HistoryWriter};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    Run,
    report::{Row, percentile},
};

/// Blocks of a usual frame: 64 KiB.
const FRAME_BLOCKS: u64 = 16;
/// What the target asks for.
const FIRST_BYTE_MS_MAX: f64 = 100.0;
/// Times that a ready point is attached.
const TRIES: usize = 101;
const GIB: u64 = 1 << 30;

/// Over backlog, disk size and number of points.
pub(crate) fn attach(run: Run) -> Result<Vec<Row>> {
    let runtime = Runtime::new()?;
    let mut ready = Vec::new();
    let mut rows = Vec::new();
    let backlogs: &[u64] = if run.quick { &[0, 1, 10] } else { &[0, 1, 10, 50] };
    for pending in backlogs {
        if !run.wants(&format!("attach: {pending} GiB of changes")) {
            continue;
        }
        let name = format!("attach: {pending} GiB of changes, indexed behind ingest");
        let (cold, indexed) = Scenery::create(100 * GIB)?.behind(pending * GIB, name, &runtime)?;
        ready.push(indexed);
        let row = Row::new(format!("attach: {pending} GiB of changes, none indexed"), cold, "ms");
        rows.push(
            row.against(FIRST_BYTE_MS_MAX, "ms at most").note("includes reading all their frames' tables"),
        );
    }
    for (name, size) in [("10 GiB", 10 * GIB), ("1 TiB", 1 << 40), ("16 TiB", 16 << 40)] {
        let name = format!("attach: a disk of {name}");
        if run.wants(&name) {
            ready.push(Scenery::create(size)?.behind(GIB, name, &runtime)?.1);
        }
    }
    let histories: &[u64] = if run.quick { &[10, 1000] } else { &[10, 1000, 20_000] };
    for points in histories {
        if !run.wants(&format!("attach: {points} points")) {
            continue;
        }
        let (of_points, history) = Scenery::create(100 * GIB)?.with_points(*points)?;
        ready.extend(of_points);
        rows.push(history);
    }
    for _ in 0..TRIES {
        ready.iter_mut().try_for_each(|ready| ready.attach(&runtime))?;
    }
    let medians: Vec<f64> = ready.iter().map(|ready| percentile(&ready.times, 50.0)).collect();
    let (least, most) = (percentile(&medians, 0.0), percentile(&medians, 100.0));
    rows.splice(0..0, ready.iter().map(Ready::row));
    let flat = Row::new("attach: slowest over fastest of the ready ones", most / least, "times");
    rows.push(flat.against(1.2, "flat within a fifth").note("of medians"));
    Ok(rows)
}

/// Points of a store whose changes are indexed.
struct Ready {
    name: String,
    server: NbdAttach,
    /// Shared by those that are points of the same store, and removed with the last of them.
    _scenery: Arc<Scenery>,
    index: Arc<DiskIndex>,
    /// Attached one after the other.
    cuts: Vec<Sequence>,
    /// Milliseconds that each took.
    times: Vec<f64>,
}

impl Ready {
    fn new(name: String, scenery: &Arc<Scenery>, index: &Arc<DiskIndex>, cuts: Vec<Sequence>) -> Self {
        let folder = scenery.folder.path().to_owned();
        let branches = folder.join("branches");
        let server = NbdAttach::new(folder, branches, Settings::default(), Arc::new(LogDamage));
        let (index, times) = (Arc::clone(index), Vec::new());
        Self { name, server, _scenery: Arc::clone(scenery), index, cuts, times }
    }

    fn row(&self) -> Row {
        let (median, worst) = (percentile(&self.times, 50.0), percentile(&self.times, 100.0));
        let note = format!("median of {} rounds, worst {worst:.2} ms", self.times.len());
        Row::new(&*self.name, median, "ms").against(FIRST_BYTE_MS_MAX, "ms at most").note(note)
    }

    /// Opens the next point, serves it on a socket and reads its first block through that.
    fn attach(&mut self, runtime: &Runtime) -> Result<()> {
        let cut = *self.cuts.get(self.times.len() % self.cuts.len()).context("a cut")?;
        let name = format!("a{}", self.times.len());
        let started = Instant::now();
        self.index.catch_up()?;
        let view = Arc::new(PointView::at_cut(&self.index, FrameCache::new(1 << 20), cut)?);
        let disk = DiskView { disk: history::DISK, name: "disk".into(), view };
        runtime.block_on(self.server.attach(name.clone(), vec![disk], None))?;
        self.times.push(started.elapsed().as_secs_f64() * 1000.0);
        runtime.block_on(self.server.detach(name))?;
        Ok(())
    }
}

struct Scenery {
    folder: TempDir,
    writer: HistoryWriter,
    blocks: u64,
    entropy: SeededEntropy,
}

impl Scenery {
    fn create(size_bytes: u64) -> Result<Self> {
        let folder = TempDir::with_prefix("hf-")?;
        // About a thousand frames, as in a usual segment.
        let settings = StoreSettings { segment_bytes: 4 << 20, ..StoreSettings::default() };
        let writer = HistoryWriter::create(&folder.path().join("store"), size_bytes, settings)?;
        Ok(Self { folder, writer, blocks: size_bytes / BLOCK_BYTES as u64, entropy: SeededEntropy::new(9) })
    }

    /// Frames of 64 KiB all over the disk.
    fn write(&mut self, bytes: u64) -> Result<()> {
        let mut plain = vec![0x5a; FRAME_BLOCKS as usize * BLOCK_BYTES];
        // Some bytes of each frame are its own: it is stored in about 4 KiB.
        let own = plain.len() - 3900;
        for _ in 0..bytes / plain.len() as u64 {
            let at = self.entropy.next_u64() % (self.blocks / FRAME_BLOCKS) * FRAME_BLOCKS;
            self.entropy.fill(plain.get_mut(own..).context("a frame")?);
            self.writer.write(&[Extent::data(BlockRange::new(at, FRAME_BLOCKS))], &plain)?;
        }
        Ok(())
    }

    /// A point with so many bytes of changes behind the one before: milliseconds to its first byte while none of them is
    /// indexed, and the point when they are.
    fn behind(mut self, bytes: u64, name: String, runtime: &Runtime) -> Result<(f64, Ready)> {
        self.write(GIB / 4)?;
        self.writer.cut()?;
        self.writer.settle()?;
        let (_, log) = self.writer.open_log();
        let index = history::index(&log);
        self.write(bytes)?;
        let (_, cut) = self.writer.cut()?;
        self.writer.settle()?;
        let mut ready = Ready::new(name, &Arc::new(self), &index, vec![cut]);
        let started = Instant::now();
        index.catch_up()?;
        let catching_up = started.elapsed().as_secs_f64() * 1000.0;
        ready.attach(runtime)?;
        let first: f64 = ready.times.drain(..).sum();
        Ok((catching_up + first, ready))
    }

    /// The newest of many points, each with a frame of its own; points all over the history; and what it took to index them.
    fn with_points(mut self, points: u64) -> Result<([Ready; 2], Row)> {
        let mut cut = Sequence(0);
        for _ in 0..points {
            self.write(FRAME_BLOCKS * BLOCK_BYTES as u64)?;
            cut = self.writer.cut()?.1;
        }
        self.writer.settle()?;
        let (_, log) = self.writer.open_log();
        let started = Instant::now();
        let index = history::index(&log);
        while index.compact()? {}
        let seconds = started.elapsed().as_secs_f64();
        let (mut runs_max, mut others) = (0, Vec::new());
        for _ in 0..TRIES {
            // Each point is a frame of data and a cut.
            let other = Sequence((self.entropy.next_u64() % points + 1) * 2);
            others.push(other);
            runs_max = runs_max.max(index.at_cut(other)?.run_count());
        }
        let scenery = Arc::new(self);
        let newest = Ready::new(format!("attach: {points} points, the newest"), &scenery, &index, vec![cut]);
        let others = Ready::new(format!("attach: {points} points, any"), &scenery, &index, others);
        let row = Row::new(
            format!("attach: {points} points, indexed and merged"),
            points as f64 / seconds,
            "points/s",
        )
        .note(format!("{seconds:.1} s; a point opens with at most {runs_max} runs"));
        Ok(([newest, others], row))
    }
}
