//! Freeze hooks with a real agent: app-consistent points, and thawing whoever is killed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    loop_device,
    site::{Agent, Site, wait_for},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A protected machine with a folder of hooks.
struct Scene {
    site: Site,
    agent: Agent,
    machine: String,
    hooks: PathBuf,
    /// What the hooks have been called with, line by line.
    calls: PathBuf,
    _folder: tempfile::TempDir,
    _disk: MountedDisk,
}

impl Scene {
    fn start() -> Result<Self> {
        let folder = tempfile::TempDir::with_prefix("holdfast-hooks-")?;
        let (hooks, calls) = (folder.path().join("freeze-hook.d"), folder.path().join("calls"));
        fs::create_dir(&hooks)?;
        fs::write(&calls, "")?;
        let settings = format!("[hooks]\nfolder = {hooks:?}\ncall_s = 5\nfrozen_s = 8\n");
        let disk = MountedDisk::create(Kind::Ext4, 64 << 20)?;
        let site = Site::start()?;
        let agent = site.add_agent_with(&[], &settings)?;
        let machine = site.only_machine()?;
        site.protect(&machine, &[disk.device.path()], "1h")?;
        site.wait_for_points(&machine, 1, PATIENCE)?;
        Ok(Self { site, agent, machine, hooks, calls, _folder: folder, _disk: disk })
    }

    fn hook(&self, name: &str, body: &str) -> Result<()> {
        let path = self.hooks.join(name);
        let calls = self.calls.display();
        fs::write(&path, format!("#!/bin/sh\n{body}\necho {name} $1 >> {calls}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// The calls since the last look.
    fn calls(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.calls)?;
        fs::write(&self.calls, "")?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn ask(&self) -> Result<serde_json::Value> {
        let arguments =
            ["point", "create", &self.machine, "--app-consistent", "--wait", "--time-limit", "10s"];
        Ok(self.site.cli(&arguments)?["point"].clone())
    }

    /// Asks for an app-consistent point, and waits until its hooks are under way. After a start of the agent the coordinator
    /// may refuse; what it accepts reaches the agent, also if that is still on its way back.
    fn begin_freezing(&self) -> Result<()> {
        let ask = ["point", "create", &self.machine, "--app-consistent"];
        wait_for("a request that is taken", PATIENCE, || Ok(self.site.cli(&ask).ok()))?;
        self.wait_for_call("10-first freeze")
    }

    fn was_called(&self, call: &str) -> Result<Option<()>> {
        Ok(fs::read_to_string(&self.calls)?.lines().any(|line| line == call).then_some(()))
    }

    fn wait_for_call(&self, call: &str) -> Result<()> {
        wait_for(call, PATIENCE, || self.was_called(call))
    }
}

/// Processes whose command line has all of these words.
fn processes(words: &[&str]) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(process) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if words.iter().all(|word| line.contains(word)) {
            found.push(process);
        }
    }
    found
}

fn keeper(hooks: &Path) -> Result<i32> {
    let hooks = hooks.display().to_string();
    let found =
        wait_for("the keeper", PATIENCE, || Ok(processes(&["hook-keeper", &hooks]).first().copied()))?;
    Ok(found)
}

fn kill(process: i32, signal: i32) -> Result<()> {
    run(Command::new("kill").args([format!("-{signal}"), process.to_string()])).map(drop)
}

#[test]
fn a_point_is_app_consistent_only_if_every_hook_did_its_part() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let scene = Scene::start()?;
    let without = format!("{:#}", scene.ask().err().context("a point without hooks")?);
    ensure!(without.contains("there is no freeze hook"), "{without}");

    scene.hook("10-first", "")?;
    scene.hook("20-second", "")?;
    let point = scene.ask()?;
    ensure!(point["consistency"] == "app", "{point}");
    assert_eq!(scene.calls()?, ["10-first freeze", "20-second freeze", "20-second thaw", "10-first thaw"]);

    // A hook that fails: those before it are thawed, it as well, and the operator learns why.
    scene.hook("15-broken", "test $1 = thaw || { echo disk quota exceeded >&2; exit 7; }")?;
    let failed = format!("{:#}", scene.ask().err().context("a point with a broken hook")?);
    ensure!(failed.contains("15-broken") && failed.contains("disk quota exceeded"), "{failed}");
    assert_eq!(scene.calls()?, ["10-first freeze", "15-broken thaw", "10-first thaw"]);

    // A hook that hangs is killed.
    scene.hook("15-broken", "test $1 = thaw || sleep 600")?;
    let hung = format!("{:#}", scene.ask().err().context("a point with a hanging hook")?);
    ensure!(hung.contains("took more than 5 s"), "{hung}");
    assert_eq!(scene.calls()?, ["10-first freeze", "15-broken thaw", "10-first thaw"]);
    fs::remove_file(scene.hooks.join("15-broken"))?;

    // A usual point needs no hooks.
    let usual = scene.site.cli(&["point", "create", &scene.machine, "--wait"])?["point"].clone();
    ensure!(usual["consistency"] == "crash", "{usual}");
    assert_eq!(scene.calls()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn hooks_are_thawed_whoever_is_killed() -> Result<()> {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let mut scene = Scene::start()?;
    scene.hook("10-first", "")?;
    // Slow enough to be met in the middle.
    scene.hook("20-second", "test $1 = thaw || sleep 2")?;

    // The agent: its keeper thaws.
    scene.begin_freezing()?;
    scene.agent.kill()?;
    scene.wait_for_call("10-first thaw")?;
    scene.agent.start()?;
    scene.site.wait_until_connected(PATIENCE)?;
    scene.calls()?;

    // The keeper: the agent has another one thaw, and there is no such point.
    scene.begin_freezing()?;
    kill(keeper(&scene.hooks)?, 9)?;
    scene.wait_for_call("10-first thaw")?;
    scene.calls()?;

    // Both: the next start of the agent.
    scene.begin_freezing()?;
    let keeper = keeper(&scene.hooks)?;
    kill(i32::try_from(scene.agent.process_id())?, 19)?;
    kill(keeper, 9)?;
    scene.agent.kill()?;
    ensure!(!scene.calls()?.iter().any(|call| call == "10-first thaw"), "nobody is left to thaw");
    scene.agent.start()?;
    scene.wait_for_call("10-first thaw")?;

    // And all is well again.
    scene.site.wait_until_connected(PATIENCE)?;
    scene.hook("20-second", "")?;
    scene.calls()?;
    // The first may still be asked of the session of the agent that was killed.
    let point = wait_for("a point", PATIENCE, || Ok(scene.ask().ok()))?;
    ensure!(point["consistency"] == "app", "{point}");
    Ok(())
}
