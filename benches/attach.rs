//! From the trigger to the first byte: opening a point and serving it, until a client has read its first block.
//!
//! Owns stores in temporary folders. Histories are written straight through the store. Frames hold 64 KiB that compress to
//! almost nothing, since neither indexing nor opening reads payload; segments are made smaller in proportion, so that
//! there are as many of them, and as many tables, as with a usual payload.

use std::{path::Path, sync::Arc, time::Instant};

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

use crate::{
    Run,
    report::{Row, percentile},
};

/// Blocks of a usual frame: 64 KiB.
const FRAME_BLOCKS: u64 = 16;
/// What the target asks for.
const FIRST_BYTE_MS_MAX: f64 = 100.0;
/// Times that a ready point is attached.
const TRIES: usize = 15;
const GIB: u64 = 1 << 30;

/// Over backlog, disk size and number of points.
pub(crate) fn attach(run: Run) -> Result<Vec<Row>> {
    let mut ready = Vec::new();
    let mut rows = Vec::new();
    let backlogs: &[u64] = if run.quick { &[0, 1, 10] } else { &[0, 1, 10, 50] };
    for pending in backlogs {
        if !run.wants(&format!("attach: {pending} GiB of changes")) {
            continue;
        }
        let scenery = Scenery::create(100 * GIB)?;
        let (cold, indexed) = scenery.behind(pending * GIB)?;
        ready.push(indexed.row(format!("attach: {pending} GiB of changes, indexed behind ingest")));
        let row = Row::new(format!("attach: {pending} GiB of changes, none indexed"), cold, "ms");
        rows.push(
            row.against(FIRST_BYTE_MS_MAX, "ms at most").note("includes reading all their frames' tables"),
        );
    }
    for (name, size) in [("10 GiB", 10 * GIB), ("1 TiB", 1 << 40), ("16 TiB", 16 << 40)] {
        if !run.wants(&format!("attach: a disk of {name}")) {
            continue;
        }
        let scenery = Scenery::create(size)?;
        let (_, indexed) = scenery.behind(GIB)?;
        ready.push(indexed.row(format!("attach: a disk of {name}")));
    }
    let histories: &[u64] = if run.quick { &[10, 1000] } else { &[10, 1000, 20_000] };
    for points in histories {
        if !run.wants(&format!("attach: {points} points")) {
            continue;
        }
        let scenery = Scenery::create(100 * GIB)?;
        let (newest, others, history) = scenery.with_points(*points)?;
        ready.push(newest.row(format!("attach: {points} points, the newest")));
        ready.push(others.row(format!("attach: {points} points, any")));
        rows.push(history);
    }
    let times: Vec<f64> = ready.iter().map(|row| row.value).collect();
    let (least, most) = (percentile(&times, 0.0), percentile(&times, 100.0));
    rows.splice(0..0, ready);
    let flat = Row::new("attach: slowest over fastest of the ready ones", most / least, "times");
    rows.push(flat.against(1.2, "flat within a fifth"));
    Ok(rows)
}

/// Times of attaching one ready point, in milliseconds.
struct Times(Vec<f64>);

impl Times {
    fn row(&self, name: String) -> Row {
        let note = format!("median of {TRIES}, worst {:.2} ms", percentile(&self.0, 100.0));
        Row::new(name, percentile(&self.0, 50.0), "ms").against(FIRST_BYTE_MS_MAX, "ms at most").note(note)
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

    /// A point with so many bytes of changes behind the one before: attached while none of them is indexed, then when
    /// they are.
    fn behind(mut self, bytes: u64) -> Result<(f64, Times)> {
        self.write(GIB / 4)?;
        self.writer.cut()?;
        self.writer.settle()?;
        let (_, log) = self.writer.open_log();
        let index = history::index(&log);
        self.write(bytes)?;
        let (_, cut) = self.writer.cut()?;
        self.writer.settle()?;
        let started = Instant::now();
        index.catch_up()?;
        let catching_up = started.elapsed().as_secs_f64() * 1000.0;
        let times = attach_ready(self.folder.path(), &index, &[cut; TRIES])?;
        let first = times.0.first().context("a time")?;
        Ok((catching_up + first, times))
    }

    /// The newest of many points, each with a frame of its own; then points all over the history; then what it took to index
    /// them.
    fn with_points(mut self, points: u64) -> Result<(Times, Times, Row)> {
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
        let newest = attach_ready(self.folder.path(), &index, &[cut; TRIES])?;
        let others = attach_ready(self.folder.path(), &index, &others)?;
        let row = Row::new(
            format!("attach: {points} points, indexed and merged"),
            points as f64 / seconds,
            "points/s",
        )
        .note(format!("{seconds:.1} s; a point opens with at most {runs_max} runs"));
        Ok((newest, others, row))
    }
}

/// Opens each point, serves it on a socket and reads its first block through that.
fn attach_ready(folder: &Path, index: &Arc<DiskIndex>, cuts: &[Sequence]) -> Result<Times> {
    let runtime = tokio::runtime::Runtime::new()?;
    let attach =
        NbdAttach::new(folder.to_owned(), folder.join("branches"), Settings::default(), Arc::new(LogDamage));
    let mut times = Vec::new();
    for (number, cut) in cuts.iter().enumerate() {
        let name = format!("a{number}");
        let started = Instant::now();
        index.catch_up()?;
        let view = Arc::new(PointView::at_cut(index, FrameCache::new(1 << 20), *cut)?);
        let disk = DiskView { disk: history::DISK, name: "disk".into(), view };
        runtime.block_on(attach.attach(name.clone(), vec![disk], None))?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        runtime.block_on(attach.detach(name))?;
    }
    Ok(Times(times))
}
