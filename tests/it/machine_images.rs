//! What a running machine has written to images of its own, at instants, from QEMU itself: nothing that it wrote is missed, whatever
//! becomes of it, and nothing that it writes later is seen.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    ids::{DiskId, MachineId, PointId},
    units::{BLOCK_BYTES, BlockRange},
    wire::Inventory,
};
use holdfast_coordinator::{
    compute::{
        machines::{MachineInstant, MachineRequest, Machines, Mark, OwnImages as _, Stop, Suited, Written},
        nbd::server::{DamageSink, ExportHandle, Listening, NbdServer, Settings},
        port::{Endpoint, Task},
        vm::{MachineSettings, QemuMachines, definition::Accelerator, qmp::Qmp},
    },
    points::view::ViewError,
};
use holdfast_tests::{
    boot_sector::boot_sector, guest, memory_view::MemoryView, protected::PATIENCE, samples, site::wait_for,
};
use serde_json::json;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::machine_vm::{Remains, processes};

const DISKS: usize = 2;
const DISK_BYTES: usize = 8 << 20;

/// Writes to a disk of a running machine, and flushes, as its guest would: through its device.
pub(crate) async fn write_as_guest(control: &Path, disk: usize, block: u64, byte: u8) -> Result<()> {
    let mut qmp = Qmp::connect(control).await.map_err(anyhow::Error::msg)?;
    let bus = "/machine/peripheral-anon";
    let devices = qmp.execute("qom-list", json!({"path": bus})).await.map_err(anyhow::Error::msg)?;
    let mut before = disk;
    for device in devices.as_array().context("devices")? {
        let path = format!("{bus}/{}", device["name"].as_str().unwrap_or_default());
        let drive = qmp.execute("qom-get", json!({"path": path, "property": "drive"})).await;
        // Its node is another one while an instant is read.
        if drive.is_err() {
            continue;
        }
        if before > 0 {
            before -= 1;
            continue;
        }
        for device in [format!("{path}/virtio-backend"), path] {
            let (from, bytes) = (block * BLOCK_BYTES as u64, BLOCK_BYTES);
            let line = format!("qemu-io -d {device} \"write -P {byte} {from} {bytes}\"");
            let said = qmp.execute("human-monitor-command", json!({"command-line": line})).await;
            let said = said.map_err(anyhow::Error::msg)?;
            if said == "" {
                let flush = format!("qemu-io -d {device} flush");
                let flushed = qmp.execute("human-monitor-command", json!({"command-line": flush})).await;
                ensure!(flushed.map_err(anyhow::Error::msg)? == "", "it does not flush");
                return Ok(());
            }
            ensure!(
                said.as_str().is_some_and(|said| said.contains("not found") || said.contains("block device")),
                "{said}"
            );
        }
    }
    anyhow::bail!("the machine has no disk {disk}")
}

#[derive(Debug)]
struct NoAlarm;

impl DamageSink for NoAlarm {
    fn cannot_read(&self, export: &str, _bytes: std::ops::Range<u64>, error: &ViewError) {
        panic!("{export} cannot be read: {error}");
    }
}

/// A machine of two disks that has been moved to its own images.
struct World {
    runtime: Runtime,
    folder: TempDir,
    machines: QemuMachines,
    /// What its disks hold.
    truth: Mutex<Vec<Vec<u8>>>,
    _remains: Remains,
    _exports: Vec<ExportHandle>,
    _listening: Listening,
}

const OWNER: &str = "job-1";

fn disk(number: usize) -> DiskId {
    DiskId::from_bytes([u8::try_from(number).unwrap() + 1; 16])
}

impl World {
    fn start() -> Result<Self> {
        let (runtime, folder) = (Runtime::new()?, TempDir::new()?);
        let mut truth = vec![vec![0; DISK_BYTES]; DISKS];
        let system = boot_sector("up");
        truth[0][..system.len()].copy_from_slice(&system);
        truth[1][40 * BLOCK_BYTES..50 * BLOCK_BYTES].fill(5);
        let server = NbdServer::new(Settings::default(), Arc::new(NoAlarm));
        let socket = folder.path().join("base.sock");
        let (mut disks, mut exports) = (Vec::new(), Vec::new());
        for (number, bytes) in truth.iter().enumerate() {
            let name = format!("vd{number}");
            exports.push(server.export(&name, "a disk", Arc::new(MemoryView::from_bytes(bytes.clone())))?);
            let uri = format!("nbd+unix:///{name}?socket={}", socket.display());
            disks.push(Endpoint { disk: disk(number), name, uri, size_bytes: DISK_BYTES as u64 });
        }
        let guard = runtime.enter();
        let listening = server.listen_unix(&socket)?;
        drop(guard);
        let overrides = folder.path().join("hardware");
        fs::create_dir(&overrides)?;
        fs::write(
            overrides.join("small.toml"),
            "processors = 1\nmemory_mib = 128\ncpu = \"Westmere\"\ndisk_model = \"virtio\"\nfirmware = \"bios\"\n",
        )?;
        let request = MachineRequest {
            owner: OWNER.to_owned(),
            machine: MachineId::from_bytes([9; 16]),
            point: PointId::from_bytes([8; 16]),
            name: "small".to_owned(),
            // What it is made of is said in its hardware file.
            inventory: Inventory { network_cards: Vec::new(), ..samples::inventory() },
            suited: Suited::default(),
            disks,
            writable: false,
            isolated: true,
            networks: std::collections::BTreeMap::new(),
        };
        let machines = machines(&folder);
        let _remains = Remains(folder.path().to_owned());
        runtime.block_on(machines.define(request))?;
        let truth = Mutex::new(truth);
        let world =
            Self { runtime, folder, machines, truth, _remains, _exports: exports, _listening: listening };
        world.runtime.block_on(world.machines.start(OWNER.to_owned()))?;
        Ok(world)
    }

