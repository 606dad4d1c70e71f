//! Runs that are written, and used, but not synced yet.
//!
//! Owns them under their temporary names, until they are synced and renamed. Does not know what they hold.
//! Why: a run is made again from the journal if it is lost, so nobody who waits for a point waits for its run's sync.
//! Invariant: a file has a run's name only when all of it was synced, so what a crash leaves is whole or has no run's name.
//! A crash may leave any of the runs of one batch; what is made of runs that it did not leave is made again.
//! Limit: the owner syncs once there are [`UNSYNCED_MAX`].

use std::{
    collections::VecDeque,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::durable;

use super::{run::Run, run_format::RunName, run_writer::WrittenRun};

/// Most runs that are not synced.
pub const UNSYNCED_MAX: usize = 64;

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

    /// Syncs all that are there now and gives them their names: one sync of the folder for all of them. Blocks; others may use,
    /// add and forget runs meanwhile.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<_> = self.runs().iter().cloned().collect();
        let Some((_, first)) = batch.first() else { return Ok(()) };
        // All are on their way before the first is waited for, so that the file system commits them together.
        batch.iter().for_each(|(_, written)| written.begin_writing());
        for (run, written) in &batch {
            match written.sync() {
                Err(error) if self.runs().iter().any(|(other, _)| Arc::ptr_eq(other, run)) => {
                    return Err(error);
                }
                // It was forgotten meanwhile.
                _ => {}
            }
        }
        let runs = self.runs();
        let still = |(run, _): &&(Arc<Run>, _)| runs.iter().any(|(other, _)| Arc::ptr_eq(other, run));
        // Who forgets one now deletes it by its name.
        let named = batch.iter().filter(still).try_for_each(|(_, written)| written.name());
        drop(runs);
        named?;
        durable::sync_parent(&first.path)?;
        self.runs().retain(|(run, _)| !batch.iter().any(|(other, _)| Arc::ptr_eq(other, run)));
        Ok(())
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<(Arc<Run>, Arc<WrittenRun>)>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
