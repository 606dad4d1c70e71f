//! A loop device on a sparse temporary file, detached on drop.
//!
//! Owns the file and its folder; the device is the quickstart's. Does not know what is written to it.
//! Limit: as many devices as the kernel gives; `losetup` says so if there is none.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use holdfast_coordinator::quickstart::scenery::LoopDisk;
use tempfile::TempDir;

/// Why loop devices cannot be used here, or `None` if they can. Tests print it as `skipped: ...`.
#[must_use]
pub fn unavailable() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("loop devices need root".to_owned());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Some("this kernel has no loop devices (/dev/loop-control is missing)".to_owned());
    }
    None
}

/// A loop device with direct IO to its backing file.
#[derive(Debug)]
pub struct LoopDevice {
    disk: LoopDisk,
    backing: PathBuf,
    /// Holds the backing file if it is ours; removed after the device has been detached.
    _folder: Option<TempDir>,
}

impl LoopDevice {
    /// Attaches a device of `bytes` bytes on a new sparse file in a temporary folder.
    ///
    /// # Errors
    /// The file cannot be made or no device is free.
    pub fn create(bytes: u64) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-loop-").context("making a temporary folder")?;
        let backing = folder.path().join("disk.img");
        let file = File::create_new(&backing).context("making the backing file")?;
        file.set_len(bytes).context("sizing the backing file")?;
        Ok(Self { disk: LoopDisk::attach(&backing, false)?, backing, _folder: Some(folder) })
    }

    /// Attaches a device on an existing file, which stays after the drop.
    ///
    /// # Errors
    /// No device is free, or the file does not allow direct IO.
    pub fn attach(backing: &Path) -> Result<Self> {
        Self::attach_at(backing, 0)
    }

    /// Attaches a device on the part of an existing file that begins at byte `offset`, as of a partition in a disk
    /// image. The file stays after the drop.
    ///
    /// # Errors
    /// No device is free, or the file does not allow direct IO.
    pub fn attach_at(backing: &Path, offset: u64) -> Result<Self> {
        Ok(Self { disk: LoopDisk::attach_at(backing, offset)?, backing: backing.to_owned(), _folder: None })
    }

    /// The device node, for example `/dev/loop3`.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.disk.device()
    }

    /// The backing file.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// The kernel's name of the device, for example `loop3`.
    #[must_use]
    pub fn name(&self) -> &str {
        self.path().file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Opens the device for direct reads and writes (buffers, offsets and lengths aligned to 4096 bytes).
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn open_direct(&self) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(self.path())
            .with_context(|| format!("opening {}", self.path().display()))
    }
}