    fn stream(&self) -> Result<()> {
        let task = Arc::new(Task::default());
        Ok(self.runtime.block_on(self.machines.stream(OWNER.to_owned(), task))?)
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join(format!("vm-{OWNER}.qmp"))
    }

    fn write(&self, number: usize, block: u64, byte: u8) -> Result<()> {
        self.runtime.block_on(write_as_guest(&self.control(), number, block, byte))?;
        let at = usize::try_from(block)? * BLOCK_BYTES;
        self.truth.lock().unwrap()[number][at..at + BLOCK_BYTES].fill(byte);
        Ok(())
    }

    fn instant(&self, since: Option<Mark>) -> Result<MachineInstant> {
        Ok(self.runtime.block_on(self.machines.instant(OWNER.to_owned(), since))?)
    }

    fn end(&self) -> Result<()> {
        self.runtime.block_on(self.machines.end_instant(OWNER.to_owned()))?;
        let left = fs::read_dir(self.own())?.flatten().map(|entry| entry.file_name().into_string().unwrap());
        let left: Vec<String> =
            left.filter(|name| name.contains("instant") || name.contains("reader")).collect();
        ensure!(left.is_empty(), "{left:?} of an instant is left");
        Ok(())
    }

    fn own(&self) -> PathBuf {
        self.folder.path().join("vm").join(OWNER)
    }

    fn stop(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.machines.stop(OWNER.to_owned(), Stop::PowerOff))?)
    }

    fn start_again(&self) -> Result<()> {
        self.runtime.block_on(self.machines.start(OWNER.to_owned()))?;
        Ok(())
    }

    /// Whether an instant holds this.
    fn holds(instant: &MachineInstant, truth: &[Vec<u8>]) -> Result<()> {
        ensure!(instant.disks.len() == DISKS, "{} disks", instant.disks.len());
        for (number, (found, truth)) in instant.disks.iter().zip(truth).enumerate() {
            let mut bytes = vec![0; DISK_BYTES];
            found.view.read(0, &mut bytes)?;
            let differs = (0..DISK_BYTES / BLOCK_BYTES).find(|block| {
                bytes[block * BLOCK_BYTES..][..BLOCK_BYTES] != truth[block * BLOCK_BYTES..][..BLOCK_BYTES]
            });
            ensure!(
                found.disk == disk(number) && differs.is_none(),
                "disk {number} differs at block {differs:?}"
            );
        }
        Ok(())
    }

    fn truth(&self) -> Vec<Vec<u8>> {
        self.truth.lock().unwrap().clone()
    }

    /// Takes an instant, and says what was written; it has to hold what the machine has now.
    fn look(&self, since: Option<Mark>) -> Result<(Option<Mark>, Vec<Written>)> {
        let instant = self.instant(since)?;
        Self::holds(&instant, &self.truth())?;
        let written = instant.disks.iter().map(|disk| disk.written.clone()).collect();
        self.end()?;
        Ok((instant.mark, written))
    }
}

fn machines(folder: &TempDir) -> QemuMachines {
    QemuMachines::new(MachineSettings {
        folder: folder.path().join("vm"),
        sockets: folder.path().to_owned(),
        overrides: folder.path().join("hardware"),
        accelerator: Accelerator::Tcg,
        network: "user".to_owned(),
    })
}

fn blocks(ranges: &[BlockRange]) -> BTreeSet<u64> {
    ranges.iter().flat_map(|range| range.start.0..range.end().0).collect()
}

fn since_mark(written: &Written) -> Result<BTreeSet<u64>> {
    let Written::SinceMark(ranges) = written else { anyhow::bail!("{written:?} is not since the mark") };
    Ok(blocks(ranges))
}

fn since_point(written: &Written) -> Result<BTreeSet<u64>> {
    let Written::SincePoint(ranges) = written else { anyhow::bail!("{written:?} is not since the point") };
    Ok(blocks(ranges))
}

