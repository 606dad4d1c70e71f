//! Damage and mishaps: each gets a clear error, and loses nothing.

mod folders;
mod scrubbing;
mod serving;

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountPoint, MountedDisk, run},
    load,
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{Site, program, wait_for},
};

const DISK_BYTES: u64 = 256 << 20;

/// Whether the test cannot run here; says why.
fn skipped() -> bool {
    let reason = loop_device::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

/// Waits until `holdfast status` mentions every one of these words.
fn wait_for_status(site: &Site, words: &[&str]) -> Result<()> {
    let mut last = String::new();
    let found = wait_for(&format!("status to say {words:?}"), PATIENCE, || {
        last = site.cli(&["status"])?.to_string().to_lowercase();
        Ok(words.iter().all(|word| last.contains(word)).then_some(()))
    });
    found.with_context(|| format!("status: {last}"))
}

#[test]
fn a_token_works_once() -> Result<()> {
    let site = Site::start()?;
    let created = site.cli(&["token", "create"])?;
    let token = created["token"].as_str().context("token")?;
    let enrol = |folder: &Path| {
        let mut command = Command::new(program("holdfast-agent"));
        command.arg("--state").arg(folder);
        command.args(["enroll", "--coordinator", site.address(), "--token", token]);
        command.output()
    };
    let folder = tempfile::tempdir()?;
    ensure!(enrol(&folder.path().join("a"))?.status.success(), "the first enrolment");
    let replayed = enrol(&folder.path().join("b"))?;
    let said = String::from_utf8_lossy(&replayed.stderr).to_lowercase();
    assert!(!replayed.status.success() && said.contains("token"), "replayed token: {said}");
    assert!(said.contains("used"), "the reason is missing: {said}");
    assert_eq!(site.cli(&["machines"])?.as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn a_revoked_machine_is_out_at_once() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    let kept = protected.wait_for_points(2)?.len();
    protected.site.cli(&["machine", "revoke", &protected.machine, "--yes"])?;
    wait_for("the agent to say that it was revoked", PATIENCE, || {
        Ok(protected.agent.log().to_lowercase().contains("revoked").then_some(()))
    })?;
    let settled = protected.points()?.len();
    protected.agent.kill()?;
    protected.agent.start()?;
    std::thread::sleep(Duration::from_secs(3));
    let after = protected.points()?.len();
    assert!(settled >= kept && after == settled, "points: {kept}, {settled} when revoked, {after} later");
    Ok(())
}

#[test]
fn flipped_bits_are_named_and_repaired_from_the_source() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    let mut writer = load::start(&[&disk], 5, Duration::from_millis(1))?;
    protected.wait_for_points(3)?;
    protected.site.kill_coordinator()?;
    for segment in segments(protected.site.data())? {
        serving::largest_frame(&segment)?.damage()?;
    }
    protected.site.start_coordinator()?;
    let path = disk.device.path().to_str().context("path")?;
    wait_for_status(&protected.site, &["is damaged", path, "point"])?;
    protected.next_point_holds(&[&disk], &writer)?;
    writer.finish()?;
    wait_for_status(&protected.site, &["newer points do without it"])?;
    let status = protected.site.cli(&["status"])?.to_string();
    assert!(!status.contains("compared with its source anew"), "the alarm outlives the repair: {status}");
    Ok(())
}

#[test]
fn a_truncated_segment_loses_no_later_point() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    let mut writer = load::start(&[&disk], 6, Duration::from_millis(1))?;
    protected.wait_for_points(3)?;
    protected.site.kill_coordinator()?;
    let last = segments(protected.site.data())?.pop().context("a segment")?;
    let file = OpenOptions::new().write(true).open(&last)?;
    file.set_len(file.metadata()?.len() * 2 / 3)?;
    protected.site.start_coordinator()?;
    protected.next_point_holds(&[&disk], &writer)?;
    writer.finish()?;
    Ok(())
}

#[test]
fn a_full_store_holds_on_and_goes_on() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let store = MountedDisk::create(Kind::Ext4, 288 << 20)?;
    let ballast = store.folder().join("ballast");
    write_noise(&ballast, 150 << 20)?;
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let site = Site::start_at("127.0.0.1", Some(&store.folder().join("data")))?;
    let agent = site.add_agent()?;
    let protected = Protected::with(site, agent, &[disk.device.path()])?;
    protected.wait_for_points(1)?;
    let mut writer = load::start(&[&disk], 7, Duration::from_millis(1))?;
    write_noise(&disk.folder().join("noise"), 80 << 20)?;
    wait_for_status(&protected.site, &["no space left", "the replica does not go on"])?;
    let kept = protected.points()?;
    fs::remove_file(ballast)?;
    protected.next_point_holds(&[&disk], &writer)?;
    let all = protected.points()?;
    assert!(kept.iter().all(|point| all.iter().any(|other| other.id == point.id)), "a point was lost");
    writer.finish()?;
    Ok(())
}

#[test]
fn a_read_only_data_directory_is_refused() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(64 << 20)?;
    run(Command::new("mkfs.ext4").arg("-qF").arg(device.path()))?;
    let mount = MountPoint::new(device.path(), &["ro"])?;
    let output = Command::new(program("holdfast-coordinator"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(mount.join("data"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it started on a read-only folder");
    assert!(said.to_lowercase().contains("read-only"), "the reason is missing: {said}");
    Ok(())
}

#[test]
fn a_disk_that_disappears_is_missed_and_one_that_grew_is_noticed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("disk.img");
    File::create_new(&image)?.set_len(64 << 20)?;
    let device = LoopDevice::attach(&image)?;
    let protected = Protected::start(&[device.path()])?;
    protected.wait_for_points(1)?;
    let kept = protected.points()?.len();
    drop(device);
    wait_for_status(&protected.site, &["the disk is missing", "attach the disk again"])?;
    OpenOptions::new().write(true).open(&image)?.set_len(96 << 20)?;
    let grown = LoopDevice::attach(&image)?;
    wait_for_status(&protected.site, &["the disk was resized", "holdfast protect"])?;
    assert!(protected.points()?.len() >= kept, "points were lost with the disk");
    // What the status advises works: once the agent has told of the new size, the disk is protected anew.
    wait_for("the new size to be protected", PATIENCE, || {
        protected.site.protect(&protected.machine, &[grown.path()], "1s")?;
        let status = protected.site.cli(&["status"])?.to_string();
        Ok(status.contains(&format!("\"size_bytes\":{}", 96 << 20)).then_some(()))
    })?;
    protected.site.wait_for_new_point(&protected.machine, PATIENCE)?;
    Ok(())
}

#[test]
fn a_disk_that_grows_in_place_is_noticed() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let device = LoopDevice::create(64 << 20)?;
    let protected = Protected::start(&[device.path()])?;
    protected.wait_for_points(1)?;
    OpenOptions::new().write(true).open(device.backing())?.set_len(96 << 20)?;
    run(Command::new("losetup").arg("-c").arg(device.path()))?;
    wait_for_status(&protected.site, &["the disk was resized", "holdfast protect"])
}

/// All segment files below the coordinator's data, oldest first.
fn segments(data: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|extension| extension == "segment") {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    ensure!(!found.is_empty(), "no segment files below {}", data.display());
    Ok(found)
}

/// Writes bytes that do not compress.
fn write_noise(path: &Path, bytes: usize) -> Result<()> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(path.as_os_str().as_encoded_bytes()).finalize_xof().fill(&mut noise);
    fs::write(path, noise)?;
    File::open(path)?.sync_all()?;
    Ok(())
}
