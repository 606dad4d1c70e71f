//! Failovers of a real machine: a source that comes back is fenced, a cancel lets it in again without a comparison, and a
//! planned failover loses nothing.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountPoint, MountedDisk, run},
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{Site, wait_for},
};
use serde_json::Value;

const DISK_BYTES: u64 = 64 << 20;

/// Where the only machine stands.
fn lifecycle(site: &Site) -> Result<Value> {
    Ok(site.cli(&["status"])?["machines"][0]["lifecycle"].clone())
}

/// Line of history and stored bytes of its only disk.
fn disk(site: &Site) -> Result<(u64, u64)> {
    let disk = site.cli(&["status"])?["machines"][0]["disks"][0].clone();
    Ok((
        disk["generation"].as_u64().context("a generation")?,
        disk["stored_bytes"].as_u64().context("stored bytes")?,
    ))
}

fn write(folder: &Path, name: &str) -> Result<()> {
    let mut file = File::create(folder.join(name))?;
    file.write_all(&[7; 64 << 10])?;
    file.sync_all()?;
    File::open(folder)?.sync_all()?;
    Ok(())
}

/// The file names that an export holds, lost+found left out.
fn names(uri: &str) -> Result<Vec<String>> {
    let folder = tempfile::TempDir::with_prefix("holdfast-export-")?;
    let (_device, mount) = mounted(uri, folder.path())?;
    let entries = fs::read_dir(mount.folder())?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .filter(|name| name != "lost+found")
        .collect();
    names.sort();
    Ok(names)
}

fn mounted(uri: &str, folder: &Path) -> Result<(LoopDevice, MountPoint)> {
    let copy = folder.join("copy.img");
    run(Command::new("nbdcopy").arg(uri).arg(&copy))?;
    let device = LoopDevice::attach(&copy)?;
    let mount = MountPoint::new(device.path(), &[])?;
    Ok((device, mount))
}

fn export(job: &Value) -> Result<String> {
    Ok(job["exports"][0]["uri"].as_str().with_context(|| format!("an export in {job}"))?.to_owned())
}

/// Waits until an agent that is fenced says so itself.
fn wait_until_told(agent: &holdfast_tests::site::Agent) -> Result<()> {
    wait_for("the agent to report that it is fenced", PATIENCE, || {
        let status = agent.status().unwrap_or_default();
        Ok(status["fenced"].as_str().map(|_| ()))
    })
}

