//! A real coordinator process, driven by the real `holdfast`, with an agent's link that sends hand-made frames. No root.

mod corruption;

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::{
    enrol::enrol,
    identity::IdentityStore,
    ship::{
        self, ShipHandle, ShipParts, ShipSettings,
        port::{Inbound, OutgoingFrame},
    },
};
use holdfast_common::{
    clock::{Clock, SystemClock},
    entropy::{Entropy, SystemEntropy},
    frame::{
        Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, FrameIdentity, FrameSealer,
        ScanRecord,
        seal::{seal_cut, seal_scan},
    },
    ids::{Interval, MachineId, PointId, Sequence},
    units::{BlockIndex, BlockRange},
    wire::{Assignment, Capture, DiskIdentity, DiskInventory, PartitionTable},
};
use holdfast_tests::{
    site::{Site, program, wait_for},
    transport::inventory,
};
use tokio::runtime::Runtime;

const PATIENCE: Duration = Duration::from_secs(30);
const BLOCKS: u64 = 16;
const DISK: &str = "/dev/vda";

fn holdfast(coordinator: &Path, arguments: &[&str]) -> Result<(i32, String)> {
    let Output { status, stderr, .. } =
        Command::new(program("holdfast")).arg("--coordinator").arg(coordinator).args(arguments).output()?;
    Ok((status.code().unwrap_or(-1), String::from_utf8_lossy(&stderr).into_owned()))
}

#[test]
fn mistakes_are_named_and_have_their_exit_codes() -> Result<()> {
    let mut site = Site::start()?;
    let socket = site.data().join("holdfast.sock");
    let check = |arguments: &[&str], code: i32, words: &[&str]| -> Result<()> {
        let (found, said) = holdfast(&socket, arguments)?;
        ensure!(found == code, "{arguments:?} gave {found}: {said}");
        ensure!(words.iter().all(|word| said.contains(word)), "{arguments:?} said: {said}");
        Ok(())
    };
    check(&["machine", "show", "nope"], 1, &["no machine `nope`", "holdfast machines"])?;
    check(&["job", "show", "0123abcd"], 1, &["no single job", "holdfast jobs"])?;
    check(&["token", "create", "--life", "soon"], 2, &["500ms, 10s"])?;
    check(&["token", "create", "--life", "400d"], 1, &["use 1s to 30d"])?;
    check(&["test-failover", "web-1", "--point", "latest"], 2, &["--attach"])?;
    check(&["protect", "web-1"], 2, &["nothing to do"])?;
    check(&["--json", "machine", "show", "nope"], 1, &["\"code\":\"machine-unknown\""])?;
    site.stop_coordinator()?;
    check(&["machines"], 3, &["holdfast-coordinator serve"])?;
    let (code, said) = holdfast(Path::new("https://example.org"), &["machines"])?;
    ensure!(code == 2 && said.contains("holdfast login"), "{said}");
    let (code, said) = holdfast(Path::new("http://example.org:1"), &["machines"])?;
    ensure!(code == 2 && said.contains("https://"), "{said}");
    Ok(())
}

