//! The hold itself: freeze in order, stand, thaw in reverse.
//!
//! Owns the sequence and the verdict whether the hold stood. Does not know what is done meanwhile.
//! Invariant: a [`HoldReport`] exists only if every file system that can be frozen was frozen all the time
//! from the return of [`Freezer::hold`] until [`Hold::release`] was called, and the bound was kept.
//!
//! # Rules of a frozen section
//!
//! Between [`Freezer::hold`] and the return of [`Hold::release`] (or the drop), the thread that holds must not
//! - open, write, stat or unlink anything by path; descriptors it needs are open before;
//! - touch memory for the first time: buffers are allocated and written to before, vectors have their capacity;
//! - wait for another thread, unless that thread keeps these rules too (no channel send that may block, no mutex that
//!   somebody may hold while writing a file);
//! - log other than through [`super::HeldBackLog`].
//!
//! The agent as a whole must have no writable shared mapping of a file: a thread that is stopped in one keeps the
//! address space locked. Maps of bpffs and anonymous memory are fine. Reading protected disks by descriptors opened before
//! is what the section is for.

use std::{
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::{
    FreezeError, FreezePlan, Freezer,
    link::HeldFolders,
    memory,
    message::Message,
    system::{self, Frozen, Thawed},
};

/// Attempts at a thaw that the system refuses; after that the guardian goes on.
const THAW_ATTEMPTS: usize = 3;

/// Everything of a plan is frozen while this exists. Dropping it thaws.
#[derive(Debug)]
pub struct Hold<'held> {
    freezer: &'held Freezer,
    plan: &'held FreezePlan,
    held: Arc<HeldFolders>,
    number: u64,
    bound: Duration,
    start: Duration,
    freeze: Duration,
    /// Which folders are frozen by us; allocated before.
    frozen: Vec<bool>,
    /// The first folder that this process keeps frozen anyway, and the count of when that began.
    lent: Option<(usize, u64)>,
    lent_folders: Vec<bool>,
    over: bool,
}

/// What a completed hold cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldReport {
    /// From before the first file system was frozen until the last was thawed.
    pub held: Duration,
    /// Part of it that freezing took.
    pub freeze: Duration,
    /// File systems that cannot be frozen (FAT) and were left alone; only the disk's counters tell whether they were
    /// written to.
    pub left_alone: Vec<PathBuf>,
}

impl<'held> Hold<'held> {
    /// Freezes everything in the plan.
    pub(super) fn begin(
        freezer: &'held Freezer,
        plan: &'held FreezePlan,
        number: u64,
        bound: Duration,
    ) -> Result<Self, FreezeError> {
        let folders = Arc::clone(plan.folders());
        let held = Arc::new(HeldFolders { folders, begun: AtomicUsize::new(0) });
        let frozen = vec![false; plan.file_systems().len()];
        memory::prefault_stack();
        freezer.guardian.arm(number, &held, bound)?;
        if let Some(log) = &freezer.settings.log {
            log.hold();
        }
        freezer.rcu.raise();
        let start = freezer.settings.clock.monotonic();
        let freeze = Duration::ZERO;
        let lent_folders = vec![false; plan.file_systems().len()];
        let mut hold = Self {
            freezer,
            plan,
            held,
            number,
            bound,
            start,
            freeze,
            frozen,
            lent: None,
            lent_folders,
            over: false,
        };
        // An error thaws by dropping the hold.
        for index in 0..plan.file_systems().len() {
            hold.freeze(index)?;
            hold.check()?;
        }
        freezer.guardian.tell(Message::Settled { hold: number })?;
        hold.freeze = freezer.settings.clock.monotonic().saturating_sub(start);
        Ok(hold)
    }

    fn freeze(&mut self, index: usize) -> Result<(), FreezeError> {
        let (Some(folder), Some(frozen)) = (self.held.folders.get(index), self.frozen.get_mut(index)) else {
            return Ok(());
        };
        self.freezer.guardian.tell(Message::Begun { hold: self.number, index })?;
        self.held.begun.store(index + 1, Ordering::SeqCst);
        // Before the attempt: what is stopped after it was not what refused it.
        let stopped = self.freezer.settings.stopped.load(Ordering::SeqCst);
        match system::freeze(folder.as_fd()) {
            Frozen::Yes => *frozen = true,
            Frozen::Unsupported => {}
            // By ourselves, for a failover: it is held, and stays so when this hold is over.
            Frozen::ByOther if stopped % 2 == 1 && self.lent.is_none_or(|(_, since)| since == stopped) => {
                self.lent.get_or_insert((index, stopped));
                if let Some(lent) = self.lent_folders.get_mut(index) {
                    *lent = true;
                }
            }
            Frozen::ByOther => {
                return Err(FreezeError::FrozenByOther { mount_point: self.plan.mount_point(index) });
            }
            Frozen::Failed(source) => {
                let mount_point = self.plan.mount_point(index);
                return Err(FreezeError::FileSystem { mount_point, operation: "freeze", source });
            }
        }
        Ok(())
    }

