//! The plan of a hold: the file systems to freeze, with an open folder of each.
//!
//! Owns the open folders. Does not freeze. Invariant: each folder is open on the mount that the mount table named, not
//! on one that covers it. While a plan exists its file systems cannot be unmounted.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{clock::Clock, units::BlockRange};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat, statx, syncfs},
    io::Errno,
};

use super::{FILE_SYSTEMS_MAX, FreezeError, stacking::Stacking};
use crate::inventory::{DeviceNumber, stack::Superblock};

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

/// File systems to freeze, opened. While it exists they cannot be unmounted: make one per cut and drop it after.
#[derive(Debug)]
pub struct FreezePlan {
    file_systems: Vec<HeldFileSystem>,
    folders: Arc<[OwnedFd]>,
    swap: BTreeMap<DeviceNumber, Vec<BlockRange>>,
    clock: Arc<dyn Clock>,
}

impl FreezePlan {
    pub(super) fn open(stacking: Stacking, clock: Arc<dyn Clock>) -> Result<Self, FreezeError> {
        let found = stacking.file_systems.len();
        if found > FILE_SYSTEMS_MAX {
            return Err(FreezeError::TooMany { found, max: FILE_SYSTEMS_MAX });
        }
        let mut file_systems = Vec::with_capacity(found);
        let mut folders = Vec::with_capacity(found);
        for superblock in stacking.file_systems {
            let (mount_point, folder) = open_any(&superblock)?;
            file_systems.push(HeldFileSystem {
                device: superblock.source,
                kind: superblock.kind,
                mount_point,
            });
            folders.push(folder);
        }
        Ok(Self { file_systems, folders: folders.into(), swap: stacking.swap, clock })
    }

    /// What will be frozen, in this order.
    #[must_use]
    pub fn file_systems(&self) -> &[HeldFileSystem] {
        &self.file_systems
    }

    /// Whether there is nothing to freeze: the disks are in raw use, or not in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.file_systems.is_empty()
    }

    /// Blocks of a disk that nothing but swap areas use: writes there while held are harmless. A swap area that shares a
    /// volume group or a file system with something else is not among them.
    #[must_use]
    pub fn swap_ranges(&self, disk: DeviceNumber) -> &[BlockRange] {
        self.swap.get(&disk).map_or(&[], Vec::as_slice)
    }

    /// Writes out what is dirty (syncfs on each, in the order of freezing). Repeat until it is short.
    ///
    /// # Errors
    /// A file system reports lost writes.
    pub fn sync(&self) -> Result<Duration, FreezeError> {
        let start = self.clock.monotonic();
        for (folder, held) in self.folders.iter().zip(&self.file_systems) {
            syncfs(folder).map_err(|error| FreezeError::FileSystem {
                mount_point: held.mount_point.clone(),
                operation: "sync",
                source: error.into(),
            })?;
        }
        Ok(self.clock.monotonic().saturating_sub(start))
    }

    pub(super) fn folders(&self) -> &Arc<[OwnedFd]> {
        &self.folders
    }

    /// Mount point of a folder, for messages.
    pub(super) fn mount_point(&self, index: usize) -> PathBuf {
        self.file_systems.get(index).map(|held| held.mount_point.clone()).unwrap_or_default()
    }
}

/// Opens the first mount of a file system that can be reached.
pub(super) fn open_any(superblock: &Superblock) -> Result<(PathBuf, OwnedFd), FreezeError> {
    let mount_point = superblock.mounts.first().map(|mount| mount.1.clone()).unwrap_or_default();
    let mut refused = FreezeError::Hidden { device: superblock.source.clone(), mount_point };
    for (id, mount_point) in &superblock.mounts {
        match open(mount_point, *id) {
            Ok(Some(folder)) => return Ok((mount_point.clone(), folder)),
            // Covered by another mount, or (a bind mount of) a file.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => {
                let mount_point = mount_point.clone();
                refused = FreezeError::FileSystem { mount_point, operation: "open", source: error.into() };
            }
        }
    }
    Err(refused)
}

fn open(mount_point: &Path, id: u64) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, mount_point, flags, Mode::empty())?;
    let found = statx(folder.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    // Kernels before 5.8 do not tell; there the mount table's word stands.
    let told = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    Ok((!told || found.stx_mnt_id == id).then_some(folder))
}
