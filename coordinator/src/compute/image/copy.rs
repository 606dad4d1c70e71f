//! Moves the data clusters of a view into a file: threads take runs in ascending order, read (which verifies and
//! decompresses) and write, so that reading and writing overlap on all cores.
//!
//! Owns the threads and their buffers. Knows a format only by its `Layout`. Invariant: when the checkpoint is called with
//! a cluster, all data clusters below it have been written (not synced).
//! Limits: one buffer of `RUN_CLUSTERS` clusters per thread.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::map::{CLUSTER, CLUSTER_BYTES, ClusterMap};
use crate::{
    compute::port::Task,
    points::view::{BlockView, ViewError},
};

/// Where a format puts things.
pub(super) trait Layout: Sync {
    /// Offset of a data cluster in the file. Neighbouring data clusters are neighbours in the file too.
    fn place(&self, map: &ClusterMap, cluster: u64) -> u64;
    /// Length of the finished file.
    fn file_bytes(&self, map: &ClusterMap) -> u64;
    /// Writes what is not data.
    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()>;
}

/// What is copied to where.
pub(super) struct Copy<'a> {
    pub view: &'a dyn BlockView,
    pub map: &'a ClusterMap,
    pub layout: &'a dyn Layout,
    pub file: &'a File,
    pub task: &'a Task,
    pub threads: usize,
}

/// Why copying ended early.
#[derive(Debug)]
pub(super) enum CopyError {
    Cancelled,
    View(ViewError),
    Write(io::Error),
}

/// Runs handed out, in ascending order.
struct Cursor {
    next_cluster: u64,
    next_ticket: u64,
}

impl Copy<'_> {
    /// Copies all data clusters from `from` on. `checkpoint` is called on this thread about every `every_bytes` bytes,
    /// with the cluster below which all is written.
    ///
    /// # Errors
    /// The first failure of any thread; the others stop soon after.
    pub(super) fn run(
        &self,
        from: u64,
        every_bytes: u64,
        mut checkpoint: impl FnMut(u64) -> io::Result<()>,
    ) -> Result<(), CopyError> {
        let cursor = Mutex::new(Cursor { next_cluster: from, next_ticket: 0 });
        let stop = AtomicBool::new(false);
        let (sender, receiver) = crossbeam_channel::bounded(REPORTS_MAX);
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                let (cursor, stop, sender) = (&cursor, &stop, sender.clone());
                scope.spawn(move || {
                    let ended = self.work(cursor, stop, &sender);
                    if let Err(error) = ended {
                        stop.store(true, Ordering::Relaxed);
                        // The receiver lives until all senders are gone.
                        let _received = sender.send(Err(error));
                    }
                });
            }
            drop(sender);
            let mut watermark = Watermark { done: BTreeMap::new(), next_ticket: 0, cluster: from };
            let (mut since_bytes, mut first_error) = (0, None);
            for report in receiver {
                let outcome = report.and_then(|(ticket, run): (u64, Range<u64>)| {
                    since_bytes += (run.end - run.start) * CLUSTER;
                    watermark.finished(ticket, run.end);
                    if since_bytes < every_bytes {
                        return Ok(());
                    }
                    since_bytes = 0;
                    checkpoint(watermark.cluster).map_err(CopyError::Write)
                });
                if let Err(error) = outcome {
                    stop.store(true, Ordering::Relaxed);
                    first_error.get_or_insert(error);
                }
            }
            first_error.map_or(Ok(()), Err)
        })
    }

    fn work(
        &self,
        cursor: &Mutex<Cursor>,
        stop: &AtomicBool,
        reports: &crossbeam_channel::Sender<Result<(u64, Range<u64>), CopyError>>,
    ) -> Result<(), CopyError> {
        let mut buffer = vec![0; RUN_CLUSTERS * CLUSTER_BYTES];
        while !stop.load(Ordering::Relaxed) {
            if self.task.is_cancelled() {
                return Err(CopyError::Cancelled);
            }
            let Some((ticket, run)) = self.take(cursor) else { return Ok(()) };
            let bytes = self.read(&run, &mut buffer).map_err(CopyError::View)?;
            self.write(&run, bytes).map_err(CopyError::Write)?;
            self.task.add_done_bytes((run.end - run.start) * CLUSTER);
            if reports.send(Ok((ticket, run))).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn take(&self, cursor: &Mutex<Cursor>) -> Option<(u64, Range<u64>)> {
        let mut cursor = cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let run = self.map.next_run(cursor.next_cluster, RUN_CLUSTERS as u64)?;
        let ticket = cursor.next_ticket;
        cursor.next_ticket += 1;
        cursor.next_cluster = run.end;
        Some((ticket, run))
    }

    /// Reads a run; beyond the disk's end the last cluster is zero.
    pub(super) fn read<'b>(&self, run: &Range<u64>, buffer: &'b mut [u8]) -> Result<&'b [u8], ViewError> {
        let start = run.start * CLUSTER;
        let end = (run.end * CLUSTER).min(self.view.size_bytes());
        let whole = usize::try_from((run.end - run.start) * CLUSTER).unwrap_or(0);
        let inside = usize::try_from(end - start).unwrap_or(0);
        let Some((bytes, beyond)) =
            buffer.get_mut(..whole).and_then(|buffer| buffer.split_at_mut_checked(inside))
        else {
            return Err(ViewError::BeyondEnd { offset: start, bytes: end - start });
        };
        self.view.read(start, bytes)?;
        beyond.fill(0);
        Ok(buffer.get(..whole).unwrap_or_default())
    }

    /// Writes a run, leaving out clusters that are all zero: the file began as one hole.
    fn write(&self, run: &Range<u64>, bytes: &[u8]) -> io::Result<()> {
        let place = self.layout.place(self.map, run.start);
        let mut start = 0;
        while let Some(rest) = bytes.get(start..).filter(|rest| !rest.is_empty()) {
            let clusters = rest.chunks(CLUSTER_BYTES);
            let zero = rest.chunks(CLUSTER_BYTES).next().is_some_and(is_zero);
            let same = clusters.take_while(|cluster| is_zero(cluster) == zero).map(<[u8]>::len).sum();
            if !zero {
                self.file.write_all_at(rest.get(..same).unwrap_or_default(), place + start as u64)?;
            }
            start += same;
        }
        Ok(())
    }
}

/// Below which cluster all is written, from runs that end in any order.
struct Watermark {
    done: BTreeMap<u64, u64>,
    next_ticket: u64,
    cluster: u64,
}

impl Watermark {
    fn finished(&mut self, ticket: u64, end: u64) {
        self.done.insert(ticket, end);
        while let Some(end) = self.done.remove(&self.next_ticket) {
            self.cluster = end;
            self.next_ticket += 1;
        }
    }
}

/// Whether all bytes are zero.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROES.len()).all(|chunk| ZEROES.get(..chunk.len()) == Some(chunk))
}

static ZEROES: [u8; 4096] = [0; 4096];
/// Clusters in one run: writes of up to 2 MiB.
pub(super) const RUN_CLUSTERS: usize = 32;
/// Finished runs that are not yet counted.
const REPORTS_MAX: usize = 64;
