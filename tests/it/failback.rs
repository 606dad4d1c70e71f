//! There and back with real agents and disks: a machine fails over, is protected at its target, and goes back to its source
//! with everything that it wrote, also when the source wrote on meanwhile and the coordinator or the agent is killed. What is
//! looked at is what was written, unless nobody can know that.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{MountPoint, run},
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{Point, wait_for},
};
use serde_json::Value;

const DISK_BYTES: u64 = 64 << 20;
const MIB: usize = 1 << 20;

/// A disk at its source, and what the machine has on it wherever it runs.
struct Disk {
    source: LoopDevice,
    truth: Vec<u8>,
}

impl Disk {
    fn new(fill: u8) -> Result<Self> {
        let source = LoopDevice::create(DISK_BYTES)?;
        let mut disk = Self { source, truth: vec![0; usize::try_from(DISK_BYTES)?] };
        for at in 0..16 {
            disk.write(at * 2 * MIB, fill.wrapping_add(u8::try_from(at)?), MIB)?;
        }
        Ok(disk)
    }

    /// The machine writes at its source.
    fn write(&mut self, at: usize, byte: u8, bytes: usize) -> Result<()> {
        self.truth.get_mut(at..at + bytes).context("inside")?.fill(byte);
        self.stray(at, byte, bytes)
    }

    /// Somebody writes at the source who is not the machine any more.
    fn stray(&self, at: usize, byte: u8, bytes: usize) -> Result<()> {
        let file = File::options().write(true).open(self.source.path())?;
        file.write_all_at(&vec![byte; bytes], at as u64)?;
        file.sync_all()?;
        Ok(())
    }

    /// The machine writes at its target.
    fn write_at_target(&mut self, uri: &str, at: usize, byte: u8, bytes: usize) -> Result<()> {
        self.truth.get_mut(at..at + bytes).context("inside")?.fill(byte);
        let how = if byte == 0 { "-z".to_owned() } else { format!("-P {byte}") };
        let (write, flush) = (format!("write {how} {at} {bytes}"), "flush");
        run(Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", flush, uri]))?;
        Ok(())
    }
}

/// Where each disk is served, in their order.
fn exports(job: &Value, disks: &[Disk]) -> Result<Vec<String>> {
    let exports = job["exports"].as_array().with_context(|| format!("exports in {job}"))?;
    let of = |disk: &Disk| {
        let path = disk.source.path().to_str();
        let export = exports.iter().find(|export| export["path"].as_str() == path);
        Ok(export.and_then(|export| export["uri"].as_str()).context("an export")?.to_owned())
    };
    disks.iter().map(of).collect()
}

/// What a failback looked at of all disks, round by round.
fn compared(job: &Value) -> Result<Vec<u64>> {
    let rounds = job["written_back"].as_array().with_context(|| format!("rounds in {job}"))?;
    rounds.iter().map(|round| round["compared_bytes"].as_u64().context("bytes")).collect()
}

/// The lines of history of the machine's disks.
fn generations(protected: &Protected) -> Result<Vec<u64>> {
    let status = protected.site.cli(&["status"])?;
    let disks = status["machines"][0]["disks"].as_array().context("disks")?;
    disks.iter().map(|disk| disk["generation"].as_u64().context("a generation")).collect()
}

fn succeeded(job: &Value) -> Result<()> {
    ensure!(job["state"] == "succeeded", "{job}");
    Ok(())
}

/// Fails over to the newest point, commits, and protects the machine there; where each disk is served.
fn go_there(
    protected: &Protected,
    disks: &[Disk],
    write: impl FnOnce(&[String]) -> Result<()>,
) -> Result<Vec<String>> {
    let (site, machine) = (&protected.site, protected.machine.as_str());
    let job = site.cli(&["failover", machine, "--point", "latest", "--attach", "--writable"])?;
    let uris = exports(&job, disks)?;
    write(&uris)?;
    site.cli(&["commit", machine])?;
    succeeded(&site.cli(&["reprotect", machine])?)?;
    Ok(uris)
}

fn stage(protected: &Protected) -> Result<String> {
    let status = protected.site.cli(&["status"])?;
    Ok(status["machines"][0]["lifecycle"]["stage"].as_str().unwrap_or_default().to_owned())
}

/// The point's disks are these bytes.
fn is(protected: &Protected, point: &Point, truths: &[(&Path, &[u8])]) -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("holdfast-point-")?;
    let copies = protected.site.copy_point(&protected.machine, &point.id, folder.path())?;
    ensure!(copies.len() == truths.len(), "{} disks instead of {}", copies.len(), truths.len());
    for (path, truth) in truths {
        let copy = copies.iter().find(|(of, _)| Path::new(of) == *path).context("a copy of each disk")?;
        same(&fs::read(&copy.1)?, truth).with_context(|| format!("point {}", point.id))?;
    }
    Ok(())
}

