//! Runs that are used, but not synced yet; the newest of them not even written.
//!
//! Owns them, and their files under temporary names, until they are synced and renamed. Does not know what they hold.
//! Why: a run is made again from the journal if it is lost, so nobody who waits for a point waits for its run's file.
//! Invariant: a file has a run's name only when all of it was synced, so what a crash leaves is whole or has no run's name.
//! A crash may leave any of the runs of one batch; what is made of runs that it did not leave is made again.
//! Limit: the owner syncs once there are [`UNSYNCED_MAX`]; what is in memory has its share of a [`Room`](super::room::Room).

use std::{
    collections::VecDeque,
    fs, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::durable;

use super::{lookup::IndexError, run::Run, run_format::RunName, run_writer::WrittenRun};

/// Most runs that are not synced.
pub const UNSYNCED_MAX: usize = 64;

/// Runs that are not synced yet, oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    runs: Mutex<VecDeque<Waiting>>,
    /// Runs in memory that have a file now: who holds them takes that instead.
    filed: Mutex<Vec<RunName>>,
    /// One thread writes and syncs at a time.
    syncing: Mutex<()>,
}

/// A run that waits for being synced.
#[derive(Clone, Debug)]
struct Waiting {
    run: Arc<Run>,
    /// `None` as long as the run is in memory alone.
    written: Option<Arc<WrittenRun>>,
}

impl Unsynced {
    /// A run that is written.
    pub(super) fn add(&self, run: Arc<Run>, written: WrittenRun) {
        self.runs().push_back(Waiting { run, written: Some(Arc::new(written)) });
    }

    /// A run in memory.
    pub(super) fn add_table(&self, run: Arc<Run>) {
        self.runs().push_back(Waiting { run, written: None });
    }

    pub(super) fn get(&self, name: RunName) -> Option<Arc<Run>> {
        self.runs().iter().find(|one| one.run.name() == name).map(|one| Arc::clone(&one.run))
    }

    /// A run is needed no more; also deletes its file.
    pub(super) fn forget(&self, name: RunName) {
        self.runs().retain(|one| {
            let keep = one.run.name() != name;
            if let Some(written) = one.written.as_ref().filter(|_| !keep) {
                // What cannot be deleted now is found and deleted at the next start.
                let _ = fs::remove_file(&written.temporary);
            }
            keep
        });
    }

    pub(super) fn clear(&self) {
        self.runs().clear();
        self.filed().clear();
    }

    pub(super) fn len(&self) -> usize {
        self.runs().len()
    }

    /// Runs that were in memory and have a file since the last call.
    pub(super) fn take_filed(&self) -> Vec<RunName> {
        std::mem::take(&mut *self.filed())
    }

    /// Has `write` write what is in memory alone, syncs all that are there now and gives them their names: one sync of the
    /// folder for all of them. Blocks; others may use, add and forget runs meanwhile.
    pub(super) fn sync(
        &self,
        write: &dyn Fn(&Run) -> Result<WrittenRun, IndexError>,
        failed: &dyn Fn(io::Error) -> IndexError,
    ) -> Result<(), IndexError> {
        let _one_at_a_time = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting: Vec<Waiting> = self.runs().iter().cloned().collect();
        let mut batch = Vec::with_capacity(waiting.len());
        for one in waiting {
            let written = match one.written {
                Some(written) => Some(written),
                None => self.write(&one.run, write)?,
            };
            batch.extend(written.map(|written| (one.run, written)));
        }
        self.sync_written(&batch).map_err(failed)
    }

    /// Writes a run; `None` if it was forgotten meanwhile.
    fn write(
        &self,
        run: &Arc<Run>,
        write: &dyn Fn(&Run) -> Result<WrittenRun, IndexError>,
    ) -> Result<Option<Arc<WrittenRun>>, IndexError> {
        if !self.has(run) {
            return Ok(None);
        }
        let written = Arc::new(write(run)?);
        let mut runs = self.runs();
        let Some(one) = runs.iter_mut().find(|one| Arc::ptr_eq(&one.run, run)) else {
            let _ = fs::remove_file(&written.temporary);
            return Ok(None);
        };
        one.written = Some(Arc::clone(&written));
        Ok(Some(written))
    }

    fn sync_written(&self, batch: &[(Arc<Run>, Arc<WrittenRun>)]) -> io::Result<()> {
        let Some((_, first)) = batch.first() else { return Ok(()) };
        // All are on their way before the first is waited for, so that the file system commits them together.
        batch.iter().for_each(|(_, written)| written.begin_writing());
        for (run, written) in batch {
            match written.sync() {
                Err(error) if self.has(run) => return Err(error),
                // It was forgotten meanwhile.
                _ => {}
            }
        }
        let runs = self.runs();
        let still = |(run, _): &&(Arc<Run>, _)| runs.iter().any(|one| Arc::ptr_eq(&one.run, run));
        // Who forgets one now deletes it by its name.
        let named = batch.iter().filter(still).try_for_each(|(_, written)| written.name());
        drop(runs);
        named?;
        durable::sync_parent(&first.path)?;
        let mut runs = self.runs();
        let synced = |one: &Waiting| batch.iter().any(|(run, _)| Arc::ptr_eq(run, &one.run));
        let filed = runs.iter().filter(|one| synced(one) && one.run.table().is_some());
        self.filed().extend(filed.map(|one| one.run.name()));
        runs.retain(|one| !synced(one));
        Ok(())
    }

    fn has(&self, run: &Arc<Run>) -> bool {
        self.runs().iter().any(|one| Arc::ptr_eq(&one.run, run))
    }

    fn runs(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn filed(&self) -> MutexGuard<'_, Vec<RunName>> {
        self.filed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
