//! Witness and comparison: what the source writes past tracking is found, named, and sent again.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{Point, wait_for},
};
use serde_json::Value;

/// So small that 16 blocks of a cut are likely to hit what was changed.
const DISK_BYTES: usize = 4 << 20;
/// So large that what a cut witnesses of it hardly ever hits a single block.
const LARGE_DISK_BYTES: usize = 64 << 20;
/// Reads of a comparison, per second: it takes some seconds, in which it can be disturbed.
const COMPARE_RATE_MIB: &str = "16";
/// What is changed: two of the chunks that are sent again as a whole.
const CHANGED: Range<usize> = 1 << 20..(1 << 20) + (512 << 10);

/// Whether the test cannot run here; says why.
fn skipped() -> bool {
    let reason = loop_device::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise
}

/// Changes the disk where no program in the tracking kernel's write path sees it: in the file below the device.
fn change_unseen(device: &LoopDevice, seed: u64, range: Range<usize>) -> Result<()> {
    let file = File::options().write(true).open(device.backing())?;
    file.write_all_at(&noise(seed, range.len()), range.start as u64)?;
    file.sync_all().context("the backing file")
}

fn witness(point: &Point, field: &str) -> u64 {
    point.all["witness"][field].as_u64().unwrap_or(0)
}

fn is_compared(point: &Point) -> bool {
    point.all["witness"]["compared_at"].is_string()
}

/// Waits for a point whose witness was compared and that is as wanted.
fn wait_for_point(what: &str, protected: &Protected, wanted: impl Fn(&Point) -> bool) -> Result<Point> {
    let found = wait_for(what, PATIENCE, || {
        Ok(protected.points()?.into_iter().rev().filter(is_compared).find(|point| wanted(point)))
    });
    found.with_context(|| protected.site.cli(&["status"]).unwrap_or_default().to_string())
}

/// The disk's findings that are critical.
fn alarms(protected: &Protected) -> Result<Vec<Value>> {
    let status = protected.site.cli(&["status"])?;
    let disks = status["machines"][0]["disks"].as_array().context("disks")?.clone();
    let findings = disks.iter().flat_map(|disk| disk["findings"].as_array().cloned().unwrap_or_default());
    Ok(findings.filter(|finding| finding["level"] == "critical").collect())
}

/// Waits until the newest point holds what the device's backing file does.
fn wait_until_equal(protected: &Protected, device: &LoopDevice, folder: &Path) -> Result<()> {
    let expected = fs::read(device.backing())?;
    wait_for("a point that equals its source", PATIENCE, || {
        let newest = protected.points()?.pop().context("a point")?;
        if newest.state == "damaged" {
            return Ok(None);
        }
        // A difference may be found in it while it is read.
        let copied = protected.site.copy_point(&protected.machine, &newest.id, folder);
        let Ok(copies) = copied else { return Ok(None) };
        let copy = fs::read(&copies.first().context("a disk")?.1)?;
        Ok((copy == expected).then_some(()))
    })
}

#[test]
fn a_change_that_tracking_missed_is_found_named_and_sent_again() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(DISK_BYTES as u64)?;
    device.open_direct()?;
    fs::write(device.path(), noise(1, DISK_BYTES / 2))?;
    File::open(device.path())?.sync_all()?;
    let mut protected = Protected::start(&[device.path()])?;
    let good = wait_for_point("a witnessed point", &protected, |point| witness(point, "blocks") > 0)?;
    ensure!(witness(&good, "differed") == 0, "{}", good.all);
    ensure!(alarms(&protected)?.is_empty(), "{:?}", alarms(&protected)?);

    change_unseen(&device, 2, CHANGED)?;
    let found = wait_for_point("a difference", &protected, |point| witness(point, "differed") > 0)?;
    let alarm = wait_for("an alarm", PATIENCE, || {
        let alarms = alarms(&protected)?.into_iter();
        let text = |alarm: &Value| alarm["reason"].as_str().unwrap_or_default().to_owned();
        Ok(alarms.clone().find(|alarm| text(alarm).contains("is not what its source has")))
    })?;
    let advice = alarm["advice"].as_str().unwrap_or_default();
    ensure!(advice.contains("holdfast compare start"), "{advice}");
    let found = wait_for("the point to be damaged", PATIENCE, || {
        let points = protected.points()?.into_iter();
        Ok(points.into_iter().find(|point| point.id == found.id && point.state == "damaged"))
    })?;
    let damage = found.all["damage"].as_str().unwrap_or_default();
    ensure!(damage.contains("not as the source had it"), "{damage}");
    // What is wrong is never served; the point before it is another matter.
    let folder = tempfile::tempdir()?;
    let served = protected.site.copy_point(&protected.machine, &found.id, folder.path());
    ensure!(served.is_err(), "a point is served that is known to be wrong");
    wait_until_equal(&protected, &device, folder.path())?;

    // The alarm outlives the repair and the coordinator: nobody knows what else was missed.
    protected.site.kill_coordinator()?;
    protected.site.start_coordinator()?;
    protected.site.wait_until_connected(PATIENCE)?;
    ensure!(!alarms(&protected)?.is_empty(), "the alarm is gone, and nothing was compared");
    let newest = protected.site.wait_for_new_point(&protected.machine, PATIENCE)?;
    ensure!(newest.state != "damaged", "{}", newest.all);
    Ok(())
}

