//! Group points of real agents in network namespaces: no effect on one machine without its cause on the other.
//!
//! Two machines count by turns, each write telling the other: a group point in which the counters are more than one apart
//! has an effect without its cause.

mod applications;
mod killed;
mod many;
mod ping_pong;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    asked,
    file_system::{Kind, MountedDisk},
    loop_device,
    network::Namespace,
    site::{Agent, Site, wait_for},
};
use ping_pong::{PingPong, Place};
use serde_json::Value;

const DISK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);
/// Group points that must be checked.
const POINTS_MIN: usize = 6;

/// Seconds of load; `HOLDFAST_TEST_SECONDS` makes it longer.
fn seconds() -> u64 {
    asked::number("HOLDFAST_TEST_SECONDS").unwrap_or(12)
}

struct Member {
    disk: MountedDisk,
    machine: String,
    agent: Agent,
    /// Dropped after the agent.
    namespace: Namespace,
}

impl Member {
    fn place(&self) -> Place<'_> {
        Place { folder: self.disk.folder(), namespace: &self.namespace }
    }
}

/// A machine with a disk, in a network of its own.
fn member(site: &Site, subnet: u8) -> Result<Member> {
    let namespace = Namespace::create(subnet)?;
    namespace.forward()?;
    member_in(site, namespace, "2s")
}

/// A machine with a disk, in this network.
fn member_in(site: &Site, namespace: Namespace, interval: &str) -> Result<Member> {
    let before = machines(site)?;
    let inside = namespace.command_prefix();
    let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let agent = site.add_agent_with(&inside, "")?;
    let machine = machines(site)?.into_iter().find(|id| !before.contains(id)).context("a new machine")?;
    site.protect(&machine, &[disk.device.path()], interval)?;
    Ok(Member { disk, machine, agent, namespace })
}

/// The ids of all machines.
fn machines(site: &Site) -> Result<Vec<String>> {
    let machines = site.cli(&["machines"])?;
    let list = machines.as_array().context("a list")?;
    Ok(list.iter().filter_map(|machine| machine["id"].as_str().map(str::to_owned)).collect())
}

fn group_points(site: &Site) -> Result<Vec<Value>> {
    let listed = site.cli(&["group", "points", "pair"])?;
    Ok(listed["points"].as_array().context("a list of group points")?.clone())
}

/// The counters that a group point holds, machine by machine.
fn counters(site: &Site, point: &Value, members: &[&Member], places: &PingPong) -> Result<Vec<u64>> {
    let folder = tempfile::TempDir::with_prefix("holdfast-group-")?;
    let mut found = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let part = point["members"].as_array().context("members")?.iter();
        let part = part.clone().find(|part| part["machine"] == member.machine.as_str());
        let own = part.context("the machine's part")?["point"].as_str().context("its point")?.to_owned();
        let copies = site.copy_point(&member.machine, &own, folder.path())?;
        found.push(places.read(index, &copies.first().context("a disk")?.1)?);
    }
    Ok(found)
}

/// Asks for group points and checks each, until enough are.
fn check_for(
    site: &Site,
    members: &[&Member],
    writer: &PingPong,
    limit: Duration,
    count: usize,
) -> Result<usize> {
    let started = Instant::now();
    let (mut checked, mut void) = (0, 0);
    while checked < count || started.elapsed() < limit {
        ensure!(started.elapsed() < PATIENCE + limit, "only {checked} group points, {void} void");
        let before = writer.count();
        match site.cli(&["group", "point", "create", "pair"]) {
            Ok(point) => {
                let after = writer.count();
                let found = counters(site, &point, members, writer)?;
                let newest = ping_pong::check(&found).with_context(|| format!("in {point}"))?;
                ensure!(newest + 1 >= before && newest <= after, "{before} <= {newest} <= {after}");
                checked += 1;
            }
            // A void group cut says so; another is asked for.
            Err(error) => {
                void += 1;
                eprintln!("{error:#}");
            }
        }
    }
    eprintln!("{checked} group points checked, {void} void");
    Ok(checked)
}

#[test]
fn group_points_of_two_machines_keep_cause_and_effect_together() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    // Its end of the first pair is where the coordinator listens; the second machine reaches it by its own pair.
    let mut site = Site::start_at("0.0.0.0", None)?;
    site.reach_at("10.213.21.1")?;
    let one = member(&site, 21)?;
    let mut other = member(&site, 22)?;
    let create = ["group", "create", "pair", &one.machine, &other.machine, "--interval", "2s"];
    site.cli(&create)?;
    let writer = PingPong::start(&[one.place(), other.place()])?;
    let before = wait_for("a group point", PATIENCE, || Ok(group_points(&site)?.first().cloned()))?;
    ensure!(before["spread_us"].as_u64().is_some_and(|spread| spread > 0), "{before}");
    check_for(&site, &[&one, &other], &writer, Duration::from_secs(seconds() / 2), POINTS_MIN / 2)?;

    let status = |site: &Site| -> Result<Value> { Ok(site.cli(&["status"])?["groups"][0].clone()) };
    site.cli(&["group", "set", "pair", "--lag", "4s,1h"])?;
    wait_for("a group that is well", PATIENCE, || Ok((status(&site)?["health"] == "healthy").then_some(())))?;

    // A machine that is not there voids group cuts only: the other's own points go on, the last common point stays.
    other.agent.kill()?;
    let refused = site.cli(&["group", "point", "create", "pair"]);
    let refused = format!("{:#}", refused.err().context("a group point without one of its machines")?);
    ensure!(refused.contains("void"), "{refused}");
    let points = group_points(&site)?.len();
    site.wait_for_new_point(&one.machine, PATIENCE)?;
    site.wait_for_new_point(&one.machine, PATIENCE)?;
    assert_eq!(group_points(&site)?.len(), points, "no group point without one of its machines");
    let late = wait_for("a group whose newest point is old", PATIENCE, || {
        let status = status(&site)?;
        let is_away = status["findings"].to_string().contains("not connected");
        Ok((status["health"] == "warning" && is_away).then_some(status))
    })?;
    ensure!(late["lag_ms"].as_u64() > Some(4000), "{late}");
    let shown = site.cli(&["group", "show", "pair"])?;
    ensure!(shown["lag"]["warning_ms"] == 4000 && shown["status"]["health"] == "warning", "{shown}");
    other.agent.start()?;
    site.wait_until_connected(PATIENCE)?;

    // The coordinator forgets everything but what is in the journals.
    site.kill_coordinator()?;
    let known = points;
    site.start_coordinator()?;
    site.wait_until_connected(PATIENCE)?;
    assert!(group_points(&site)?.len() >= known, "the group points are known again");
    check_for(&site, &[&one, &other], &writer, Duration::from_secs(seconds() / 2), POINTS_MIN / 2)?;

    // Leaving needs nothing else.
    let left = site.cli(&["group", "remove", "pair", &other.machine])?;
    assert_eq!(left["members"].as_array().map(Vec::len), Some(1));
    site.wait_for_new_point(&other.machine, PATIENCE)?;
    site.cli(&["group", "delete", "pair"])?;
    drop(writer);
    Ok(())
}
