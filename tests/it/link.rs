//! A link that fails: lag grows, memory does not, and replication catches up by itself.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_tests::{
    asked,
    file_system::{Kind, MountedDisk},
    load, loop_device,
    network::Namespace,
    protected::{PATIENCE, Protected},
    relay::{Relay, Weather},
    site::{Site, wait_for},
};
use tokio::runtime;

/// Most that the agent may hold in memory (issue: 128 MiB; a debug build is a little larger).
const RESIDENT_BYTES_MAX: u64 = 160 << 20;

/// Seconds without a link; `HOLDFAST_TEST_CUT_SECONDS` changes it.
fn cut_seconds() -> u64 {
    asked::number("HOLDFAST_TEST_CUT_SECONDS").unwrap_or(60)
}

/// What a link over a continent does on a bad day: 50 ms in each direction, one packet of a hundred lost.
const BAD_DAY: Weather =
    Weather { delay: Duration::from_millis(50), loss_per_million: 10_000, bytes_per_second: 0, cut: false };

fn resident_bytes(process: u32) -> Result<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(process.to_string()).join("status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("VmRSS")?.parse()?;
    Ok(kib * 1024)
}

#[test]
fn a_minute_without_link_costs_lag_only() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let namespace = Namespace::create(1)?;
    let disk = MountedDisk::create(Kind::Ext4, 1 << 30)?;
    let site = Site::start_at(&namespace.outer_address(), None)?;
    let inside = namespace.command_prefix();
    let inside: Vec<_> = inside.iter().map(String::as_str).collect();
    let agent = site.add_agent_with(&inside, "")?;
    let protected = Protected::with(site, agent, &[disk.device.path()])?;
    let mut writer = load::start(&[&disk], 3, Duration::from_micros(100))?;
    protected.wait_for_points(2)?;

    namespace.set_link(false)?;
    let mut largest = 0;
    for _ in 0..cut_seconds() {
        thread::sleep(Duration::from_secs(1));
        largest = largest.max(resident_bytes(protected.agent.process_id())?);
    }
    let stalled = protected.points()?;
    namespace.set_link(true)?;
    protected.next_point_holds(&[&disk], &writer)?;
    writer.finish()?;
    eprintln!("agent held at most {} MiB; {} points before the link came back", largest >> 20, stalled.len());
    assert!(largest <= RESIDENT_BYTES_MAX, "the agent grew to {} MiB", largest >> 20);
    Ok(())
}

#[test]
fn a_link_that_delays_and_loses_packets_costs_lag_only() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let disk = MountedDisk::create(Kind::Ext4, 256 << 20)?;
    let mut site = Site::start()?;
    let relay = runtime.block_on(Relay::start(site.address().parse()?, 7, runtime.handle()))?;
    site.reach_through(relay.address());
    let agent = site.add_agent()?;
    let protected = Protected::with(site, agent, &[disk.device.path()])?;
    // Some 100 KB/s: about what one lossy connection carries.
    let mut writer = load::start(&[&disk], 5, Duration::from_millis(50))?;
    protected.wait_for_points(1)?;

    relay.set(BAD_DAY);
    for _ in 0..2 {
        protected.next_point_holds(&[&disk], &writer)?;
    }
    // Smoothed: it comes near the truth with time.
    wait_for("the relay to show in the link's round trip", PATIENCE, || {
        let status = protected.site.cli(&["status"])?;
        let round_trip = status.pointer("/machines/0/link/rtt_us").and_then(serde_json::Value::as_u64);
        Ok(round_trip.filter(|micros| u128::from(*micros) > BAD_DAY.delay.as_micros()))
    })?;
    relay.set(Weather::default());
    protected.next_point_holds(&[&disk], &writer)?;
    writer.finish()?;
    let held = resident_bytes(protected.agent.process_id())?;
    assert!(held <= RESIDENT_BYTES_MAX, "the agent grew to {} MiB", held >> 20);
    Ok(())
}

#[test]
fn a_rate_below_the_churn_makes_points_older_but_not_fewer_than_fit() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, 256 << 20)?;
    let site = Site::start()?;
    let agent = site.add_agent_with(&[], "[link]\nsend_bytes_per_second_max = 1000000\n")?;
    let protected = Protected::with(site, agent, &[disk.device.path()])?;
    // Rewrites 8 MiB many times a second: the link carries that once in several seconds.
    let mut writer = load::start(&[&disk], 6, Duration::from_micros(100))?;
    for _ in 0..2 {
        protected.next_point_holds(&[&disk], &writer)?;
    }
    let held = resident_bytes(protected.agent.process_id())?;
    assert!(held <= RESIDENT_BYTES_MAX, "the agent grew to {} MiB", held >> 20);
    writer.finish()?;
    protected.next_point_holds(&[&disk], &writer)?;
    Ok(())
}