#[test]
fn two_coordinators_do_not_share_a_folder() -> Result<()> {
    let site = Site::start()?;
    let second = Command::new(program("holdfast-coordinator"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(site.data())
        .output()?;
    let said = String::from_utf8_lossy(&second.stderr);
    ensure!(!second.status.success() && said.contains("another coordinator"), "{said}");
    Ok(())
}

/// An agent's link with one disk and frames made by hand.
struct Link {
    runtime: Runtime,
    handle: ShipHandle,
    machine: MachineId,
    disk: Capture,
    next: Sequence,
    interval: Interval,
    content: Vec<u8>,
}

impl Link {
    /// Enrols, connects, has the disk protected, and declares it scanned.
    fn open(site: &Site, folder: &Path) -> Result<Self> {
        Self::open_as(site, folder, "web-1")
    }

    /// The same for a machine of this name.
    fn open_as(site: &Site, folder: &Path, name: &'static str) -> Result<Self> {
        let runtime = Runtime::new()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::new());
        let created = site.cli(&["token", "create"])?;
        let token = created["token"].as_str().context("token")?.parse()?;
        let store = IdentityStore::new(folder);
        let (clock_used, address) = (Arc::clone(&clock), site.address());
        runtime.block_on(enrol(address, &token, name, &store, clock_used, entropy.as_ref()))?;
        let inventory = Arc::new(move || {
            let mut found = inventory(name);
            found.disks.push(disk());
            found
        });
        let parts = ShipParts { store, inventory, clock, entropy, tracked: None };
        let (handle, inbound) = ship::start(ShipSettings::default(), parts, runtime.handle())?;
        let mut machine = MachineId::from_bytes([0; 16]);
        wait_for("the machine to connect", PATIENCE, || {
            let machines = site.cli(&["machines"])?;
            let machines = machines.as_array().context("machines")?;
            let is_ours = |machine: &&serde_json::Value| machine["name"] == name;
            let ours = machines.iter().find(is_ours).context("the machine")?;
            machine = ours["id"].as_str().context("id")?.parse()?;
            Ok((ours["connected"] == true).then_some(()))
        })?;
        site.cli(&["protect", name, "--disk", DISK, "--retention", "1h,10m:1d"])?;
        let assigned = |event: Inbound| match event {
            Inbound::Connected(welcome) => Some(welcome.assignment),
            Inbound::Assigned(assignment) => Some(assignment),
            _ => None,
        };
        let disk = loop {
            let event = inbound.recv_timeout(PATIENCE).context("the assignment")?;
            let disks = assigned(event).map(|Assignment { disks, .. }| disks).unwrap_or_default();
            if let Some(disk) = disks.into_iter().next() {
                break disk;
            }
        };
        std::thread::spawn(move || inbound.iter().for_each(drop));
        ensure!(disk.replica_empty && disk.durable == Sequence(0), "a new disk: {disk:?}");
        let content = vec![0; usize::try_from(BLOCKS)? * 4096];
        let interval = disk.interval;
        Ok(Self { runtime, handle, machine, disk, next: Sequence(1), interval, content })
    }

    fn identity(&mut self) -> FrameIdentity {
        let (disk, generation) = (self.disk.disk, self.disk.generation);
        let identity = FrameIdentity { disk, generation, sequence: self.next, interval: self.interval };
        self.next = self.next.next();
        identity
    }

    fn write(&mut self, block: usize, byte: u8) -> Result<()> {
        let plain = vec![byte; 4096];
        self.content[block * 4096..][..4096].copy_from_slice(&plain);
        let identity = self.identity();
        let range = BlockRange::new(block as u64, 1);
        let bytes = FrameSealer::new(Some(1))?.seal_data(identity, &[Extent::data(range)], &plain)?;
        Ok(self.handle.send_frame(OutgoingFrame { identity, bytes })?)
    }

    fn scanned(&mut self) -> Result<()> {
        let identity = self.identity();
        let bytes = seal_scan(identity, &ScanRecord { scanned_to: BlockIndex(BLOCKS), complete: true })?;
        Ok(self.handle.send_frame(OutgoingFrame { identity, bytes })?)
    }

    fn cut(&mut self) -> Result<String> {
        let identity = self.identity();
        let at = SystemClock::new().wall();
        let point = PointId(SystemEntropy::new().uuid(at));
        let member = CutMember { disk: identity.disk, generation: identity.generation };
        let record = CutRecord {
            point,
            machine: self.machine,
            at,
            hold_us: 5_000,
            method: CutMethod::Freeze,
            consistency: Consistency::Crash,
            members: vec![member],
            notes: vec!["made by hand".to_owned()],
            request: None,
            more: CutMore::default(),
        };
        let bytes = seal_cut(identity, &record)?;
        self.handle.send_frame(OutgoingFrame { identity, bytes })?;
        self.interval = self.interval.next();
        Ok(point.to_string())
    }
}

fn disk() -> DiskInventory {
    DiskInventory {
        path: DISK.to_owned(),
        identity: DiskIdentity { serial: Some("A1".to_owned()), ..DiskIdentity::default() },
        size_bytes: BLOCKS * 4096,
        logical_block_bytes: 512,
        read_only: false,
        model: "test".to_owned(),
        driver: String::new(),
        table: PartitionTable::None,
        partitions: Vec::new(),
        file_systems: Vec::new(),
    }
}

/// Waits until the machine has this point, processed.
fn processed(site: &Site, machine: &str, point: &str) -> Result<()> {
    wait_for("the point to be processed", PATIENCE, || {
        let points = site.points(machine)?;
        Ok(points.iter().any(|found| found.id == point && found.state == "processed").then_some(()))
    })
}

/// What must be the same before and after a restart or a rebuild of the catalog.
fn kept(site: &Site) -> Result<serde_json::Value> {
    let points = site.cli(&["points", "web-1"])?;
    let short = |point: &serde_json::Value| {
        serde_json::json!({ "id": point["id"], "at": point["at"], "hold": point["hold_us"], "notes": point["notes"],
            "disks": point["disks"], "state": point["state"] })
    };
    let shown = site.cli(&["machine", "show", "web-1"])?;
    let list: Vec<_> = points["points"].as_array().context("points")?.iter().map(short).collect();
    let disk = &shown["disks"][0];
    Ok(serde_json::json!({ "id": shown["id"], "policy": shown["policy"], "points": list, "disk": disk["id"],
        "size": disk["size_bytes"], "generation": disk["generation"] }))
}

fn check_point(site: &Site, point: &str, expected: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let copies = site.copy_point("web-1", point, folder.path())?;
    let (path, copy) = copies.first().context("a disk")?;
    ensure!(path == DISK, "{path}");
    ensure!(std::fs::read(copy)? == expected, "point {point} is not what was sent");
    Ok(())
}

/// Blocks 3 and 9 were written between the two.
fn check_diff(site: &Site, first: &str, second: &str) -> Result<()> {
    for (from, to) in [(first, second), (second, first)] {
        let diff = site.cli(&["points", "diff", "web-1", from, to])?;
        let disk = &diff["disks"][0];
        ensure!(diff["changed_bytes"] == 8192 && disk["path"] == DISK && disk["in_both"] == true, "{diff}");
        let block = |at: u64| serde_json::json!({ "offset": at * 4096, "bytes": 4096 });
        ensure!(disk["ranges"] == serde_json::json!([block(3), block(9)]), "{diff}");
    }
    let same = site.cli(&["points", "diff", "web-1", second, "latest", "--ranges", "0"])?;
    ensure!(same["changed_bytes"] == 0, "{same}");
    let socket = site.data().join("holdfast.sock");
    let unknown = SystemEntropy::new().uuid(SystemClock::new().wall()).to_string();
    let (code, said) = holdfast(&socket, &["points", "diff", "web-1", &unknown, first])?;
    ensure!(code == 1 && said.contains("holdfast points"), "{said}");
    let (code, said) = holdfast(&socket, &["points", "diff", "web-1", first])?;
    ensure!(code == 2 && said.contains("POINT"), "{said}");
    Ok(())
}

/// The image in the folder is brought to a point, whatever it showed before.
fn check_update(site: &Site, point: &str, folder: &Path, expected: &[u8]) -> Result<()> {
    let place = folder.display().to_string();
    site.cli(&["test-failover", "web-1", "--point", point, "--image", &place, "--update"])?;
    ensure!(std::fs::read(folder.join("vda.raw"))? == expected, "{point} was not updated to");
    Ok(())
}

#[test]
fn points_of_a_machine_are_kept_attached_and_found_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut site = Site::start()?;
    let mut link = Link::open(&site, folder.path())?;
    link.write(3, 0xaa)?;
    link.scanned()?;
    let first = link.cut()?;
    let first_content = link.content.clone();
    link.write(3, 0xbb)?;
    link.write(9, 0xcc)?;
    let second = link.cut()?;
    processed(&site, "web-1", &second)?;
    check_point(&site, &first, &first_content)?;
    check_point(&site, "latest", &link.content)?;
    check_diff(&site, &first, &second)?;
    let images = folder.path().join("images");
    for (point, content) in [(&first, &first_content), (&second, &link.content), (&first, &first_content)] {
        check_update(&site, point, &images, content)?;
    }
    link.runtime.block_on(link.handle.shutdown());

    let plan = site.cli(&["retention", "plan", "web-1"])?;
    ensure!(plan["retention"] == "1h,10m:1d" && plan["own_rule"] == true, "{plan}");
    ensure!(plan["kept_points"] == 2 && plan["removed_points"] == 0, "{plan}");
    ensure!(plan["points"][1]["id"] == second && plan["points"][1]["reason"] == "dense", "{plan}");

    let operator = site.cli(&["operator", "create", "anna", "--role", "viewer"])?;
    let operators = site.cli(&["operator", "list"])?;
    ensure!(operators[0]["name"] == "anna" && operator["token"].is_string(), "{operators}");
    site.cli(&["thresholds", "web-1", "--lag", "7m,8m"])?;
    let thresholds = site.cli(&["thresholds", "web-1"])?;

    let file = folder.path().join("shop.toml");
    std::fs::write(&file, "name = \"shop\"\n[[group]]\nname = \"all\"\nmachines = [\"web-1\"]\n")?;
    site.cli(&["plan", "apply", &file.display().to_string()])?;
    let plan_text = site.cli(&["plan", "show", "shop"])?["text"].clone();

    let before = kept(&site)?;
    ensure!(before["points"].as_array().map(Vec::len) == Some(2), "{before}");
    site.kill_coordinator()?;
    site.start_coordinator()?;
    ensure!(kept(&site)? == before, "after kill -9: {} was {before}", kept(&site)?);
    ensure!(site.cli(&["jobs"])?.as_array().map(Vec::len) == Some(5), "the jobs are kept");

    site.stop_coordinator()?;
    let rebuilt = Command::new(program("holdfast-coordinator"))
        .arg("rebuild-catalog")
        .arg("--data")
        .arg(site.data())
        .output()?;
    let said = String::from_utf8_lossy(&rebuilt.stderr);
    ensure!(
        rebuilt.status.success() && said.contains("1 machines, 1 disks, 2 points, 0 groups, 1 operators"),
        "{said}"
    );
    ensure!(said.contains("to do: enrolment tokens") && said.contains("holdfast token create"), "{said}");
    site.start_coordinator()?;
    ensure!(kept(&site)? == before, "after the rebuild: {} was {before}", kept(&site)?);
    ensure!(site.cli(&["operator", "list"])? == operators, "{}", site.cli(&["operator", "list"])?);
    ensure!(site.cli(&["thresholds", "web-1"])? == thresholds, "{}", site.cli(&["thresholds", "web-1"])?);
    let plan = site.cli(&["plan", "show", "shop"])?;
    ensure!(plan["text"] == plan_text && plan["mistakes"].as_array().is_some_and(Vec::is_empty), "{plan}");
    check_point(&site, &first, &first_content)?;
    Ok(())
}

