//! Reads of a disk: direct, several at a time, into buffers that exist already.
//!
//! Owns the open device and the threads that read. Does not number, seal or retry. Invariants: when
//! [`ReadBlocks::read`] returns, every frame of the batch has been read completely; a last partial block is padded with
//! zeroes. Limits: a stated number of threads; memory is the caller's buffers.
//! Plain files on file systems without direct IO are read through the page cache.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Seek as _, SeekFrom},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_common::units::{BLOCK_BYTES, BlockCount, BlockRange};
use thiserror::Error;

use super::{BufferPool, FRAME_BLOCKS, FrameBuffer, FramePlan};

/// Jobs that wait for a reading thread before the sender waits too.
const JOBS_MAX: usize = 64;

/// Most frames that one job reads at once (512 KiB): large requests are cheap, several at a time are fast.
const JOB_FRAMES_MAX: usize = 8;

/// Longest gap between two runs of a frame, in blocks, that is read along: a request costs as much as that.
const GAP_BLOCKS_MAX: u64 = 8;

/// Stack of a reading thread.
const STACK_BYTES: usize = 256 << 10;

static ZERO_BLOCK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

/// A read failed.
#[derive(Debug, Error)]
#[error("{range} of {device} cannot be read")]
pub struct ReadError {
    /// Device node or file.
    pub device: String,
    /// What was to be read.
    pub range: BlockRange,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

/// A disk, open for reading.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: String,
    size_bytes: u64,
}

/// One frame's blocks on their way from the disk.
#[derive(Debug)]
pub struct ReadFrame {
    /// What is read.
    pub plan: FramePlan,
    /// Where to; the runs one after the other.
    pub buffer: FrameBuffer,
    /// Bit `i` is set if the `i`th block of the plan holds only zeroes. Filled in by the read.
    pub zero_blocks: u16,
}

const _: () = assert!(super::FRAME_BLOCKS <= 16, "a bit of zero_blocks for each block");

/// What can read batches of a disk: the pool below, or a model in simulation.
pub trait ReadBlocks: Send {
    /// Reads all frames, and returns once all of them are read.
    ///
    /// # Errors
    /// The first range that could not be read; nothing of the batch may be used.
    fn read(&mut self, frames: Vec<ReadFrame>) -> Result<Vec<ReadFrame>, ReadError>;
}

