//! Load on mounted disks, and the check that a point holds a prefix of it.
//!
//! Owns nothing of its own: the writer, its schedule and the check are the quickstart's.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use holdfast_coordinator::quickstart::{
    background::{BackgroundWriter, Pace},
    history::Schedule,
};

use crate::{
    file_system::{MountPoint, MountedDisk},
    loop_device::LoopDevice,
    site::Site,
};

/// Slots of the history on each disk.
const SLOTS: u64 = 2048;

/// Starts writing a history over one file on each of the disks, `pause` between operations.
///
/// # Errors
/// A file cannot be made.
pub fn start(disks: &[&MountedDisk], seed: u64, pause: Duration) -> Result<BackgroundWriter> {
    let targets = disks.iter().map(|disk| disk.folder().join("history")).collect();
    BackgroundWriter::start(Schedule { seed, targets, slots: SLOTS }, Pace { pause, rest: Duration::ZERO })
}

/// Attaches a point, mounts copies of its disks and checks that they hold a prefix; returns its length.
///
/// # Errors
/// The point cannot be attached or mounted, or is no prefix.
pub fn check_point(
    site: &Site,
    machine: &str,
    point: &str,
    disks: &[&MountedDisk],
    schedule: &Schedule,
) -> Result<u64> {
    let folder = tempfile::TempDir::with_prefix("holdfast-point-")?;
    let mounted = mount_copies(site, machine, point, disks, folder.path())?;
    let targets: Vec<PathBuf> = mounted.iter().map(|(mount, _)| mount.join("history")).collect();
    Ok(schedule.check(&targets)?.operations)
}

/// Copies a point's disks into a folder and mounts each, in the order of `disks`.
///
/// # Errors
/// The point cannot be attached or mounted, or lacks a disk.
pub fn mount_copies(
    site: &Site,
    machine: &str,
    point: &str,
    disks: &[&MountedDisk],
    folder: &Path,
) -> Result<Vec<(MountPoint, LoopDevice)>> {
    let copies = site.copy_point(machine, point, folder)?;
    let mut mounted = Vec::new();
    for disk in disks {
        let source = disk.device.path().to_string_lossy();
        let (_, copy) = copies.iter().find(|(path, _)| *path == source).context("disk is in the point")?;
        let device = LoopDevice::attach(copy)?;
        mounted.push((MountPoint::new(device.path(), &[])?, device));
    }
    Ok(mounted)
}
