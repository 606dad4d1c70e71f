//! The index at scale: how fast it is built, how fast it answers, what it takes.
//!
//! Owns a journal of extents without payload (zeroes), all over a disk of 16 TiB, so that nothing but tables is read.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    clock::Timestamp,
    frame::{Extent, Frame, FrameIdentity, FrameSealer, seal::seal_cut},
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    index::{BlockMap as _, DiskIndex, PieceSource},
    store::{DiskLog, DiskManifest, LogSink, Store, StoreSettings},
};
use holdfast_tests::journal::cut_record;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    Run, machine,
    report::{Row, percentile},
    stages,
};

const DISK: DiskId = DiskId::from_bytes(stages::DISK);
/// Size of the disk.
const DISK_BYTES: u64 = 16 << 40;
/// Extents of one frame, as a busy agent sends them.
const FRAME_EXTENTS: u64 = 64;
/// Most bytes that an extent may take.
const EXTENT_BYTES_MAX: f64 = 24.0;
/// Most memory that the whole of it may take.
const MEMORY_BYTES_MAX: f64 = 3.0 * 1024.0 * 1024.0 * 1024.0;
/// Intervals after the large one.
const INTERVALS: u64 = 64;
/// Histories: intervals, and how many times as large as each of the others the first is.
const HISTORIES: [(u64, u64); 4] = [(64, 64), (1000, 1000), (1000, 1), (20_000, 1)];
/// Cuts of a history that are opened.
const CUTS_OPENED: u64 = 100;
/// Lookups that are timed.
const LOOKUPS: u64 = 200_000;

/// Builds and asks.
pub(crate) fn index(run: Run) -> Result<Vec<Row>> {
    let extents: u64 = if run.quick { 10_000_000 } else { 100_000_000 };
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let (_store, log, mut writer) = create(folder.path())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(writer.interval(0..extents / FRAME_EXTENTS))?;
    let before = machine::resident_bytes(std::process::id())?;
    let index = DiskIndex::open(Arc::clone(&log))?;
    let (peak, seconds) = build(&index)?;
    let rate = extents as f64 / seconds / 1e6;
    let mut rows = vec![Row::new("index: built from tables", rate, "M extents/s").note(format!(
        "{} M extents in one interval, all over 16 TiB, in {seconds:.1} s",
        extents / 1_000_000
    ))];
    let disk_bytes = log.usage().index_bytes as f64 / extents as f64;
    rows.push(
        Row::new("index: bytes per extent on disk", disk_bytes, "B")
            .against(EXTENT_BYTES_MAX, "target, at most"),
    );
    rows.push(look(&index, extents, "one run")?);
    let merged = std::time::Instant::now();
    runtime.block_on(writer.intervals(extents / FRAME_EXTENTS, extents / 1000))?;
    let written_before = log.usage().index_bytes;
    index.catch_up()?;
    let mut merges = 0;
    while index.compact()? {
        merges += 1;
    }
    rows.push(look(&index, extents, "after 64 more intervals")?);
    let resident = machine::resident_bytes(std::process::id())?;
    rows.push(
        Row::new(
            "index: memory while it is built and asked",
            peak.max(resident).saturating_sub(before) as f64 / 1e6,
            "MB",
        )
        .against(MEMORY_BYTES_MAX / 1e6, "target, at most")
        .note(format!(
            "mapped runs included; {merges} merges of {} MB of runs in {:.1} s",
            (log.usage().index_bytes.saturating_sub(written_before)) / 1_000_000,
            merged.elapsed().as_secs_f64()
        )),
    );
    drop((index, writer, log));
    for (intervals, first) in HISTORIES {
        let extents = if run.quick { 2_000_000 } else { 20_000_000 };
        rows.extend(history(&runtime, intervals, first, extents)?);
    }
    Ok(rows)
}

/// What an index with history takes: so many intervals, the first of them so many times as large as each other one, all together
/// of about so many extents, none of which is ever written over.
fn history(runtime: &Runtime, intervals: u64, first: u64, extents: u64) -> Result<[Row; 2]> {
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let (_store, log, mut writer) = create(folder.path())?;
    let index = DiskIndex::open(Arc::clone(&log))?;
    let each = (extents / FRAME_EXTENTS / (intervals - 1 + first)).max(1);
    let (mut frames, mut cuts) = (0, Vec::new());
    for interval in 0..intervals {
        let end = frames + if interval == 0 { each * first } else { each };
        runtime.block_on(writer.interval(frames..end))?;
        frames = end;
        cuts.push(writer.identity.sequence);
        // As behind ingest: never far behind.
        if interval % 16 == 0 {
            index.catch_up()?;
            while index.compact()? {}
        }
    }
    index.catch_up()?;
    while index.compact()? {}
    let (mut runs, mut opening) = (Vec::new(), Vec::new());
    for number in 1..=CUTS_OPENED {
        let cut = cuts.get((number.wrapping_mul(0x9e37_79b1) % intervals) as usize).context("a cut")?;
        let started = Instant::now();
        runs.push(index.at_cut(*cut)?.run_count() as f64);
        opening.push(started.elapsed().as_secs_f64() * 1e6);
    }
    let written = (frames * FRAME_EXTENTS) as f64;
    let what = match first {
        1 => format!("{intervals} equal intervals"),
        _ => format!("{intervals} intervals, the first as large as the others together"),
    };
    let note = format!(
        "{:.2} M extents, none written over; {} files",
        written / 1e6,
        std::fs::read_dir(log.layout().index())?.count()
    );
    let bytes = log.usage().index_bytes as f64 / written;
    let bytes = Row::new(format!("index: bytes per extent, {what}"), bytes, "B");
    let most = percentile(&runs, 100.0);
    let note_runs =
        format!("median {:.0}; opened in {:.0} us", percentile(&runs, 50.0), percentile(&opening, 50.0));
    Ok([
        bytes.against(EXTENT_BYTES_MAX, "target, at most").note(note),
        Row::new(format!("index: runs of a cut, at most, {what}"), most, "runs").note(note_runs),
    ])
}

