//! Scan capture of a plain image file: changes are found by comparing the whole file with what was seen last.
//!
//! Owns a table of digests in memory (16 bytes per 64 KiB). Needs no rights but reading. Does not outlive the process:
//! after a restart the file is compared with its replica. A pass is left out only if nothing can have changed: the file's
//! times have been the same for [`SETTLED`] before the last pass began (writes through a memory map may show in the
//! times late, but not that late).
//! Invariant: a change that is in the file when a pass reads it is found by that pass.
//! Limit: 16 MiB of table per 64 GiB; a pass reads all data of the file.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{
    clock::Clock,
    entropy::Entropy,
    ids::Interval,
    units::{BlockCount, BlockRange},
};

use super::{BlockSet, CaptureError, ChangeCursor, ChangeSource, Taken, WriteCounters};
use crate::batch::{BufferPool, DiskFile, FRAME_BLOCKS, FrameBuffer};

/// How long the file's times must have stood still before a pass counts for good.
pub const SETTLED: Duration = Duration::from_secs(60);

/// Digest of a chunk; zeroes stand for a chunk of zeroes.
type Short = [u8; 16];

/// The file's own word on whether it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    modified: (i64, i64),
    changed: (i64, i64),
    size: u64,
    inode: u64,
}

/// A plain image file and what was seen of it.
#[derive(Debug)]
pub struct ImageFile {
    path: PathBuf,
    disk: Arc<DiskFile>,
    clock: Arc<dyn Clock>,
    incarnation: u64,
    takes: u64,
    table: Vec<Short>,
    buffer: FrameBuffer,
    /// Marked by others ("send this again").
    marked: BlockSet,
    times: Times,
    /// When `times` was seen to change last.
    changed_at: Duration,
    /// Times that were seen to change.
    changes: u64,
    /// When the last pass began.
    pass_at: Option<Duration>,
}

impl ImageFile {
    /// Opens a file and learns its present content: changes count from here on.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(path: &Path, clock: Arc<dyn Clock>, entropy: &dyn Entropy) -> Result<Self, CaptureError> {
        let failed = |source| failed(path, "opening", source);
        let disk = Arc::new(DiskFile::open(path).map_err(failed)?);
        let times = Times::of(path).map_err(failed)?;
        let chunks = usize::try_from(disk.size().0.div_ceil(FRAME_BLOCKS as u64)).unwrap_or(usize::MAX);
        let buffer = BufferPool::new(1, 1).take();
        let buffer = buffer.ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
        let mut file = Self {
            path: path.to_owned(),
            marked: BlockSet::new(disk.size()),
            changed_at: clock.monotonic(),
            incarnation: entropy.next_u64(),
            takes: 0,
            table: vec![[0; 16]; chunks],
            changes: 0,
            pass_at: None,
            disk,
            clock,
            buffer,
            times,
        };
        file.pass(&mut |_| {})?;
        Ok(file)
    }

    /// The open file.
    #[must_use]
    pub fn disk(&self) -> Arc<DiskFile> {
        Arc::clone(&self.disk)
    }

    /// Compares everything with the table, and brings the table up to date.
    fn pass(&mut self, found: &mut dyn FnMut(BlockRange)) -> Result<(), CaptureError> {
        self.pass_at = Some(self.clock.monotonic());
        let size = self.disk.size().0;
        let data = self.disk.data_runs(BlockRange::new(0, size));
        let mut data = data.into_iter().peekable();
        for index in 0..self.table.len() {
            let start = (index * FRAME_BLOCKS) as u64;
            let chunk = BlockRange::new(start, (FRAME_BLOCKS as u64).min(size - start));
            while data.next_if(|run| run.end() <= chunk.start).is_some() {}
            let hole = data.peek().is_none_or(|run| run.start >= chunk.end());
            let now = if hole { [0; 16] } else { self.digest(chunk)? };
            if let Some(seen) = self.table.get_mut(index).filter(|seen| **seen != now) {
                *seen = now;
                found(chunk);
            }
        }
        Ok(())
    }

    fn digest(&mut self, chunk: BlockRange) -> Result<Short, CaptureError> {
        let bytes = usize::try_from(chunk.bytes()).unwrap_or(usize::MAX);
        let buffer = self.buffer.bytes_mut().get_mut(..bytes).unwrap_or_default();
        self.disk.read_run(chunk, buffer).map_err(|error| failed(&self.path, "reading", error.source))?;
        if buffer.iter().all(|byte| *byte == 0) {
            return Ok([0; 16]);
        }
        let digest = blake3::hash(buffer);
        Ok(digest.as_bytes().first_chunk().copied().unwrap_or_default())
    }

    /// Whether a pass can find nothing.
    fn is_settled(&self) -> bool {
        self.pass_at.is_some_and(|pass_at| pass_at >= self.changed_at + SETTLED)
    }

    fn look(&mut self) -> Result<(), CaptureError> {
        let times = Times::of(&self.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CaptureError::Missing { device: self.path.display().to_string() },
            _ => failed(&self.path, "examining", error),
        })?;
        if (times.size, times.inode) != (self.times.size, self.times.inode) {
            return Err(CaptureError::Untrusted {
                device: self.path.display().to_string(),
                reason: "the file was replaced or resized".into(),
            });
        }
        if times != self.times {
            self.times = times;
            self.changes += 1;
            self.changed_at = self.clock.monotonic();
        }
        Ok(())
    }
}

impl ChangeSource for ImageFile {
    fn cursor(&self) -> ChangeCursor {
        ChangeCursor { incarnation: self.incarnation, number: self.takes, trust: Ok(()) }
    }

    fn take(&mut self, _: Interval, found: &mut dyn FnMut(BlockRange)) -> Result<Taken, CaptureError> {
        self.takes += 1;
        self.look()?;
        let mut changed = std::mem::replace(&mut self.marked, BlockSet::new(BlockCount(0)));
        if !self.is_settled() {
            self.pass(&mut |range| changed.insert(range))?;
        }
        changed.runs().for_each(&mut *found);
        let blocks = changed.count();
        changed.clear();
        self.marked = changed;
        Ok(Taken { blocks, in_flight: BlockCount(0) })
    }

    fn mark(&mut self, range: BlockRange) {
        self.marked.insert(range);
    }

    /// Nothing to forget: what was taken is remembered only as long as this process lives.
    fn acknowledged(&mut self, _: Interval) {}

    fn marked(&self) -> BlockCount {
        self.marked.count()
    }

    fn counters(&mut self) -> Result<WriteCounters, CaptureError> {
        self.look()?;
        Ok(WriteCounters { sectors: self.changes, in_flight: 0 })
    }

    fn guard(&mut self) -> Result<(), CaptureError> {
        self.look()
    }
}

impl Times {
    fn of(path: &Path) -> io::Result<Self> {
        let seen = std::fs::metadata(path)?;
        Ok(Self {
            modified: (seen.mtime(), seen.mtime_nsec()),
            changed: (seen.ctime(), seen.ctime_nsec()),
            size: seen.size(),
            inode: seen.ino(),
        })
    }
}

fn failed(path: &Path, operation: &'static str, source: io::Error) -> CaptureError {
    let advice = "check that the file exists and that the agent may read it".into();
    CaptureError::Failed { device: path.display().to_string(), operation, advice, source }
}

#[cfg(test)]
mod tests;
