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
mod table;
mod disks;
mod machine;
mod network;
mod locate;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
};

use holdfast_common::wire::Inventory;

pub use locate::{LocateError, Located, locate};

use self::stack::Stack;

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

/// Reads bytes as every table that the machine's own files and disks hand us; what comes out is dropped. For fuzzing.
#[doc(hidden)]
pub fn decode_as_any_table(bytes: &[u8]) {
    let _ = mounts::parse_mounts(bytes);
    let _ = mounts::parse_swaps(bytes);
    for sector_bytes in [512, 4096] {
        let _ = table::Table::parse(bytes, sector_bytes);
    }
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

/// Describes the machine. `image_files` are plain files that may be protected like disks.
///
/// # Errors
/// The block devices or the mount table cannot be read: the file, and why.
pub fn collect(roots: &Roots, image_files: &[PathBuf]) -> Result<Inventory, (PathBuf, io::Error)> {
    let stack = Stack::read(roots)?;
    let mut disks = disks::disks(roots, &stack);
    disks.extend(image_files.iter().filter_map(|path| disks::image_file(path)));
    let network_cards = network::cards(roots);
    let drivers: BTreeSet<String> = disks
        .iter()
        .map(|disk| &disk.driver)
        .chain(network_cards.iter().map(|card| &card.driver))
        .filter(|driver| !driver.is_empty())
        .cloned()
        .collect();
    let (hardware, hardware_uuid) = machine::hardware(roots);
    Ok(Inventory {
        host_name: machine::host_name(roots),
        operating_system: machine::operating_system(roots),
        kernel: machine::kernel(roots),
        boot_id: machine::boot_id(roots),
        firmware: machine::firmware(roots),
        platform: machine::platform(roots, machine::hypervisor_leaf().as_deref()),
        hardware,
        hardware_uuid,
        processors: machine::processors(roots),
        memory_bytes: machine::memory_bytes(roots),
        network_cards,
        disks,
        drivers: drivers.into_iter().collect(),
    })
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
