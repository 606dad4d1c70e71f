//! kill -9 of agent and coordinator at random moments: nothing acknowledged is lost, replication goes on by itself, and
//! every point stays good.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};
use holdfast_common::entropy::{Entropy, SeededEntropy};
use holdfast_tests::{
    asked,
    file_system::{Kind, MountedDisk},
    load, loop_device,
    protected::Protected,
};

const DISK_BYTES: u64 = 256 << 20;

/// How many kills; `HOLDFAST_TEST_ROUNDS` changes it.
fn rounds() -> u64 {
    asked::number("HOLDFAST_TEST_ROUNDS").unwrap_or(100)
}

#[test]
fn nothing_is_lost_by_kill_9() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let seed = asked::seed();
    let random = SeededEntropy::new(seed);
    let below = |limit: u64| random.next_u64() % limit;

    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let mut protected = Protected::start(&[disk.device.path()])?;
    let mut writer = load::start(&[&disk], seed, Duration::from_millis(1))?;
    protected.wait_for_points(1)?;

    for round in 1..=rounds() {
        thread::sleep(Duration::from_millis(below(1200)));
        let known = protected.points()?;
        let pause = Duration::from_millis(below(300));
        match below(3) {
            0 => {
                protected.agent.kill()?;
                thread::sleep(pause);
                protected.agent.start()?;
            }
            1 => {
                protected.site.kill_coordinator()?;
                thread::sleep(pause);
                protected.site.start_coordinator()?;
            }
            _ => {
                protected.site.kill_coordinator()?;
                protected.agent.kill()?;
                thread::sleep(pause);
                protected.agent.start()?;
                protected.site.start_coordinator()?;
            }
        }
        let points = protected.points()?;
        for point in &known {
            let kept = points.iter().any(|kept| kept.id == point.id);
            assert!(kept, "round {round}: point {} was offered and is gone", point.id);
        }
        if round % 10 == 0 {
            protected.next_point_holds(&[&disk], &writer).with_context(|| format!("round {round}"))?;
        }
    }
    writer.finish()?;
    let points = protected.points()?;
    eprintln!("{} points after {} kills", points.len(), rounds());
    for point in points.iter().rev().step_by(points.len() / 20 + 1) {
        protected.check(point, &[&disk], &writer)?;
    }
    Ok(())
}
