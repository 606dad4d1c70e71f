//! A writer under whose load points are made, and the check that a point holds a prefix of its history.
//!
//! Owns the writing thread, ended on drop. The schedule and its check are the quickstart's.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use holdfast_coordinator::quickstart::history::Schedule;

use crate::{
    file_system::{MountPoint, MountedDisk},
    loop_device::LoopDevice,
    site::Site,
};

/// Slots of the history on each disk.
const SLOTS: u64 = 2048;

/// A history that a thread writes until told to stop.
#[derive(Debug)]
pub struct Load {
    /// What is written.
    pub schedule: Schedule,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts writing over one file on each of the disks, `pause` between operations.
    ///
    /// # Errors
    /// A file cannot be made.
    pub fn start(disks: &[&MountedDisk], seed: u64, pause: Duration) -> Result<Self> {
        let targets = disks.iter().map(|disk| disk.folder().join("history")).collect();
        let schedule = Schedule { seed, targets, slots: SLOTS };
        schedule.create()?;
        let mut writer = schedule.writer(0)?;
        let done = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (reported, stopped) = (done.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                reported.store(writer.step()?, Ordering::Release);
                thread::sleep(pause);
            }
            Ok(())
        });
        Ok(Self { schedule, done, stop, thread: Some(thread) })
    }

    /// Operations that have happened.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Ends the writing and says how many operations there were.
    ///
    /// # Errors
    /// A write failed: the source was disturbed.
    pub fn finish(&mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        }
        Ok(self.done())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.finish();
    }
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
    let copies = site.copy_point(machine, point, folder.path())?;
    let mut mounted = Vec::new();
    for disk in disks {
        let source = disk.device.path().to_string_lossy();
        let (_, copy) = copies.iter().find(|(path, _)| *path == source).context("disk is in the point")?;
        let device = LoopDevice::attach(copy)?;
        mounted.push((MountPoint::new(device.path(), &[])?, device));
    }
    let targets: Vec<PathBuf> = mounted.iter().map(|(mount, _)| mount.join("history")).collect();
    Ok(schedule.check(&targets)?.operations)
}
