//! What nobody reads is read nevertheless: points are verified behind ingest, and a scrub finds what went bad since.

use std::time::Duration;

use anyhow::{Context as _, Result};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    load::{self, check_point},
    site::{Site, wait_for},
};

use super::{DISK_BYTES, PATIENCE, segments, serving, skipped, wait_for_status};

/// Waits until a point is said to be fully verified.
fn wait_for_verified(site: &Site, machine: &str) -> Result<()> {
    wait_for("a point to be fully verified", PATIENCE, || {
        let listed = site.cli(&["points", machine])?;
        let points = listed["points"].as_array().context("points")?;
        Ok(points.iter().any(|point| point["verified_at"].is_string()).then_some(()))
    })
}

#[test]
fn a_scrub_finds_damage_and_the_source_repairs_it() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut site = Site::start()?;
    let _agent = site.add_agent()?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    let mut writer = load::start(&[&disk], 8, Duration::from_millis(2))?;
    site.wait_for_points(&machine, 2, PATIENCE)?;
    wait_for_verified(&site, &machine)?;
    // It was good when it was read first; nobody reads it again for days.
    for segment in segments(site.data())? {
        serving::largest_frame(&segment)?.damage()?;
    }
    let begun = site.cli(&["scrub", "start", &machine])?;
    assert_eq!(begun[0]["machine"], machine.as_str());
    let path = disk.device.path().to_str().context("path")?;
    wait_for_status(&site, &["is damaged", path, "point"])?;
    let before = writer.done();
    let point = site.wait_for_new_point(&machine, PATIENCE)?;
    let operations = check_point(&site, &machine, &point.id, &[&disk], writer.schedule())?;
    assert!(operations >= before, "the point after the repair lacks operation {before}");
    writer.finish()?;
    let ended = |site: &Site| {
        let checks = site.cli(&["scrub", "status"])?;
        Ok(checks[0]["last"]["bad_frames"].as_u64().filter(|bad| *bad > 0))
    };
    let bad = wait_for("the scrub to have ended", PATIENCE, || ended(&site))?;
    site.kill_coordinator()?;
    site.start_coordinator()?;
    let again = wait_for("the scrub to be remembered", PATIENCE, || ended(&site))?;
    assert_eq!(again, bad);
    Ok(())
}

#[test]
fn a_failover_has_its_point_verified_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let site = Site::start()?;
    let _agent = site.add_agent()?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    site.wait_for_points(&machine, 1, PATIENCE)?;
    let job = site.cli(&["test-failover", &machine, "--point", "latest", "--attach"])?;
    let id = job["id"].as_str().context("id")?;
    let point = job["point"].as_str().context("point")?.to_owned();
    wait_for("the point to be fully verified", PATIENCE, || {
        let listed = site.cli(&["points", &machine])?;
        let points = listed["points"].as_array().context("points")?;
        let point = points.iter().find(|listed| listed["id"] == point.as_str());
        Ok(point.filter(|point| point["verified_at"].is_string()).map(drop))
    })?;
    let verification = site.cli(&["job", "show", id])?["verification"].clone();
    // It may have been verified before the job came.
    assert!(verification.is_null() || verification["state"] == "good", "{verification}");
    site.cli(&["job", "cancel", id])?;
    Ok(())
}
