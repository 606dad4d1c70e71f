//! Holding writes on real file systems: freeze, guardian, deaths at the worst moment.
//!
//! Only file systems on loop devices are frozen, never one that the host needs.

mod helper;
mod deaths;
mod own_state;
pub(crate) mod named_disks;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::capture::freeze::{FreezeError, Freezer};
use holdfast_tests::{
    file_system::{Kind, MountPoint, MountedDisk, run},
    loop_device::LoopDevice,
};

use helper::{disk_device, is_frozen, settings};

const MIB: u64 = 1 << 20;
/// Longer than any hold here takes, so that only a test of the bound meets it.
const BOUND: Duration = Duration::from_secs(20);
const HOLDS: usize = 20;

/// fio on a folder until dropped.
struct Writer(Child);

impl Writer {
    fn start(folder: &Path, more: &[&str]) -> Result<Self> {
        let child = Command::new("fio")
            .args(["--thread", "--name=writer", "--size=64m", "--bs=4k", "--rw=randwrite", "--time_based"])
            .args(["--runtime=600", "--norandommap", "--rate_iops=5000", "--directory"])
            .arg(folder)
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .context("starting fio (package fio)")?;
        Ok(Self(child))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Writes that the kernel has counted on a device, and those in flight.
fn writes(device: &LoopDevice) -> Result<(u64, u64)> {
    let text = fs::read_to_string(format!("/sys/block/{}/stat", device.name()))?;
    let fields: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    Ok((fields[4], fields[8]))
}

fn percentiles(mut samples: Vec<Duration>) -> String {
    samples.sort();
    let at = |percent: usize| samples[(samples.len() - 1) * percent / 100];
    format!("p50 {:.1?}, p90 {:.1?}, max {:.1?}", at(50), at(90), at(100))
}

fn hold_under_load(kind: Kind, more: &[&str]) -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let disk = MountedDisk::create(kind, 400 * MIB)?;
    let device = disk_device(&disk.device)?;
    let _writer = Writer::start(disk.folder(), more)?;
    let mut freezer = Freezer::start(settings()?)?;
    let (mut held, mut freeze) = (Vec::new(), Vec::new());
    let before = writes(&disk.device)?.0;
    for _ in 0..HOLDS {
        let plan = freezer.plan(std::slice::from_ref(&device))?;
        ensure!(plan.file_systems().len() == 1, "{:?}", plan.file_systems());
        for _ in 0..4 {
            if plan.sync()? < Duration::from_millis(20) {
                break;
            }
        }
        let hold = freezer.hold(&plan, BOUND)?;
        let first = writes(&disk.device)?;
        hold.check()?;
        std::thread::sleep(Duration::from_millis(2));
        let second = writes(&disk.device)?;
        let report = hold.release()?;
        ensure!(first == second, "writes reached the held disk: {first:?}, then {second:?}");
        ensure!(first.1 == 0, "{} requests in flight while held", first.1);
        ensure!(report.left_alone.is_empty(), "{report:?}");
        held.push(report.held);
        freeze.push(report.freeze);
        std::thread::sleep(Duration::from_millis(60));
    }
    ensure!(writes(&disk.device)?.0 > before + HOLDS as u64, "the writer did not get on between holds");
    eprintln!("{kind:?} {more:?}: held {}; freezing {}", percentiles(held), percentiles(freeze));
    Ok(())
}

#[test]
fn ext4_is_held_under_direct_writes() -> Result<()> {
    hold_under_load(Kind::Ext4, &["--direct=1", "--ioengine=libaio", "--iodepth=8"])
}

#[test]
fn ext4_is_held_under_buffered_writes() -> Result<()> {
    hold_under_load(Kind::Ext4, &["--fsync=100"])
}

#[test]
fn xfs_is_held_under_direct_writes() -> Result<()> {
    hold_under_load(Kind::Xfs, &["--direct=1", "--ioengine=libaio", "--iodepth=8"])
}

#[test]
fn a_hold_over_its_bound_is_thawed_and_void() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let plan = freezer.plan(&[disk_device(&disk.device)?])?;
    let hold = freezer.hold(&plan, Duration::from_millis(300))?;
    ensure!(helper::becomes(|| !is_frozen(disk.folder())), "still frozen long after the bound");
    let error = hold.release().expect_err("a hold that was thawed must be void");
    ensure!(matches!(error, FreezeError::Overrun { .. }), "{error:?}");
    // The next one is as good as any.
    freezer.hold(&plan, BOUND)?.release()?;
    Ok(())
}

#[test]
fn dropping_a_hold_thaws() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let plan = freezer.plan(&[disk_device(&disk.device)?])?;
    let hold = freezer.hold(&plan, BOUND)?;
    ensure!(is_frozen(disk.folder()), "not frozen while held");
    drop(hold);
    ensure!(!is_frozen(disk.folder()), "still frozen after the drop");
    Ok(())
}

