//! What the machine is, and which device is which disk.
//!
//! Owns the reading of /sys, /proc and /dev into [`holdfast_common::wire::Inventory`], the graph of block devices, the
//! mount table, and the finding of a disk by its identity. Does not know sessions or capture.
//! Invariant: nothing is cached; every call reads the machine anew. What cannot be read is left empty, never guessed.
//! Limit: [`FILE_BYTES_MAX`] of any one file, `DISKS_PER_MACHINE_MAX` disks.

mod read;
pub mod block;
pub mod mounts;
pub mod stack;

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Most bytes read of any file of the system (a mount table of a host with many containers is the largest).
pub const FILE_BYTES_MAX: u64 = 8 << 20;

/// Where the system's trees are; other than `/` only in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// sysfs, normally `/sys`.
    pub sys: PathBuf,
    /// procfs, normally `/proc`.
    pub proc: PathBuf,
    /// Device nodes, normally `/dev`.
    pub dev: PathBuf,
    /// Configuration, normally `/etc` (`os-release`).
    pub etc: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            sys: PathBuf::from("/sys"),
            proc: PathBuf::from("/proc"),
            dev: PathBuf::from("/dev"),
            etc: PathBuf::from("/etc"),
        }
    }
}

impl Roots {
    /// Trees below a folder, for tests: `FOLDER/sys`, `FOLDER/proc` and so on.
    #[must_use]
    pub fn below(folder: &Path) -> Self {
        Self {
            sys: folder.join("sys"),
            proc: folder.join("proc"),
            dev: folder.join("dev"),
            etc: folder.join("etc"),
        }
    }
}

/// Number of a block device, as the kernel prints it (`254:0`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Major number; 0 stands for file systems without a device of their own (btrfs, tmpfs).
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// Reads `MAJOR:MINOR`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A block device that is (or will be) protected, as it is named in this boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskDevice {
    /// Device node ("/dev/vda").
    pub path: PathBuf,
    /// Its number.
    pub number: DeviceNumber,
    /// Size in bytes.
    pub size_bytes: u64,
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
