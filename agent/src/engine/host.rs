//! What the engine needs of the machine it runs on; Linux below, a model in simulation.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    frame::ApplicationFreeze,
    ids::DiskId,
    units::{BlockCount, BlockRange},
    wire::Capture,
};

use crate::{
    batch::{DiskFile, ReadBlocks},
    capture::{CaptureError, ChangeSource, cycle::Trouble},
    hooks::HookState,
};

/// How changes of a disk are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// Marked in the kernel as they happen.
    Tracked,
    /// Found by comparing the whole disk with what was seen last.
    Compared,
}

impl Mechanism {
    /// Name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracked => "tracked",
            Self::Compared => "scan",
        }
    }
}

/// A disk that was found and is being tracked.
pub struct HostDisk {
    /// Its changes.
    pub source: Box<dyn ChangeSource>,
    /// Its blocks.
    pub reader: Box<dyn ReadBlocks>,
    /// Its size.
    pub size: BlockCount,
    /// Where it is now.
    pub path: String,
    /// How its changes are learnt.
    pub mechanism: Mechanism,
    /// The open file if it may have holes.
    pub holes: Option<Arc<DiskFile>>,
}

impl std::fmt::Debug for HostDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostDisk").field("path", &self.path).field("size", &self.size).finish_non_exhaustive()
    }
}

/// A hold that stood from beginning to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How long writes were held; zero if nothing was frozen.
    pub held: Duration,
    /// Remarks for the point.
    pub notes: Vec<String>,
}

/// Asks whether the hold still stands.
pub type HoldCheck<'a> = dyn FnMut() -> Result<(), String> + 'a;

/// The machine.
pub trait Host: Send {
    /// Finds the disk and starts tracking it, or goes on tracking it.
    ///
    /// # Errors
    /// It is not there, not of the right size, cannot be tracked, or was not tracked without a break since the
    /// assigned generation's scan began.
    fn open(&mut self, capture: &Capture) -> Result<HostDisk, Trouble>;

    /// The disk is not captured any more. Tracking itself goes on unless the disk is protected no more.
    fn close(&mut self, disk: DiskId);

    /// Only these disks are protected: tracking of others is ended.
    fn keep_only(&mut self, disks: &[DiskId]);

    /// What is marked of a disk may lack changes: remembered, so that nobody builds on it after a restart either.
    fn distrust(&mut self, _disk: DiskId) {}

    /// Finds what to freeze. Returns whether there is anything.
    ///
    /// # Errors
    /// Why nothing can be frozen, and what to do.
    fn plan_hold(&mut self, disks: &[DiskId]) -> Result<bool, String>;

    /// Swap areas on a disk, as planned.
    fn swap_areas(&self, disk: DiskId) -> Vec<BlockRange>;

    /// Writes out what is dirty in the planned file systems. Returns how long it took.
    ///
    /// # Errors
    /// A file system reports lost writes.
    fn sync(&mut self) -> Result<Duration, String>;

    /// Freezes what was planned, runs `section`, thaws, and forgets the plan. In the section no file system is touched
    /// and no memory is used that was not used before.
    ///
    /// # Errors
    /// The hold did not stand from beginning to end; whatever the section did is void.
    fn hold(&mut self, bound: Duration, section: &mut dyn FnMut(&mut HoldCheck<'_>)) -> Result<Held, String>;

    /// Begins to freeze the hooks of applications. Does not wait for them.
    fn freeze_hooks(&mut self) -> HookState {
        HookState::Failed("this machine has no freeze hooks".into())
    }

    /// How far they are.
    fn ask_hooks(&mut self) -> HookState {
        self.freeze_hooks()
    }

    /// Thaws the hooks, if any were frozen, and waits for it. Nothing may be held any more.
    ///
    /// # Errors
    /// Not all were frozen until now and thawed: no point may be called app-consistent.
    fn thaw_hooks(&mut self) -> Option<Result<ApplicationFreeze, String>> {
        None
    }
}

/// What an error of capture means for the cycle.
#[must_use]
pub(super) fn trouble(error: &CaptureError) -> Trouble {
    match error {
        CaptureError::Untrusted { .. } => Trouble::Distrust(error.to_string()),
        CaptureError::Missing { .. } => Trouble::Gone,
        CaptureError::Failed { source, .. } => Trouble::Failed(format!("{error}: {source}")),
    }
}
