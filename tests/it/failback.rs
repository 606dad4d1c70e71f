//! There and back with real agents and disks: a machine fails over, is protected at its target, and goes back to its source
//! with everything that it wrote, also when the source wrote on meanwhile and the coordinator is killed.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
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

    let job = protected.site.cli(&["failback", &machine])?;
    ensure!(job["state"] == "succeeded" && stage(protected)? == "protected", "{job}");
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
