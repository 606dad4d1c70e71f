//! The full life of a machine, twice around: it protects itself from inside, is lost, tested, failed over, looked at at an older
//! point, committed, protected at its target, brought back to its original disk by an agent on that disk's host, and goes on there;
//! then the same by a planned failover.
//!
//! A database in it commits numbers without a break and tells them to the host; at every boot a client in it says on the console
//! what it finds. Takes a quarter of an hour on an emulated processor, so it runs only if it is asked for.

use std::{fs, ops::RangeInclusive, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    asked,
    file_system::run,
    guest::{self, Bundle, Bus, Disk, Image, Machine, MachineSpec, Source},
    inside::{self, LIMIT, Ledger},
    loop_device::{self, LoopDevice},
    protected::PATIENCE,
    site::{BOOT, Site, wait_for},
};
use serde_json::Value;
use tempfile::TempDir;

use crate::machine_vm::Remains;

/// What is committed between two moments that a test tells apart.
const SOME: u64 = 20;

#[test]
fn a_machine_lives_on_both_sides_twice_around() -> Result<()> {
    let unasked = || asked::not_for_full_life("a quarter of an hour");
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable).or_else(unasked) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let mut life = Life::prepare()?;
    let _remains = Remains(life.site.data().join("vm"));
    let mut source = life.begin()?;

    // Its host is lost.
    let older = life.point(&mut source)?;
    let newest = life.point(&mut source)?;
    source.power_cut();
    let held = newest.certain..=life.ledger.committed() + 1;
    let tested = life.cli(&["test-failover", "--point", "latest", "--vm"])?;
    let runs_as = tested["runs"]["runs_as"].as_str().unwrap_or_default();
    ensure!(
        runs_as.contains("UEFI") && runs_as.contains("disks on virtio"),
        "not as its inventory says: {runs_as}"
    );
    let found = life.found_at_target(&tested)?;
    ensure!(held.contains(&found), "the test holds {found}, not {held:?}");
    life.cli(&["test-failover", "--cleanup"])?;
    let job = life.cli(&["failover", "--point", "latest", "--vm"])?;
    ensure!(life.found_at_target(&job)? == found, "the failover holds something else than its test");
    life.wait_for_commits(found + SOME)?;

    // What the target has written since is given up by a change of the point, there and back.
    let changed = life.cli(&["change-point", "--point", &older.id])?;
    let before = life.found_at_target(&changed)?;
    ensure!((older.certain..=newest.certain).contains(&before), "the older point holds {before}");
    let latest = job["point"].as_str().context("its point")?;
    let changed = life.cli(&["change-point", "--point", latest])?;
    ensure!(life.found_at_target(&changed)? == found, "its point holds something else than before");
    life.wait_for_commits(found + SOME)?;
    let source = life.back()?;

    // Again, with a source that is well: nothing that was acknowledged may be missing.
    life.wait_for_commits(life.ledger.committed() + SOME)?;
    let planned = life.cli(&["planned-failover", "--vm"])?;
    let committed = life.ledger.committed();
    source.power_cut();
    let found = life.found_at_target(&planned)?;
    ensure!(
        (committed..=committed + 1).contains(&found),
        "{found} came of {committed} that were acknowledged"
    );
    life.wait_for_commits(found + SOME)?;
    drop(life.back()?);
    Ok(())
}

struct Life {
    site: Site,
    _folder: TempDir,
    disk: PathBuf,
    bundle: Bundle,
    ledger: Ledger,
    machine: String,
}

/// A point, and what was committed for certain before its cut.
struct Known {
    id: String,
    certain: u64,
}

