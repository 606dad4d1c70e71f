//! The thread that follows the logs.
//!
//! Owns the order of work: frames that are durable first, merges when nothing is left. Does not know what is indexed.
//! Invariant: a disk that fails is tried again later and does not stop the others.
//! Limit: one thread; whoever is in a hurry (a failover) calls [`DiskIndex::catch_up`] as well.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use holdfast_common::{causes::in_one_line, ids::DiskId};

use super::disk_index::DiskIndex;

/// How often the logs are looked at when nobody calls.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a disk whose index failed is left alone, in looks.
const LOOKS_AFTER_FAILURE: u32 = 250;

/// Follows the logs until dropped.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<FollowerState>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct FollowerState {
    disks: BTreeMap<DiskId, (Arc<DiskIndex>, u32)>,
    stop: bool,
}

impl Follower {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("index".to_owned()).spawn(move || theirs.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Follows one more disk.
    pub fn add(&self, index: Arc<DiskIndex>) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.disks.insert(index.log().disk(), (index, 0));
        self.shared.wake.notify_one();
    }

    /// Follows a disk no more.
    pub fn remove(&self, disk: DiskId) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).disks.remove(&disk);
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.stop {
                return;
            }
            let mut due = Vec::new();
            for (index, pause) in state.disks.values_mut() {
                *pause = pause.saturating_sub(1);
                if *pause == 0 {
                    due.push(Arc::clone(index));
                }
            }
            drop(state);
            let mut busy = false;
            for index in due {
                busy |= self.work(&index);
            }
            if !busy {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if !state.stop {
                    drop(self.wake.wait_timeout(state, LOOK_EVERY));
                }
            }
        }
    }

    /// Does a piece of work on one disk. `true` if there is more.
    fn work(&self, index: &DiskIndex) -> bool {
        match step(index) {
            Ok(more) => more,
            Err(error) => {
                let text = in_one_line(&error);
                tracing::error!(disk = %index.log().disk(), error = %text, "the index does not follow");
                if error.is_damage() {
                    let rebuilt = index.rebuild();
                    tracing::warn!(disk = %index.log().disk(), ok = rebuilt.is_ok(), "the index is rebuilt");
                }
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some((_, pause)) = state.disks.get_mut(&index.log().disk()) {
                    *pause = LOOKS_AFTER_FAILURE;
                }
                false
            }
        }
    }
}

fn step(index: &DiskIndex) -> Result<bool, super::lookup::IndexError> {
    if index.heal()? || index.advance()? {
        return Ok(true);
    }
    index.compact()
}
