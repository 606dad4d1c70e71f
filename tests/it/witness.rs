//! Witness: what the source writes past tracking is found, named, and sent again.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
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
/// What is changed: two of the chunks that are sent again as a whole.
const CHANGED: std::ops::Range<usize> = 1 << 20..(1 << 20) + (512 << 10);

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
fn change_unseen(device: &LoopDevice, seed: u64) -> Result<()> {
    let file = File::options().write(true).open(device.backing())?;
    file.write_all_at(&noise(seed, CHANGED.len()), CHANGED.start as u64)?;
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

    change_unseen(&device, 2)?;
    let found = wait_for_point("a difference", &protected, |point| witness(point, "differed") > 0)?;
    let alarm = wait_for("an alarm", PATIENCE, || {
        let alarms = alarms(&protected)?.into_iter();
        let text = |alarm: &Value| alarm["reason"].as_str().unwrap_or_default().to_owned();
        Ok(alarms.clone().find(|alarm| text(alarm).contains("is not what its source has")))
    })?;
    let advice = alarm["advice"].as_str().unwrap_or_default();
    ensure!(advice.contains("holdfast audit"), "{advice}");
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
