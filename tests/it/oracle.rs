//! The write-order oracle over the whole path: every recovery point holds exactly a prefix of what a writer did.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use holdfast_coordinator::quickstart::history::Schedule;
use holdfast_tests::{
    file_system::{Kind, MountPoint, MountedDisk},
    loop_device::{self, LoopDevice},
    site::Site,
};

const DISK_BYTES: u64 = 512 << 20;
const SLOTS: u64 = 2048;

/// Seconds of load; `HOLDFAST_TEST_SECONDS` makes it longer.
fn seconds() -> u64 {
    std::env::var("HOLDFAST_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// A history that a thread writes until told to stop.
pub(crate) struct Load {
    pub(crate) schedule: Schedule,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts writing over one file on each of the disks, `pause` between operations.
    pub(crate) fn start(disks: &[&MountedDisk], seed: u64, pause: Duration) -> Result<Self> {
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
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// Ends the writing and says how many operations there were.
    pub(crate) fn finish(&mut self) -> Result<u64> {
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
pub(crate) fn check_point(
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

#[test]
fn every_point_is_a_prefix_over_two_disks() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disks = [MountedDisk::create(Kind::Ext4, DISK_BYTES)?, MountedDisk::create(Kind::Ext4, DISK_BYTES)?];
    let disks: Vec<_> = disks.iter().collect();
    let site = Site::start()?;
    let _agent = site.add_agent()?;
    let machine = site.only_machine()?;
    let paths: Vec<_> = disks.iter().map(|disk| disk.device.path()).collect();
    site.protect(&machine, &paths, "1s")?;
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut load = Load::start(&disks, seed, Duration::from_micros(300))?;
    let started = Instant::now();
    let mut checked = Vec::new();
    while started.elapsed() < Duration::from_secs(seconds()) {
        let before = load.done();
        let point = site.wait_for_new_point(&machine, Duration::from_secs(60))?;
        let operations = check_point(&site, &machine, &point.id, &disks, &load.schedule)?;
        assert!(operations >= before, "a point cut after operation {before} ends at {operations}");
        checked.push(operations);
    }
    let total = load.finish()?;
    eprintln!("{} points checked over {total} operations: {checked:?}", checked.len());
    assert!(checked.len() >= 3, "too few points: {}", checked.len());
    // All points that were not looked at during the load are good as well.
    for point in site.points(&machine)?.iter().rev().take(10) {
        check_point(&site, &machine, &point.id, &disks, &load.schedule)?;
    }
    Ok(())
}