fn same(found: &[u8], truth: &[u8]) -> Result<()> {
    ensure!(found.len() == truth.len(), "{} bytes instead of {}", found.len(), truth.len());
    let differing =
        found.chunks(4096).zip(truth.chunks(4096)).enumerate().filter(|(_, (one, other))| one != other);
    let blocks: Vec<usize> = differing.map(|(block, _)| block).collect();
    ensure!(blocks.is_empty(), "{} blocks differ, the first ones: {:?}", blocks.len(), blocks.get(..8));
    Ok(())
}

fn truths(disks: &[Disk]) -> Vec<(&Path, &[u8])> {
    disks.iter().map(|disk| (disk.source.path(), disk.truth.as_slice())).collect()
}

/// A point of the machine at its target that was begun after this was called.
fn new_point(protected: &Protected) -> Result<Point> {
    // The one that is being made now may be of before.
    protected.site.wait_for_new_point(&protected.machine, PATIENCE)?;
    protected.site.wait_for_new_point(&protected.machine, PATIENCE)
}

fn there_and_back(protected: &mut Protected, disks: &mut [Disk], turn: u8, killed: bool) -> Result<()> {
    let machine = protected.machine.clone();
    for disk in disks.iter_mut() {
        disk.write(40 * MIB, turn, MIB)?;
    }
    let before = new_point(protected)?;
    let then: Vec<Vec<u8>> = disks.iter().map(|disk| disk.truth.clone()).collect();
    is(protected, &before, &truths(disks))?;

    // The source is lost, and writes on where nobody sees it.
    protected.agent.kill()?;
    let job = protected.site.cli(&["failover", &machine, "--point", "latest", "--attach", "--writable"])?;
    let uris = exports(&job, disks)?;
    for (disk, uri) in disks.iter_mut().zip(&uris) {
        disk.stray(2 * MIB, 0xee, 8192)?;
        disk.write_at_target(uri, 3 * MIB + 512, turn + 10, 1024)?;
        disk.write_at_target(uri, 4 * MIB, 0, 64 << 10)?;
        disk.write_at_target(uri, 44 * MIB, turn + 20, 2 * MIB)?;
    }
    protected.agent.start()?;
    protected.site.cli(&["commit", &machine])?;
    ensure!(protected.site.cli(&["failback", &machine]).is_err(), "a failback of what is not protected");

    let job = protected.site.cli(&["reprotect", &machine])?;
    ensure!(job["state"] == "succeeded" && stage(protected)? == "protected-reversed", "{job}");
    is(protected, &new_point(protected)?, &truths(disks))?;
    for (disk, uri) in disks.iter_mut().zip(&uris) {
        disk.write_at_target(uri, 50 * MIB, turn + 30, MIB)?;
    }
    is(protected, &new_point(protected)?, &truths(disks))?;
    if killed {
        protected.site.kill_coordinator()?;
        for disk in disks.iter() {
            disk.stray(6 * MIB, 0xdd, 4096)?;
        }
        protected.site.start_coordinator()?;
        for uri in &uris {
            wait_for("the branch to be served again", PATIENCE, || {
                Ok(Command::new("nbdinfo").args(["--size", uri]).output()?.status.success().then_some(()))
            })?;
        }
    }
    for (disk, uri) in disks.iter_mut().zip(&uris) {
        disk.write_at_target(uri, 52 * MIB + 4096, turn + 40, 12288)?;
    }

    let there = generations(protected)?;
    let job = protected.site.cli(&["failback", &machine])?;
    ensure!(job["state"] == "succeeded" && stage(protected)? == "protected", "{job}");
    // Both sides have written some MiB.
    let all: u64 = compared(&job)?.iter().sum();
    ensure!(all < DISK_BYTES / 2 * disks.len() as u64, "{all} bytes were looked at: {job}");
    for disk in disks.iter() {
        same(&fs::read(disk.source.path())?, &disk.truth).context("the source's disk")?;
    }
    let branches = protected.site.data().join("branches");
    ensure!(fs::read_dir(branches)?.next().is_none(), "a branch is left");
    // It is the machine again, and replicates; nothing that was kept is lost.
    protected.site.wait_until_connected(PATIENCE)?;
    for disk in disks.iter_mut() {
        disk.write(56 * MIB, turn + 50, 8192)?;
    }
    is(protected, &new_point(protected)?, &truths(disks))?;
    ensure!(generations(protected)? == there, "the disks were compared after the failback");
    let then: Vec<(&Path, &[u8])> =
        disks.iter().zip(&then).map(|(disk, then)| (disk.source.path(), then.as_slice())).collect();
    is(protected, &before, &then)?;
    Ok(())
}

