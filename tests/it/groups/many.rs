//! Very many group points, under load and faults: in none of them stands an effect without its cause.
//!
//! Points are asked for all the time, while links lose packets or are cut, agents are killed or stopped, and the coordinator is
//! killed. What was made is checked at the end, straight from the coordinator's store: a view of each point, and one block
//! of it, so that thousands cost seconds.

mod faults;
mod load;
mod stored;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    asked,
    file_system::run,
    loop_device,
    network::Namespace,
    site::{Site, program},
};
use serde_json::Value;

use self::{faults::Faults, load::Load, stored::Stored};
use super::{PATIENCE, counters, member_in, ping_pong, ping_pong::PingPong};

/// Longest time for one group point, on average.
const POINT_TIME: Duration = Duration::from_secs(6);

/// How many group points are made; `HOLDFAST_TEST_GROUP_POINTS` makes it more.
fn points_wanted() -> usize {
    asked::number("HOLDFAST_TEST_GROUP_POINTS")
        .map_or(12, |count| usize::try_from(count).unwrap_or(usize::MAX))
}

/// What is known of a group point that an operator was given.
#[derive(Clone, Debug)]
struct Given {
    /// The newest number before it was asked for, and after it was given.
    counts: (u64, u64),
    point: Value,
}

/// Asks for group points, one after another.
struct Asker {
    given: Arc<Mutex<BTreeMap<String, Given>>>,
    void: Arc<Mutex<BTreeMap<String, usize>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    fn start(socket: PathBuf, writer: Arc<PingPong>) -> Self {
        let (given, void): (Arc<Mutex<BTreeMap<_, _>>>, Arc<Mutex<BTreeMap<_, _>>>) = Default::default();
        let stop = Arc::new(AtomicBool::new(false));
        let (points, failures, end) = (Arc::clone(&given), Arc::clone(&void), Arc::clone(&stop));
        let work = move || {
            while !end.load(SeqCst) {
                let before = writer.count();
                match ask(&socket) {
                    Ok(point) => {
                        let given = Given { counts: (before, writer.count()), point };
                        let id = given.point["id"].as_str().unwrap_or_default().to_owned();
                        points.lock().unwrap().insert(id, given);
                    }
                    Err(error) => {
                        *failures.lock().unwrap().entry(kind_of(&error)).or_default() += 1;
                        thread::sleep(Duration::from_millis(50));
                    }
                }
            }
        };
        Self { given, void, stop, thread: Some(thread::spawn(work)) }
    }

    fn count(&self) -> usize {
        self.given.lock().unwrap().len()
    }

    fn end(&mut self) -> (BTreeMap<String, Given>, BTreeMap<String, usize>) {
        self.stop.store(true, SeqCst);
        let _ended = self.thread.take().map(JoinHandle::join);
        (self.given.lock().unwrap().clone(), self.void.lock().unwrap().clone())
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.end();
    }
}

/// A whole group point, durable.
fn ask(socket: &Path) -> Result<Value> {
    let mut command = Command::new(program("holdfast"));
    command.arg("--coordinator").arg(socket).args(["--json", "group", "point", "create", "ring"]);
    let text = run(command.args(["--time-limit", "5s"]))?;
    let point: Value = serde_json::from_str(&text)?;
    ensure!(point["id"].is_string(), "not in time: its parts are not all durable");
    Ok(point)
}

/// The reason without names and numbers, to count by.
fn kind_of(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let said = text.rsplit(": ").next().unwrap_or(&text).trim_matches(|one| "\"}{".contains(one));
    let mut kind: String = said.chars().filter(|one| !one.is_ascii_digit()).take(90).collect();
    if kind.is_empty() {
        kind = text.chars().take(90).collect();
    }
    kind
}