/// A store with an empty log, and a writer of it.
fn create(folder: &Path) -> Result<(Arc<Store>, Arc<DiskLog>, Writer)> {
    let (store, _) = Store::open(folder, StoreSettings::default())?;
    let machine = MachineId::from_bytes([1; 16]);
    store.create_disk(&DiskManifest { disk: DISK, machine, size_bytes: DISK_BYTES })?;
    let log = store.disk(DISK).context("the log")?;
    let writer = Writer::new(Arc::clone(&log).sink()?)?;
    Ok((store, log, writer))
}

/// Follows the log to its end; gives the largest resident size on the way and the time.
fn build(index: &DiskIndex) -> Result<(u64, f64)> {
    let started = Instant::now();
    let (mut peak, mut looked) = (0, Instant::now());
    while index.advance()? {
        if looked.elapsed().as_millis() > 200 {
            peak = peak.max(machine::resident_bytes(std::process::id())?);
            looked = Instant::now();
        }
    }
    Ok((peak, started.elapsed().as_secs_f64()))
}

/// Times lookups of single blocks at the newest cut, half of them written ones.
fn look(index: &DiskIndex, extents: u64, when: &str) -> Result<Row> {
    let cut = index.cuts().last().context("a cut")?.sequence;
    let map = index.at_cut(cut)?;
    let mut times = Vec::new();
    let mut found = 0;
    for number in 0..LOOKUPS {
        let at = place(number.wrapping_mul(0x2545_f491) % (extents * 2));
        let started = Instant::now();
        let pieces = map.resolve(BlockRange::new(at, 1))?;
        times.push(started.elapsed().as_nanos() as f64);
        found += u64::from(pieces.first().is_some_and(|piece| piece.source != PieceSource::Hole));
    }
    ensure!(found > LOOKUPS / 4, "only {found} were found");
    let opened = Instant::now();
    let runs = index.at_cut(cut)?.run_count();
    let note = format!(
        "p99 {:.0} ns; {runs} runs, opened in {:.0} us",
        percentile(&times, 99.0),
        opened.elapsed().as_secs_f64() * 1e6
    );
    Ok(Row::new(format!("index: lookup of a block, {when}"), percentile(&times, 50.0), "ns").note(note))
}

/// Where the extent of a number lies: no two in one place, none beside another.
fn place(number: u64) -> u64 {
    let slots = DISK_BYTES / BLOCK_BYTES as u64 / 2;
    number.wrapping_mul(0x9e37_79b1) % slots * 2
}

/// Appends frames of extents of zeroes.
struct Writer {
    sink: Arc<LogSink>,
    sealer: FrameSealer,
    identity: FrameIdentity,
}

impl Writer {
    fn new(sink: Arc<LogSink>) -> Result<Self> {
        let identity = FrameIdentity {
            disk: DISK,
            generation: Generation(1),
            sequence: Sequence(0),
            interval: Interval(1),
        };
        Ok(Self { sink, sealer: FrameSealer::new(None)?, identity })
    }

    /// The frames of these numbers, then a cut.
    async fn interval(&mut self, frames: std::ops::Range<u64>) -> Result<()> {
        let mut batch = Vec::new();
        for frame in frames {
            let mut starts: Vec<u64> =
                (frame * FRAME_EXTENTS..(frame + 1) * FRAME_EXTENTS).map(place).collect();
            starts.sort_unstable();
            let extents: Vec<Extent> =
                starts.into_iter().map(|start| Extent::zero(BlockRange::new(start, 1))).collect();
            self.identity.sequence = self.identity.sequence.next();
            batch.push(Frame::verify(self.sealer.seal_data(self.identity, &extents, &[])?)?);
            if batch.len() == 256 {
                self.sink.append(std::mem::take(&mut batch)).await?;
            }
        }
        self.identity.sequence = self.identity.sequence.next();
        let record =
            cut_record(PointId::from_bytes([9; 16]), Timestamp(1), MachineId::from_bytes([1; 16]), DISK);
        batch.push(Frame::verify(seal_cut(self.identity, &record)?)?);
        self.sink.append(batch).await?;
        self.sink.settle().await?;
        self.identity.interval = self.identity.interval.next();
        Ok(())
    }

    /// Intervals that overwrite `extents` of what is there, each others.
    async fn intervals(&mut self, frames: u64, extents: u64) -> Result<()> {
        let each = (extents / FRAME_EXTENTS).max(1);
        for interval in 0..INTERVALS {
            let from = interval * each % frames;
            self.interval(from..(from + each).min(frames)).await?;
        }
        Ok(())
    }
}
