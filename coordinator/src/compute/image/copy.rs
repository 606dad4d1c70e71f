//! Moves the data of a view into a file: threads take bundles in the order of the disk, decompress each one once, gather what
//! lies side by side and write it, so that decompressing and writing overlap on all cores.
//!
//! Owns the threads and their buffers. Knows a format only by its `Layout`. Invariant: when the checkpoint is called with
//! a cluster, everything below it is durable.
//! Limits: [`GATHERS`] buffers of [`GATHER_BYTES`] and one bundle per thread; one [`Plan`]. With a direct target there are
//! [`DIRECT_DEPTH`] threads more.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, IoSlice},
    mem,
    ops::Range,
    sync::{
        Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use holdfast_common::{
    durable,
    units::{BLOCK_BYTES, BlockCount, BlockRange},
};
use memmap2::MmapMut;

use super::{
    map::{CLUSTER, ClusterMap, RESUME_CLUSTERS},
    plan::{Action, Actions, PARTS_MAX, Plan},
    target::Target,
};
use crate::{
    compute::port::Task,
    points::view::{BUNDLE_BYTES_MAX, BlockView, BundlePart, BundleReader, Changes, ViewError},
};

/// Where a format puts things.
pub(super) trait Layout: Sync {
    /// Where in the file the front of these bytes of the disk lies, and how many of them lie there side by side, at least one.
    /// `None` if that front has no place: the image does not hold it.
    fn place(&self, map: &ClusterMap, bytes: Range<u64>) -> io::Result<(Option<u64>, u64)>;
    /// Length of the file with all data in it.
    fn file_bytes(&self, map: &ClusterMap) -> u64;
    /// Writes what is not data.
    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()>;
}

/// What is copied to where.
pub(super) struct Copy<'a> {
    pub view: &'a dyn BlockView,
    pub map: &'a ClusterMap,
    pub layout: &'a dyn Layout,
    pub target: &'a Target,
    pub task: &'a Task,
    pub threads: usize,
    /// If the file holds another point already: the blocks that differ. Otherwise it began as one hole.
    pub changes: Option<&'a dyn Changes>,
}

/// Why copying ended early.
#[derive(Debug)]
pub(super) enum CopyError {
    Cancelled,
    View(ViewError),
    Write(io::Error),
}

/// Bundles `from` to `to` of a plan are written.
struct Done {
    bundles: Range<usize>,
    bytes: u64,
}

type Reports = crossbeam_channel::Sender<Result<Done, CopyError>>;

