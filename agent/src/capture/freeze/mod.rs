//! Holding: no write reaches the protected disks while the last marks are taken.
//!
//! Owns which file systems are frozen ([`FreezePlan`]), the guardian process, and the hold itself. Does not know marks,
//! frames or the network. Invariant: whatever was frozen is thawed within the bound, also if this process is killed.
//! Limit: [`FILE_SYSTEMS_MAX`] file systems. Description: docs/cuts.md.

mod error;

use std::{path::PathBuf, time::Duration};

use holdfast_common::units::BlockRange;

pub use error::FreezeError;

use crate::inventory::{DeviceNumber, DiskDevice};

/// Most file systems in one hold (the kernel passes at most 253 descriptors in one message).
pub const FILE_SYSTEMS_MAX: usize = 250;

/// How the freezer is set up.
#[derive(Clone, Debug, Default)]
pub struct FreezeSettings {}

/// Freezes and thaws; owns the guardian process. One per agent; lives on the capture thread.
#[derive(Debug)]
pub struct Freezer {}

/// File systems to freeze, opened. While it exists they cannot be unmounted: make one per cut and drop it after.
#[derive(Debug)]
pub struct FreezePlan {}

/// A file system of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFileSystem {
    /// Block device or source of the mount.
    pub device: String,
    /// Type ("ext4").
    pub kind: String,
    /// Mount point through which it is held.
    pub mount_point: PathBuf,
}

/// Everything of a plan is frozen while this exists. Dropping it thaws.
#[derive(Debug)]
pub struct Hold<'freezer> {
    _freezer: &'freezer mut Freezer,
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

impl Freezer {
    /// Starts the guardian, locks memory, and cleans up what a killed predecessor may have left.
    ///
    /// # Errors
    /// Nothing may be frozen: the reason says what to do.
    pub fn start(_settings: FreezeSettings) -> Result<Self, FreezeError> {
        Ok(Self {})
    }

    /// Finds the file systems on these disks, anew.
    ///
    /// # Errors
    /// A disk is gone, or a file system on it cannot be reached.
    pub fn plan(&self, _disks: &[DiskDevice]) -> Result<FreezePlan, FreezeError> {
        Ok(FreezePlan {})
    }

    /// Freezes everything in the plan. From here to the release the caller follows the rules of a frozen section.
    ///
    /// # Errors
    /// Everything is thawed again; the cut is void.
    pub fn hold(&mut self, _plan: &FreezePlan, _bound: Duration) -> Result<Hold<'_>, FreezeError> {
        Ok(Hold { _freezer: self })
    }
}

impl FreezePlan {
    /// What will be frozen, in this order.
    #[must_use]
    pub fn file_systems(&self) -> &[HeldFileSystem] {
        &[]
    }

    /// Whether there is nothing to freeze: the disks are in raw use, or not in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        true
    }

    /// Blocks of a disk that are swap areas: writes there while held are harmless.
    #[must_use]
    pub fn swap_ranges(&self, _disk: DeviceNumber) -> &[BlockRange] {
        &[]
    }

    /// Writes out what is dirty (syncfs on each, in the order of freezing). Repeat until it is short.
    ///
    /// # Errors
    /// A file system reports lost writes.
    pub fn sync(&self) -> Result<Duration, FreezeError> {
        Ok(Duration::ZERO)
    }
}

impl Hold<'_> {
    /// Whether the hold still stands: within its bound, guardian alive. Cheap; call it between reads.
    ///
    /// # Errors
    /// It is void; drop it.
    pub fn check(&self) -> Result<(), FreezeError> {
        Ok(())
    }

    /// Thaws.
    ///
    /// # Errors
    /// Everything is thawed, but the hold did not stand all the time: the cut is void.
    pub fn release(self) -> Result<HoldReport, FreezeError> {
        Ok(HoldReport { held: Duration::ZERO, freeze: Duration::ZERO, left_alone: Vec::new() })
    }
}
