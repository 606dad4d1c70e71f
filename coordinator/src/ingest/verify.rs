//! Verification of frames on a pool of threads.
//!
//! Owns the threads. Does not know sessions or order: each batch's answer comes on its own channel, and the caller
//! awaits them in order.
//! Limit: [`WAITING_PER_THREAD`] batches wait per thread; beyond that, submitting waits.

use std::{io, sync::Arc, thread};

use bytes::BytesMut;
use holdfast_common::frame::{Frame, FrameError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Batches that may wait for each thread.
const WAITING_PER_THREAD: usize = 8;

/// The frames of a batch, or what is wrong with the first that is not one.
pub type Verified = Result<Vec<Frame>, FrameError>;

struct Job {
    frames: Vec<BytesMut>,
    answer: oneshot::Sender<Verified>,
    _place: OwnedSemaphorePermit,
}

/// The pool. Clones share it; the threads end with the last one.
#[derive(Clone, Debug)]
pub struct VerifyPool {
    jobs: crossbeam_channel::Sender<Job>,
    places: Arc<Semaphore>,
}

impl VerifyPool {
    /// Starts as many threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let waiting = threads * WAITING_PER_THREAD;
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(waiting);
        for number in 0..threads {
            let queue = queue.clone();
            let work = move || queue.iter().for_each(work_on);
            thread::Builder::new().name(format!("verify-{number}")).spawn(work)?;
        }
        Ok(Self { jobs, places: Arc::new(Semaphore::new(waiting)) })
    }

    /// Hands a batch over; waits while the pool is behind. `None` if the pool is gone.
    pub async fn submit(&self, frames: Vec<BytesMut>) -> Option<oneshot::Receiver<Verified>> {
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        let (answer, receiver) = oneshot::channel();
        // There is a place in the queue for each permit.
        self.jobs.try_send(Job { frames, answer, _place: place }).ok()?;
        Some(receiver)
    }
}

fn work_on(job: Job) {
    let verified = job.frames.into_iter().map(Frame::verify_mut).collect();
    // Nobody waits any more if the connection has ended.
    let _unwanted = job.answer.send(verified);
}
