//! Which device tracking belongs to, and what happens when it is another one.

use std::{os::unix::fs::FileExt as _, process::Command};

use anyhow::{Result, ensure};
use holdfast_agent::capture::{
    CaptureError, ChangeSource as _,
    tracked::{Attachment, Faults, StatisticsSwitch, TrackedSource},
};
use holdfast_common::{
    ids::Interval,
    units::{BlockCount, BlockRange},
};
use holdfast_tests::{
    loop_device::LoopDevice,
    raw_writers::{AlignedBuffer, open_direct},
};

use super::{TestDisk, is_skipped};

const BYTES: u64 = 16 << 20;

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output()?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn taken(source: &mut TrackedSource) -> Result<Vec<BlockRange>> {
    let mut ranges = vec![];
    source.take(Interval(1), &mut |range| ranges.push(range))?;
    Ok(ranges)
}

#[test]
fn exactly_the_blocks_of_a_request_are_marked() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (mut source, _) = disk.open(device.path())?;
    assert_eq!(source.blocks(), BlockCount(BYTES / 4096));
    let file = open_direct(device.path())?;
    let mut buffer = AlignedBuffer::new(1 << 20);
    file.write_all_at(buffer.first(4096), 5 * 4096)?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(5, 1)]);
    // Half a block dirties all of it; a request over a block's edge dirties both.
    file.write_all_at(buffer.first(1024), 9 * 4096 - 512)?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(8, 2)]);
    // Over a word's edge, and over more words than two.
    file.write_all_at(buffer.first(8 * 4096), 60 * 4096)?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(60, 8)]);
    file.write_all_at(buffer.first(1 << 20), 100 * 4096)?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(100, 256)]);
    // Discarded and zeroed, whole words and broken ones.
    let path = device.path().to_str().unwrap_or_default();
    run("blkdiscard", &["--offset", "4096", "--length", "8388608", path])?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(1, 2048)]);
    run("blkdiscard", &["--zeroout", "--offset", "8192", "--length", "1048576", path])?;
    assert_eq!(taken(&mut source)?, [BlockRange::new(2, 256)]);
    // Reads mark nothing.
    file.read_exact_at(buffer.first(1 << 20), 0)?;
    assert_eq!(taken(&mut source)?, []);
    source.guard()?;
    source.mark(BlockRange::new(BYTES / 4096 - 1, 10));
    assert_eq!(source.marked(), BlockCount(1));
    Ok(())
}

#[test]
fn a_kernel_that_does_not_count_is_told_to() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let name = device.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let switch = format!("/sys/block/{name}/queue/iostats");
    std::fs::write(&switch, "0")?;
    let (mut source, _) = disk.open(device.path())?;
    assert_eq!(std::fs::read_to_string(&switch)?.trim(), "1");
    source.guard()?;
    // While it is tracked it is not for us to say what somebody has switched off meanwhile.
    std::fs::write(&switch, "0")?;
    let error = source.guard().expect_err("nothing is counted").to_string();
    assert!(error.contains("queue/iostats"), "{error}");
    Ok(())
}

#[test]
fn what_was_not_acknowledged_comes_back() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (mut source, _) = disk.open(device.path())?;
    source.mark(BlockRange::new(1, 1));
    source.take(Interval(1), &mut |_| {})?;
    source.mark(BlockRange::new(2, 1));
    source.take(Interval(2), &mut |_| {})?;
    source.acknowledged(Interval(1));
    source.mark(BlockRange::new(3, 1));
    source.take(Interval(3), &mut |_| {})?;
    source.mark(BlockRange::new(4, 1));
    drop(source);
    let (mut source, attachment) = disk.open(device.path())?;
    assert_eq!(attachment, Attachment::Resumed { given_back: BlockCount(2) });
    assert_eq!(taken(&mut source)?, [BlockRange::new(2, 3)]);
    assert_eq!(source.cursor().number, 4);
    Ok(())
}

#[test]
fn a_disk_is_used_by_one_process_at_a_time() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (source, _) = disk.open(device.path())?;
    let error = format!("{:#}", disk.open(device.path()).expect_err("two sources for one disk"));
    assert!(error.contains("in use") && error.contains("another process"), "{error}");
    assert!(TrackedSource::pinned(&disk.options)?.contains(&disk.id));
    drop(source);
    assert!(TrackedSource::remove(disk.id, &disk.options)?);
    assert!(!TrackedSource::remove(disk.id, &disk.options)?);
    assert!(!TrackedSource::pinned(&disk.options)?.contains(&disk.id));
    Ok(())
}

#[test]
fn another_backing_file_is_another_disk() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (mut source, _) = disk.open(device.path())?;
    let first = source.cursor().incarnation;
    let (node, backing) =
        (device.path().to_str().unwrap_or_default(), device.backing().to_str().unwrap_or_default());
    run("losetup", &["--detach", node])?;
    let error = taken(&mut source).expect_err("the disk is gone");
    assert!(matches!(error.downcast_ref(), Some(CaptureError::Missing { .. })), "{error:#}");
    run("losetup", &["--direct-io=on", node, backing])?;
    let error = taken(&mut source).expect_err("it may have been written to elsewhere");
    assert!(matches!(error.downcast_ref(), Some(CaptureError::Untrusted { .. })), "{error:#}");
    assert!(error.to_string().contains("replaced"), "{error:#}");
    assert!(source.cursor().trust.is_err());
    drop(source);
    let (source, attachment) = disk.open(device.path())?;
    assert!(matches!(attachment, Attachment::Fresh { .. }), "{attachment:?}");
    assert_ne!(source.cursor().incarnation, first);
    assert_eq!(source.cursor().trust, Ok(()));
    Ok(())
}

#[test]
fn a_detach_while_nobody_looks_is_noticed() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    drop(disk.open(device.path())?);
    let (node, backing) =
        (device.path().to_str().unwrap_or_default(), device.backing().to_str().unwrap_or_default());
    run("losetup", &["--detach", node])?;
    run("losetup", &["--direct-io=on", node, backing])?;
    let (_, attachment) = disk.open(device.path())?;
    let Attachment::Fresh { reason } = attachment else { anyhow::bail!("{attachment:?}") };
    assert!(reason.contains("replaced"), "{reason}");
    Ok(())
}

#[test]
fn a_resized_disk_is_not_trusted() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (mut source, _) = disk.open(device.path())?;
    std::fs::File::options().write(true).open(device.backing())?.set_len(BYTES * 2)?;
    run("losetup", &["--set-capacity", device.path().to_str().unwrap_or_default()])?;
    let error = taken(&mut source).expect_err("the disk has grown").to_string();
    assert!(error.contains("size"), "{error}");
    Ok(())
}

#[test]
fn the_cost_of_the_programs_is_told() -> Result<()> {
    if is_skipped() {
        return Ok(());
    }
    let (device, disk) = (LoopDevice::create(BYTES)?, TestDisk::new(Faults::default()));
    let (source, _) = disk.open(device.path())?;
    let _on = StatisticsSwitch::on()?;
    let (file, before) = (open_direct(device.path())?, source.program_statistics()?);
    let mut buffer = AlignedBuffer::new(4096);
    for block in 0..4096 {
        file.write_all_at(buffer.first(4096), block * 4096)?;
    }
    let cost = source.program_statistics()?.since(&before);
    eprintln!("{cost:?}: {} ns per write", cost.ns_per_write());
    assert_eq!(cost.write_requests, 4096);
    assert!(cost.runs >= 4096 && cost.ns_per_write() > 0);
    Ok(())
}
