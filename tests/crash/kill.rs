//! kill -9 of agent and coordinator at random moments: nothing acknowledged is lost, replication goes on by itself, and
//! every point stays good.

use std::{thread, time::Duration};

use anyhow::Result;
use holdfast_common::entropy::{Entropy, SeededEntropy};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    load::{self, check_point},
    loop_device,
    site::Site,
};

const DISK_BYTES: u64 = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(90);

/// How many kills; `HOLDFAST_TEST_ROUNDS` changes it.
fn rounds() -> u64 {
    std::env::var("HOLDFAST_TEST_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

#[test]
fn nothing_is_lost_by_kill_9() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let seed = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("HOLDFAST_TEST_SEED={seed}");
    let random = SeededEntropy::new(seed);
    let below = |limit: u64| random.next_u64() % limit;

    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut site = Site::start()?;
    let mut agent = site.add_agent()?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1s")?;
    let mut writer = load::start(&[&disk], seed, Duration::from_millis(1))?;
    site.wait_for_points(&machine, 1, PATIENCE)?;

    for round in 1..=rounds() {
        thread::sleep(Duration::from_millis(below(1200)));
        let known = site.points(&machine)?;
        let pause = Duration::from_millis(below(300));
        match below(3) {
            0 => {
                agent.kill()?;
                thread::sleep(pause);
                agent.start()?;
            }
            1 => {
                site.kill_coordinator()?;
                thread::sleep(pause);
                site.start_coordinator()?;
            }
            _ => {
                site.kill_coordinator()?;
                agent.kill()?;
                thread::sleep(pause);
                agent.start()?;
                site.start_coordinator()?;
            }
        }
        let points = site.points(&machine)?;
        for point in &known {
            let kept = points.iter().any(|kept| kept.id == point.id);
            assert!(kept, "round {round}: point {} was offered and is gone", point.id);
        }
        if round % 10 == 0 {
            let before = writer.done();
            let point = site.wait_for_new_point(&machine, PATIENCE)?;
            let operations = check_point(&site, &machine, &point.id, &[&disk], writer.schedule())?;
            assert!(operations >= before, "round {round}: operation {before} is not in the point after it");
        }
    }
    writer.finish()?;
    let points = site.points(&machine)?;
    eprintln!("{} points after {} kills", points.len(), rounds());
    for point in points.iter().rev().step_by(points.len() / 20 + 1) {
        check_point(&site, &machine, &point.id, &[&disk], writer.schedule())?;
    }
    Ok(())
}
