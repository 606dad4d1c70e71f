//! Processing: from a pending journal without any index to an attachable point, and on to a fully verified one.
//!
//! Owns journals of several kinds in a temporary folder. The limits are taken in the same run on the same journal: one pass over
//! the frames' tables, and one BLAKE3 pass over the stored bytes, on as many threads as the product uses. The journal's files
//! are in the page cache for all of them; rounds alternate, because the machine's speed drifts. Memory is measured in a process
//! of its own, which does nothing else.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_common::{
    clock::Timestamp,
    frame::{Extent, FRAME_PLAIN_BYTES_TARGET, Frame, FrameIdentity, FrameSealer, seal::seal_cut},
    ids::{DiskId, Generation, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::{
    index::{BlockMap as _, DiskIndex},
    store::{CheckOrder, DiskLog, DiskManifest, Store, StoreSettings},
};
use holdfast_tests::journal::cut_record;
use tempfile::TempDir;

use crate::{
    Run, machine,
    report::{Row, percentile},
    stages,
};

const DISK: DiskId = DiskId::from_bytes(stages::DISK);
/// Size of the disk that is written to.
const DISK_BYTES: u64 = 1 << 40;
/// Bytes of heads taken at a time by the pass over the tables, as the index does.
const TABLE_BYTES: usize = 1 << 20;
/// A verified point must be reached at this part of a BLAKE3 pass.
const VERIFIED_MIN: f64 = 0.8;
/// The unverified path must be so many times faster than a BLAKE3 pass.
const UNVERIFIED_MIN: f64 = 10.0;
/// Processing may take so much memory, whatever the backlog.
const PEAK_MIB_MAX: f64 = 512.0;
/// Bytes of pages that are written at a time; half of each block does not compress, so that more than 100 MiB are stored.
const PAGES_BYTES: u64 = 256 << 20;
/// Overwriting everything 16 times may take so many times as long as writing it once.
const OVERWRITE_MAX: f64 = 1.3;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Load {
    /// This system's files, one behind the other, as a copy of a disk is made.
    Files,
    /// The same bytes at the places of 4 KiB blocks all over the disk.
    Random,
    /// Pages of 8 KiB all over the disk, all of them so many times in other orders, a cut after each time.
    Pages(u64),
    /// Whole megabytes of new data that does not compress.
    Sequential,
}

impl Load {
    fn name(self) -> String {
        match self {
            Self::Files => "files of this system".to_owned(),
            Self::Random => "random 4 KiB".to_owned(),
            Self::Pages(times) => format!("8 KiB pages written {times}x"),
            Self::Sequential => "sequential, incompressible".to_owned(),
        }
    }
}

/// What one journal took.
struct Measured {
    raw_bytes: u64,
    stored_bytes: u64,
    read_bytes: u64,
    /// Most memory that a process which does nothing else has had, in bytes.
    peak_bytes: u64,
    attach: Vec<f64>,
    /// Finding out which frames the point needs.
    wanted: Vec<f64>,
    verified: Vec<f64>,
    tables: Vec<f64>,
    hash: Vec<f64>,
}

/// All kinds of journals.
pub(crate) fn process(run: Run) -> Result<Vec<Row>> {
    let bytes: u64 = if run.quick { 512 << 20 } else { 8 << 30 };
    let rounds = if run.quick { 5 } else { 9 };
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let sample = stages::system_sample(folder.path(), bytes.min(1 << 30))?;
    let mut rows = Vec::new();
    let mut once = None;
    let pages = if run.quick { PAGES_BYTES } else { PAGES_BYTES * 2 };
    let loads = [
        (Load::Files, bytes),
        (Load::Random, bytes),
        (Load::Sequential, bytes),
        (Load::Pages(1), pages),
        (Load::Pages(4), pages),
        (Load::Pages(16), pages),
    ];
    for (load, bytes) in loads.into_iter().filter(|(load, _)| run.wants(&load.name())) {
        let place = folder.path().join("journal");
        let (frames, raw_bytes) = write(&place, load, bytes, &sample)?;
        let measured = measure(&place, frames, raw_bytes, rounds)?;
        std::fs::remove_dir_all(&place)?;
        rows.extend(measured.rows(load));
        let verified = percentile(&measured.verified, 50.0);
        match load {
            Load::Pages(1) => once = Some(verified),
            Load::Pages(16) => rows.extend(once.map(|once: f64| {
                Row::new("process: verified, 16x overwrites, by the time of 1x", verified / once, "x")
                    .against(OVERWRITE_MAX, "target, at most")
            })),
            _ => {}
        }
    }
    Ok(rows)
}

/// Fills a store with a journal; gives the frames and the bytes that were written on the source.
fn write(place: &Path, load: Load, bytes: u64, sample: &[u8]) -> Result<(Vec<Bytes>, u64)> {
    let (store, _) = Store::open(place, StoreSettings::default())?;
    store.create_disk(&DiskManifest {
        disk: DISK,
        machine: MachineId::from_bytes([1; 16]),
        size_bytes: DISK_BYTES,
    })?;
    let log = store.disk(DISK).context("the log")?;
    let mut seal = Sealing::new(sample, load)?;
    let times = if let Load::Pages(times) = load { times } else { 1 };
    for time in 0..times {
        seal.interval(bytes, time)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let frames = seal.frames;
    runtime.block_on(async {
        let sink = Arc::clone(&log).sink()?;
        for batch in frames.chunks(64) {
            let batch = batch.iter().cloned().map(Frame::verify).collect::<Result<Vec<_>, _>>()?;
            sink.append(batch).await?;
        }
        sink.settle().await?;
        anyhow::Ok(())
    })?;
    Ok((frames, bytes * times))
}

/// Makes a journal's frames.
struct Sealing<'a> {
    sample: &'a [u8],
    load: Load,
    sealer: FrameSealer,
    identity: FrameIdentity,
    frames: Vec<Bytes>,
    noise: u64,
}

impl<'a> Sealing<'a> {
    fn new(sample: &'a [u8], load: Load) -> Result<Self> {
        let level = (load != Load::Sequential).then_some(1);
        let identity = FrameIdentity {
            disk: DISK,
            generation: Generation(1),
            sequence: Sequence(0),
            interval: Interval(1),
        };
        let sealer = FrameSealer::new(level)?;
        Ok(Self { sample, load, sealer, identity, frames: Vec::new(), noise: 0x9e37_79b9_7f4a_7c15 })
    }

    /// So many bytes, then a cut.
    fn interval(&mut self, bytes: u64, time: u64) -> Result<()> {
        let step = FRAME_PLAIN_BYTES_TARGET as u64;
        let per_frame = (FRAME_PLAIN_BYTES_TARGET / BLOCK_BYTES) as u64;
        let mut plain = vec![0; FRAME_PLAIN_BYTES_TARGET];
        for frame in 0..bytes / step {
            let at = usize::try_from(frame * step).unwrap_or(0) % (self.sample.len() - plain.len());
            plain.copy_from_slice(self.sample.get(at..at + FRAME_PLAIN_BYTES_TARGET).unwrap_or_default());
            if self.load == Load::Sequential {
                plain.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.next().to_le_bytes()));
            } else if let Load::Pages(_) = self.load {
                let halves = plain.chunks_exact_mut(BLOCK_BYTES / 2).skip(1).step_by(2);
                let words = halves.flat_map(|half| half.chunks_exact_mut(8));
                words.for_each(|word| word.copy_from_slice(&self.next().to_le_bytes()));
            }
            let extents = self.extents(frame * per_frame, bytes / BLOCK_BYTES as u64, time);
            self.identity.sequence = self.identity.sequence.next();
            self.frames.push(self.sealer.seal_data(self.identity, &extents, &plain)?);
        }
        let record =
            cut_record(PointId::from_bytes([9; 16]), Timestamp(1), MachineId::from_bytes([1; 16]), DISK);
        self.identity.sequence = self.identity.sequence.next();
        self.frames.push(seal_cut(self.identity, &record)?);
        self.identity.interval = self.identity.interval.next();
        Ok(())
    }

    /// Where the blocks from number `first` of `count` lie on the disk.
    fn extents(&self, first: u64, count: u64, time: u64) -> Vec<Extent> {
        let per_frame = (FRAME_PLAIN_BYTES_TARGET / BLOCK_BYTES) as u64;
        let blocks = DISK_BYTES / BLOCK_BYTES as u64;
        let unit = match self.load {
            Load::Files | Load::Sequential => return vec![Extent::data(BlockRange::new(first, per_frame))],
            Load::Random => 1,
            Load::Pages(_) => 2,
        };
        // A multiplication by an odd number permutes the places of a disk whose size is a power of two.
        let units = blocks / unit;
        let shuffled = |number: u64| {
            let number = (number + time * 7919 * (count / unit / 16)) % (count / unit);
            number.wrapping_mul(0x9e37_79b1) % units * unit
        };
        let mut starts: Vec<u64> = (first / unit..(first + per_frame) / unit).map(shuffled).collect();
        starts.sort_unstable();
        starts.dedup();
        starts.into_iter().map(|start| Extent::data(BlockRange::new(start, unit))).collect()
    }

    fn next(&mut self) -> u64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        self.noise
    }
}

