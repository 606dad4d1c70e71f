//! The coordinator is killed while the machines of a group hold their writes.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    loop_device,
    relay::{Relay, Weather},
    site::{Agent, Site, wait_for},
};

use super::{DISK_BYTES, PATIENCE, group_points, machines};

const ROUNDS: usize = 4;
/// Packets of one machine take so long, each way: the other one's hold lasts at least as long.
const DELAY: Duration = Duration::from_millis(100);
/// A small write that takes longer waits for a hold to end.
const HELD: Duration = Duration::from_millis(50);

/// Writes small files, one after another.
struct Probe {
    written: Arc<AtomicU64>,
    /// When the write under way began, in microseconds since `start`; zero between two.
    began: Arc<AtomicU64>,
    start: Instant,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Probe {
    fn start(folder: &Path) -> Self {
        let (written, began, stop): (Arc<AtomicU64>, Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (start, path) = (Instant::now(), folder.join("probe"));
        let (count, since, end) = (Arc::clone(&written), Arc::clone(&began), Arc::clone(&stop));
        let work = move || {
            while !end.load(SeqCst) {
                since.store(u64::try_from(start.elapsed().as_micros())?.max(1), SeqCst);
                let mut file = File::create(&path)?;
                file.write_all(b"written")?;
                file.sync_all()?;
                since.store(0, SeqCst);
                count.fetch_add(1, SeqCst);
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        };
        Self { written, began, start, stop, thread: Some(thread::spawn(work)) }
    }

    fn is_held(&self) -> bool {
        let began = self.began.load(SeqCst);
        began > 0 && self.start.elapsed().saturating_sub(Duration::from_micros(began)) > HELD
    }

    /// Waits until one more write than now has ended.
    fn wait_until_writable(&self) -> Result<()> {
        let before = self.written.load(SeqCst);
        // The first may have been under way.
        wait_for("a write to end", PATIENCE, || Ok((self.written.load(SeqCst) > before + 1).then_some(())))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn member(site: &Site) -> Result<(String, MountedDisk, Agent)> {
    let before = machines(site)?;
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let agent = site.add_agent()?;
    let machine = machines(site)?.into_iter().find(|id| !before.contains(id)).context("a new machine")?;
    site.protect(&machine, &[disk.device.path()], "1h")?;
    Ok((machine, disk, agent))
}

/// Points of a machine that were to be part of a group point, and whose hold ended by its own timer.
fn without_mark(site: &Site, machine: &str) -> Result<usize> {
    let points = site.points(machine)?;
    Ok(points.iter().filter(|point| point.all.to_string().contains("the mark did not come")).count())
}

#[test]
fn a_coordinator_killed_while_all_hold_leaves_every_file_system_writable() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut site = Site::start()?;
    let (near, near_disk, _near_agent) = member(&site)?;
    let relay = runtime.block_on(Relay::start(site.address().parse()?, 7, runtime.handle()))?;
    site.reach_through(relay.address());
    let (far, far_disk, _far_agent) = member(&site)?;
    relay.set(Weather { delay: DELAY, ..Weather::default() });
    site.cli(&["group", "create", "pair", &near, &far, "--interval", "1s", "--wait", "2s"])?;
    wait_for("a group point", PATIENCE, || Ok(group_points(&site)?.first().map(drop)))?;
    let probes = [Probe::start(near_disk.folder()), Probe::start(far_disk.folder())];
    for _ in 0..ROUNDS {
        let waited = Instant::now();
        while !probes[0].is_held() {
            ensure!(waited.elapsed() < PATIENCE, "no hold is ever seen");
            thread::sleep(Duration::from_millis(1));
        }
        site.kill_coordinator()?;
        for probe in &probes {
            probe.wait_until_writable()?;
        }
        site.start_coordinator()?;
        site.wait_until_connected(PATIENCE)?;
        let known = group_points(&site)?.len();
        wait_for(
            "the next group point",
            PATIENCE,
            || Ok((group_points(&site)?.len() > known).then_some(())),
        )?;
    }
    let hit = without_mark(&site, &near)?;
    eprintln!("{hit} of {ROUNDS} kills came while the machine held");
    ensure!(hit > 0, "no kill hit a hold");
    Ok(())
}
