//! A real PostgreSQL under load, data and WAL on different protected disks: every commit that was answered before a point
//! is in it, app-consistent or not, and what is started on the point is whole.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    asked,
    file_system::{Kind, MountedDisk, run},
    load::mount_copies,
    loop_device,
    postgres::{self, Server},
    site::{Site, wait_for},
};

const PATIENCE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 512 << 20;
/// Most WAL that a server on an app-consistent point replays: what came between the hook's last checkpoint and the cut.
const REPLAY_BYTES_MAX: u64 = 16 << 20;

/// Points of each kind; `HOLDFAST_TEST_POSTGRES_POINTS` makes it more.
fn count() -> usize {
    asked::number("HOLDFAST_TEST_POSTGRES_POINTS")
        .map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// A client that commits number after number, and knows which commits were answered.
struct Ledger {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Ledger {
    fn start(server: &Server) -> Result<Self> {
        server.ask("CREATE TABLE ledger (n bigint PRIMARY KEY, filler text)")?;
        let mut session = server.client("psql");
        session.args(["-qXAt", "-d", "postgres"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut session = session.spawn()?;
        let (answered, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, ending) = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut asks = session.stdin.take().context("a way in")?;
            let mut answers = BufReader::new(session.stdout.take().context("a way out")?).lines();
            while !ending.load(Ordering::SeqCst) {
                let n = count.load(Ordering::SeqCst) + 1;
                writeln!(asks, "INSERT INTO ledger VALUES ({n}, repeat('x', 500)) RETURNING n;")?;
                let answer = answers.next().context("the server is gone")??;
                ensure!(answer == n.to_string(), "{answer} instead of {n}");
                count.store(n, Ordering::SeqCst);
            }
            drop(asks);
            session.wait()?;
            Ok(())
        });
        Ok(Self { answered, stop, thread: Some(thread) })
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _the_test_has_failed_already_if_it_did = thread.join();
        }
    }
}

/// Starts a server on a copy of the point and looks at what is there. Returns the bytes of WAL that it replayed.
fn check(
    site: &Site,
    machine: &str,
    point: &str,
    disks: [&MountedDisk; 2],
    programs: &Path,
    from: u64,
) -> Result<u64> {
    let folder = postgres::open_folder()?;
    let mounted = mount_copies(site, machine, point, &disks, folder.path())?;
    let (data, wal) = (mounted[0].0.join("data"), mounted[1].0.join("wal"));
    // The link to the WAL names the source's mount.
    fs::remove_file(data.join("pg_wal"))?;
    std::os::unix::fs::symlink(&wal, data.join("pg_wal"))?;
    let _no_longer_true = fs::remove_file(data.join("postmaster.pid"));
    let server = Server { programs: programs.into(), data, sockets: folder.path().into() };
    server.start()?;
    let found = server.ask("SELECT count(*), coalesce(max(n), 0) FROM ledger")?;
    let (rows, newest) = found.split_once('|').context("two numbers")?;
    let (rows, newest): (u64, u64) = (rows.parse()?, newest.parse()?);
    ensure!(rows == newest, "{rows} rows up to {newest}: a committed row is missing");
    ensure!(newest >= from, "commit {from} was answered before the cut, the point ends with {newest}");
    run(server.client("pg_amcheck").args(["--install-missing", "--heapallindexed", "postgres"]))?;
    let log = fs::read_to_string(server.log())?;
    let place = |what: &str| -> Option<u64> {
        let text = log.split(what).nth(1)?.split_whitespace().next()?;
        let (high, low) = text.split_once('/')?;
        Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
    };
    let replayed = place("redo starts at ").zip(place("redo done at ")).map_or(0, |(start, end)| end - start);
    drop(server);
    Ok(replayed)
}

#[test]
fn every_answered_commit_is_in_a_point_with_data_and_wal_on_two_disks() -> Result<()> {
    let Some(programs) = postgres::programs() else {
        eprintln!("skipped: PostgreSQL is not installed (package postgresql)");
        return Ok(());
    };
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = postgres::open_folder()?;
    let hooks = postgres::freeze_hooks(folder.path())?;

    let disks = [MountedDisk::create(Kind::Ext4, DISK_BYTES)?, MountedDisk::create(Kind::Ext4, DISK_BYTES)?];
    let (data, wal) = (disks[0].folder().join("data"), disks[1].folder().join("wal"));
    let server = Server::create(&programs, &data, &wal, folder.path())?;
    let site = Site::start()?;
    let host = format!("PGHOST={}", folder.path().display());
    let agent = site.add_agent_with(&["env", &host], &format!("[hooks]\nfolder = {hooks:?}\n"))?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disks[0].device.path(), disks[1].device.path()], "1h")?;
    let ledger = Ledger::start(&server)?;
    let bench = postgres::load(&server)?;
    site.wait_for_points(&machine, 1, PATIENCE)?;
    wait_for("some commits", PATIENCE, || Ok((ledger.answered() > 100).then_some(())))?;

    for _ in 0..count() {
        for kind in ["crash", "app"] {
            let before = ledger.answered();
            let mut ask = vec!["point", "create", &machine, "--wait"];
            if kind == "app" {
                ask.push("--app-consistent");
            }
            let point =
                site.cli(&ask).with_context(|| format!("the agent's log: {}", agent.log()))?["point"].clone();
            ensure!(point["consistency"] == kind, "{point}");
            let id = point["id"].as_str().context("its id")?;
            let replayed = check(&site, &machine, id, [&disks[0], &disks[1]], &programs, before)?;
            eprintln!("{kind}: commits up to {before} are in; {replayed} bytes of WAL replayed; {point}");
            ensure!(kind == "crash" || replayed <= REPLAY_BYTES_MAX, "{replayed} bytes of WAL replayed");
        }
    }
    drop(bench);
    Ok(())
}
