//! What retention costs: bytes copied for bytes freed, the space that is left, and ingest's latency meanwhile.
//!
//! Owns a store in a temporary folder with a history of cuts, of which most are given up. Two kinds of churn, nine
//! tenths of it in a fiftieth of the disk: whole 64 KiB pieces (a file system's), and frames of scattered 4 KiB blocks (a
//! database's), where a frame lives as long as one of its blocks.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    clock::{Clock as _, SystemClock, Timestamp},
    frame::{Extent, Frame, FrameIdentity, FrameSealer, seal::seal_cut},
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    index::DiskIndex,
    store::{DiskLog, DiskManifest, LogSink, NeededCuts, Store, StoreSettings, reclaim},
};
use holdfast_tests::journal::cut_record;
use tempfile::TempDir;

use crate::{
    Run,
    report::{Row, percentile},
};

const DISK: DiskId = DiskId::from_bytes([0x5e; 16]);
const MACHINE: MachineId = MachineId::from_bytes([1; 16]);
/// Blocks of the disk: 512 MiB.
const DISK_BLOCKS: u64 = 1 << 17;
/// One in so many blocks is hot. With more hot blocks fewer are written again before the next cut that stays, and so little
/// becomes needless that nothing has to be copied.
const HOT_PART: u64 = 50;
/// Blocks in a frame.
const FRAME_BLOCKS: u64 = 16;
/// Frames between two cuts.
const FRAMES_PER_CUT: u64 = 64;
/// Bytes of a segment; small, so that there are many.
const SEGMENT_BYTES: u64 = 16 << 20;
/// Of the older cuts, one in so many stays.
const KEPT_OF: usize = 10;
/// Copying while latencies are taken, in bytes per second: the coordinator's default.
const RATE: u64 = 32 << 20;
/// Groups whose latency is taken, each way.
const SAMPLES: usize = 300;
/// Frames in such a group.
const SAMPLE_FRAMES: u64 = 16;
/// What the store may take, against what is needed.
const SPACE_MAX: f64 = 1.3;
/// Bytes written for a byte that came in.
const AMPLIFICATION_MAX: f64 = 2.0;

/// Space, amplification and latency around reclaim.
pub(crate) fn reclaim(run: Run) -> Result<Vec<Row>> {
    let cuts = if run.quick { 120 } else { 300 };
    let mut rows = churn(cuts, "64 KiB pieces", false)?;
    rows.extend(churn(cuts, "scattered 4 KiB", true)?);
    Ok(rows)
}