fn measure(place: &Path, frames: Vec<Bytes>, raw_bytes: u64, rounds: usize) -> Result<Measured> {
    let stored_bytes = frames.iter().map(|frame| frame.len() as u64).sum();
    let threads = machine::processors() as usize;
    let last = Sequence(frames.len() as u64);
    let mut measured = Measured {
        raw_bytes,
        stored_bytes,
        read_bytes: 0,
        peak_bytes: 0,
        attach: Vec::new(),
        wanted: Vec::new(),
        verified: Vec::new(),
        tables: Vec::new(),
        hash: Vec::new(),
    };
    for _ in 0..rounds {
        warm(place)?;
        // The store is opened anew, so that nothing is known of its segments.
        let (store, _) = Store::open(place, StoreSettings::default())?;
        let log = store.disk(DISK).context("the log")?;
        let started = Instant::now();
        let index = DiskIndex::open(Arc::clone(&log))?;
        index.catch_up()?;
        let map = index.at_cut(last)?;
        ensure!(!map.resolve(BlockRange::new(0, 1))?.is_empty(), "nothing is found");
        measured.attach.push(started.elapsed().as_secs_f64());
        let wanted = index.frames_between(Sequence(0), last)?;
        measured.wanted.push(started.elapsed().as_secs_f64() - measured.attach.last().unwrap_or(&0.0));
        let order =
            CheckOrder { after: Sequence(0), up_to: last, wanted: Some(&wanted), threads, keep_cached: true };
        let checked = log.check(&order, &|_| true)?;
        measured.verified.push(started.elapsed().as_secs_f64());
        ensure!(checked.bad.is_empty() && checked.frames == wanted.len(), "{checked:?}");
        measured.read_bytes = checked.bytes;
        let index_folder = log.layout().index();
        drop((index, map, log, store));
        empty(&index_folder)?;
        if measured.peak_bytes == 0 {
            measured.peak_bytes = machine::peak_of(&["--process-once".as_ref(), place.as_os_str()])?;
            empty(&index_folder)?;
        }
        let (store, _) = Store::open(place, StoreSettings::default())?;
        let log = store.disk(DISK).context("the log")?;
        measured.tables.push(tables_pass(&log)?.as_secs_f64());
        measured.hash.push(hash_pass(&frames, threads).as_secs_f64());
    }
    Ok(measured)
}