fn walked() -> Result<()> {
    let world = World::start()?;
    // Before it is moved, too: the overlays take part of it from what is served.
    world.write(0, 100, 1)?;
    let (_, written) = world.look(None)?;
    ensure!(since_point(&written[0])? == [100].into() && since_point(&written[1])?.is_empty(), "{written:?}");
    world.stream()?;

    // Copying is no writing. What is written while an instant is read is not in it, but in the next.
    world.write(1, 41, 2)?;
    let before = world.truth();
    let instant = world.instant(None)?;
    for (number, block) in [(0, 100), (0, 101), (1, 41), (1, 45), (1, 200)] {
        world.write(number, block, 3)?;
    }
    World::holds(&instant, &before)?;
    let written: Vec<Written> = instant.disks.iter().map(|disk| disk.written.clone()).collect();
    ensure!(
        since_point(&written[0])? == [100].into() && since_point(&written[1])? == [41].into(),
        "{written:?}"
    );
    world.end()?;
    let (mark, written) = world.look(instant.mark)?;
    ensure!(since_mark(&written[0])? == [100, 101].into(), "{written:?}");
    ensure!(since_mark(&written[1])? == [41, 45, 200].into(), "{written:?}");
    let (mark, written) = world.look(mark)?;
    ensure!(since_mark(&written[0])?.is_empty() && since_mark(&written[1])?.is_empty(), "{written:?}");

    // The coordinator is killed while it reads: the machine goes on, and the next instant is as good.
    world.write(0, 7, 4)?;
    drop(world.instant(mark)?);
    world.write(0, 8, 4)?;
    let again = machines(&world.folder);
    let instant = world.runtime.block_on(again.instant(OWNER.to_owned(), None))?;
    World::holds(&instant, &world.truth())?;
    ensure!(since_point(&instant.disks[0].written)? == [7, 8, 100, 101].into(), "{instant:?}");
    world.end()?;

    // It is shut down: its images are read as they lie, and what it writes after it was started again is since the same mark.
    world.write(1, 300, 5)?;
    world.stop()?;
    let (mark, written) = world.look(instant.mark)?;
    ensure!(since_mark(&written[0])?.is_empty() && since_mark(&written[1])? == [300].into(), "{written:?}");
    world.start_again()?;
    world.write(0, 9, 6)?;
    let (mark, written) = world.look(mark)?;
    ensure!(
        since_mark(&written[0])? == [9].into() && since_mark(&written[1])? == [300].into(),
        "{written:?}"
    );

    // One that reads is in nobody's way.
    world.stop()?;
    let instant = world.instant(None)?;
    ensure!(since_point(&instant.disks[1].written)? == [41, 45, 200, 300].into(), "{instant:?}");
    world.start_again()?;
    ensure!(processes(&world.own())?.len() == 1, "the reader is left");

    // Whoever comes first, it starts: QEMU does not write to what somebody reads.
    for _ in 0..5 {
        world.end()?;
        world.stop()?;
        let owner = || OWNER.to_owned();
        let (taken, started) = world.runtime.block_on(async {
            tokio::join!(world.machines.instant(owner(), None), world.machines.start(owner()))
        });
        taken?;
        started?;
        ensure!(processes(&world.own())?.len() == 1, "the machine does not run alone");
    }

    // Its power is lost: nothing is known, and that is said. From then on something is.
    world.write(0, 10, 7)?;
    for id in processes(&world.own())? {
        Command::new("kill").args(["-9", &id.to_string()]).status()?;
    }
    wait_for("QEMU's end", PATIENCE, || Ok(processes(&world.own())?.is_empty().then_some(())))?;
    let (standing, written) = world.look(mark.clone())?;
    ensure!(standing.is_none() && written == [Written::Unknown, Written::Unknown], "{written:?}");
    world.start_again()?;
    let (mark, written) = world.look(mark)?;
    ensure!(written == [Written::Unknown, Written::Unknown], "{written:?}");
    world.write(1, 11, 8)?;
    let (_, written) = world.look(mark)?;
    ensure!(since_mark(&written[0])?.is_empty() && since_mark(&written[1])? == [11].into(), "{written:?}");

    // Sealed, it is not started any more, until it is again.
    world.stop()?;
    world.runtime.block_on(world.machines.seal(OWNER.to_owned(), true))?;
    world.start_again()?;
    ensure!(processes(&world.own())?.is_empty(), "a sealed machine runs");
    ensure!(world.runtime.block_on(machines(&world.folder).is_sealed(OWNER.to_owned()))?, "it is not sealed");
    world.look(None)?;
    world.runtime.block_on(world.machines.seal(OWNER.to_owned(), false))?;
    world.start_again()?;
    ensure!(processes(&world.own())?.len() == 1, "it does not run");
    world.instant(None)?;
    world.runtime.block_on(world.machines.destroy(OWNER.to_owned()))?;
    ensure!(processes(&world.own())?.is_empty() && !world.own().exists(), "something is left");
    Ok(())
}

#[test]
fn instants_of_a_running_machine_miss_nothing_and_hold_nothing_of_later() {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