/// What `failover --dry-run` says of the only machine named.
fn dry_run(site: &Site, point: &str) -> Result<serde_json::Value> {
    let said = site.cli(&["failover", "web-1", "--point", point, "--dry-run"])?;
    Ok(said.as_array().and_then(|machines| machines.first()).context("a machine")?.clone())
}

#[test]
fn choices_say_what_they_give_and_lose_before_anything_is_done() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let site = Site::start()?;
    let mut link = Link::open(&site, folder.path())?;
    link.write(3, 0xaa)?;
    link.scanned()?;
    let first = link.cut()?;
    link.write(3, 0xbb)?;
    let second = link.cut()?;
    processed(&site, "web-1", &second)?;

    let latest = dry_run(&site, "latest")?;
    ensure!(latest["point"]["id"] == *second && latest["newer_count"] == 0, "{latest}");
    ensure!(latest["loses_ms"].as_u64().is_some_and(|lost| lost < 600_000), "{latest}");
    let older = dry_run(&site, &first)?;
    ensure!(older["newer"][0]["point"] == *second && older["newer_count"] == 1, "{older}");
    let at = older["point"]["at"].as_str().context("at")?;
    ensure!(dry_run(&site, at)?["point"]["id"] == *first, "the newest at or before {at} is the first");
    let none = site.cli(&["failover", "web-1", "--point", "2001-01-01T00:00:00Z", "--dry-run"]);
    ensure!(
        none.is_err_and(|error| error.to_string().contains("oldest point is newer")),
        "before all points"
    );

    let overview = site.cli(&["points"])?;
    let kinds = overview[0]["kinds"].as_array().context("kinds")?;
    let kind = |name: &str| kinds.iter().find(|kind| kind["kind"] == name).context("kind").cloned();
    ensure!(kind("latest")?["point"] == *second, "{overview}");
    let app = kind("latest-app-consistent")?;
    ensure!(app["refusal"].as_str().is_some_and(|why| why.contains("app-consistent")), "{app}");
    ensure!(
        kind("latest-multi-vm")?["point"] == *second,
        "a machine of no group goes to its own: {overview}"
    );

    // A set of which one has no point: nothing is begun.
    let token = site.cli(&["token", "create"])?;
    let mut enrol = Command::new(program("holdfast-agent"));
    enrol.arg("--state").arg(folder.path().join("second"));
    let token = token["token"].as_str().context("token")?;
    ensure!(enrol.args(["enroll", "--coordinator", site.address(), "--token", token]).status()?.success());
    let machines = site.cli(&["machines"])?;
    let other = machines[1]["id"].as_str().context("id")?;
    let refused = site.cli(&["test-failover", "web-1", other, "--point", "latest", "--attach"]);
    ensure!(
        refused.is_err_and(|error| error.to_string().contains("no failover was begun")),
        "a set is all or nothing"
    );
    ensure!(site.cli(&["jobs"])?.as_array().is_some_and(Vec::is_empty), "a job was begun");

    site.cli(&["thresholds", "web-1", "--lag", "1ms,2ms"])?;
    let status = site.cli(&["status"])?;
    ensure!(status["machines"][0]["health"] == "critical", "{status}");
    site.cli(&["thresholds", "web-1", "--lag", "1h,2h"])?;
    let shown = site.cli(&["thresholds", "web-1"])?;
    ensure!(shown["lag"]["warning_ms"] == 3_600_000, "{shown}");
    Ok(())
}