/// What a process that has nothing else to do makes of a journal: opens it, indexes it, verifies its newest cut.
pub(crate) fn once(place: &Path) -> Result<()> {
    let (store, _) = Store::open(place, StoreSettings::default())?;
    let log = store.disk(DISK).context("the log")?;
    let index = DiskIndex::open(Arc::clone(&log))?;
    index.catch_up()?;
    let cut = index.cuts().last().context("a cut")?.sequence;
    let wanted = index.frames_between(Sequence(0), cut)?;
    let threads = machine::processors() as usize;
    let order =
        CheckOrder { after: Sequence(0), up_to: cut, wanted: Some(&wanted), threads, keep_cached: true };
    let checked = log.check(&order, &|_| true)?;
    ensure!(checked.bad.is_empty() && checked.frames == wanted.len(), "{checked:?}");
    Ok(())
}

fn empty(folder: &Path) -> Result<()> {
    std::fs::remove_dir_all(folder)?;
    Ok(std::fs::create_dir(folder)?)
}

/// Reads all files once, so that they are in the page cache.
fn warm(place: &Path) -> Result<()> {
    let mut folders = vec![place.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)?.flatten() {
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                std::io::copy(&mut std::fs::File::open(entry.path())?, &mut std::io::sink())?;
            }
        }
    }
    Ok(())
}