fn twice() -> Result<()> {
    let mut disks = [Disk::new(1)?, Disk::new(100)?];
    let paths: Vec<&Path> = disks.iter().map(|disk| disk.source.path()).collect();
    let mut protected = Protected::start(&paths)?;
    protected.wait_for_points(1)?;
    there_and_back(&mut protected, &mut disks, 1, true)?;
    there_and_back(&mut protected, &mut disks, 2, false)
}

#[test]
fn a_machine_goes_back_to_its_source_with_what_it_wrote_and_again() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    twice().unwrap();
}

/// What was written to the disk while nobody could see it is found by comparing all of it.
fn unseen() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("holdfast-failback-")?;
    let backing = folder.path().join("disk.raw");
    File::create(&backing)?.set_len(DISK_BYTES)?;
    let source = LoopDevice::attach(&backing)?;
    let mut disks = [Disk { source, truth: vec![0; usize::try_from(DISK_BYTES)?] }];
    disks[0].write(0, 1, 8 * MIB)?;
    let mut protected = Protected::start(&[disks[0].source.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    new_point(&protected)?;
    protected.agent.kill()?;
    go_there(&protected, &disks, |_| Ok(()))?;
    let [Disk { source, truth }] = disks;
    drop(source);
    // What marks writes does not know of this one.
    File::options().write(true).open(&backing)?.write_all_at(&[0xee; 8192], 20 * MIB as u64)?;
    let mut disks = [Disk { source: LoopDevice::attach(&backing)?, truth }];
    protected.agent.start()?;
    let there = generations(&protected)?;
    let job = protected.site.cli(&["failback", &machine])?;
    succeeded(&job)?;
    ensure!(compared(&job)?.first() == Some(&DISK_BYTES), "{job}");
    same(&fs::read(disks[0].source.path())?, &disks[0].truth).context("the source's disk")?;
    // Tracking began before the disk was let go.
    protected.site.wait_until_connected(PATIENCE)?;
    disks[0].write(30 * MIB, 9, 8192)?;
    is(&protected, &new_point(&protected)?, &truths(&disks))?;
    ensure!(generations(&protected)? == there, "the disk was compared after the failback");
    Ok(())
}

#[test]
fn what_nobody_saw_being_written_to_the_source_is_found() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    unseen().unwrap();
}

/// The agent is killed while it writes back, and somebody writes to the disk before it is there again.
fn interrupted() -> Result<()> {
    const WRITTEN: usize = 48 * MIB;
    let mut disks = [Disk::new(1)?];
    let mut protected = Protected::start(&[disks[0].source.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    new_point(&protected)?;
    let folder = tempfile::TempDir::with_prefix("holdfast-failback-")?;
    let content = folder.path().join("content");
    run(Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "count=48"])
        .arg(format!("of={}", content.display())))?;
    let write = format!("write -s {} 0 {WRITTEN}", content.display());
    go_there(&protected, &disks, |uris| {
        run(Command::new("qemu-io").args(["-f", "raw", "-c", &write, "-c", "flush"]).arg(&uris[0])).map(drop)
    })?;
    disks[0].truth[..WRITTEN].copy_from_slice(&fs::read(&content)?);

    let job = protected.site.cli(&["failback", &machine, "--no-wait"])?;
    let job = job["id"].as_str().context("its id")?.to_owned();
    let show = |protected: &Protected| protected.site.cli(&["job", "show", &job]);
    wait_for("blocks to be written back", PATIENCE, || {
        let shown = show(&protected)?;
        Ok((shown["progress"]["done_bytes"].as_u64() > Some(4 << 20)).then_some(()))
    })?;
    protected.agent.kill()?;
    let shown = show(&protected)?;
    ensure!(
        shown["written_back"].as_array().is_none_or(Vec::is_empty),
        "it was written back already: {shown}"
    );
    disks[0].stray(50 * MIB, 0xee, MIB)?;
    disks[0].stray(MIB, 0xdd, 8192)?;
    protected.agent.start()?;
    wait_for("the failback", PATIENCE, || {
        let shown = show(&protected)?;
        ensure!(shown["state"] != "held", "{shown}");
        Ok((shown["state"] == "succeeded").then_some(()))
    })?;
    let all: u64 = compared(&show(&protected)?)?.iter().sum();
    ensure!(all < DISK_BYTES, "{all} bytes were looked at");
    same(&fs::read(disks[0].source.path())?, &disks[0].truth).context("the source's disk")?;
    protected.site.wait_until_connected(PATIENCE)?;
    is(&protected, &new_point(&protected)?, &truths(&disks))
}