impl Copy<'_> {
    /// Copies everything from the cluster `from` on. `checkpoint` is called on this thread with the cluster below which all is
    /// written and durable, whenever that has moved on by at least `every_bytes` and as much was written.
    ///
    /// # Errors
    /// The first failure of any thread; the others stop soon after.
    pub(super) fn run(
        &self,
        from: u64,
        every_bytes: u64,
        mut checkpoint: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let blocks = BlockCount::covering(self.view.size_bytes()).0;
        let mut block = from * CLUSTER_BLOCKS;
        let (mut since_bytes, mut synced, mut begun) = (0, block, block);
        while block < blocks {
            let rest = BlockRange::new(block, blocks - block);
            let plan = Plan::make(rest, PARTS_MAX, &mut |rest| self.actions(rest))?;
            for range in &plan.zeroes {
                self.zero(*range).map_err(CopyError::Write)?;
                self.task.add_done_bytes(range.bytes());
            }
            if self.changes.is_none() {
                self.allocate(&plan).map_err(CopyError::Write)?;
            }
            self.copy(&plan, |done, reached| {
                since_bytes += done.bytes;
                if (reached - begun) * BLOCK_BYTES as u64 >= WRITE_BEHIND_BYTES {
                    self.write_behind(BlockRange::new(begun, reached - begun))?;
                    begun = reached;
                }
                if since_bytes < every_bytes || (reached - synced) * (BLOCK_BYTES as u64) < every_bytes {
                    return Ok(());
                }
                self.sync(BlockRange::new(synced, reached - synced))?;
                (since_bytes, synced) = (0, reached);
                checkpoint(reached / CLUSTER_BLOCKS / RESUME_CLUSTERS * RESUME_CLUSTERS)
            })?;
            block = plan.end;
        }
        Ok(())
    }

    /// Makes blocks durable that are all written. Short runs that were written elsewhere stay in the page cache: all over the disk
    /// they would reach the device one by one, and what comes between them later as well.
    fn sync(&self, range: BlockRange) -> io::Result<()> {
        let mut span: Option<Range<u64>> = None;
        self.places(range, &mut |place, bytes| {
            let Some(place) = place else { return Ok(()) };
            let end = place + (bytes.end - bytes.start) as u64;
            span = Some(span.take().map_or(place..end, |all| all.start.min(place)..all.end.max(end)));
            Ok(())
        })?;
        span.map_or(Ok(()), |span| durable::sync_range(self.target.file(), span))
    }

    /// Lets the system begin to write out what the page cache holds of blocks that are all written.
    fn write_behind(&self, range: BlockRange) -> io::Result<()> {
        if !self.target.is_direct() {
            return Ok(());
        }
        self.places(range, &mut |place, bytes| {
            if let Some(place) = place {
                self.target.write_behind(place, (bytes.end - bytes.start) as u64);
            }
            Ok(())
        })
    }

    /// What is to be done with the front of a range.
    fn actions(&self, range: BlockRange) -> Result<Actions, CopyError> {
        if self.task.is_cancelled() {
            return Err(CopyError::Cancelled);
        }
        let Some(changes) = self.changes else {
            let stored = self.view.stored(range).map_err(CopyError::View)?;
            let action = |place: Option<_>| place.map_or(Action::Keep, Action::Write);
            return Ok(stored.into_iter().map(|extent| (extent.range, action(extent.place))).collect());
        };
        let (changed, end) = changes.changed(range).map_err(CopyError::View)?;
        let (mut actions, mut at) = (Vec::new(), range.start.0);
        for mut part in changed {
            actions.push((BlockRange::new(at, part.start.0 - at), Action::Keep));
            while !part.is_empty() {
                let (before, part_end) = (part.start, part.end().0);
                for extent in self.view.stored(part).map_err(CopyError::View)? {
                    actions.push((extent.range, extent.place.map_or(Action::Zero, Action::Write)));
                    part = BlockRange::new(extent.range.end().0, part_end - extent.range.end().0);
                }
                if part.start == before {
                    return Err(CopyError::View(ViewError::BeyondEnd { offset: at, bytes: part.bytes() }));
                }
            }
            at = part.start.0;
        }
        actions.push((BlockRange::new(at, end - at), Action::Keep));
        Ok(actions)
    }

    /// Writes a plan. `progress` is told of what was written, and below which block all is.
    fn copy(
        &self,
        plan: &Plan,
        mut progress: impl FnMut(&Done, u64) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let writing = Mutex::new(());
        let (sender, receiver) = crossbeam_channel::bounded(REPORTS_MAX);
        // A thread that writes directly waits for the device, and leaves its processor to others.
        let waiting = if self.target.is_direct() { DIRECT_DEPTH } else { 0 };
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) + waiting {
                let (next, stop, writing, sender) = (&next, &stop, &writing, sender.clone());
                scope.spawn(move || {
                    let ended = self.work(plan, next, stop, (writing, &sender));
                    if let Err(error) = ended {
                        stop.store(true, Ordering::Relaxed);
                        // The receiver lives until all senders are gone.
                        let _received = sender.send(Err(error));
                    }
                });
            }
            drop(sender);
            let (mut watermark, mut first_error) = (Watermark::default(), None);
            for report in receiver {
                let outcome = report.and_then(|done: Done| {
                    watermark.finished(&done.bundles);
                    progress(&done, plan.first_block(watermark.bundle)).map_err(CopyError::Write)
                });
                if let Err(error) = outcome {
                    stop.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
            first_error.map_or(Ok(()), Err)
        })
    }

    /// Takes turns until the plan is done. Long runs go to a direct target at once, several threads' side by side. The page
    /// cache lets one thread at a time write to a file: who finds another one writing goes on decompressing into its next
    /// buffer, and waits only when all of them are full.
    fn work(
        &self,
        plan: &Plan,
        next: &AtomicUsize,
        stop: &AtomicBool,
        (writing, reports): (&Mutex<()>, &Reports),
    ) -> Result<(), CopyError> {
        let mut reader = BundleReader::default();
        let mut gathers: Vec<Gather> =
            (0..GATHERS).map(|_| Gather::new()).collect::<io::Result<_>>().map_err(CopyError::Write)?;
        let (mut full, mut ended) = (0, false);
        while !ended && !stop.load(Ordering::Relaxed) {
            if self.task.is_cancelled() {
                return Err(CopyError::Cancelled);
            }
            let from = next.fetch_add(TURN_BUNDLES, Ordering::Relaxed).min(plan.len());
            let bundles = from..(from + TURN_BUNDLES).min(plan.len());
            ended = bundles.is_empty();
            if let Some(gather) = gathers.get_mut(full).filter(|_| !ended) {
                self.gather(plan, bundles, gather, &mut reader)?;
                if gather.goes_directly(self.target) {
                    if !self.finish(gather, reports)? {
                        return Ok(());
                    }
                    continue;
                }
                full += 1;
            }
            let turn = match writing.try_lock() {
                Err(TryLockError::WouldBlock) if full < GATHERS && !ended => continue,
                Err(TryLockError::WouldBlock) => writing.lock().unwrap_or_else(PoisonError::into_inner),
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Ok(turn) => turn,
            };
            for gather in gathers.iter_mut().take(mem::take(&mut full)) {
                if !self.finish(gather, reports)? {
                    return Ok(());
                }
            }
            drop(turn);
        }
        Ok(())
    }

    /// Writes what is left of a turn and reports it; whether anyone still listens.
    fn finish(&self, gather: &mut Gather, reports: &Reports) -> Result<bool, CopyError> {
        let done = gather.finish(self.target).map_err(CopyError::Write)?;
        // The total counts whole blocks; the disk may end within its last one.
        self.task.add_done_bytes(done.bytes.next_multiple_of(BLOCK_BYTES as u64));
        Ok(reports.send(Ok(done)).is_ok())
    }

    /// Gives the long runs of a plan their places before anyone writes directly.
    fn allocate(&self, plan: &Plan) -> io::Result<()> {
        if !self.target.is_direct() {
            return Ok(());
        }
        let long = plan.runs.iter().filter(|run| run.bytes() >= DIRECT_RUN_BYTES);
        long.copied().try_for_each(|run| {
            self.places(run, &mut |place, bytes| {
                self.target.allocate(place.ok_or_else(no_place)?, (bytes.end - bytes.start) as u64)
            })
        })
    }

    /// Decompresses the bundles of a turn, and writes only what there is no room for.
    fn gather(
        &self,
        plan: &Plan,
        bundles: Range<usize>,
        gather: &mut Gather,
        reader: &mut BundleReader,
    ) -> Result<(), CopyError> {
        let mut parts = Vec::new();
        for index in bundles.clone() {
            if gather.is_full() {
                gather.write(self.target).map_err(CopyError::Write)?;
            }
            let Some(bundle) = plan.bundle(index, &mut parts) else { break };
            let read = self.view.read_bundle(bundle, &parts, reader, gather.room());
            gather
                .take(read.map_err(CopyError::View)?, &parts, |part, piece| self.places(part, piece))
                .map_err(CopyError::Write)?;
        }
        gather.bundles = bundles;
        Ok(())
    }

    /// Where blocks go in the file, piece by piece: the place, if there is one, and which of their bytes.
    fn places(&self, range: BlockRange, piece: Pieces<'_>) -> io::Result<()> {
        let start = range.start.byte_offset();
        let end = range.end().byte_offset().min(self.view.size_bytes());
        places(self.layout, self.map, start..end, piece)
    }

    /// Makes blocks zero that may hold data.
    fn zero(&self, range: BlockRange) -> io::Result<()> {
        self.places(range, &mut |place, bytes| {
            // What has no place is not in the image, and reads as zero.
            place.map_or(Ok(()), |place| self.target.zero(place, (bytes.end - bytes.start) as u64))
        })
    }
}