impl DiskFile {
    /// Opens a block device or a plain file, for direct reads where it has them.
    ///
    /// # Errors
    /// It cannot be opened or its size cannot be learnt.
    pub fn open(path: &Path) -> io::Result<Self> {
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
        let file = match OpenOptions::new().read(true).custom_flags(direct).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => File::open(path)?,
            other => other?,
        };
        let size_bytes = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, path: path.display().to_string(), size_bytes })
    }

    /// Size in bytes when it was opened.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Size in blocks; a last partial block counts.
    #[must_use]
    pub const fn size(&self) -> BlockCount {
        BlockCount::covering(self.size_bytes)
    }

    /// Path it was opened by.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The open file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// The parts of a range that are not holes, in whole blocks. A device or file system that knows no holes has one part.
    #[must_use]
    pub fn data_runs(&self, range: BlockRange) -> Vec<BlockRange> {
        let end = range.end().byte_offset().min(self.size_bytes);
        let mut runs: Vec<BlockRange> = Vec::new();
        let mut at = range.start.byte_offset();
        while at < end {
            let start = match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(_) => at,
            };
            if start >= end {
                break;
            }
            let stop = rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(start))
                .map_or(end, |stop| stop.min(end));
            if let Some(run) = BlockRange::covering(start, stop.max(start + 1) - start).intersection(range) {
                match runs.last_mut() {
                    // Two parts of one block.
                    Some(last) if last.end() > run.start => last.count.0 = run.end().0 - last.start.0,
                    _ => runs.push(run),
                }
            }
            at = stop.max(start + 1);
        }
        runs
    }

    /// Reads a run into `buffer` (aligned to a block, exactly as long as the run).
    ///
    /// # Errors
    /// The device failed, or is shorter than it was when it was opened.
    pub fn read_run(&self, run: BlockRange, buffer: &mut [u8]) -> Result<(), ReadError> {
        let error = |source| ReadError { device: self.path.clone(), range: run, source };
        let wanted = usize::try_from(self.size_bytes.saturating_sub(run.start.byte_offset()))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let mut done = 0;
        while done < wanted {
            // Whole blocks are asked for: a direct read of a partial one is refused, and comes back short at the end.
            let rest = buffer.get_mut(done..).unwrap_or_default();
            match self.file.read_at(rest, run.start.byte_offset() + done as u64) {
                Ok(0) => return Err(error(io::ErrorKind::UnexpectedEof.into())),
                Ok(bytes) => done += bytes,
                Err(failure) if failure.kind() == io::ErrorKind::Interrupted => {}
                Err(failure) => return Err(error(failure)),
            }
        }
        buffer.get_mut(wanted..).unwrap_or_default().fill(0);
        Ok(())
    }

    /// Reads a frame, runs that lie near each other with one request and the gaps between them into `waste`.
    fn read_frame(&self, frame: &mut ReadFrame, waste: &mut FrameBuffer) -> Result<(), ReadError> {
        let ReadFrame { plan, buffer, .. } = frame;
        let mut rest = buffer.bytes_mut();
        for runs in near_runs(&plan.runs) {
            let bytes = runs.iter().map(|run| usize::try_from(run.bytes()).unwrap_or(usize::MAX)).sum();
            let (mut now, later) = rest.split_at_mut(bytes);
            rest = later;
            if self.read_near(runs, now, waste.bytes_mut()) {
                continue;
            }
            // A single run, the end of the disk, or a bad place: one by one it is found out which.
            for run in runs {
                let (part, others) =
                    now.split_at_mut(usize::try_from(run.bytes()).unwrap_or(usize::MAX).min(now.len()));
                self.read_run(*run, part)?;
                now = others;
            }
        }
        frame.note_zeroes();
        Ok(())
    }

    /// Reads several runs with one request. `false` if the device does not answer it whole.
    fn read_near(&self, runs: &[BlockRange], mut wanted: &mut [u8], mut waste: &mut [u8]) -> bool {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return false };
        if runs.len() < 2 {
            return false;
        }
        let mut parts: Vec<IoSliceMut<'_>> = Vec::with_capacity(runs.len() * 2);
        let mut end = first.start.0;
        for run in runs {
            let gap = usize::try_from(run.start.0 - end).unwrap_or(usize::MAX) * BLOCK_BYTES;
            if gap > 0 {
                let (now, later) = waste.split_at_mut(gap);
                parts.push(IoSliceMut::new(now));
                waste = later;
            }
            let (now, later) = wanted.split_at_mut(usize::try_from(run.bytes()).unwrap_or(usize::MAX));
            parts.push(IoSliceMut::new(now));
            wanted = later;
            end = run.end().0;
        }
        let bytes = last.end().byte_offset() - first.start.byte_offset();
        let read = rustix::io::preadv(&self.file, &mut parts, first.start.byte_offset());
        read.is_ok_and(|read| read as u64 == bytes)
    }

    /// Reads frames that lie one behind the other with one request, if the device answers it whole.
    fn read_adjacent(&self, frames: &mut [ReadFrame], waste: &mut FrameBuffer) -> Result<(), ReadError> {
        let mut one_by_one =
            |frames: &mut [ReadFrame]| frames.iter_mut().try_for_each(|frame| self.read_frame(frame, waste));
        let Some(start) = frames.first().and_then(ReadFrame::only_run).map(|run| run.start.byte_offset())
        else {
            return one_by_one(frames);
        };
        let mut buffers: Vec<IoSliceMut<'_>> = Vec::with_capacity(frames.len());
        let mut wanted = 0;
        for frame in frames.iter_mut() {
            let bytes = frame.plan.blocks() * BLOCK_BYTES;
            wanted += bytes;
            buffers.push(IoSliceMut::new(frame.buffer.bytes_mut().get_mut(..bytes).unwrap_or_default()));
        }
        if matches!(rustix::io::preadv(&self.file, &mut buffers, start), Ok(bytes) if bytes == wanted) {
            frames.iter_mut().for_each(ReadFrame::note_zeroes);
            return Ok(());
        }
        // The end of the disk, or a bad place: one by one it is found out which.
        one_by_one(frames)
    }
}

impl ReadFrame {
    /// A frame to be read.
    #[must_use]
    pub const fn new(plan: FramePlan, buffer: FrameBuffer) -> Self {
        Self { plan, buffer, zero_blocks: 0 }
    }

    /// Whether nothing but zeroes was read.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.zero_blocks.count_ones() as usize == self.plan.blocks()
    }

    /// Reads all runs with `read` and notes which blocks are zero.
    ///
    /// # Errors
    /// What `read` returned.
    pub fn fill<E>(&mut self, mut read: impl FnMut(BlockRange, &mut [u8]) -> Result<(), E>) -> Result<(), E> {
        let mut rest = self.buffer.bytes_mut();
        for run in &self.plan.runs {
            let bytes = usize::try_from(run.bytes()).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(bytes);
            read(*run, now)?;
            rest = later;
        }
        self.note_zeroes();
        Ok(())
    }

    fn note_zeroes(&mut self) {
        let blocks = self.buffer.bytes(self.plan.blocks()).chunks_exact(BLOCK_BYTES);
        self.zero_blocks = blocks
            .enumerate()
            .filter(|(_, block)| *block == ZERO_BLOCK)
            .fold(0, |mask, (i, _)| mask | 1 << i);
    }

    /// Its run, if it is a single one.
    fn only_run(&self) -> Option<BlockRange> {
        match self.plan.runs.as_slice() {
            [run] => Some(*run),
            _ => None,
        }
    }

    /// Whether `next` begins where this one ends.
    fn is_followed_by(&self, next: &Self) -> bool {
        self.only_run().zip(next.only_run()).is_some_and(|(run, next)| run.end() == next.start)
    }
}