#[test]
fn an_agent_that_is_killed_while_it_writes_back_goes_on() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    interrupted().unwrap();
}

/// A planned failover freezes the source's file systems. They are let go for the way back, which begins when nobody uses the disk
/// any more.
fn frozen_and_mounted() -> Result<()> {
    let mut disks = [Disk { source: LoopDevice::create(DISK_BYTES)?, truth: Vec::new() }];
    run(Command::new("mkfs.ext4").arg("-qF").arg(disks[0].source.path()))?;
    let mount = MountPoint::new(disks[0].source.path(), &[])?;
    let _thawed = Thawed(mount.folder().to_owned());
    fs::write(mount.join("before"), [7; 64 << 10])?;
    let protected = Protected::start(&[disks[0].source.path()])?;
    let (site, machine) = (&protected.site, protected.machine.as_str());
    protected.wait_for_points(1)?;
    let job = site.cli(&["planned-failover", machine, "--attach", "--writable"])?;
    let uri = exports(&job, &disks)?.pop().context("an export")?;
    site.cli(&["commit", machine])?;
    succeeded(&site.cli(&["reprotect", machine])?)?;
    let point = new_point(&protected)?;
    let folder = tempfile::TempDir::with_prefix("holdfast-point-")?;
    let copies = site.copy_point(machine, &point.id, folder.path())?;
    disks[0].truth = fs::read(&copies[0].1)?;
    disks[0].write_at_target(&uri, 60 * MIB, 5, MIB)?;

    let refused = site.cli(&["failback", machine]).err().context("a failback to a mounted disk")?;
    let text = format!("{refused:#}");
    ensure!(text.contains("in use on the source") && text.contains("unmount"), "{text}");
    let thaw = Command::new("fsfreeze").arg("-u").arg(mount.folder()).output()?;
    ensure!(!thaw.status.success(), "it was frozen still");
    drop(mount);
    let jobs = site.cli(&["jobs"])?;
    let job = jobs.as_array().context("jobs")?.iter().find(|job| job["kind"] == "failback").context("it")?;
    let job = job["id"].as_str().context("its id")?.to_owned();
    site.cli(&["job", "retry", &job])?;
    wait_for("the failback", PATIENCE, || {
        let shown = site.cli(&["job", "show", &job])?;
        Ok((shown["state"] == "succeeded").then_some(()))
    })?;
    same(&fs::read(disks[0].source.path())?, &disks[0].truth).context("the source's disk")?;
    site.wait_until_connected(PATIENCE)?;
    is(&protected, &new_point(&protected)?, &truths(&disks))
}

/// What a failed test leaves frozen would keep its device.
struct Thawed(PathBuf);

impl Drop for Thawed {
    fn drop(&mut self) {
        let _not_frozen = Command::new("fsfreeze").arg("-u").arg(&self.0).output();
    }
}

#[test]
fn a_source_that_was_stopped_is_written_back_once_its_disk_is_unmounted() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    frozen_and_mounted().unwrap();
}

/// The agent that stood by for the machine until now is on disks that another one has: what it holds is nobody's any more.
#[test]
fn an_agent_that_takes_a_fenced_machine_over_stands_by_alone() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disk = Disk::new(1)?;
    let mut protected = Protected::start(&[disk.source.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    protected.site.cli(&["failover", &machine, "--point", "latest", "--attach", "--writable"])?;
    wait_for("the agent to stand by", PATIENCE, || {
        Ok((protected.agent.status()?["fenced"].is_string()).then_some(()))
    })?;
    let _other = protected.site.add_agent_of(&machine)?;
    let told = wait_for("the agent before it to be told", PATIENCE, || {
        Ok(protected.agent.log().to_lowercase().contains("revoked").then_some(()))
    });
    told.with_context(|| protected.agent.log())?;
    protected.agent.kill()
}
