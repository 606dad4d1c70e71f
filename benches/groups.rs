//! Group cuts with real agents: how long members hold beyond the slowest one's own freeze.
//!
//! Owns the scenery: many small disks with file systems, an agent for each, one group.

use std::{
    process::Command,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    site::{Agent, Site, wait_for},
};
use serde_json::Value;

use crate::{
    Run,
    report::{Row, percentile},
};

const DISK_BYTES: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(120);

/// Members of the two runs.
const MEMBERS: [usize; 2] = [16, 64];
/// Most that p99 of the smaller run may be, in milliseconds.
const HOLD_MS_MAX: f64 = 20.0;
/// What p99 of the larger run is held against, in milliseconds.
const LARGE_HOLD_MS_MAX: f64 = 250.0;

/// Times that the machine's own limit is measured.
const BARE_ROUNDS: usize = 7;

/// Machines with a disk each, in one group.
struct Crowd {
    site: Site,
    _agents: Vec<Agent>,
    disks: Vec<MountedDisk>,
}

impl Crowd {
    fn start(count: usize) -> Result<Self> {
        let site = Site::start()?;
        let mut agents = Vec::new();
        let mut disks = Vec::new();
        let mut machines: Vec<String> = Vec::new();
        for _ in 0..count {
            let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
            agents.push(site.add_agent()?);
            let listed = site.cli(&["machines"])?;
            let ids =
                listed.as_array().context("machines")?.iter().filter_map(|machine| machine["id"].as_str());
            let new = ids.map(str::to_owned).find(|id| !machines.contains(id)).context("a new machine")?;
            site.protect(&new, &[disk.device.path()], "1h")?;
            machines.push(new);
            disks.push(disk);
        }
        let mut create = vec!["group", "create", "all", "--interval", "1h", "--wait", "2s"];
        create.extend(machines.iter().map(String::as_str));
        site.cli(&create)?;
        Ok(Self { site, _agents: agents, disks })
    }

    /// What this machine can do at most: a process for each file system freezes it, all started at once. Gives how far apart
    /// the first and the last of them were done, in milliseconds, of so many rounds.
    fn bare_freezes(&self, rounds: usize) -> Result<Vec<f64>> {
        let mut apart = Vec::new();
        for _ in 0..rounds {
            let together = Barrier::new(self.disks.len());
            let done: Vec<Result<Instant>> = thread::scope(|scope| {
                let freeze = |disk: &MountedDisk| {
                    together.wait();
                    run(Command::new("fsfreeze").arg("-f").arg(disk.folder()))?;
                    Ok(Instant::now())
                };
                let threads: Vec<_> =
                    self.disks.iter().map(|disk| scope.spawn(move || freeze(disk))).collect();
                threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
            });
            // Also if one of them failed: nothing stays frozen.
            for disk in &self.disks {
                let _was_not_frozen = run(Command::new("fsfreeze").arg("-u").arg(disk.folder()));
            }
            let done = done.into_iter().collect::<Result<Vec<Instant>>>()?;
            let (first, last) = (done.iter().min().context("a disk")?, done.iter().max().context("a disk")?);
            apart.push((*last - *first).as_secs_f64() * 1000.0);
        }
        Ok(apart)
    }

    /// Cuts again and again; void ones are counted.
    fn cut(&self, count: usize, limit: Duration) -> Result<(Vec<Value>, usize)> {
        let (mut points, mut void) = (Vec::new(), 0);
        wait_for("the first group point", PATIENCE, || {
            Ok(self.site.cli(&["group", "point", "create", "all"]).ok().map(drop))
        })?;
        let started = Instant::now();
        while points.len() < count && started.elapsed() < limit {
            match self.site.cli(&["group", "point", "create", "all"]) {
                Ok(point) => points.push(point),
                Err(_) => void += 1,
            }
        }
        ensure!(points.len() >= 3, "only {} group points, {void} void", points.len());
        Ok((points, void))
    }
}

/// Hold of group members beyond the slowest member's own freeze.
pub(crate) fn group(bench: Run) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for members in MEMBERS {
        // What an earlier run has left to write must not be in this one's freezes.
        let _synced = Command::new("sync").status();
        let crowd = Crowd::start(members)?;
        let (points, void) = crowd.cut(if bench.quick { 20 } else { 60 }, Duration::from_secs(60))?;
        let bare = crowd.bare_freezes(BARE_ROUNDS)?;
        rows.push(figures(members, &points, void, &bare));
    }
    Ok(rows)
}

/// What the longest hold of a group is beyond what the slowest member would have held by itself: its hold less its wait for
/// the mark (which reading its residue overlaps, so this is on the safe side).
fn figures(members: usize, points: &[Value], void: usize, bare: &[f64]) -> Row {
    let millis = |value: &Value, name: &str| value[name].as_f64().unwrap_or(0.0) / 1000.0;
    let (mut beyond, mut own, mut holds, mut spreads) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for point in points {
        let parts = point["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let longest = |of: &dyn Fn(&Value) -> f64| parts.iter().map(of).fold(0.0, f64::max);
        let hold = longest(&|part| millis(part, "hold_us"));
        let slowest = longest(&|part| millis(part, "hold_us") - millis(part, "waited_us"));
        beyond.push(hold - slowest);
        own.push(slowest);
        holds.push(hold);
        spreads.push(millis(point, "spread_us"));
    }
    let limit = if members == MEMBERS[0] { HOLD_MS_MAX } else { LARGE_HOLD_MS_MAX };
    let note = format!(
        "{members} agents on this machine, idle ext4 disks, {} group points, {void} void; beyond: median {:.1} ms; \
         slowest member alone: median {:.1}, p99 {:.1} ms; longest hold: median {:.1}, p99 {:.1} ms; beginnings of \
         holds apart by at most {:.1} (median), {:.1} ms (p99); as many processes that do nothing but freeze, all at \
         once, are done {:.1} (median), {:.1} ms (worst of {BARE_ROUNDS}) apart",
        points.len(),
        percentile(&beyond, 50.0),
        percentile(&own, 50.0),
        percentile(&own, 99.0),
        percentile(&holds, 50.0),
        percentile(&holds, 99.0),
        percentile(&spreads, 50.0),
        percentile(&spreads, 99.0),
        percentile(bare, 50.0),
        percentile(bare, 100.0),
    );
    let name = format!("group hold beyond the slowest freeze, {members} members, p99");
    Row::new(name, percentile(&beyond, 99.0), "ms").against(limit, "target").note(note)
}