/// All frames' tables, read and parsed, and nothing else.
fn tables_pass(log: &DiskLog) -> Result<Duration> {
    let started = Instant::now();
    let mut at = Sequence(0);
    let mut extents = 0;
    loop {
        let batch = log.heads_after(at, TABLE_BYTES)?;
        extents += batch.heads.iter().map(|head| head.extents.len()).sum::<usize>();
        if batch.up_to == at {
            break;
        }
        at = batch.up_to;
    }
    ensure!(extents > 0, "no tables");
    Ok(started.elapsed())
}

/// BLAKE3 over each frame's bytes, from memory.
fn hash_pass(frames: &[Bytes], threads: usize) -> Duration {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(frame) = frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                    std::hint::black_box(blake3::hash(frame));
                }
            });
        }
    });
    started.elapsed()
}

impl Measured {
    fn rows(&self, load: Load) -> Vec<Row> {
        let name = load.name();
        let median = |times: &[f64]| percentile(times, 50.0);
        let raw = |seconds: f64| self.raw_bytes as f64 / seconds / 1e9;
        let ratio = |ours: &[f64], limit: &[f64]| {
            let ratios: Vec<f64> = ours.iter().zip(limit).map(|(ours, limit)| limit / ours).collect();
            median(&ratios)
        };
        let note = |what: String| {
            format!(
                "{} MiB raw, {} MiB stored, {} MiB read; median of {}; {what}",
                self.raw_bytes >> 20,
                self.stored_bytes >> 20,
                self.read_bytes >> 20,
                self.attach.len()
            )
        };
        let peak = self.peak_bytes as f64 / f64::from(1 << 20);
        vec![
            Row::new(format!("process: peak memory, {name}"), peak, "MiB")
                .against(PEAK_MIB_MAX, "target, at most")
                .note(
                    "resident, mapped files included, of a process that opens, indexes and verifies"
                        .to_owned(),
                ),
            Row::new(format!("process: attachable, {name}"), raw(median(&self.attach)), "GB/s raw")
                .against(raw(median(&self.tables)), "one pass over the tables")
                .note(note(format!(
                    "{:.1} ms; {:.1} times a BLAKE3 pass (at least {UNVERIFIED_MIN})",
                    median(&self.attach) * 1e3,
                    ratio(&self.attach, &self.hash)
                ))),
            Row::new(format!("process: verified, {name}"), raw(median(&self.verified)), "GB/s raw")
                .against(raw(median(&self.hash)), "one BLAKE3 pass over all stored bytes, in memory")
                .note(note(format!(
                    "{:.1} ms, of them {:.1} to be attachable and {:.1} to find the frames; pairwise ratio {:.2} (at least {VERIFIED_MIN})",
                    median(&self.verified) * 1e3,
                    median(&self.attach) * 1e3,
                    median(&self.wanted) * 1e3,
                    ratio(&self.verified, &self.hash)
                ))),
        ]
    }
}
