//! App-consistent group points: hooks on every machine around one cut, and what becomes of it if one of them does not do its
//! part.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk},
    loop_device,
    site::{Agent, Site, wait_for},
};
use serde_json::Value;

use super::{DISK_BYTES, PATIENCE, machines};

/// A machine with hooks that write down when they were called.
struct Hooked {
    machine: String,
    agent: Agent,
    hooks: PathBuf,
    calls: PathBuf,
    _folder: tempfile::TempDir,
    _disk: MountedDisk,
}

impl Hooked {
    fn start(site: &Site) -> Result<Self> {
        let folder = tempfile::TempDir::with_prefix("holdfast-hooks-")?;
        let (hooks, calls) = (folder.path().join("freeze-hook.d"), folder.path().join("calls"));
        fs::create_dir(&hooks)?;
        fs::write(&calls, "")?;
        let settings = format!("[hooks]\nfolder = {hooks:?}\ncall_s = 5\nfrozen_s = 8\n");
        let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
        let before = machines(site)?;
        let agent = site.add_agent_with(&[], &settings)?;
        let machine = machines(site)?.into_iter().find(|id| !before.contains(id)).context("a new machine")?;
        site.protect(&machine, &[disk.device.path()], "1h")?;
        let hooked = Self { machine, agent, hooks, calls, _folder: folder, _disk: disk };
        hooked.hook("10-first", "")?;
        hooked.hook("20-second", "")?;
        Ok(hooked)
    }

    fn hook(&self, name: &str, body: &str) -> Result<()> {
        let path = self.hooks.join(name);
        let calls = self.calls.display();
        fs::write(&path, format!("#!/bin/sh\n{body}\necho {name} $1 $(date +%s%6N) >> {calls}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// The calls since the last look, and when each was done, in microseconds since 1970.
    fn calls(&self) -> Result<Vec<(String, i64)>> {
        let text = fs::read_to_string(&self.calls)?;
        fs::write(&self.calls, "")?;
        let call =
            |line: &str| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?));
        text.lines().map(|line| call(line).with_context(|| line.to_owned())).collect()
    }

    fn was_called(&self, call: &str) -> Result<Option<()>> {
        Ok(fs::read_to_string(&self.calls)?.lines().any(|line| line.starts_with(call)).then_some(()))
    }

    fn wait_for_call(&self, call: &str) -> Result<()> {
        wait_for(call, PATIENCE, || self.was_called(call))
    }

    /// The machine's part in a group point.
    fn part(&self, site: &Site, group_point: &Value) -> Result<Value> {
        let parts = group_point["members"].as_array().context("members")?;
        let own = parts.iter().find(|part| part["machine"] == self.machine.as_str()).context("a part")?;
        let points = site.points(&self.machine)?;
        let point = points.into_iter().find(|point| Some(point.id.as_str()) == own["point"].as_str());
        Ok(point.context("the part's point")?.all)
    }
}

fn ask(site: &Site) -> Result<Value> {
    let point = site.cli(&["group", "point", "create", "shop", "--app-consistent", "--time-limit", "20s"])?;
    ensure!(point["id"].is_string(), "no point in time: {point}");
    Ok(point)
}

/// The group point whose parts a failover of both machines would take, by the parts' ids.
fn chosen(site: &Site, members: &[&Hooked], wanted: &str) -> Result<Vec<String>> {
    let mut failover = vec!["failover", "--dry-run", "--point", wanted];
    failover.extend(members.iter().map(|member| member.machine.as_str()));
    let said = site.cli(&failover)?;
    let list = said.as_array().or_else(|| said["machines"].as_array()).with_context(|| said.to_string())?;
    let point = |of: &Value| of["point"]["id"].as_str().or_else(|| of["point"].as_str()).map(str::to_owned);
    let points: Option<Vec<String>> = list.iter().map(point).collect();
    let mut points = points.with_context(|| said.to_string())?;
    points.sort();
    Ok(points)
}

fn parts(group_point: &Value) -> Vec<String> {
    let parts = group_point["members"].as_array().into_iter().flatten();
    let mut ids: Vec<String> = parts.filter_map(|part| part["point"].as_str().map(str::to_owned)).collect();
    ids.sort();
    ids
}

#[test]
fn a_group_point_is_app_consistent_only_if_the_hooks_of_all_machines_did_their_part() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let site = Site::start()?;
    let mut one = Hooked::start(&site)?;
    let other = Hooked::start(&site)?;
    site.cli(&["group", "create", "shop", &one.machine, &other.machine, "--interval", "1h", "--wait", "1s"])?;
    wait_for("a group point", PATIENCE, || {
        Ok(site
            .cli(&["group", "point", "create", "shop"])
            .ok()
            .filter(|point| point["id"].is_string())
            .map(drop))
    })?;