/// Is told of a place in the file, if there is one, and which bytes of a stretch go there.
type Pieces<'a> = &'a mut dyn FnMut(Option<u64>, Range<usize>) -> io::Result<()>;

/// Where a stretch of the disk's bytes lies in the file, piece by piece.
pub(super) fn places(
    layout: &dyn Layout,
    map: &ClusterMap,
    bytes: Range<u64>,
    piece: Pieces<'_>,
) -> io::Result<()> {
    let mut at = bytes.start;
    while at < bytes.end {
        let (place, some) = layout.place(map, at..bytes.end)?;
        let next = (at + some.max(1)).min(bytes.end);
        let within = |at: u64| usize::try_from(at - bytes.start).map_err(io::Error::other);
        piece(place, within(at)?..within(next)?)?;
        at = next;
    }
    Ok(())
}

/// A cluster that is to be written has no place: the layout was made for another map.
pub(super) fn no_place() -> io::Error {
    io::Error::other("the image has no place for a cluster of its disk")
}

/// Reads a run of clusters; beyond the disk's end the last one is zero.
///
/// # Errors
/// The view's, and a run or buffer that is not the disk's.
pub(super) fn read_run<'b>(
    view: &dyn BlockView,
    run: &Range<u64>,
    buffer: &'b mut [u8],
) -> Result<&'b [u8], ViewError> {
    let start = run.start * CLUSTER;
    let end = (run.end * CLUSTER).min(view.size_bytes());
    let whole = usize::try_from((run.end - run.start) * CLUSTER).unwrap_or(0);
    let inside = usize::try_from(end - start).unwrap_or(0);
    let Some((bytes, beyond)) =
        buffer.get_mut(..whole).and_then(|buffer| buffer.split_at_mut_checked(inside))
    else {
        return Err(ViewError::BeyondEnd { offset: start, bytes: end - start });
    };
    view.read(start, bytes)?;
    beyond.fill(0);
    Ok(buffer.get(..whole).unwrap_or_default())
}

