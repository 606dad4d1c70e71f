//! A link that fails: lag grows, memory does not, and replication catches up by itself.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    load, loop_device,
    network::Namespace,
    protected::Protected,
    site::Site,
};

/// Most that the agent may hold in memory (issue: 128 MiB; a debug build is a little larger).
const RESIDENT_BYTES_MAX: u64 = 160 << 20;

/// Seconds without a link; `HOLDFAST_TEST_CUT_SECONDS` changes it.
fn cut_seconds() -> u64 {
    std::env::var("HOLDFAST_TEST_CUT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

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