fn split_brain() -> Result<()> {
    let source = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut protected = Protected::start(&[source.device.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    write(source.folder(), "1-replicated")?;
    let older = protected.site.wait_for_new_point(&machine, PATIENCE)?;
    let generation = disk(&protected.site)?.0;

    // The source is cut off, and writes on. Its machine fails over.
    protected.agent.kill()?;
    let failover = ["failover", &machine, "--point", "latest", "--attach"];
    let job = protected.site.cli(&failover)?;
    write(source.folder(), "2-on-the-old-source")?;
    let stage = lifecycle(&protected.site)?;
    ensure!(stage["stage"] == "failed-over" && stage["fenced"] == true, "{stage}");
    ensure!(names(&export(&job)?)? == ["1-replicated"], "the failed-over machine has another state");
    ensure!(protected.site.cli(&failover).is_err(), "a machine failed over twice");

    // It comes back, also after a restart of the coordinator, and finds out.
    protected.agent.start()?;
    wait_until_told(&protected.agent)?;
    protected.site.kill_coordinator()?;
    protected.site.start_coordinator()?;
    write(source.folder(), "3-still-on-the-old-source")?;
    wait_for("the coordinator to see it again", PATIENCE, || {
        Ok(lifecycle(&protected.site)?["source_told_at"].as_str().map(|_| ()))
    })?;
    let (stored, points) = (disk(&protected.site)?.1, protected.points()?.len());
    let newest = protected.points()?.pop().context("a point")?;
    ensure!(names(&export(&protected.site.cli(&["job", "show", id(&job)?])?)?)? == ["1-replicated"]);

    // Cancelled: the source is the machine, on the same line of history, and nothing is compared.
    let asked = Instant::now();
    protected.site.cli(&["cancel", &machine])?;
    protected.site.wait_until_connected(PATIENCE)?;
    eprintln!("replicating again {:?} after the cancel", asked.elapsed());
    let point = protected.site.wait_for_new_point(&machine, PATIENCE)?;
    ensure!(lifecycle(&protected.site)?["stage"] == "protected");
    ensure!(disk(&protected.site)?.0 == generation, "a cancel cost a line of history");
    let later: Vec<String> = protected.points()?.into_iter().map(|point| point.id).collect();
    ensure!(later.len() > points && later.contains(&newest.id), "points are missing: {later:?}");
    ensure!(disk(&protected.site)?.1 < stored + DISK_BYTES / 4, "the disk was sent again");
    let attached = protected.site.attach(&machine, &point.id)?;
    let found = names(&attached.exports[0].1)?;
    ensure!(found == ["1-replicated", "2-on-the-old-source", "3-still-on-the-old-source"], "{found:?}");
    protected.site.cli(&["test-failover", &machine, "--cleanup"])?;
    ensure!(lifecycle(&protected.site)?["tests"] == serde_json::json!([]));

    // There and back for good: change of the point also after the commit, which cannot be cancelled but resumed from.
    let job = protected.site.cli(&failover)?;
    ensure!(names(&export(&job)?)?.len() == 3);
    let changed = protected.site.cli(&["change-point", &machine, "--point", &older.id])?;
    ensure!(names(&export(&changed)?)? == ["1-replicated"]);
    protected.site.cli(&["commit", &machine])?;
    let changed = protected.site.cli(&["change-point", &machine, "--point", &point.id])?;
    ensure!(names(&export(&changed)?)?.len() == 3, "commit took the points away");
    for refused in [&["cancel", &machine][..], &["job", "cancel", id(&job)?]] {
        let said = protected.site.cli(refused).err().context("a commit was taken back")?.to_string();
        ensure!(said.contains("resume"), "{said}");
    }
    protected.site.cli(&["resume", &machine, "--yes"])?;
    protected.site.wait_until_connected(PATIENCE)?;
    protected.site.wait_for_new_point(&machine, PATIENCE)?;
    ensure!(disk(&protected.site)?.0 == generation + 1, "what the source holds was not compared");
    Ok(())
}

fn id(job: &Value) -> Result<&str> {
    job["id"].as_str().context("a job's id")
}

#[test]
fn a_source_that_comes_back_is_fenced_and_a_cancel_lets_it_in() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    split_brain().unwrap();
}

/// Both sides write after the failover: each keeps to its own line, over a coordinator that is killed, and what the target wrote
/// is given up with a resume and not before.
fn both_sides_write() -> Result<()> {
    const MIB: usize = 1 << 20;
    let source = LoopDevice::create(DISK_BYTES)?;
    let written = |at: usize, byte: u8| {
        let file = File::options().write(true).open(source.path())?;
        file.write_all_at(&[byte; 8192], at as u64)?;
        file.sync_all()
    };
    let mut protected = Protected::start(&[source.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    written(MIB, 1)?;
    protected.site.wait_for_new_point(&machine, PATIENCE)?;
    protected.agent.kill()?;
    let mut target = fs::read(source.path())?;
    let job = protected.site.cli(&["failover", &machine, "--point", "latest", "--attach", "--writable"])?;
    let uri = export(&job)?;

    written(MIB, 2)?;
    written(3 * MIB, 2)?;
    run(Command::new("qemu-io").args([
        "-f",
        "raw",
        "-c",
        "write -P 3 1049600 1024",
        "-c",
        "write -P 3 2M 1M",
        &uri,
    ]))?;
    for (at, bytes) in [(MIB + 1024, 1024), (2 * MIB, MIB)] {
        target.get_mut(at..at + bytes).context("inside")?.fill(3);
    }
    let folder = tempfile::TempDir::with_prefix("holdfast-branch-")?;
    let copy = folder.path().join("copy.img");
    let is_the_target_s = || -> Result<()> {
        run(Command::new("nbdcopy").arg(&uri).arg(&copy))?;
        let same = fs::read(&copy)? == target;
        fs::remove_file(&copy)?;
        ensure!(
            same,
            "the failed-over machine does not hold what was written to it, or holds something else"
        );
        Ok(())
    };
    is_the_target_s()?;
    protected.agent.start()?;
    wait_until_told(&protected.agent)?;
    protected.site.kill_coordinator()?;
    protected.site.start_coordinator()?;
    wait_for("the branch to be served again", PATIENCE, || {
        Ok(Command::new("nbdinfo").args(["--size", &uri]).output()?.status.success().then_some(()))
    })?;
    protected.site.cli(&["commit", &machine])?;
    written(5 * MIB, 2)?;
    is_the_target_s()?;

    protected.site.cli(&["resume", &machine, "--yes"])?;
    protected.site.wait_until_connected(PATIENCE)?;
    let point = protected.site.wait_for_new_point(&machine, PATIENCE)?;
    let copies = protected.site.copy_point(&machine, &point.id, folder.path())?;
    ensure!(fs::read(&copies.first().context("a copy")?.1)? == fs::read(source.path())?, "not the source's");
    ensure!(fs::read_dir(protected.site.data().join("branches"))?.next().is_none(), "a branch is left");
    Ok(())
}

#[test]
fn both_sides_write_after_a_failover_and_neither_sees_the_other() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    both_sides_write().unwrap();
}

/// Writes records durably until it is told to end; the file system may stand still meanwhile.
struct Application {
    acknowledged: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Application {
    fn start(path: PathBuf) -> Self {
        let (acknowledged, ending) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&acknowledged), Arc::clone(&ending));
        let write = move || {
            let mut file = File::create(path).unwrap();
            while !end.load(Ordering::Relaxed) {
                file.write_all(&[1; 512]).unwrap();
                file.sync_data().unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
        };
        Self { acknowledged, ending, thread: Some(thread::spawn(write)) }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        let _panicked = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// Whatever happens to the test, its file system does not stay frozen. Dropped before the application and the disk.
struct Thawed(PathBuf);

impl Drop for Thawed {
    fn drop(&mut self) {
        let _not_frozen = Command::new("fsfreeze").arg("-u").arg(&self.0).output();
    }
}

fn planned() -> Result<()> {
    let source = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let folder = tempfile::TempDir::with_prefix("holdfast-stop-")?;
    let (program, called) = (folder.path().join("stop"), folder.path().join("called"));
    fs::write(&program, format!("#!/bin/sh\necho $1 >> {}\n", called.display()))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let site = Site::start()?;
    let settings = format!("[source]\nstop = {program:?}\nfenced = {program:?}\n");
    let agent = site.add_agent_with(&[], &settings)?;
    let protected = Protected::with(site, agent, &[source.device.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());
    protected.wait_for_points(1)?;
    let generation = disk(site)?.0;
    let application = Application::start(source.folder().join("records"));
    let _thawed = Thawed(source.folder().to_owned());
    wait_for("records", PATIENCE, || Ok((application.acknowledged() > 20).then_some(())))?;

    let job = site.cli(&["planned-failover", machine, "--attach"])?;
    ensure!(lifecycle(site)?["stage"] == "failed-over", "{job}");
    // What the application was told to be durable is there, to the last record; and it writes no more.
    let copies = tempfile::TempDir::with_prefix("holdfast-export-")?;
    {
        let (_device, mount) = mounted(&export(&job)?, copies.path())?;
        let held = fs::metadata(mount.join("records"))?.len() / 512;
        let told = application.acknowledged();
        ensure!(held == told || held == told + 1, "{told} records were acknowledged, {held} are there");
        let later = application.acknowledged();
        ensure!(later == told, "the stopped source went on writing: {told}, then {later}");
    }
    wait_until_told(&protected.agent)?;

    // Taken back: the source goes on where it stood, and replicates without a comparison.
    let before = application.acknowledged();
    site.cli(&["cancel", machine])?;
    site.wait_until_connected(PATIENCE)?;
    wait_for("the application to go on", PATIENCE, || {
        Ok((application.acknowledged() > before).then_some(()))
    })?;
    site.wait_for_new_point(machine, PATIENCE)?;
    ensure!(disk(site)?.0 == generation, "a cancel cost a line of history");
    let called = fs::read_to_string(&called)?;
    ensure!(called.lines().collect::<Vec<_>>() == ["stop", "fenced", "resume"], "{called}");
    Ok(())
}

#[test]
fn a_planned_failover_loses_no_record_that_was_acknowledged() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    planned().unwrap();
}

/// Somebody who writes past the file systems: nothing is proved, so nothing happens.
fn written_on() -> Result<()> {
    let source = LoopDevice::create(DISK_BYTES)?;
    let protected = Protected::start(&[source.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());
    protected.wait_for_points(1)?;
    let (ending, path) = (Arc::new(AtomicBool::new(false)), source.path().to_owned());
    let end = Arc::clone(&ending);
    let writer = thread::spawn(move || {
        let mut file = File::options().write(true).open(path).unwrap();
        while !end.load(Ordering::Relaxed) {
            file.write_all(&[3; 4096]).unwrap();
            file.sync_data().unwrap();
            thread::sleep(Duration::from_millis(100));
        }
    });
    let failed = site.cli(&["planned-failover", machine, "--attach"]);
    ending.store(true, Ordering::Relaxed);
    writer.join().map_err(|_| anyhow::anyhow!("the writer died"))?;
    let said = failed.err().context("a point that is not the last was taken for it")?.to_string();
    ensure!(said.contains("written to after the last point"), "{said}");
    ensure!(lifecycle(site)?["stage"] == "protected");
    protected.site.wait_for_new_point(machine, PATIENCE)?;
    Ok(())
}

#[test]
fn a_planned_failover_of_a_source_that_writes_on_does_not_happen() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    written_on().unwrap();
}