fn churn(cuts: u64, what: &str, scattered: bool) -> Result<Vec<Row>> {
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let mut source = Source::new(folder.path(), scattered)?;
    for _ in 0..cuts {
        source.frames(FRAMES_PER_CUT)?;
        source.cut()?;
    }
    let (log, index) = (Arc::clone(&source.log), Arc::clone(&source.index));
    index.catch_up()?;
    while index.compact()? {}
    let (ingested, ingested_frames) = (log.usage().journal_bytes, source.bytes);
    let all: Vec<Sequence> = index.cuts().iter().map(|cut| cut.sequence).collect();
    let young = all.len().saturating_sub(all.len() / 10);
    let stays = |(at, _): &(usize, &Sequence)| at % KEPT_OF == 0 || *at >= young;
    let kept: Vec<Sequence> = all.iter().enumerate().filter(stays).map(|(_, cut)| *cut).collect();
    let needed = NeededCuts { horizon: kept.last().copied().context("a cut")?, cuts: kept.clone() };
    let (index_before, clock) = (log.usage().index_bytes, SystemClock::new());
    let quiet = latencies(&mut source, &clock)?;
    let begun = clock.monotonic();
    let mut given_up = 0;
    loop {
        let retired = index.retire(&needed)?;
        given_up += retired.cuts;
        if !retired.more {
            break;
        }
    }
    while index.tidy()? {}
    let retiring = clock.monotonic().saturating_sub(begun);
    let (done, busy) = reclaim_beside_ingest(&log, &mut source, &clock)?;
    let census = log.census()?;
    let (files, live): (u64, u64) =
        census.values().fold((0, 0), |(files, live), one| (files + one.file_bytes, live + one.live_bytes));
    check(&index, &kept)?;
    let space = files as f64 / live as f64;
    let amplification = (ingested + done.written_bytes) as f64 / ingested as f64;
    let mib = |bytes: u64| bytes >> 20;
    let mut rows = vec![
        Row::new(format!("reclaim, {what}: store over what is needed"), space, "x")
            .against(SPACE_MAX, "target, at most")
            .note(format!(
                "{} of {} cuts given up; {} MiB (and {} MiB of ingest meanwhile) became {} MiB, {} MiB of it in frames that points need; {} MiB copied; index {} MiB, before {} MiB",
                given_up, all.len(), mib(ingested), mib(source.bytes - ingested_frames), mib(files), mib(live), mib(done.written_bytes), mib(log.usage().index_bytes), mib(index_before)
            )),
    ];
    if done.written_bytes == 0 {
        // There is nothing to say about copying.
        return Ok(rows);
    }
    rows.extend([
        Row::new(format!("reclaim, {what}: bytes written per byte ingested"), amplification, "x")
            .against(AMPLIFICATION_MAX, "target, at most")
            .note(format!(
                "{} MiB copied to free {} MiB; giving up took {:.2} ms per cut",
                mib(done.written_bytes), mib(done.freed_bytes), retiring.as_secs_f64() * 1e3 / f64::from(u32::try_from(given_up.max(1))?)
            )),
        Row::new(format!("reclaim, {what}: durable in, p50 while it copies"), percentile(&busy, 50.0), "ms")
            .against(percentile(&quiet, 50.0), "the same without")
            .note(format!(
                "{} groups of {SAMPLE_FRAMES} frames while {} MiB/s are copied at most; p99 {:.2} ms, without {:.2} ms",
                busy.len(), RATE >> 20, percentile(&busy, 99.0), percentile(&quiet, 99.0)
            )),
    ]);
    Ok(rows)
}

/// Copies at the coordinator's rate on one thread, while groups are made durable on this one.
fn reclaim_beside_ingest(
    log: &Arc<DiskLog>,
    source: &mut Source,
    clock: &SystemClock,
) -> Result<(reclaim::Reclaimed, Vec<f64>)> {
    let mut done = reclaim::Reclaimed::default();
    let mut busy = Vec::new();
    loop {
        let plan = reclaim::plan(&log.census()?, SEGMENT_BYTES);
        if plan.rewrite.is_empty() && plan.drop.is_empty() {
            return Ok((done, busy));
        }
        let theirs = Arc::clone(log);
        let copying = std::thread::spawn(move || {
            theirs.reclaim(&plan, &mut |bytes| {
                std::thread::sleep(Duration::from_secs_f64(bytes as f64 / RATE as f64));
                true
            })
        });
        while !copying.is_finished() {
            busy.push(source.group(clock)?);
        }
        let some = copying.join().map_err(|_| anyhow::anyhow!("the copying thread panicked"))??;
        done.freed_bytes += some.freed_bytes;
        done.written_bytes += some.written_bytes;
    }
}

fn latencies(source: &mut Source, clock: &SystemClock) -> Result<Vec<f64>> {
    (0..SAMPLES).map(|_| source.group(clock)).collect()
}

/// Every cut that stays can be resolved, and all its frames can be read.
fn check(index: &DiskIndex, kept: &[Sequence]) -> Result<()> {
    use holdfast_coordinator::index::{BlockMap as _, PieceSource};
    for cut in [kept.first(), kept.get(kept.len() / 2), kept.last()].into_iter().flatten() {
        let map = index.at_cut(*cut)?;
        let (mut at, mut last) = (0, Sequence(0));
        while at < DISK_BLOCKS {
            for piece in map.resolve(BlockRange::new(at, DISK_BLOCKS - at))? {
                at = piece.range.end().0;
                if let PieceSource::Frame { sequence, .. } = piece.source
                    && sequence != last
                {
                    index.log().read(sequence)?;
                    last = sequence;
                }
            }
        }
    }
    ensure!(index.losses().is_empty(), "frames count as lost");
    Ok(())
}