struct Job {
    disk: Arc<DiskFile>,
    /// Place of the first frame in its batch.
    index: usize,
    /// One behind the other on the disk, if there are several.
    frames: Vec<ReadFrame>,
    done: Sender<(usize, Result<Vec<ReadFrame>, ReadError>)>,
}

/// Threads that read, shared by all disks of the machine.
#[derive(Debug)]
pub struct ReaderPool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl ReaderPool {
    /// Starts `threads` reading threads.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn new(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = bounded::<Job>(JOBS_MAX);
        // Touched now: while file systems are frozen no page may be faulted in.
        let waste = BufferPool::new(threads.max(1), threads.max(1));
        let start = |number| {
            let queue = queue.clone();
            let thread = thread::Builder::new().name(format!("read-{number}")).stack_size(STACK_BYTES);
            let waste = waste.take().ok_or(io::ErrorKind::OutOfMemory)?;
            thread.spawn(move || work(&queue, waste))
        };
        let threads = (0..threads.max(1)).map(start).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { jobs: Some(jobs), threads })
    }

    /// What reads one disk with this pool's threads.
    #[must_use]
    pub fn reader(&self, disk: Arc<DiskFile>) -> Box<dyn ReadBlocks> {
        Box::new(PooledReader { disk, jobs: self.jobs.clone() })
    }
}

impl Drop for ReaderPool {
    /// Readers that still exist keep the threads until they are dropped too.
    fn drop(&mut self) {
        self.jobs = None;
        self.threads.clear();
    }
}

struct PooledReader {
    disk: Arc<DiskFile>,
    jobs: Option<Sender<Job>>,
}

impl ReadBlocks for PooledReader {
    fn read(&mut self, mut frames: Vec<ReadFrame>) -> Result<Vec<ReadFrame>, ReadError> {
        // One request: another thread would only have to be woken for it. That is what is left of an idle disk while it is held.
        if let [frame] = frames.as_mut_slice()
            && let Some(run) = frame.only_run()
        {
            frame.fill(|_, buffer| self.disk.read_run(run, buffer))?;
            return Ok(frames);
        }
        let (done, results) = bounded(frames.len().max(1));
        let mut slots: Vec<Option<ReadFrame>> = Vec::with_capacity(frames.len());
        slots.resize_with(frames.len(), || None);
        let mut index = 0;
        for frames in jobs(frames) {
            let count = frames.len();
            let job = Job { disk: Arc::clone(&self.disk), index, frames, done: done.clone() };
            if self.jobs.as_ref().is_none_or(|jobs| jobs.send(job).is_err()) {
                return Err(self.stopped());
            }
            index += count;
        }
        drop(done);
        let mut failure = None;
        // All answers are waited for, also after a failure: no thread may write into a buffer that was given back.
        for (index, result) in results {
            match result {
                Ok(frames) => {
                    let places = slots.iter_mut().skip(index);
                    places.zip(frames).for_each(|(slot, frame)| *slot = Some(frame));
                }
                Err(error) => failure = Some(failure.unwrap_or(error)),
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        let count = slots.len();
        let frames: Vec<ReadFrame> = slots.into_iter().flatten().collect();
        if frames.len() == count { Ok(frames) } else { Err(self.stopped()) }
    }
}

impl PooledReader {
    fn stopped(&self) -> ReadError {
        let source = io::Error::other("the reading threads have stopped");
        ReadError { device: self.disk.path.clone(), range: BlockRange::default(), source }
    }
}

/// Parts of a frame's runs: each of them one request, its gaps no longer than [`GAP_BLOCKS_MAX`] and together no more than a
/// frame's blocks.
fn near_runs(runs: &[BlockRange]) -> impl Iterator<Item = &[BlockRange]> {
    let mut wasted = 0;
    runs.chunk_by(move |run, next| {
        let gap = next.start.0 - run.end().0;
        let near = gap <= GAP_BLOCKS_MAX && wasted + gap <= FRAME_BLOCKS as u64;
        wasted = if near { wasted + gap } else { 0 };
        near
    })
}

/// Puts frames that lie one behind the other together.
fn jobs(frames: Vec<ReadFrame>) -> Vec<Vec<ReadFrame>> {
    let mut jobs: Vec<Vec<ReadFrame>> = Vec::with_capacity(frames.len());
    for frame in frames {
        let open = jobs.last_mut().filter(|job| job.len() < JOB_FRAMES_MAX);
        match open.filter(|job| job.last().is_some_and(|last| last.is_followed_by(&frame))) {
            Some(job) => job.push(frame),
            None => {
                let mut job = Vec::with_capacity(JOB_FRAMES_MAX);
                job.push(frame);
                jobs.push(job);
            }
        }
    }
    jobs
}

fn work(queue: &Receiver<Job>, mut waste: FrameBuffer) {
    for mut job in queue {
        let result = job.disk.read_adjacent(&mut job.frames, &mut waste).map(|()| job.frames);
        // Nobody waits any more only if the reading side has given up; then the answer does not matter.
        let _ = job.done.send((job.index, result));
    }
}

#[cfg(test)]
mod tests;
