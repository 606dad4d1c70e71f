//! Reading ahead for clients that read a disk from front to back.
//!
//! Owns the detector, which is pure, and the view that acts on it with one thread of its own. Does not know who reads.
//! Invariants: what is read ahead is only ever brought into a cache, never handed out; when the view is dropped, its thread
//! has ended.
//! Who has as many reads under way as there are processors keeps these busy: nothing is read ahead then, since that would only
//! take time from them, and meet them at the frames that they are about to read.
//! Limits: [`STREAMS`] readers are told apart per view; at most [`WINDOW_BYTES`] are fetched ahead of each; orders that
//! find [`ORDERS_MAX`] others waiting are dropped.

use std::{
    num::NonZero,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use holdfast_common::units::BlockRange;

use super::view::{BlockView, ViewError, ViewExtent};

/// Readers that are told apart.
pub const STREAMS: usize = 8;
/// How far ahead of a reader is fetched.
pub const WINDOW_BYTES: u64 = 2 << 20;
/// Fetched at a time.
const STEP_BYTES: u64 = 256 << 10;
/// Reads in a row before a reader counts as sequential.
const READS_MIN: u32 = 3;
/// Requests that may be under way out of order: a read within so many lengths of where it is expected still belongs there.
const SLACK_READS: u64 = 8;
/// Orders that wait for the thread.
const ORDERS_MAX: usize = 16;

/// Finds sequential readers among reads, and says what to fetch for them.
#[derive(Clone, Debug, Default)]
pub struct Detector {
    streams: [Stream; STREAMS],
    tick: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where the next read is expected.
    next: u64,
    /// All below is fetched, or ordered.
    fetched_to: u64,
    reads: u32,
    used: u64,
}

impl Detector {
    /// A read of a disk of `size_bytes`; gives what should be fetched, if anything. Never more than
    /// [`WINDOW_BYTES`] behind the read's end, and nothing twice for one reader.
    pub fn read(&mut self, offset: u64, bytes: u64, size_bytes: u64) -> Option<Range<u64>> {
        self.tick += 1;
        let end = offset.saturating_add(bytes).min(size_bytes);
        let slack = bytes.saturating_mul(SLACK_READS);
        let belongs = |stream: &&mut Stream| stream.reads > 0 && stream.next.abs_diff(offset) <= slack;
        let Some(stream) = self.streams.iter_mut().find(belongs) else {
            let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used)?;
            *oldest = Stream { next: end, fetched_to: end, reads: 1, used: self.tick };
            return None;
        };
        stream.used = self.tick;
        stream.next = stream.next.max(end);
        stream.reads = stream.reads.saturating_add(1);
        if stream.reads < READS_MIN {
            return None;
        }
        let from = stream.fetched_to.max(stream.next);
        let to = stream.next.saturating_add(WINDOW_BYTES).min(size_bytes);
        if from + STEP_BYTES > to && (to < size_bytes || from >= to) {
            return None;
        }
        stream.fetched_to = to;
        Some(from..to)
    }
}

/// A view that reads ahead.
#[derive(Debug)]
pub struct ReadAhead {
    view: Arc<dyn BlockView>,
    detector: Mutex<Detector>,
    /// Reads under way, and how many of them leave nothing to do.
    reads: AtomicUsize,
    reads_busy: usize,
    /// `None` once dropping has begun.
    orders: Option<crossbeam_channel::Sender<Range<u64>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ReadAhead {
    /// Reads ahead of the readers of `view`, which must have a cache for it to be of use.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn new(view: Arc<dyn BlockView>) -> std::io::Result<Self> {
        let (orders, waiting) = crossbeam_channel::bounded::<Range<u64>>(ORDERS_MAX);
        let stop = Arc::new(AtomicBool::new(false));
        let (theirs, stopped) = (Arc::clone(&view), Arc::clone(&stop));
        let thread = thread::Builder::new().name("read-ahead".into()).spawn(move || {
            for order in waiting {
                for at in (order.start..order.end).step_by(usize::try_from(STEP_BYTES).unwrap_or(usize::MAX))
                {
                    if stopped.load(Ordering::Relaxed) {
                        return;
                    }
                    theirs.prefetch(at..order.end.min(at + STEP_BYTES));
                }
            }
        })?;
        Ok(Self {
            view,
            detector: Mutex::default(),
            reads: AtomicUsize::new(0),
            reads_busy: thread::available_parallelism().map_or(1, NonZero::get).max(2),
            orders: Some(orders),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ended = thread.join();
        }
    }
}

impl BlockView for ReadAhead {
    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let order = self.detector.lock().unwrap_or_else(PoisonError::into_inner).read(
            offset,
            buffer.len() as u64,
            self.size_bytes(),
        );
        let others = self.reads.fetch_add(1, Ordering::Relaxed);
        if let (Some(order), Some(orders)) = (order, &self.orders)
            && others + 1 < self.reads_busy
        {
            // Whoever is that far behind does not need more to do.
            let _dropped = orders.try_send(order);
        }
        let read = self.view.read(offset, buffer);
        self.reads.fetch_sub(1, Ordering::Relaxed);
        read
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        self.view.extents(range)
    }
}

#[cfg(test)]
mod tests;