/// Bytes of the bundles of a turn, waiting to be written together.
struct Gather {
    /// Begins at a page, as direct writes want it.
    buffer: MmapMut,
    filled: usize,
    /// Offset in the file, and the bytes in the buffer that go there.
    pieces: Vec<(u64, Range<usize>)>,
    bundles: Range<usize>,
    /// Bytes written of them.
    written: u64,
}

impl Gather {
    fn new() -> io::Result<Self> {
        let buffer = MmapMut::map_anon(GATHER_BYTES + BUNDLE_BYTES_MAX)?;
        Ok(Self { buffer, filled: 0, pieces: Vec::new(), bundles: 0..0, written: 0 })
    }

    fn is_full(&self) -> bool {
        self.filled >= GATHER_BYTES
    }

    /// Room for one bundle.
    fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// Takes what was put into the room; `places` says of blocks where in the file they go.
    fn take(
        &mut self,
        bytes: usize,
        parts: &[BundlePart],
        places: impl Fn(BlockRange, Pieces<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (filled, pieces) = (self.filled, &mut self.pieces);
        for part in parts {
            let start = filled + part.at_block as usize * BLOCK_BYTES;
            places(part.range, &mut |place, within| {
                let offset = place.ok_or_else(no_place)?;
                let piece = start + within.start..(start + within.end).min(filled + bytes);
                match pieces.last_mut() {
                    Some((at, last)) if last.end == piece.start && *at + last.len() as u64 == offset => {
                        last.end = piece.end;
                    }
                    _ => pieces.push((offset, piece)),
                }
                Ok(())
            })?;
        }
        self.filled += bytes;
        Ok(())
    }

    /// Whether its runs are long enough to go past the page cache.
    fn goes_directly(&mut self, target: &Target) -> bool {
        target.is_direct() && self.filled as u64 >= runs(&mut self.pieces).count() as u64 * DIRECT_RUN_BYTES
    }

    /// Writes the rest, and says what of the turn was written in all.
    fn finish(&mut self, target: &Target) -> io::Result<Done> {
        self.write(target)?;
        Ok(Done { bundles: mem::take(&mut self.bundles), bytes: mem::take(&mut self.written) })
    }

    /// Writes everything, neighbours in the file with one call.
    fn write(&mut self, target: &Target) -> io::Result<()> {
        let direct = self.goes_directly(target);
        for run in runs(&mut self.pieces) {
            for some in run.chunks(SLICES_MAX) {
                let slices = some.iter().map(|(_, piece)| self.buffer.get(piece.clone()).unwrap_or_default());
                let mut slices: Vec<IoSlice<'_>> = slices.map(IoSlice::new).collect();
                let offset = some.first().map_or(0, |(offset, _)| *offset);
                self.written += target.write(&mut slices, offset, direct)?;
            }
        }
        self.pieces.clear();
        self.filled = 0;
        Ok(())
    }
}

/// Pieces that lie side by side in the file, in its order.
fn runs(pieces: &mut [(u64, Range<usize>)]) -> impl Iterator<Item = &[(u64, Range<usize>)]> {
    pieces.sort_unstable_by_key(|(offset, _)| *offset);
    pieces.chunk_by(|(at, piece), (next, _)| at + piece.len() as u64 == *next)
}

/// Below which bundle all are written, from turns that end in any order.
#[derive(Default)]
struct Watermark {
    done: BTreeMap<usize, usize>,
    bundle: usize,
}

impl Watermark {
    fn finished(&mut self, bundles: &Range<usize>) {
        self.done.insert(bundles.start, bundles.end);
        while let Some(end) = self.done.remove(&self.bundle) {
            self.bundle = end;
        }
    }
}

/// Blocks in a cluster.
const CLUSTER_BLOCKS: u64 = CLUSTER / BLOCK_BYTES as u64;
/// Bundles that a thread takes at a time. With frames of the usual 64 KiB they make writes of up to 1 MiB.
const TURN_BUNDLES: usize = 16;
/// Buffers per thread.
const GATHERS: usize = 2;
/// Bytes gathered before they are written; more would leave the processor's cache.
const GATHER_BYTES: usize = 1 << 20;
/// Threads that write past the page cache beside those that keep the processors busy: so many writes are at the device at a time.
const DIRECT_DEPTH: usize = 4;
/// From this length on, on average, runs are written past the page cache.
const DIRECT_RUN_BYTES: u64 = 64 << 10;
/// The system is told to begin writing whenever so much of the disk is done.
const WRITE_BEHIND_BYTES: u64 = 32 << 20;
/// Slices in one system call (the system's limit is 1024).
const SLICES_MAX: usize = 512;
/// Turns that ended and are not yet counted: about what is written during the sync of a checkpoint.
const REPORTS_MAX: usize = 512;
/// Clusters that are compared at a time before an image is continued.
pub(super) const RUN_CLUSTERS: usize = 32;
