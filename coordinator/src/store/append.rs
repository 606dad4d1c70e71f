//! The queue in front of a log, and the thread that writes.
//!
//! Owns the byte budget, the grouping, and what happens when writing fails. Does not know where frames come from.
//! Invariants: frames are accepted only if they follow each other; a sink that stopped takes nothing more and says why;
//! its `durable` never names a frame that was not synced.
//! Limits: `disk_queue_bytes` and `store_queue_bytes` of frames wait at most; a group is at most `group_bytes_max`.
//! The thread ends when the sink is dropped or a write fails, and gives the segment back to the log.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

use holdfast_common::{
    causes::in_one_line,
    frame::{Frame, FrameKind},
    ids::{DiskId, Generation, Sequence},
};

use super::{error::StoreError, log::DiskLog, pressure::pause, settings::StoreSettings};
use crate::journal::writer::{GROUP_FRAMES_MAX, SegmentWriter, WriteError};

/// What a frame costs at least in the budgets, so that they bound the number of frames too.
const FRAME_COST_MIN: usize = 4096;

/// Requests to settle that may wait.
const SETTLES_MAX: usize = 64;

/// Stack of a writer's thread.
const STACK_BYTES: usize = 512 << 10;

/// A log's only writer.
#[derive(Debug)]
pub struct LogSink {
    disk: DiskId,
    orders: Sender<Order>,
    accepted: Mutex<(Sequence, Generation)>,
    budget: Arc<Semaphore>,
    store_budget: Arc<Semaphore>,
    budget_bytes: usize,
    durable: watch::Receiver<Sequence>,
    stopped: Arc<Mutex<Option<String>>>,
}

/// What the thread is asked to do.
enum Order {
    Append { frame: Frame, _permits: [OwnedSemaphorePermit; 2] },
    Settle(oneshot::Sender<Sequence>),
}

impl LogSink {
    /// Starts the thread.
    pub(super) fn start(
        log: &Arc<DiskLog>,
        writer: SegmentWriter,
        store_budget: Arc<Semaphore>,
    ) -> Result<Arc<Self>, StoreError> {
        let settings = log.settings();
        let tail = log.tail();
        let (orders, incoming) = bounded(settings.disk_queue_bytes / FRAME_COST_MIN + SETTLES_MAX);
        let (sender, durable) = watch::channel(tail.sequence);
        let stopped = Arc::new(Mutex::new(None));
        let budget_bytes = settings.disk_queue_bytes.min(settings.store_queue_bytes);
        let budget = Arc::new(Semaphore::new(budget_bytes));
        let thread = WriterThread {
            log: Arc::clone(log),
            settings: settings.clone(),
            incoming,
            durable: sender,
            stopped: Arc::clone(&stopped),
            budget: Arc::clone(&budget),
        };
        log.writing().running = true;
        let path = log.layout().journal();
        // Kept outside so that the writer is not lost if the thread cannot be started.
        let slot = Arc::new(Mutex::new(Some(writer)));
        let theirs = Arc::clone(&slot);
        let spawned =
            thread::Builder::new().name("journal".to_owned()).stack_size(STACK_BYTES).spawn(move || {
                let writer = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(writer) = writer {
                    thread.run(writer);
                }
            });
        if let Err(error) = spawned {
            let writer = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(writer) = writer {
                log.thread_ended(writer);
            }
            return Err(StoreError::io("starting a thread for", &path, error));
        }
        Ok(Arc::new(Self {
            disk: log.disk(),
            orders,
            accepted: Mutex::new((tail.sequence, tail.generation)),
            budget,
            store_budget,
            budget_bytes,
            durable,
            stopped,
        }))
    }

    /// Puts frames in the queue, in order; waits while it is full. Returning says nothing about durability.
    /// One call at a time; not cancel safe (some of the frames may have been accepted).
    ///
    /// # Errors
    /// A frame does not follow, or the log stopped. Then nothing behind the last durable frame is certain.
    pub async fn append(&self, frames: Vec<Frame>) -> Result<(), StoreError> {
        for frame in frames {
            self.check(&frame)?;
            let cost = frame.bytes().len().max(FRAME_COST_MIN).min(self.budget_bytes);
            let cost = u32::try_from(cost).unwrap_or(u32::MAX);
            let own = Arc::clone(&self.budget).acquire_many_owned(cost).await;
            let shared = Arc::clone(&self.store_budget).acquire_many_owned(cost).await;
            let (Ok(own), Ok(shared)) = (own, shared) else { return Err(self.reason()) };
            let (sequence, generation) = (frame.header().sequence, frame.header().generation);
            match self.orders.try_send(Order::Append { frame, _permits: [own, shared] }) {
                Ok(()) => {}
                Err(TrySendError::Disconnected(_) | TrySendError::Full(_)) => return Err(self.reason()),
            }
            *self.accepted.lock().unwrap_or_else(PoisonError::into_inner) = (sequence, generation);
        }
        Ok(())
    }