    // All hooks of both were frozen before either cut, and thawed after both.
    let good = ask(&site)?;
    ensure!(good["consistency"] == "app", "{good}");
    let cuts = [one.part(&site, &good)?, other.part(&site, &good)?];
    let instants: Vec<i64> = cuts.iter().filter_map(|cut| cut["at_us"].as_i64()).collect();
    for hooked in [&one, &other] {
        let calls = hooked.calls()?;
        let names: Vec<&str> = calls.iter().map(|(call, _)| call.as_str()).collect();
        assert_eq!(names, ["10-first freeze", "20-second freeze", "20-second thaw", "10-first thaw"]);
        let held = instants.iter().all(|cut| calls[1].1 <= *cut && *cut <= calls[2].1);
        ensure!(held && instants.len() == 2, "{calls:?} around {instants:?}");
    }
    for cut in &cuts {
        ensure!(cut["consistency"] == "app", "{cut}");
    }

    // A hook of one machine fails: the point is kept, but never taken for an app-consistent one.
    other.hook("15-broken", "test $1 = thaw || { echo disk quota exceeded >&2; exit 7; }")?;
    let kept = ask(&site)?;
    ensure!(kept["consistency"] == "crash", "{kept}");
    ensure!(one.part(&site, &kept)?["consistency"] == "app", "this one's hooks did their part");
    let failed = other.part(&site, &kept)?;
    let says_why = failed.to_string();
    ensure!(failed["consistency"] == "crash", "{failed}");
    ensure!(says_why.contains("15-broken") && says_why.contains("disk quota exceeded"), "{failed}");
    assert_eq!(chosen(&site, &[&one, &other], "latest-multi-vm-app-consistent")?, parts(&good));
    assert_eq!(chosen(&site, &[&one, &other], "latest-multi-vm")?, parts(&kept));
    let shown = site.cli(&["group", "show", "shop"])?;
    assert_eq!(shown["newest"]["id"], kept["id"]);
    assert_eq!(shown["newest_application"]["id"], good["id"]);

    // Where the machine's policy says so, there is no point without its applications.
    site.cli(&["protect", &other.machine, "--on-hook-failure", "void"])?;
    let void = format!("{:#}", ask(&site).err().context("a group point in spite of the policy")?);
    ensure!(void.contains("void") && void.contains("15-broken"), "{void}");
    let newest = site.cli(&["group", "show", "shop"])?;
    assert_eq!(newest["newest"]["id"], kept["id"]);
    fs::remove_file(other.hooks.join("15-broken"))?;

    // An agent is killed while its hooks hold: they are thawed, on both machines.
    one.hook("20-second", "test $1 = thaw || sleep 3")?;
    one.calls()?;
    other.calls()?;
    std::thread::scope(|scope| -> Result<()> {
        let asked = scope.spawn(|| ask(&site));
        one.wait_for_call("10-first freeze")?;
        other.wait_for_call("20-second freeze")?;
        one.agent.kill()?;
        one.wait_for_call("10-first thaw")?;
        other.wait_for_call("10-first thaw")?;
        let answer = asked.join().ok().context("a panic")?;
        ensure!(answer.is_err(), "a group point without one of its machines: {answer:?}");
        Ok(())
    })?;
    one.agent.start()?;
    site.wait_until_connected(PATIENCE)?;
    one.hook("20-second", "")?;
    let again = wait_for("an app-consistent group point", PATIENCE, || Ok(ask(&site).ok()))?;
    ensure!(again["consistency"] == "app", "{again}");
    assert_eq!(chosen(&site, &[&one, &other], "latest-multi-vm-app-consistent")?, parts(&again));
    Ok(())
}