/// Group points of so many machines, under load and faults.
fn check_ring(first_subnet: u8, machines: u8) -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let mut site = Site::start_at("0.0.0.0", None)?;
    let subnets = first_subnet..first_subnet + machines;
    let mut members = Vec::new();
    let mut faults = Faults::new(u64::from(first_subnet));
    for subnet in subnets {
        let namespace = Namespace::create(subnet)?;
        namespace.forward()?;
        if members.is_empty() {
            // Its end of the first pair is where all others find the coordinator.
            site.reach_at(&namespace.outer_address())?;
        }
        if subnet == first_subnet + machines - 1 {
            // The last one reaches it by a road that can be made long.
            site.reach_through(faults.relay_in(&namespace, site.reach().parse()?)?);
        }
        members.push(member_in(&site, namespace, "5s")?);
    }
    let ids: Vec<String> = members.iter().map(|member| member.machine.clone()).collect();
    let mut create = vec!["group", "create", "ring", "--interval", "1s"];
    create.extend(ids.iter().map(String::as_str));
    site.cli(&create)?;
    let places: Vec<_> = members.iter().map(super::Member::place).collect();
    let writer = Arc::new(PingPong::start(&places)?);
    let _load = Load::start(members.iter().map(|member| member.disk.folder()))?;
    holdfast_tests::site::wait_for("a group point", PATIENCE, || {
        Ok(site.cli(&["group", "points", "ring"])?["points"].as_array().and_then(|all| all.first().cloned()))
    })?;

    let wanted = points_wanted();
    let limit = PATIENCE + POINT_TIME * u32::try_from(wanted)?;
    let started = Instant::now();
    let mut asker = Asker::start(site.data().join("holdfast.sock"), Arc::clone(&writer));
    while asker.count() < wanted {
        ensure!(started.elapsed() < limit, "only {} of {wanted} group points", asker.count());
        faults.next(&mut site, &mut members)?;
        if wanted > 100 && faults.count().is_multiple_of(50) {
            eprintln!("{:?}: {} group points, {} faults", started.elapsed(), asker.count(), faults.count());
        }
    }
    let (given, void) = asker.end();
    let took = started.elapsed();
    site.wait_until_connected(PATIENCE)?;

    // One is read as an operator would, the way through the disks' devices.
    let newest = site.cli(&["group", "points", "ring"])?["points"][0].clone();
    let of: Vec<_> = members.iter().collect();
    let found = counters(&site, &newest, &of, &writer)?;
    ping_pong::check(&found)?;

    let all = group_points_of(&site, "ring")?;
    site.stop_coordinator()?;
    let stored = Stored::open(site.data(), &ids, &writer)?;
    let mut checked = 0;
    for point in &all {
        let found = stored.counters(point)?;
        let newest = ping_pong::check(&found).with_context(|| format!("in {point}"))?;
        if let Some(given) = point["id"].as_str().and_then(|id| given.get(id)) {
            let (before, after) = given.counts;
            ensure!(newest + 1 >= before && newest <= after, "{before} <= {newest} <= {after}");
        }
        checked += 1;
    }
    for (id, given) in &given {
        ensure!(all.iter().any(|point| point["id"] == id.as_str()), "lost: {}", given.point);
    }
    eprintln!(
        "{machines} machines: {checked} group points checked, {} of them asked for, in {took:?}, counters up to {}; asked \
         for in vain: {void:#?}; faults: {:#?}",
        given.len(),
        writer.count(),
        faults.done(),
    );
    ensure!(checked >= wanted, "only {checked} group points");
    Ok(())
}

fn group_points_of(site: &Site, group: &str) -> Result<Vec<Value>> {
    let listed = site.cli(&["group", "points", group])?;
    Ok(listed["points"].as_array().context("a list of group points")?.clone())
}

#[test]
fn no_effect_without_its_cause_in_very_many_points_of_two_machines() -> Result<()> {
    check_ring(31, 2)
}

#[test]
fn no_effect_without_its_cause_in_very_many_points_of_three_machines() -> Result<()> {
    check_ring(41, 3)
}
