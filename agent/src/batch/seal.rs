//! Sealing: compression and hashing on a pool of stated size, order kept.
//!
//! Owns the sealing threads and the one that hands sealed frames over. Does not number frames. Invariants: frames reach
//! the sink in the order of submission, whichever thread sealed them; a buffer goes back to its pool as soon as its
//! frame is sealed. Limits: `slots` frames between submission and sink, so at most `slots` times 64 KiB of sealed
//! bytes; the threads run at a stated nice level.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded};
use holdfast_common::{
    frame::{Extent, FrameIdentity, FrameSealer},
    units::{BLOCK_BYTES, BlockRange},
};

use super::{
    ReadFrame,
    queue::{FrameSink, HandOver, Payload, SinkClosed},
};
use crate::ship::port::OutgoingFrame;

/// How much of the processor sealing may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealSettings {
    /// Sealing threads.
    pub threads: usize,
    /// Nice level of the sealing threads (0 to 19).
    pub nice: i32,
    /// Frames between submission and sink.
    pub slots: usize,
    /// Fixed zstd level, or `None` to adapt it to the backlog.
    pub level: Option<i32>,
}

/// Where frames wait; decides the compression level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Frames that wait for a sealing thread.
    pub unsealed: usize,
    /// Frames that wait for the link.
    pub sealed: usize,
    /// Frames that may wait altogether.
    pub slots: usize,
}

impl Backlog {
    /// The zstd level for the next frame. While the link is what is waited for, processor time is free and pays by
    /// fewer bytes; while sealing is what is waited for, faster levels let more through.
    #[must_use]
    pub const fn level(self) -> i32 {
        if self.sealed * 2 >= self.slots {
            3
        } else if self.unsealed * 2 >= self.slots {
            -5
        } else if self.unsealed * 4 >= self.slots {
            -1
        } else {
            1
        }
    }
}

type Sealed = Result<OutgoingFrame, SinkClosed>;

struct Job {
    identity: FrameIdentity,
    payload: Payload,
    done: Sender<Sealed>,
}

#[derive(Debug)]
struct Shared {
    slots: usize,
    unsealed: AtomicUsize,
    sealed: AtomicUsize,
    waiting_bytes: AtomicU64,
    failure: Mutex<Option<SinkClosed>>,
    wake: Sender<()>,
}

/// The sealing threads, seen from the engine.
#[derive(Debug)]
pub struct SealPool {
    jobs: Option<Sender<Job>>,
    order: Option<Sender<Receiver<Sealed>>>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl SealPool {
    /// Starts the threads. `wake` is told (without waiting) when a quarter of the slots is free again.
    ///
    /// # Errors
    /// The system refuses a thread, or zstd the level.
    pub fn new(settings: SealSettings, sink: Box<dyn FrameSink>, wake: Sender<()>) -> io::Result<Self> {
        let slots = settings.slots.max(1);
        let shared = Arc::new(Shared {
            slots,
            unsealed: AtomicUsize::new(0),
            sealed: AtomicUsize::new(0),
            waiting_bytes: AtomicU64::new(0),
            failure: Mutex::new(None),
            wake,
        });
        // One more than the slots: the hand-over thread holds one that is no longer in the queue.
        let (jobs, queue) = bounded::<Job>(slots + 1);
        let (order, ordered) = bounded::<Receiver<Sealed>>(slots);
        let mut threads = Vec::with_capacity(settings.threads + 1);
        for number in 0..settings.threads.max(1) {
            let sealer = FrameSealer::new(Some(settings.level.unwrap_or(1)))?;
            let (queue, shared) = (queue.clone(), Arc::clone(&shared));
            let work = move || seal_all(&queue, &shared, sealer, settings);
            threads.push(thread::Builder::new().name(format!("seal-{number}")).spawn(work)?);
        }
        let hand_over = Arc::clone(&shared);
        let work = move || hand_over_all(&ordered, &hand_over, sink);
        threads.push(thread::Builder::new().name("hand-over".into()).spawn(work)?);
        Ok(Self { jobs: Some(jobs), order: Some(order), shared, threads })
    }
}

impl HandOver for SealPool {
    fn room(&self) -> Result<usize, SinkClosed> {
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        Ok(self.order.as_ref().map_or(0, |order| self.shared.slots - order.len()))
    }

    fn submit(&mut self, identity: FrameIdentity, payload: Payload) -> Result<(), SinkClosed> {
        let (done, sealed) = bounded(1);
        let bytes = payload.bytes();
        let gone = || self.shared.failure().unwrap_or_else(|| closed("its threads have stopped"));
        let (Some(jobs), Some(order)) = (&self.jobs, &self.order) else { return Err(gone()) };
        self.shared.unsealed.fetch_add(1, Ordering::Relaxed);
        self.shared.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        jobs.send(Job { identity, payload, done }).map_err(|_| gone())?;
        order.send(sealed).map_err(|_| gone())
    }