/// The only disk's comparison, as operators see it.
fn comparison(protected: &Protected) -> Result<Value> {
    Ok(protected.site.cli(&["compare", "status"])?[0].clone())
}

fn compare(protected: &Protected) -> Result<()> {
    protected.site.cli(&["compare", "start", &protected.machine])?;
    Ok(())
}

/// Waits until the comparison under way has ended; what came of it.
fn ended(protected: &Protected) -> Result<Value> {
    let last = wait_for("the end of a comparison", PATIENCE, || {
        let disk = comparison(protected)?;
        Ok((disk["state"] == "idle").then(|| disk["last"].clone()))
    });
    last.with_context(|| comparison(protected).unwrap_or_default().to_string())
}

/// Waits until so much of it is done.
fn wait_until_compared(protected: &Protected, bytes: u64) -> Result<()> {
    wait_for("part of a comparison", PATIENCE, || {
        let done =
            comparison(protected)?["pass"]["compared_bytes"].as_u64().context("a comparison under way")?;
        Ok((done >= bytes).then_some(()))
    })
}

#[test]
fn a_comparison_finds_one_changed_block_among_all_while_the_source_is_written_to() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(LARGE_DISK_BYTES as u64)?;
    device.open_direct()?;
    fs::write(device.path(), noise(1, LARGE_DISK_BYTES / 2))?;
    File::open(device.path())?.sync_all()?;
    let mut protected = Protected::start(&[device.path()])?;
    protected.wait_for_points(2)?;
    let node = device.path().to_string_lossy().into_owned();
    let machine = protected.machine.clone();
    let rate = ["protect", &machine, "--disk", &node, "--interval", "1s", "--scan-rate", COMPARE_RATE_MIB];
    protected.site.cli(&rate)?;

    // While somebody writes all over the first half, nothing is said to differ, and what is written is sent anew.
    let stop = AtomicBool::new(false);
    let (path, stopped) = (device.path(), &stop);
    let compared = thread::scope(|scope| -> Result<Value> {
        let writer = scope.spawn(move || -> Result<()> {
            let file = File::options().write(true).open(path)?;
            for round in 0.. {
                if stopped.load(SeqCst) {
                    break;
                }
                let at = (round * 7919 % 8192) * 4096;
                file.write_all_at(&noise(round, 4096), at)?;
                file.sync_data()?;
                // A disk without a file system is cut while nobody writes.
                thread::sleep(Duration::from_millis(if round % 32 == 0 { 200 } else { 5 }));
            }
            Ok(())
        });
        let compared = compare(&protected).and_then(|()| {
            // Kill and go on where it was.
            wait_until_compared(&protected, 16 << 20)?;
            protected.site.kill_coordinator()?;
            protected.site.start_coordinator()?;
            let started = comparison(&protected)?["pass"]["started_at"].clone();
            ensure!(started.is_string(), "the comparison was forgotten");
            let last = ended(&protected)?;
            ensure!(last["started_at"] == started && last["cancelled"] == false, "{last}");
            Ok(last)
        });
        stop.store(true, SeqCst);
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        compared
    })?;
    ensure!(compared["compared_bytes"] == LARGE_DISK_BYTES && compared["differed_bytes"] == 0, "{compared}");
    ensure!(compared["sent_anew_bytes"].as_u64() > Some(0), "{compared}");
    ensure!(alarms(&protected)?.is_empty(), "{:?}", alarms(&protected)?);

    // One block that tracking did not see.
    change_unseen(&device, 5, 40 << 20..(40 << 20) + 4096)?;
    compare(&protected)?;
    ensure!(protected.site.cli(&["compare", "start", &protected.machine]).is_err(), "two at a time");
    let found = ended(&protected)?;
    ensure!(found["differed_bytes"] == 4096, "{found}");
    ensure!(!alarms(&protected)?.is_empty(), "a difference is no alarm");
    let folder = tempfile::tempdir()?;
    wait_until_equal(&protected, &device, folder.path())?;

    // One that is cancelled says so, and leaves the alarm; one that finds nothing ends it.
    compare(&protected)?;
    wait_until_compared(&protected, 4 << 20)?;
    protected.site.cli(&["compare", "cancel", &protected.machine])?;
    let cancelled = ended(&protected)?;
    ensure!(cancelled["cancelled"] == true, "{cancelled}");
    ensure!(!alarms(&protected)?.is_empty(), "the alarm is gone, and not all was compared");
    compare(&protected)?;
    let last = ended(&protected)?;
    ensure!(last["differed_bytes"] == 0 && last["compared_bytes"] == LARGE_DISK_BYTES, "{last}");
    ensure!(alarms(&protected)?.is_empty(), "{:?}", alarms(&protected)?);
    Ok(())
}