/// A disk that is written to.
struct Source {
    _store: Arc<Store>,
    log: Arc<DiskLog>,
    sink: Arc<LogSink>,
    index: Arc<DiskIndex>,
    identity: FrameIdentity,
    sealer: FrameSealer,
    random: u64,
    scattered: bool,
    /// Bytes of frames that were made durable.
    bytes: u64,
    runtime: tokio::runtime::Runtime,
}

impl Source {
    fn new(place: &Path, scattered: bool) -> Result<Self> {
        let settings = StoreSettings { segment_bytes: SEGMENT_BYTES, ..StoreSettings::default() };
        let (store, _) = Store::open(place, settings)?;
        let size_bytes = DISK_BLOCKS * BLOCK_BYTES as u64;
        let log = store.create_disk(&DiskManifest { disk: DISK, machine: MACHINE, size_bytes })?;
        Ok(Self {
            sink: log.sink()?,
            index: DiskIndex::open(Arc::clone(&log))?,
            log,
            _store: store,
            identity: FrameIdentity {
                disk: DISK,
                generation: Generation(1),
                sequence: Sequence(0),
                interval: Interval(1),
            },
            sealer: FrameSealer::new(None)?,
            random: 0x9e37_79b9_7f4a_7c15,
            scattered,
            bytes: 0,
            runtime: tokio::runtime::Builder::new_current_thread().build()?,
        })
    }

    fn next(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// A block, nine times in ten one of [`HOT_PART`] of the disk.
    fn place(&mut self) -> u64 {
        let hot = self.next() % 10 < 9;
        self.next() % if hot { DISK_BLOCKS / HOT_PART } else { DISK_BLOCKS }
    }

    fn data(&mut self) -> Result<Frame> {
        let extents: Vec<Extent> = if self.scattered {
            let mut blocks: Vec<u64> = (0..FRAME_BLOCKS).map(|_| self.place()).collect();
            blocks.sort_unstable();
            blocks.dedup();
            blocks.into_iter().map(|block| Extent::data(BlockRange::new(block, 1))).collect()
        } else {
            let start = self.place() / FRAME_BLOCKS * FRAME_BLOCKS;
            vec![Extent::data(BlockRange::new(start, FRAME_BLOCKS))]
        };
        let bytes = extents.iter().map(|extent| extent.range.bytes()).sum::<u64>();
        let plain: Vec<u8> = (0..bytes / 8).flat_map(|_| self.next().to_le_bytes()).collect();
        self.identity.sequence = self.identity.sequence.next();
        Ok(Frame::verify(self.sealer.seal_data(self.identity, &extents, &plain)?)?)
    }

    fn frames(&mut self, count: u64) -> Result<()> {
        let frames = (0..count).map(|_| self.data()).collect::<Result<Vec<_>>>()?;
        self.durable(frames)
    }

    fn durable(&mut self, frames: Vec<Frame>) -> Result<()> {
        self.bytes += frames.iter().map(|frame| frame.bytes().len() as u64).sum::<u64>();
        self.runtime.block_on(async {
            self.sink.append(frames).await?;
            self.sink.settle().await
        })?;
        Ok(())
    }

    /// How long a group takes until it is durable, in milliseconds.
    fn group(&mut self, clock: &SystemClock) -> Result<f64> {
        let frames = (0..SAMPLE_FRAMES).map(|_| self.data()).collect::<Result<Vec<_>>>()?;
        let begun = clock.monotonic();
        self.durable(frames)?;
        Ok(clock.monotonic().saturating_sub(begun).as_secs_f64() * 1e3)
    }

    fn cut(&mut self) -> Result<()> {
        self.identity.sequence = self.identity.sequence.next();
        let record = cut_record(
            PointId::from_bytes(u128::from(self.identity.sequence.0).to_be_bytes()),
            Timestamp(0),
            MACHINE,
            DISK,
        );
        let frame = Frame::verify(seal_cut(self.identity, &record)?)?;
        self.identity.interval = self.identity.interval.next();
        self.durable(vec![frame])
    }
}
