//! A plan's machines run in QEMU at their targets, are protected there, go back to their sources with what they wrote, and are moved
//! again, with nothing lost.

use std::{fs, os::unix::fs::FileExt as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    boot_sector::{COUNTER_OFFSET, counting_boot_sector},
    crowd::Crowd,
    guest, loop_device,
};
use serde_json::Value;

use super::{
    PATIENCE, Scripts, apply, count, id,
    machines::{all_booted, make_bootable_as, nothing_is_left},
    until,
};
use crate::machine_vm::{Remains, processes};

/// How often each machine has been started, as its own disk at the source says.
fn counts(crowd: &Crowd) -> Result<Vec<u32>> {
    let count = |disk: &Path| {
        let mut bytes = [0; 4];
        fs::File::open(disk)?.read_exact_at(&mut bytes, COUNTER_OFFSET)?;
        Ok(u32::from_le_bytes(bytes))
    };
    crowd.disks.iter().map(|disk| count(disk.path())).collect()
}

fn at_their_targets(crowd: &Crowd, verb: &str, overlays: &Path) -> Result<Value> {
    let job = crowd.site.cli(&["plan", verb, "shop", "--vm"])?;
    ensure!(job["ok"] == true && count(&job, "holding") == 3, "{job:#}");
    all_booted(&crowd.site, &job)?;
    ensure!(processes(overlays)?.len() == 3, "{job:#}");
    crowd.site.cli(&["plan", "commit", "shop"])?;
    Ok(job)
}

/// Protected where they are, and back.
fn back(crowd: &Crowd, failover: &Value, overlays: &Path) -> Result<()> {
    let site = &crowd.site;
    let there = site.cli(&["plan", "reprotect", "shop"])?;
    ensure!(there["state"] == "succeeded" && count(&there, "succeeded") == 3, "{there:#}");
    let back = site.cli(&["plan", "failback", "shop"])?;
    ensure!(back["state"] == "succeeded" && count(&back, "succeeded") == 3, "{back:#}");
    nothing_is_left(overlays)?;
    crowd.wait_until_all_replicate()?;
    // The run that they came from holds nothing any more.
    let over = until(site, id(failover), "succeeded")?;
    ensure!(count(&over, "cancelled") == 3, "{over:#}");
    let standing = site.cli(&["plan", "show", "shop"])?;
    ensure!(standing["jobs"].as_array().context("its runs")?.is_empty(), "{standing:#}");
    let refused = site.cli(&["plan", "cancel", "shop"]).unwrap_err().to_string();
    ensure!(refused.contains("no failover of the plan shop stands"), "{refused}");
    Ok(())
}

fn walked() -> Result<()> {
    let scripts = Scripts::new()?;
    let crowd = Crowd::start(3, "2s", "")?;
    let overlays = crowd.site.data().join("vm");
    let _remains = Remains(overlays.clone());
    make_bootable_as(&crowd, counting_boot_sector)?;
    let before = counts(&crowd)?;
    let text = format!(
        "name = \"shop\"\n[[group]]\nname = \"databases\"\nmachines = [\"{}\", \"{}\"]\n\
         [[group]]\nname = \"front\"\nmachines = [\"{}\"]\n",
        crowd.machines[0], crowd.machines[1], crowd.machines[2]
    );
    apply(&crowd.site, scripts.folder.path(), &text)?;
    for (turn, verb) in ["failover", "planned-failover"].into_iter().enumerate() {
        let job = at_their_targets(&crowd, verb, &overlays)?;
        back(&crowd, &job, &overlays)?;
        let turn = u32::try_from(turn)? + 1;
        let expected: Vec<u32> = before.iter().map(|before| before.wrapping_add(turn)).collect();
        ensure!(counts(&crowd)? == expected, "{:?} is not {expected:?}", counts(&crowd)?);
        for machine in &crowd.machines {
            crowd.site.wait_for_new_point(machine, PATIENCE)?;
        }
    }
    Ok(())
}

#[test]
fn a_plan_s_machines_go_back_with_what_they_wrote_and_there_again() {
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
