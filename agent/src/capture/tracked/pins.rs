//! The folder in bpffs that keeps a disk's maps and programs alive without us.
//!
//! Owns names below the root of pins, the mount of bpffs, and the lock that keeps two processes from using one disk.
//! Does not know what is pinned. Invariant: while a [`PinFolder`] lives, no other process has one for the same disk.
//! Limit: the kernel allows no dot in names.

use std::{
    fs::{self, File},
    io,
    os::fd::{BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use holdfast_common::ids::DiskId;
use rustix::fs::{FlockOperation, flock, statfs};

use super::kernel;

/// Where bpffs is mounted on every system that mounts it.
const BPFFS: &str = "/sys/fs/bpf";
const BPFFS_MAGIC: u32 = 0xcafe_4a11;

/// A disk's folder, locked.
#[derive(Debug)]
pub(super) struct PinFolder {
    path: PathBuf,
    /// Holds the lock; opened before anything is frozen.
    _lock: File,
}

impl PinFolder {
    /// Opens the folder of a disk, made if it is not there.
    pub(super) fn open(root: &Path, disk: DiskId) -> io::Result<Self> {
        mount_if_needed(root)?;
        let path = root.join(disk.to_string());
        fs::create_dir_all(&path)?;
        Self::lock(path)
    }

    /// Opens the folder of a disk if there is one.
    pub(super) fn open_existing(root: &Path, disk: DiskId) -> io::Result<Option<Self>> {
        let path = root.join(disk.to_string());
        if path.is_dir() { Self::lock(path).map(Some) } else { Ok(None) }
    }

    fn lock(path: PathBuf) -> io::Result<Self> {
        let lock = File::open(&path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => io::Error::new(
                io::ErrorKind::ResourceBusy,
                format!("another process holds {}; stop that agent first", path.display()),
            ),
            other => other.into(),
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// Gives an object a name.
    pub(super) fn pin(&self, name: &str, object: BorrowedFd<'_>) -> io::Result<()> {
        kernel::pin(object, &self.path.join(name))
    }

    /// Opens an object by name; `None` if it is not there.
    pub(super) fn get(&self, name: &str) -> io::Result<Option<OwnedFd>> {
        match kernel::open_pinned(&self.path.join(name)) {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether nothing is pinned.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(fs::read_dir(&self.path)?.next().is_none())
    }

    /// Removes all pins. Programs stop when nobody else holds them.
    pub(super) fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Removes all pins and the folder.
    pub(super) fn remove(self) -> io::Result<()> {
        self.clear()?;
        fs::remove_dir(&self.path)
    }
}

/// Disks that have a folder.
pub(super) fn list(root: &Path) -> io::Result<Vec<DiskId>> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    let disks = names.map(|name| name.map(|name| name.to_str().and_then(|name| name.parse().ok())));
    disks.filter_map(Result::transpose).collect()
}

fn mount_if_needed(root: &Path) -> io::Result<()> {
    // A root elsewhere was prepared by an administrator, who has given it to us.
    let base = if root.starts_with(BPFFS) { Path::new(BPFFS) } else { root };
    if is_bpffs(base)? {
        return Ok(());
    }
    // Two agents that start together must not mount one over the other.
    let below = File::open(base)?;
    flock(&below, FlockOperation::LockExclusive)?;
    if is_bpffs(base)? { Ok(()) } else { kernel::mount_bpffs(base) }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    let magic = statfs(path)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|magic| magic & 0xffff_ffff == u64::from(BPFFS_MAGIC)))
}
