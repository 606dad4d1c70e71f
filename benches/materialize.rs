//! Writing a point out: bytes landed per second, against zstd decode of the live frames and pwrite of the live bytes with the
//! same threads in the same run. Beside it stands what the processors can do at all: the seconds that reading with digests,
//! decoding and writing each keep them busy, added up, spread over all of them.
//!
//! Owns the stores and images in temporary folders while it runs. Rounds alternate, because the machine's speed drifts.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use bytes::BytesMut;
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    frame::{Extent, FRAME_PLAIN_BYTES_MAX, Frame, PlainReader},
    ids::{PointId, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockRange},
};
use holdfast_coordinator::{
    compute::{
        image::writer::ImageWriter,
        port::{DiskView, ImageFormat, ImageRequest, Task, WriteImage as _},
    },
    index::DiskIndex,
    points::view::BlockView as _,
    store::{DiskLog, StoreSettings},
};
use holdfast_tests::{
    history::{self, HistoryWriter},
    raw_writers::AlignedBuffer,
};
use rustix::fs::FallocateFlags;
use tempfile::TempDir;

use crate::{
    Run, machine,
    report::{Row, percentile},
    stages,
};

/// Blocks of a usual frame.
const FRAME_BLOCKS: u64 = 16;
/// Least part of the limit that must be reached.
const RATIO_MIN: f64 = 0.8;

/// Writes at a device at a time.
const DIRECT_THREADS: usize = 4;
/// Left free in memory beside an image.
const MEMORY_SPARE_BYTES: u64 = 512 << 20;

/// A history to materialize.
struct Scenery {
    folder: TempDir,
    cuts: Vec<(PointId, Sequence)>,
}

/// Images of a disk copied in order, of one rewritten at random, and the update of an older image.
pub(crate) fn materialize(run: Run) -> Result<Vec<Row>> {
    let bytes = if run.quick { 1 << 30 } else { 4 << 30 };
    let rounds = if run.quick { 3 } else { 7 };
    let mut rows = Vec::new();
    for (name, rewritten) in [("in order", 0.0), ("rewritten at random", 0.5)] {
        let scenery = scenery(bytes, rewritten)?;
        let (_store, log) = history::open(&scenery.folder.path().join("store"), StoreSettings::default())?;
        let index = history::index(&log);
        let newest = *scenery.cuts.last().context("a cut")?;
        let live = Live::of(&index, newest.1)?;
        for (place, folder) in targets(&scenery, live.bytes)? {
            let name = format!("{name}, to {place}");
            if run.wants(&format!("materialize: {name}")) {
                rows.extend(full(&name, &index, newest, &live, &folder, rounds)?);
            }
            fs::remove_dir_all(&folder)?;
        }
        if let [older, .., newest] = *scenery.cuts
            && run.wants("materialize: onto an older image")
        {
            rows.push(update(&index, older, newest, scenery.folder.path())?);
        }
    }
    Ok(rows)
}

/// A folder in memory, if there is room for an image, and one on disk.
fn targets(scenery: &Scenery, bytes: u64) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut targets = vec![("disk", scenery.folder.path().join("images"))];
    let shared = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(shared).map_or(0, |space| space.f_bavail * space.f_frsize);
    if room > bytes + MEMORY_SPARE_BYTES {
        targets.insert(0, ("memory", shared.join(format!("holdfast-bench-{}", std::process::id()))));
    } else {
        let (room, need) = (room >> 20, (bytes + MEMORY_SPARE_BYTES) >> 20);
        eprintln!("skipped: /dev/shm has {room} MiB free; an image there needs {need} MiB");
    }
    for (_, folder) in &targets {
        fs::create_dir_all(folder)?;
    }
    Ok(targets)
}

/// A disk of this system's files, of which a part is then written again in single blocks all over the disk.
fn scenery(bytes: u64, rewritten: f64) -> Result<Scenery> {
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let sample = stages::system_sample(folder.path(), bytes)?;
    let store = folder.path().join("store");
    let mut writer = HistoryWriter::create(&store, bytes, StoreSettings::default())?;
    for (number, plain) in (0..).zip(sample.chunks(FRAME_BLOCKS as usize * BLOCK_BYTES)) {
        let range = BlockRange::new(number * FRAME_BLOCKS, (plain.len() / BLOCK_BYTES) as u64);
        writer.write(&[Extent::data(range)], plain)?;
    }
    let mut cuts = vec![writer.cut()?];
    if rewritten > 0.0 {
        rewrite(&mut writer, &sample, (bytes as f64 * rewritten) as u64 / BLOCK_BYTES as u64)?;
        cuts.push(writer.cut()?);
    }
    writer.finish()?;
    Ok(Scenery { folder, cuts })
}

