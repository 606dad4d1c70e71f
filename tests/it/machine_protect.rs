//! A Debian machine protects its own root disk, loses power, and comes back from its copies.
//!
//! Inside run the agent from the root disk, PostgreSQL, and package installs, while `/` with all of them is frozen again
//! and again. After the power cut the newest point must boot, its file system must be clean, and its database must hold
//! everything that was committed before the point's cut and nothing but a prefix of what was committed at all. The machine
//! itself, switched on again, must know that its tracking is not to be trusted any more, and come back by comparing.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use holdfast_tests::{
    file_system::{MountPoint, run},
    guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source},
    inside::{self, LIMIT, Ledger},
    loop_device::LoopDevice,
    site::{Site, wait_for},
};
use serde_json::Value;
use tempfile::TempDir;

/// How often points are made.
const INTERVAL: &str = "4s";
/// Points made under load before the power cut.
const POINTS: usize = 3;
/// The name of the protected disk in the machine.
const ROOT_DISK: &str = "/dev/vda";

#[test]
fn a_machine_that_protects_its_own_root_disk_boots_from_its_copies() -> Result<()> {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let scene = Scene::prepare()?;
    let mut source = scene.boot("the protected machine")?;
    let machine = scene.protect(&mut source)?;
    let committed = scene.make_points(&mut source, &machine)?;
    source.power_cut();
    // One more may have been committed that the machine could not tell any more.
    let committed = committed..=scene.ledger.committed() + 1;
    eprintln!("the newest point must hold {committed:?}");

    // Both take long on an emulated processor.
    thread::scope(|scope| {
        let copy = scope.spawn(|| scene.boot_from_image(&machine, &committed));
        scene.come_back(&machine)?;
        copy.join().map_err(|_| anyhow!("the copy's thread panicked"))?
    })
}

struct Scene {
    site: Site,
    folder: TempDir,
    disk: PathBuf,
    bundle: Bundle,
    ledger: Ledger,
}

impl Scene {
    fn prepare() -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-protect-")?;
        let disk = folder.path().join("source.qcow2");
        Image::obtain()?.overlay(&disk)?;
        Ok(Self { site: Site::start()?, folder, disk, bundle: inside::bundle()?, ledger: Ledger::listen()? })
    }

    /// Boots the protected machine from its own disk.
    fn boot(&self, name: &str) -> Result<Machine> {
        let disk = Disk::new(Source::Qcow2(self.disk.clone()), Bus::VirtioBlk, "root");
        Machine::boot(&MachineSpec::new(name, vec![disk]).with_bundle(&self.bundle).with_processors(2))
    }

    /// Starts the database and the agent, and waits for the first point. Returns the machine's id.
    fn protect(&self, source: &mut Machine) -> Result<String> {
        self.ledger.start(source)?;
        inside::protect(&self.site, source, ROOT_DISK, INTERVAL)
    }

    /// Has points made under load. Returns what was committed for certain before the cut of the newest.
    fn make_points(&self, source: &mut Machine, machine: &str) -> Result<u64> {
        source.run(
            "systemd-run --quiet --unit=packages bash -c \
             'while dpkg -i /var/cache/holdfast-guest/package/*.deb && dpkg -r poppler-data; do :; done'",
        )?;
        let known = self.site.points(machine)?.len();
        let made = self.site.wait_for_points(machine, known + POINTS, LIMIT);
        made.with_context(|| inside::log(source))?;
        source.run("systemctl is-active ledger packages holdfast-agent")?;
        let committed = self.ledger.committed();
        ensure!(committed > 0, "the database has committed nothing");
        let created = self.site.cli(&["point", "create", machine, "--wait"]);
        created.with_context(|| inside::log(source))?;
        let points = self.site.points(machine)?;
        for point in points.iter().map(|point| &point.all) {
            eprintln!(
                "point at {}: held {} us, {} bytes",
                point["at"], point["hold_us"], point["stored_bytes"]
            );
        }
        ensure!(points.iter().any(|point| point.all["method"] == "freeze"), "nothing was frozen: {points:?}");
        Ok(committed)
    }

    /// The newest point as an image: clean, boots to a login, and holds what it must.
    fn boot_from_image(&self, machine: &str, committed: &RangeInclusive<u64>) -> Result<()> {
        let folder = self.folder.path().join("image");
        let target = folder.to_str().context("path")?;
        let job = self.site.cli(&["test-failover", machine, "--point", "latest", "--image", target])?;
        let image = only_file(&folder).with_context(|| format!("{job}"))?;
        file_system_is_clean(&image, &self.folder.path().join("checked.raw"))?;
        let disk = Disk::new(Source::Raw(image), Bus::VirtioBlk, "root").with_snapshot();
        holds("a machine from the image", disk, committed)?;

        let attached = self.site.attach(machine, "latest")?;
        let (_, uri) = attached.exports.first().context("an export")?;
        let disk = Disk::new(Source::Nbd(uri.clone()), Bus::Nvme, "root").with_snapshot();
        holds("a machine from the attached point", disk, committed)?;
        self.site.detach(&attached)
    }

    /// The machine itself is switched on again: nothing is done by hand.
    fn come_back(&self, machine: &str) -> Result<()> {
        let before = self.site.points(machine)?.len();
        let mut source = self.boot("the protected machine after the power cut")?;
        let compared = wait_for("the status to say that the disk is compared", LIMIT, || {
            let disk = self.disk_status()?;
            let generation = disk["generation"].as_u64().unwrap_or_default();
            Ok((generation > 1 && disk["findings"].to_string().contains("compared")).then_some(disk))
        });
        let disk = compared.with_context(|| inside::log(&mut source))?;
        eprintln!("after the power cut: {} {}", disk["state"], disk["findings"]);
        let made = self.site.wait_for_points(machine, before + 1, LIMIT);
        made.with_context(|| inside::log(&mut source))?;
        let disk = self.disk_status()?;
        ensure!(disk["state"] == "protected", "points are made again, but the disk is {disk}");
        Ok(())
    }

    fn disk_status(&self) -> Result<Value> {
        let status = self.site.cli(&["status"])?;
        Ok(status["machines"][0]["disks"][0].clone())
    }
}

