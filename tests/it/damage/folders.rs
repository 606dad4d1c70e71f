//! Folders that are full or cannot be written, and a coordinator that is not the agent's.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    load,
    loop_device::LoopDevice,
    protected::{PATIENCE, Protected},
    site::{Site, program, wait_for},
};

use super::{DISK_BYTES, skipped, wait_for_status, write_noise};

/// Fills a file system to the last byte; gives the file.
fn fill(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join("filling");
    write_noise(&path, 8 << 20)?;
    // What a file system keeps back for itself comes free again as it writes: until nothing more goes in at all.
    for _ in 0..8 {
        let _full = Command::new("dd")
            .args(["if=/dev/zero", "bs=4k", "oflag=append", "conv=notrunc,fsync"])
            .arg(format!("of={}", path.display()))
            .output()?;
    }
    Ok(path)
}

#[test]
fn a_catalog_without_space_is_named_and_goes_on() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let store = MountedDisk::create(Kind::Ext4, 160 << 20)?;
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES / 4)?;
    let site = Site::start_at("127.0.0.1", Some(&store.folder().join("data")))?;
    let agent = site.add_agent()?;
    let protected = Protected::with(site, agent, &[disk.device.path()])?;
    protected.wait_for_points(1)?;
    let mut writer = load::start(&[&disk], 9, Duration::from_millis(2))?;
    // Not only the store's reserve is used up: SQLite cannot write a page either.
    let filling = fill(store.folder())?;
    wait_for_status(&protected.site, &["no space left", "free space on the data folder"])?;
    let refused =
        protected.site.cli(&["token", "create"]).err().context("a change without space was accepted")?;
    let said = format!("{refused:#}").to_lowercase();
    assert!(said.contains("full") || said.contains("space"), "the reason is missing: {said}");
    let kept = protected.points()?;
    fs::remove_file(filling)?;
    protected.next_point_holds(&[&disk], &writer)?;
    let all = protected.points()?;
    assert!(kept.iter().all(|point| all.iter().any(|other| other.id == point.id)), "a point was lost");
    protected.site.cli(&["token", "create"])?;
    writer.finish()?;
    Ok(())
}

/// Enrols an agent whose state is in `state`.
fn enrol(site: &Site, state: &Path) -> Result<()> {
    let created = site.cli(&["token", "create"])?;
    let token = created["token"].as_str().context("token")?;
    let mut command = Command::new(program("holdfast-agent"));
    command.arg("--state").arg(state).args(["enroll", "--coordinator", site.address(), "--token", token]);
    run(&mut command).map(drop)
}

#[test]
fn a_state_folder_that_cannot_be_written_is_named() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let volume = MountedDisk::create(Kind::Ext4, 32 << 20)?;
    let state = volume.folder().join("state");
    let site = Site::start()?;
    enrol(&site, &state)?;
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(volume.folder()))?;
    let mut command = Command::new(program("holdfast-agent"));
    let output = command.arg("--state").arg(&state).arg("run").output()?;
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    let said = format!("{said}{}", String::from_utf8_lossy(&output.stdout).to_lowercase());
    assert!(!output.status.success(), "it runs on a read-only state folder");
    assert!(said.contains("read-only") && said.contains("writable"), "reason and advice are missing: {said}");
    Ok(())
}

#[test]
fn a_full_state_folder_is_named_and_protection_begins_once_there_is_room() -> Result<()> {
    if skipped() {
        return Ok(());
    }
    let volume = MountedDisk::create(Kind::Ext4, 32 << 20)?;
    let device = LoopDevice::create(64 << 20)?;
    let site = Site::start()?;
    let agent = site.add_agent_in(&volume.folder().join("state"))?;
    let machine = site.only_machine()?;
    // Names, not bytes: a few bytes always fit somewhere.
    let names = volume.folder().join("names");
    fs::create_dir(&names)?;
    let mut count = 0;
    while fs::File::create_new(names.join(count.to_string())).is_ok() {
        count += 1;
    }
    site.protect(&machine, &[device.path()], "1s")?;
    wait_for_status(&site, &["state folder cannot be written", "make room"])?;
    fs::remove_dir_all(names)?;
    site.wait_for_points(&machine, 1, PATIENCE)?;
    drop(agent);
    Ok(())
}

#[test]
fn an_agent_of_another_coordinator_is_refused_by_both() -> Result<()> {
    let mut site = Site::start()?;
    let mut agent = site.add_agent()?;
    agent.stop()?;
    site.stop_coordinator()?;
    // Another coordinator now listens where the agent's own was.
    let own = site.data().to_owned();
    let moved = own.with_file_name("moved");
    fs::rename(&own, &moved)?;
    site.start_coordinator()?;
    agent.start()?;
    wait_for("the agent to say that this is not its coordinator", PATIENCE, || {
        let log = agent.log().to_lowercase();
        Ok((log.contains("certificate") && log.contains("enrol")).then_some(()))
    })
    .with_context(|| format!("the agent's log: {}", agent.log()))?;
    let machines = site.cli(&["machines"])?;
    ensure!(machines.as_array().is_some_and(Vec::is_empty), "the foreign agent was taken in: {machines}");
    // Its own coordinator is back: it goes on without anybody's doing.
    site.stop_coordinator()?;
    fs::rename(&own, own.with_file_name("foreign"))?;
    fs::rename(&moved, &own)?;
    site.start_coordinator()?;
    wait_for("the agent to be connected", PATIENCE, || {
        let machines = site.cli(&["machines"])?;
        Ok(machines[0]["connected"].as_bool().unwrap_or(false).then_some(()))
    })
}