#[test]
fn what_somebody_else_froze_is_refused_and_everything_else_thawed() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let first = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let second = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let plan = freezer.plan(&[disk_device(&first.device)?, disk_device(&second.device)?])?;
    let last = plan.file_systems()[1].mount_point.clone();
    let other = plan.file_systems()[0].mount_point.clone();
    run(Command::new("fsfreeze").arg("--freeze").arg(&last))?;
    let result = freezer.hold(&plan, BOUND).map(drop);
    let others_frozen = is_frozen(&other);
    run(Command::new("fsfreeze").arg("--unfreeze").arg(&last))?;
    ensure!(matches!(result, Err(FreezeError::FrozenByOther { .. })), "{result:?}");
    ensure!(!others_frozen, "the first file system stayed frozen");
    // Thawed behind our back: noticed.
    let hold = freezer.hold(&plan, BOUND)?;
    run(Command::new("fsfreeze").arg("--unfreeze").arg(&last))?;
    let error = hold.release().expect_err("a hold that was thawed must be void");
    ensure!(matches!(error, FreezeError::ThawedByOther { .. }), "{error:?}");
    Ok(())
}

/// A file system in a file on another one.
struct Stacked {
    inner_mount: MountPoint,
    _inner: LoopDevice,
    outer: MountedDisk,
}

impl Stacked {
    fn create() -> Result<Self> {
        let outer = MountedDisk::create(Kind::Ext4, 300 * MIB)?;
        let image = outer.folder().join("inner.img");
        fs::File::create_new(&image)?.set_len(128 * MIB)?;
        let inner = LoopDevice::attach(&image)?;
        run(Command::new("mkfs.ext4").arg("-qF").arg(inner.path()))?;
        Ok(Self { inner_mount: MountPoint::new(inner.path(), &[])?, _inner: inner, outer })
    }
}

#[test]
fn stacked_file_systems_are_frozen_from_the_top_and_thawed_from_the_bottom() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let stacked = Stacked::create()?;
    let _inner = Writer::start(stacked.inner_mount.folder(), &["--size=32m", "--fsync=50"])?;
    let _outer = Writer::start(stacked.outer.folder(), &["--size=32m", "--direct=1"])?;
    let mut freezer = Freezer::start(settings()?)?;
    for _ in 0..HOLDS {
        let plan = freezer.plan(&[disk_device(&stacked.outer.device)?])?;
        let order: Vec<&Path> = plan.file_systems().iter().map(|held| held.mount_point.as_path()).collect();
        ensure!(order == [stacked.inner_mount.folder(), stacked.outer.folder()], "{order:?}");
        let hold = freezer.hold(&plan, BOUND)?;
        let first = writes(&stacked.outer.device)?;
        let second = writes(&stacked.outer.device)?;
        hold.release()?;
        ensure!(first == second && first.1 == 0, "writes reached the held disk: {first:?}, then {second:?}");
    }
    // Over the bound, the guardian must thaw in the right order too, or it would block for ever.
    let plan = freezer.plan(&[disk_device(&stacked.outer.device)?])?;
    let hold = freezer.hold(&plan, Duration::from_millis(500))?;
    ensure!(helper::becomes(|| !is_frozen(stacked.inner_mount.folder())), "the guardian did not thaw");
    ensure!(hold.release().is_err(), "a hold that was thawed must be void");
    Ok(())
}

#[test]
fn bind_mounts_are_frozen_once_and_hidden_file_systems_are_named() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    fs::create_dir(disk.folder().join("part"))?;
    let mut freezer = Freezer::start(settings()?)?;
    let part = MountPoint::new(&disk.folder().join("part"), &["bind"])?;
    let plan = freezer.plan(&[disk_device(&disk.device)?])?;
    ensure!(plan.file_systems().len() == 1, "{:?}", plan.file_systems());
    freezer.hold(&plan, BOUND)?.release()?;
    drop(plan);
    // Covered, but reachable through the other mount.
    let cover = |folder: &Path| run(Command::new("mount").args(["-t", "tmpfs", "cover"]).arg(folder));
    cover(disk.folder())?;
    let through = freezer.plan(&[disk_device(&disk.device)?]).map(|plan| plan.file_systems().len());
    drop(part);
    let unreachable = freezer.plan(&[disk_device(&disk.device)?]);
    run(Command::new("umount").arg(disk.folder()))?;
    ensure!(through? == 1, "one mount is still reachable");
    ensure!(matches!(unreachable, Err(FreezeError::Hidden { .. })), "{unreachable:?}");
    Ok(())
}

#[test]
fn an_unmounted_disk_has_nothing_to_freeze() -> Result<()> {
    let Some(_alone) = helper::alone() else { return Ok(()) };
    let device = LoopDevice::create(16 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let plan = freezer.plan(&[disk_device(&device)?])?;
    ensure!(plan.is_empty(), "{:?}", plan.file_systems());
    freezer.hold(&plan, BOUND)?.release()?;
    let gone = disk_device(&device)?;
    drop(device);
    let start = Instant::now();
    // A loop device without a file stays in sysfs; only its disappearance from there would be an error.
    ensure!(freezer.plan(&[gone]).is_ok_and(|plan| plan.is_empty()), "after {:?}", start.elapsed());
    Ok(())
}