fn rewrite(writer: &mut HistoryWriter, sample: &[u8], blocks: u64) -> Result<()> {
    let entropy = SeededEntropy::new(3);
    let all = (sample.len() / BLOCK_BYTES) as u64;
    for _ in 0..blocks / FRAME_BLOCKS {
        let mut wanted: Vec<u64> = (0..FRAME_BLOCKS).map(|_| entropy.next_u64() % all).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let extents: Vec<Extent> = wanted.iter().map(|at| Extent::data(BlockRange::new(*at, 1))).collect();
        let mut plain = Vec::with_capacity(wanted.len() * BLOCK_BYTES);
        for _ in &wanted {
            let from = usize::try_from(entropy.next_u64() % all)? * BLOCK_BYTES;
            plain.extend_from_slice(sample.get(from..from + BLOCK_BYTES).context("a block")?);
        }
        writer.write(&extents, &plain)?;
    }
    Ok(())
}

/// The frames that a point needs, in memory, and its bytes: what the limits work on.
struct Live {
    frames: Vec<Frame>,
    log: Arc<DiskLog>,
    bytes: u64,
}

impl Live {
    fn of(index: &Arc<DiskIndex>, cut: Sequence) -> Result<Self> {
        let view = history::view(index, cut);
        let (mut wanted, mut bytes) = (Vec::new(), 0);
        let (mut at, blocks) = (0, BlockCount::covering(view.size_bytes()).0);
        while at < blocks {
            for extent in view.stored(BlockRange::new(at, blocks - at))? {
                at = extent.range.end().0;
                if let Some(place) = extent.place {
                    wanted.push(place.bundle);
                    bytes += extent.range.bytes();
                }
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let frames = wanted.into_iter().map(|sequence| Ok(index.log().read(Sequence(sequence))?));
        Ok(Self { frames: frames.collect::<Result<_>>()?, log: Arc::clone(index.log()), bytes })
    }

    /// Reads all frames from the log and checks their digests, on all cores; seconds.
    fn read(&self) -> Result<f64> {
        timed(|| {
            let next = AtomicUsize::new(0);
            on_threads(threads(), || {
                let mut memory = BytesMut::new();
                while let Some(frame) = self.frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let read = self.log.read_into(frame.header().sequence, memory)?;
                    memory = read.into_bytes().try_into_mut().unwrap_or_default();
                }
                Ok(())
            })
        })
    }

    /// Decodes all frames on all cores; seconds.
    fn decode(&self) -> Result<f64> {
        timed(|| {
            let (next, decoded) = (AtomicUsize::new(0), AtomicU64::new(0));
            on_threads(threads(), || {
                let (mut reader, mut output) = (PlainReader::new(), vec![0; FRAME_PLAIN_BYTES_MAX]);
                while let Some(frame) = self.frames.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let bytes = reader.read_to(frame, &mut output)?;
                    decoded.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Ok(())
            })?;
            ensure!(decoded.into_inner() >= self.bytes, "frames are missing");
            Ok(())
        })
    }

    /// Writes as many bytes on so many threads, 1 MiB at a time, through the page cache, and syncs as often as an image does; seconds.
    fn write(&self, folder: &Path, threads: usize) -> Result<f64> {
        self.write_file(folder, threads, 0)
    }

    /// The same past the page cache, into space that is already the file's, on as many threads as keep a device busy.
    fn write_directly(&self, folder: &Path) -> Result<f64> {
        self.write_file(folder, DIRECT_THREADS, libc::O_DIRECT)
    }

    fn write_file(&self, folder: &Path, threads: usize, flags: i32) -> Result<f64> {
        const STEP: usize = 1 << 20;
        let path = folder.join("limit");
        let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(&path)?;
        let seconds = timed(|| {
            if flags == libc::O_DIRECT {
                rustix::fs::fallocate(
                    &file,
                    FallocateFlags::empty(),
                    0,
                    self.bytes.next_multiple_of(STEP as u64),
                )?;
            }
            let next = AtomicU64::new(0);
            on_threads(threads, || {
                let mut memory = AlignedBuffer::new(STEP);
                let buffer = memory.first(STEP);
                SeededEntropy::new(1).fill(buffer);
                loop {
                    let at = next.fetch_add(STEP as u64, Ordering::Relaxed);
                    if at >= self.bytes {
                        return Ok(());
                    }
                    file.write_all_at(buffer, at)?;
                    if at.is_multiple_of(256 << 20) {
                        holdfast_common::durable::sync_data(&file)?;
                    }
                }
            })?;
            Ok(holdfast_common::durable::sync_all(&file)?)
        })?;
        drop(file);
        fs::remove_file(path)?;
        Ok(seconds)
    }
}

fn full(
    name: &str,
    index: &Arc<DiskIndex>,
    point: (PointId, Sequence),
    live: &Live,
    folder: &Path,
    rounds: usize,
) -> Result<[Row; 2]> {
    let (mut ours, mut limits, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (mut decodes, mut writes) = (Vec::new(), Vec::new());
    let (mut bounds, mut bound_ratios) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = folder.join(format!("round-{round}"));
        let rate = |seconds: f64| live.bytes as f64 / seconds / 1e9;
        let here = rate(timed(|| write_image(index, point, &place, None).map(drop))?);
        fs::remove_dir_all(&place)?;
        let (_, read) = machine::measure(|| live.read())?;
        let (decode, decode_cost) = machine::measure(|| live.decode())?;
        // Whichever way to write is the faster here.
        let write = live.write(folder, threads())?.min(live.write_directly(folder)?);
        let (decode, write) = (rate(decode), rate(write));
        // Alone, so that no thread waits for another one's write.
        let (_, write_cost) = machine::measure(|| live.write(folder, 1))?;
        let busy = read.spent + decode_cost.spent + write_cost.spent;
        let bound = rate(busy / machine::processors());
        ours.push(here);
        limits.push(decode.min(write));
        ratios.push(here / decode.min(write));
        decodes.push(decode);
        writes.push(write);
        bounds.push(bound);
        bound_ratios.push(here / bound);
    }
    let median = |values: &[f64]| percentile(values, 50.0);
    let note = format!(
        "{} MiB in {} frames, {rounds} alternating rounds; pairwise ratio: median {:.2}, worst {:.2} (at least {RATIO_MIN}); \
         zstd decode {:.2}, pwrite with syncs, the faster of through and past the page cache, {:.2} GB/s, each alone on {} processors",
        live.bytes >> 20,
        live.frames.len(),
        median(&ratios),
        percentile(&ratios, 0.0),
        median(&decodes),
        median(&writes),
        machine::processors(),
    );
    let row = Row::new(format!("materialize: {name}"), median(&ours), "GB/s")
        .against(median(&limits), "the slower of zstd decode and pwrite of the same bytes")
        .note(note);
    let bound = Row::new(format!("materialize: {name}, of the processors"), median(&ours), "GB/s")
        .against(
            median(&bounds),
            "reading with digests, decode and pwrite one after the other, on all processors",
        )
        .note(format!(
            "by the processor time of each step alone; pairwise ratio: median {:.2}, worst {:.2}",
            median(&bound_ratios),
            percentile(&bound_ratios, 0.0)
        ));
    Ok([row, bound])
}

/// An older image brought to the newest point, against writing that one afresh.
fn update(
    index: &Arc<DiskIndex>,
    older: (PointId, Sequence),
    newest: (PointId, Sequence),
    folder: &Path,
) -> Result<Row> {
    let place = folder.join("updated");
    write_image(index, older, &place, None)?;
    let mut bytes = 0;
    let seconds = timed(|| {
        bytes = write_image(index, newest, &place, Some("update"))?;
        Ok(())
    })?;
    let afresh = timed(|| write_image(index, newest, &folder.join("afresh"), None).map(drop))?;
    let name = |folder: &str| folder.to_owned() + "/disk.raw";
    let same = fs::read(folder.join(name("updated")))? == fs::read(folder.join(name("afresh")))?;
    ensure!(same, "the updated image differs from a fresh one");
    fs::remove_dir_all(&place)?;
    fs::remove_dir_all(folder.join("afresh"))?;
    let note = format!("{} MiB differ and were written; equal to a fresh image", bytes >> 20);
    Ok(Row::new("materialize: onto an older image, to disk", seconds, "s")
        .against(afresh, "seconds of writing the whole point")
        .note(note))
}

/// Writes an image and gives the bytes written.
pub(crate) fn write_image(
    index: &Arc<DiskIndex>,
    (point, cut): (PointId, Sequence),
    folder: &Path,
    update: Option<&str>,
) -> Result<u64> {
    let view = Arc::new(history::view(index, cut));
    let disk = DiskView { disk: history::DISK, name: "disk".into(), view };
    let request = ImageRequest {
        owner: update.unwrap_or("bench").to_owned(),
        point,
        disk,
        folder: folder.to_owned(),
        format: ImageFormat::Raw,
        update: update.is_some(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let task = Arc::new(Task::default());
    let writer = ImageWriter::new(threads());
    runtime.block_on(writer.write(request, Arc::clone(&task)))?;
    Ok(task.progress(std::time::Duration::from_secs(1)).done_bytes)
}

/// One for each processor.
fn threads() -> usize {
    machine::processors() as usize
}

fn on_threads(count: usize, work: impl Fn() -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64())
}