impl Life {
    fn prepare() -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-life-")?;
        let disk = folder.path().join("source.raw");
        run(Command::new("cp").arg("--sparse=always").arg(Image::obtain()?.path()).arg(&disk))?;
        let (bundle, ledger) = (inside::bundle()?, Ledger::listen()?);
        ledger.for_life(&bundle)?;
        Ok(Self { site: Site::start()?, _folder: folder, disk, bundle, ledger, machine: String::new() })
    }

    /// Boots the machine from its own disk.
    fn boot(&self, name: &str) -> Result<Machine> {
        let disk = Disk::new(Source::Raw(self.disk.clone()), Bus::VirtioBlk, "root");
        Machine::boot(
            &MachineSpec::new(name, vec![disk]).by_uefi().with_bundle(&self.bundle).with_processors(2),
        )
    }

    fn begin(&mut self) -> Result<Machine> {
        let mut source = self.boot("the machine at its source")?;
        source.run("systemctl enable --quiet --now ledger")?;
        self.machine = inside::protect(&self.site, &mut source, "/dev/vda", "5s")?;
        inside::set_hardware(&self.site, &self.machine, "")?;
        Ok(source)
    }

    /// `holdfast VERB MACHINE ...`
    fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let (verb, rest) = arguments.split_first().context("a verb")?;
        self.site.cli(&[&[*verb, &self.machine], rest].concat())
    }

    /// A point of now, some commits after the one before.
    fn point(&self, source: &mut Machine) -> Result<Known> {
        self.wait_for_commits(self.ledger.committed() + SOME)?;
        let certain = self.ledger.committed();
        self.site.cli(&["point", "create", &self.machine, "--wait"]).with_context(|| inside::log(source))?;
        let newest = self.site.points(&self.machine)?.pop().context("a point")?;
        Ok(Known { id: newest.id, certain })
    }

    fn wait_for_commits(&self, number: u64) -> Result<()> {
        wait_for("the ledger to go on", LIMIT, || Ok((self.ledger.committed() >= number).then_some(())))
    }

    /// What a client finds in the machine that a job runs.
    fn found_at_target(&self, job: &Value) -> Result<u64> {
        let log = PathBuf::from(job["runs"]["console_log"].as_str().context("a console's log")?);
        found(|| Ok(fs::read_to_string(&log).unwrap_or_default()))
    }

    /// The machine is protected where it is, goes back to its disk by an agent of that disk's host, and starts from it.
    fn back(&self) -> Result<Machine> {
        let site = &self.site;
        self.cli(&["commit"])?;
        succeeded(&self.cli(&["reprotect"])?)?;
        site.wait_for_new_point(&self.machine, PATIENCE)?;
        self.wait_for_commits(self.ledger.committed() + SOME)?;

        let device = LoopDevice::attach(&self.disk)?;
        let mut rescue = site.add_agent_of(&self.machine)?;
        succeeded(&self.cli(&["failback"])?).with_context(|| rescue.log())?;
        // The machine was shut down in this: nothing is committed any more.
        let committed = self.ledger.committed();
        let status = site.cli(&["status"])?;
        ensure!(status["machines"][0]["lifecycle"]["stage"] == "protected", "{status}");
        rescue.stop()?;
        rescue.forget()?;
        drop((rescue, device));

        let mut source = self.boot("the machine at its source again")?;
        let found = found(|| Ok(source.console()))?;
        let held: RangeInclusive<u64> = committed..=committed + 1;
        ensure!(held.contains(&found), "the original disk holds {found}, not {held:?}");
        inside::enrol(site, &mut source, &["--machine", &self.machine])?;
        site.wait_for_new_point(&self.machine, LIMIT).with_context(|| inside::log(&mut source))?;
        Ok(source)
    }
}

/// Waits until the console says what the ledger holds: all numbers from the first on. Gives the last.
fn found(console: impl Fn() -> Result<String>) -> Result<u64> {
    let line = wait_for("the client's answer", BOOT, || {
        let text = console()?;
        let mut lines = text.lines().filter_map(|line| line.trim().strip_prefix("ledger holds "));
        Ok(lines.next().and_then(|line| line.strip_suffix('.')).map(str::to_owned))
    });
    let line = line.with_context(|| console().unwrap_or_default())?;
    let numbers: Vec<u64> =
        line.split(' ').map(str::parse).collect::<Result<_, _>>().context(line.clone())?;
    let [count, first, last] = numbers[..] else { anyhow::bail!("the client said: {line}") };
    ensure!(
        first == 1 && count == last,
        "{count} numbers from {first} to {last} are not all from the first on"
    );
    eprintln!("the ledger holds 1 to {last}");
    Ok(last)
}

fn succeeded(job: &Value) -> Result<()> {
    ensure!(job["state"] == "succeeded", "{job}");
    Ok(())
}
