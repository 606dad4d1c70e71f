//! Not a test of its own: what `machine_stack` runs inside a machine, whose disks it names.

use std::{env, fs, path::Path, time::Duration};

use anyhow::{Result, ensure};
use holdfast_agent::capture::freeze::Freezer;

use super::helper::{described, settings};

/// Whole disks to hold together, separated by colons.
pub(crate) const NAMED_DISKS: &str = "HOLDFAST_TEST_DISKS";
/// How often they are held.
const HOLDS: usize = 10;
/// Longer than any hold takes on an emulated processor.
const BOUND: Duration = Duration::from_secs(20);

/// Writes that the kernel has counted, on all these disks together.
fn writes(disks: &[&Path]) -> Result<u64> {
    let mut sum = 0;
    for disk in disks {
        let name = disk.file_name().unwrap_or_default();
        let text = fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
        sum += text.split_whitespace().nth(4).unwrap_or_default().parse::<u64>()?;
    }
    Ok(sum)
}

#[test]
fn named_disks_are_held() -> Result<()> {
    let Ok(names) = env::var(NAMED_DISKS) else { return Ok(()) };
    let paths: Vec<&Path> = names.split(':').map(Path::new).collect();
    let disks = paths.iter().map(|path| described(path)).collect::<Result<Vec<_>>>()?;
    let mut freezer = Freezer::start(settings()?)?;
    let before = writes(&paths)?;
    for round in 0..HOLDS {
        let plan = freezer.plan(&disks)?;
        if round == 0 {
            plan.file_systems().iter().for_each(|held| println!("\nholds {}", held.mount_point.display()));
        }
        plan.sync()?;
        let hold = freezer.hold(&plan, BOUND)?;
        let first = writes(&paths)?;
        std::thread::sleep(Duration::from_millis(20));
        let second = writes(&paths)?;
        let report = hold.release()?;
        if round == 0 {
            report.left_alone.iter().for_each(|path| println!("\nleft alone {}", path.display()));
        }
        ensure!(first == second, "{} writes reached the held disks", second - first);
    }
    ensure!(writes(&paths)? > before, "nothing was written between the holds");
    Ok(())
}