    /// Whether the hold still stands: within its bound, guardian alive. Cheap; call it between reads.
    ///
    /// # Errors
    /// It is void; drop it.
    pub fn check(&self) -> Result<(), FreezeError> {
        if self.freezer.guardian.is_lost() {
            return Err(FreezeError::GuardianLost { what: "died while writes were held" });
        }
        self.lent_stands()?;
        self.within_bound(self.age())
    }

    /// What is frozen anyway must have been so all the time.
    fn lent_stands(&self) -> Result<(), FreezeError> {
        match self.lent {
            Some((index, since)) if self.freezer.settings.stopped.load(Ordering::SeqCst) != since => {
                Err(FreezeError::ThawedByOther { mount_point: self.plan.mount_point(index) })
            }
            _ => Ok(()),
        }
    }

    /// Time since just before the first file system was frozen.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.freezer.settings.clock.monotonic().saturating_sub(self.start)
    }

    /// Thaws.
    ///
    /// # Errors
    /// Everything is thawed, but the hold did not stand all the time: the cut is void.
    pub fn release(mut self) -> Result<HoldReport, FreezeError> {
        self.over = true;
        let lost = self.freezer.guardian.is_lost();
        let lent = self.lent_stands();
        let (held, interrupted) = self.thaw();
        let overran = self.end()?;
        if lost {
            return Err(FreezeError::GuardianLost { what: "died while writes were held" });
        }
        self.within_bound(held)?;
        if overran {
            return Err(FreezeError::Overrun { held, bound: self.bound });
        }
        if let Some(error) = interrupted {
            return Err(error);
        }
        lent?;
        let held_anyhow = self.frozen.iter().zip(&self.lent_folders).map(|(frozen, lent)| *frozen || *lent);
        let left_alone = held_anyhow.enumerate().filter(|(_, held)| !held);
        let left_alone = left_alone.map(|(index, _)| self.plan.mount_point(index)).collect();
        Ok(HoldReport { held, freeze: self.freeze, left_alone })
    }

    fn within_bound(&self, held: Duration) -> Result<(), FreezeError> {
        if held > self.bound { Err(FreezeError::Overrun { held, bound: self.bound }) } else { Ok(()) }
    }

    /// Thaws in reverse. Says how long it all took, and what shows that something was not frozen to the end.
    fn thaw(&self) -> (Duration, Option<FreezeError>) {
        let mut interrupted: Option<(usize, Option<std::io::Error>)> = None;
        let held = self.held.folders.iter().zip(&self.frozen).enumerate().rev();
        for (index, (folder, _)) in held.filter(|(_, (_, frozen))| **frozen) {
            for attempt in 1..=THAW_ATTEMPTS {
                match system::thaw(folder.as_fd()) {
                    Thawed::Yes => break,
                    Thawed::WasNotFrozen => {
                        interrupted.get_or_insert((index, None));
                        break;
                    }
                    Thawed::Failed(error) if attempt == THAW_ATTEMPTS => {
                        interrupted = Some((index, Some(error)))
                    }
                    Thawed::Failed(_) => {}
                }
            }
        }
        let held = self.age();
        let error = interrupted.map(|(index, source)| {
            let mount_point = self.plan.mount_point(index);
            match source {
                None => FreezeError::ThawedByOther { mount_point },
                Some(source) => FreezeError::FileSystem { mount_point, operation: "thaw", source },
            }
        });
        (held, error)
    }

    /// What follows the thaw: the guardian (which then gives up its claim on the switch), the switch, the log.
    fn end(&self) -> Result<bool, FreezeError> {
        let overran = self.freezer.guardian.disarm(self.number);
        self.freezer.rcu.lower();
        if let Some(log) = &self.freezer.settings.log {
            log.release();
        }
        overran
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.over {
            let (_, _void_anyway) = self.thaw();
            let _void_anyway = self.end();
        }
    }
}