    fn check(&self, frame: &Frame) -> Result<(), StoreError> {
        let header = frame.header();
        let (last, generation) = *self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        if header.disk != self.disk || header.generation < generation {
            return Err(StoreError::Foreign(header.sequence));
        }
        if header.sequence != last.next() {
            return Err(StoreError::Sequence { last, found: header.sequence });
        }
        Ok(())
    }

    /// Last durable frame, kept up to date. The sender is dropped when the log stopped.
    #[must_use]
    pub fn durable(&self) -> watch::Receiver<Sequence> {
        self.durable.clone()
    }

    /// Waits until everything appended is durable and says up to where. Cancel safe.
    ///
    /// # Errors
    /// The log stopped.
    pub async fn settle(&self) -> Result<Sequence, StoreError> {
        let (done, wait) = oneshot::channel();
        self.orders.try_send(Order::Settle(done)).map_err(|_| self.reason())?;
        wait.await.map_err(|_| self.reason())
    }

    /// Whether the log stopped and must be opened anew.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn reason(&self) -> StoreError {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        StoreError::Stopped(stopped.clone().unwrap_or_else(|| "the queue is closed".to_owned()))
    }
}

/// What the thread has.
struct WriterThread {
    log: Arc<DiskLog>,
    settings: StoreSettings,
    incoming: Receiver<Order>,
    durable: watch::Sender<Sequence>,
    stopped: Arc<Mutex<Option<String>>>,
    budget: Arc<Semaphore>,
}

/// Orders that are carried out together.
#[derive(Default)]
struct Group {
    frames: Vec<Frame>,
    permits: Vec<[OwnedSemaphorePermit; 2]>,
    settles: Vec<oneshot::Sender<Sequence>>,
    bytes: usize,
    urgent: bool,
}

impl WriterThread {
    fn run(self, mut writer: SegmentWriter) {
        let mut group = Group::default();
        while self.collect(&mut group) {
            if let Err(error) = self.commit(&mut writer, &mut group) {
                let text = in_one_line(&error);
                tracing::error!(disk = %self.log.disk(), error = %text, "the log stopped");
                self.log.set_trouble(Some(text.clone()));
                *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
                break;
            }
        }
        // Nobody may wait for room that will never come.
        self.budget.close();
        self.log.thread_ended(writer);
    }

    /// Waits for the next group. `false` if the sink is gone and nothing is left to do.
    fn collect(&self, group: &mut Group) -> bool {
        let Ok(first) = self.incoming.recv() else { return false };
        group.add(first);
        while group.bytes < self.settings.group_bytes_max
            && group.frames.len() < GROUP_FRAMES_MAX
            && group.settles.len() < SETTLES_MAX
        {
            let wait = if group.urgent { Duration::ZERO } else { self.settings.group_wait };
            match self.incoming.recv_timeout(wait) {
                Ok(order) => group.add(order),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        true
    }

    /// Makes the group durable and says so.
    fn commit(&self, writer: &mut SegmentWriter, group: &mut Group) -> Result<(), StoreError> {
        let mut slow = Duration::ZERO;
        if let Some(last) = group.frames.last().map(|frame| *frame.header()) {
            let free_bytes = self.log.check_space()?;
            if writer.durable_bytes() >= self.settings.segment_bytes {
                self.log.roll(writer)?;
            }
            match writer.append_group(&group.frames) {
                Err(WriteError::Full) => {
                    self.log.roll(writer)?;
                    writer.append_group(&group.frames)
                }
                other => other,
            }
            .map_err(|source| self.failed(writer, source))?;
            self.log.advance(&last);
            self.durable.send_replace(last.sequence);
            slow = pause(group.bytes, free_bytes, self.settings.reserve_bytes);
        }
        for settle in group.settles.drain(..) {
            // Whoever asked may have gone.
            let _ = settle.send(writer.durable_sequence());
        }
        // The group is acknowledged; whoever wants to send more waits for the room that it still takes in the queue.
        thread::sleep(slow);
        group.frames.clear();
        group.permits.clear();
        group.bytes = 0;
        group.urgent = false;
        Ok(())
    }

    fn failed(&self, writer: &SegmentWriter, source: WriteError) -> StoreError {
        let path = self.log.layout().segment(writer.header().first_sequence);
        StoreError::Write { path, source }
    }
}

impl Group {
    fn add(&mut self, order: Order) {
        match order {
            Order::Append { frame, _permits } => {
                self.bytes += frame.bytes().len();
                // A point waits for its cut; an asked-for settle too.
                self.urgent |= frame.header().kind == FrameKind::Cut;
                self.frames.push(frame);
                self.permits.push(_permits);
            }
            Order::Settle(done) => {
                self.urgent = true;
                self.settles.push(done);
            }
        }
    }
}
