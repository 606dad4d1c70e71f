//! Runs that are written, and used, but not synced yet.
//!
//! Owns them under their temporary names, until they are synced and renamed. Does not know what they hold.
//! Why: a run is made again from the journal if it is lost, so nobody who waits for a point waits for its run's sync.
//! Invariant: a file has a run's name only when all of it was synced, so what a crash leaves is whole or has no run's name.
//! Limit: the owner syncs once there are [`UNSYNCED_MAX`].

use std::{
    collections::VecDeque,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{run::Run, run_format::RunName, run_writer::WrittenRun};

/// Most runs that are not synced.
pub const UNSYNCED_MAX: usize = 32;

/// Runs that are not synced yet, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    runs: Mutex<VecDeque<(Arc<Run>, Arc<WrittenRun>)>>,
    /// One thread syncs at a time.
    syncing: Mutex<()>,
}

impl Unsynced {
    pub(super) fn add(&self, run: Arc<Run>, written: WrittenRun) {
        self.runs().push_back((run, Arc::new(written)));
    }

    pub(super) fn get(&self, name: RunName) -> Option<Arc<Run>> {
        self.runs().iter().find(|(run, _)| run.name() == name).map(|(run, _)| Arc::clone(run))
    }

    /// A run is needed no more; also deletes its file.
    pub(super) fn forget(&self, name: RunName) {
        self.runs().retain(|(run, written)| {
            let keep = run.name() != name;
            if !keep {
                // What cannot be deleted now is found and deleted at the next start.
                let _ = fs::remove_file(&written.temporary);
            }
            keep
        });
    }

    pub(super) fn clear(&self) {
        self.runs().clear();
    }

    pub(super) fn len(&self) -> usize {
        self.runs().len()
    }

    /// Syncs all and gives them their names. Blocks; others may use and forget runs meanwhile.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Some((run, written)) = self.runs().front().cloned() else { return Ok(()) };
            let synced = written.settle();
            let mut runs = self.runs();
            match runs.front().filter(|(front, _)| Arc::ptr_eq(front, &run)) {
                Some(_) => {
                    synced?;
                    runs.pop_front();
                }
                // It was forgotten meanwhile; if it got its name nevertheless, it has it in vain.
                None => drop(fs::remove_file(&written.path)),
            }
        }
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<(Arc<Run>, Arc<WrittenRun>)>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