/// Boots a copy, alone in its network, to its login, and looks into its database and its packages.
fn holds(name: &str, disk: Disk, committed: &RangeInclusive<u64>) -> Result<()> {
    let mut copy = Machine::boot(&MachineSpec::new(name, vec![disk]).isolated())?;
    copy.wait_for_console("login:")?;
    let answer = copy.run(
        "pg_ctlcluster $(pg_lsclusters --no-header | cut -d' ' -f1) main start && runuser -u postgres -- \
         psql -qAt -F ' ' -c 'select count(*), min(number), max(number) from ledger'",
    )?;
    let numbers: Vec<u64> = answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [count, first, last] = numbers[..] else { anyhow::bail!("the database said: {answer}") };
    eprintln!("{name}: the database holds {first} to {last}");
    ensure!(
        first == 1 && count == last,
        "{count} numbers from {first} to {last} are not all from the first on"
    );
    ensure!(committed.contains(&last), "the newest number is {last}, it must lie in {committed:?}");
    copy.run(
        "runuser -u postgres -- $(ls /usr/lib/postgresql/*/bin/pg_amcheck) --install-missing --table ledger",
    )?;
    // An interrupted install can be made again, and then everything is in order.
    copy.run("dpkg -i /var/cache/holdfast-guest/package/*.deb && test -z \"$(dpkg --audit)\"")?;
    Ok(())
}

/// Replays the journal of a copy of the image, and has it checked.
fn file_system_is_clean(image: &Path, scratch: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").arg(image).arg(scratch))?;
    let device = LoopDevice::attach_at(scratch, Image::ROOT_OFFSET)?;
    drop(MountPoint::new(device.path(), &[])?);
    run(Command::new("e2fsck").arg("-fn").arg(device.path())).map(drop)
}

/// The only image in a folder.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "raw") {
            files.push(path);
        }
    }
    ensure!(files.len() == 1, "expected one image: {files:?}");
    files.pop().context("an image")
}