    fn waiting_bytes(&self) -> u64 {
        self.shared.waiting_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for SealPool {
    /// Ends the threads. The sink must have been closed before if it may be waiting.
    fn drop(&mut self) {
        self.jobs = None;
        self.order = None;
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}

impl Payload {
    /// Plain bytes, for the figures of what waits.
    fn bytes(&self) -> u64 {
        match self {
            Self::Blocks(frame) => (frame.plan.blocks() * BLOCK_BYTES) as u64,
            Self::Zeroes(_) => 0,
            Self::Sealed(bytes) => bytes.len() as u64,
        }
    }
}

impl Shared {
    fn failure(&self) -> Option<SinkClosed> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fail(&self, failure: SinkClosed) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        self.wake();
    }

    fn wake(&self) {
        // A full channel means that a wake-up is already waiting.
        let _ = self.wake.try_send(());
    }

    /// Tells the engine of room once there is enough for a batch: to be woken for every single frame would cost it more
    /// than the frame does.
    fn wake_if_roomy(&self) {
        let used = self.unsealed.load(Ordering::Relaxed) + self.sealed.load(Ordering::Relaxed);
        if used * 4 <= self.slots * 3 {
            self.wake();
        }
    }

    fn backlog(&self) -> Backlog {
        Backlog {
            unsealed: self.unsealed.load(Ordering::Relaxed),
            sealed: self.sealed.load(Ordering::Relaxed),
            slots: self.slots,
        }
    }
}

fn seal_all(queue: &Receiver<Job>, shared: &Shared, mut sealer: FrameSealer, settings: SealSettings) {
    let own = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(own), settings.nice) {
        tracing::warn!(%error, nice = settings.nice, "sealing thread keeps its priority");
    }
    let mut level = settings.level.unwrap_or(1);
    for job in queue {
        let wanted = settings.level.unwrap_or_else(|| shared.backlog().level());
        if wanted != level && sealer.set_level(Some(wanted)).is_ok() {
            level = wanted;
        }
        let bytes = job.payload.bytes();
        let sealed = seal(&mut sealer, job.identity, job.payload)
            .map(|bytes| OutgoingFrame { identity: job.identity, bytes });
        shared.unsealed.fetch_sub(1, Ordering::Relaxed);
        shared.sealed.fetch_add(1, Ordering::Relaxed);
        shared.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        // The other end is gone only when the pool ends.
        let _ = job.done.send(sealed);
        shared.wake_if_roomy();
    }
}

fn hand_over_all(ordered: &Receiver<Receiver<Sealed>>, shared: &Shared, mut sink: Box<dyn FrameSink>) {
    for slot in ordered {
        let sealed = slot.recv().unwrap_or_else(|_| Err(closed("a sealing thread died")));
        if let Err(failure) = sealed.and_then(|frame| sink.push(frame)) {
            shared.fail(failure);
            return;
        }
        shared.sealed.fetch_sub(1, Ordering::Relaxed);
        shared.wake_if_roomy();
    }
}

/// Seals one payload.
///
/// # Errors
/// The frame breaks a limit; that is a mistake of ours, and nothing after it may be sent.
pub fn seal(
    sealer: &mut FrameSealer,
    identity: FrameIdentity,
    payload: Payload,
) -> Result<Bytes, SinkClosed> {
    let sealed = match payload {
        Payload::Sealed(bytes) => return Ok(bytes),
        Payload::Zeroes(extents) => sealer.seal_data(identity, &extents, &[]),
        Payload::Blocks(mut frame) => {
            let (extents, blocks) = compact(&mut frame);
            sealer.seal_data(identity, &extents, frame.buffer.bytes(blocks))
        }
    };
    sealed.map_err(|error| {
        closed(&format!("frame {} of disk {} cannot be sealed: {error}", identity.sequence, identity.disk))
    })
}

/// Moves the blocks that are not zero together at the buffer's beginning, and says what the frame holds.
fn compact(frame: &mut ReadFrame) -> (Vec<Extent>, usize) {
    let mut extents: Vec<Extent> = Vec::with_capacity(frame.plan.runs.len());
    let (mut at, mut kept) = (0, 0);
    for run in &frame.plan.runs {
        for block in run.start.0..run.end().0 {
            let zero = frame.zero_blocks & (1 << at) != 0;
            if !zero {
                if at != kept {
                    frame
                        .buffer
                        .bytes_mut()
                        .copy_within(at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES, kept * BLOCK_BYTES);
                }
                kept += 1;
            }
            push_block(&mut extents, block, zero);
            at += 1;
        }
    }
    (extents, kept)
}

/// Adds a block behind the extents, lengthening the last one where it can.
fn push_block(extents: &mut Vec<Extent>, block: u64, zero: bool) {
    let next = if zero { Extent::zero } else { Extent::data }(BlockRange::new(block, 1));
    match extents.last_mut() {
        Some(last) if last.kind == next.kind && last.range.end() == next.range.start => {
            last.range.count.0 += 1;
        }
        _ => extents.push(next),
    }
}

fn closed(reason: &str) -> SinkClosed {
    SinkClosed { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
