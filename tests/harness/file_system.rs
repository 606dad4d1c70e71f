//! A formatted, mounted file system on a loop device, unmounted on drop.
//!
//! Owns device, mount and mount folder. Does not know what is written.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_coordinator::quickstart::scenery::Mount;
use tempfile::TempDir;

use crate::loop_device::LoopDevice;

/// Kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS (at least 300 MiB).
    Xfs,
}

/// A mounted file system on its own loop device.
#[derive(Debug)]
pub struct MountedDisk {
    mount: MountPoint,
    /// The device; detached after the mount is gone.
    pub device: LoopDevice,
}

/// Something mounted on a temporary folder.
#[derive(Debug)]
pub struct MountPoint {
    mount: Mount,
    /// Removed after the mount is gone.
    _folder: TempDir,
}

impl MountedDisk {
    /// Makes a disk of `bytes` bytes with a file system and mounts it.
    ///
    /// # Errors
    /// mkfs or mount fails.
    pub fn create(kind: Kind, bytes: u64) -> Result<Self> {
        let device = LoopDevice::create(bytes)?;
        match kind {
            Kind::Ext4 => run(Command::new("mkfs.ext4").arg("-qF").arg(device.path()))?,
            Kind::Xfs => run(Command::new("mkfs.xfs").arg("-qf").arg(device.path()))?,
        };
        Ok(Self { mount: MountPoint::new(device.path(), &[])?, device })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.mount.folder()
    }
}

impl MountPoint {
    /// Mounts a device with these options ("ro", "nouuid").
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(device: &Path, options: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-mount-")?;
        Ok(Self { mount: Mount::with(device, folder.path(), options)?, _folder: folder })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.mount.folder()
    }

    /// A path below the mount.
    #[must_use]
    pub fn join(&self, path: &str) -> PathBuf {
        self.folder().join(path)
    }
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started or fails; the text has its last words.
pub fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {name} (is it installed?)"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed ({}): {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
