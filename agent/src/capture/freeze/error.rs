//! Why a hold was refused or is void.
//!
//! Owns the kinds that the engine acts on. In every case file systems are thawed, or were never frozen, when the error
//! reaches the caller; the cut is void and nothing is lost.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Why a hold was refused or is void.
#[derive(Debug, Error)]
pub enum FreezeError {
    /// The machine's description cannot be read.
    #[error("{} cannot be read; the agent needs /proc and /sys", path.display())]
    Unreadable {
        /// File or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A protected disk is not there.
    #[error("disk {device} has disappeared")]
    DiskMissing {
        /// Device node.
        device: String,
    },
    /// A mounted file system cannot be reached through any of its mount points.
    #[error(
        "file system on {device} cannot be reached: another mount covers {}; unmount what covers it or mount \
         it a second time elsewhere",
        mount_point.display()
    )]
    Hidden {
        /// Block device or source of the mount.
        device: String,
        /// First mount point tried.
        mount_point: PathBuf,
    },
    /// More file systems than the guardian can take.
    #[error("{found} file systems live on the protected disks; at most {max} can be held at once")]
    TooMany {
        /// Number found.
        found: usize,
        /// The limit.
        max: usize,
    },
    /// The guardian cannot be started, so nothing may be frozen.
    #[error("guardian process cannot be started ({step})")]
    GuardianStart {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The guardian died or does not answer; everything was thawed.
    #[error("guardian process {what}; everything is thawed and the cut is void")]
    GuardianLost {
        /// What was noticed.
        what: &'static str,
    },
    /// Memory cannot be locked, so a hold could deadlock.
    #[error("memory cannot be locked; give the agent CAP_IPC_LOCK or LimitMEMLOCK=infinity")]
    MemoryNotLocked(#[source] io::Error),
    /// Somebody else holds the file system.
    #[error("{} is already frozen by another program; thaw it (fsfreeze -u) if that program is gone", mount_point.display())]
    FrozenByOther {
        /// Mount point.
        mount_point: PathBuf,
    },
    /// A system call on a file system failed.
    #[error("{operation} of {} failed", mount_point.display())]
    FileSystem {
        /// Mount point.
        mount_point: PathBuf,
        /// What was tried ("freeze", "thaw", "sync").
        operation: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The hold lasted longer than its bound; everything was thawed.
    #[error(
        "writes were held for {held:?}, over the bound of {bound:?}; everything is thawed and the cut is void"
    )]
    Overrun {
        /// How long it lasted.
        held: Duration,
        /// The bound.
        bound: Duration,
    },
    /// A file system was thawed by somebody else while it was held.
    #[error("{} was thawed by another program while it was held; the cut is void", mount_point.display())]
    ThawedByOther {
        /// Mount point.
        mount_point: PathBuf,
    },
}
