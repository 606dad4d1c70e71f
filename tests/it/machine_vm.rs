//! A machine of a recovery point runs in QEMU: from the served point at once, on its own afterwards, and without a trace on what it
//! was made of.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::run,
    guest::{self, Image},
    loop_device::{self, LoopDevice},
    protected::{PATIENCE, Protected},
    site::{BOOT, wait_for, wait_for_login},
};
use serde_json::Value;

/// Processes of QEMU that have this folder among their arguments.
pub(crate) fn processes(folder: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(id) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // The arguments of a process that hangs in its end would be waited for.
        if !fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default().starts_with("qemu") {
            continue;
        }
        let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        if arguments.contains("qemu") && arguments.contains(&*folder.to_string_lossy()) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Types into the console's socket, and waits for the machine's answer in its log.
fn typed_at_the_console(console: &Value) -> Result<()> {
    let socket = console["runs"]["console"].as_str().context("its socket")?;
    let log = PathBuf::from(console["runs"]["console_log"].as_str().context("its log")?);
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(b"nobody\n")?;
    wait_for("the question for a password", BOOT, || {
        Ok(fs::read_to_string(&log).unwrap_or_default().contains("Password:").then_some(()))
    })
}

/// Ends what a failed test has left running.
pub(crate) struct Remains(pub(crate) PathBuf);

impl Drop for Remains {
    fn drop(&mut self) {
        for id in processes(&self.0).unwrap_or_default() {
            let _ended = Command::new("kill").args(["-9", &id.to_string()]).status();
        }
    }
}

#[test]
fn a_failed_over_machine_boots_from_its_point_outlives_the_coordinator_and_becomes_independent() -> Result<()>
{
    if let Some(reason) = guest::unavailable().or_else(loop_device::unavailable) {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = folder.path().join("source.raw");
    run(Command::new("cp").arg("--sparse=always").arg(Image::obtain()?.path()).arg(&disk))?;
    let device = LoopDevice::attach(&disk)?;
    let mut protected = Protected::start(&[device.path()])?;
    let machine = protected.machine.clone();
    protected.wait_for_points(1)?;
    let overlays = protected.site.data().join("vm");
    let _remains = Remains(overlays.clone());

    // The inventory is that of this host, and its disk is another machine's: what that one starts on is told from the
    // replica, how large it is by hand.
    protected.site.set_hardware(&machine, "processors = 1\nmemroy_mib = 512\n")?;
    let test = ["test-failover", &machine, "--point", "latest", "--vm"];
    let refused = protected.site.cli(&test).unwrap_err().to_string();
    ensure!(refused.contains("line 2") && refused.contains("memroy_mib"), "{refused}");
    let job = protected.site.cli(&["jobs"])?[0]["id"].as_str().context("a job")?.to_owned();
    let sound = "processors = 1\nmemory_mib = 512\ncpu = \"Westmere\"\n";
    protected.site.set_hardware(&machine, sound)?;

    // Told from the replica, without starting anything.
    let ready = protected.site.cli(&["readiness", &machine, "--now"])?;
    ensure!(ready["verdict"] == "ready", "{ready}");
    protected.site.set_hardware(&machine, &format!("{sound}disk_model = \"pvscsi\"\n"))?;
    let unready = protected.site.cli(&["readiness", &machine, "--now"])?;
    ensure!(
        unready["verdict"] == "not-ready" && unready.to_string().contains("lacks vmw_pvscsi"),
        "{unready}"
    );
    let status = protected.site.cli(&["status"])?["machines"][0].clone();
    ensure!(status["findings"].to_string().contains("will not boot at the target"), "{status}");
    protected.site.set_hardware(&machine, sound)?;

    // A drill proves it, leaves a picture and a record, and nothing else.
    let drill = protected.site.cli(&["drill", &machine, "--time-limit", "5m"])?;
    ensure!(drill["kind"] == "drill" && drill["state"] == "succeeded", "{drill}");
    let drills = protected.site.cli(&["drill", &machine, "--history"])?;
    ensure!(drills[0]["ok"] == true && drills[0]["point"] == drill["point"], "{drills}");
    let picture = fs::read(drills[0]["screenshot"].as_str().context("a picture")?)?;
    ensure!(picture.starts_with(b"\x89PNG"), "the picture is none");
    ensure!(
        processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0,
        "the drill left something"
    );
    let points = protected.site.cli(&["points", &machine])?;
    let booted =
        points["points"].as_array().context("points")?.iter().find(|point| point["id"] == drill["point"]);
    ensure!(booted.is_some_and(|point| point["booted_at"].is_string()), "{points}");
    let status = protected.site.cli(&["status"])?["machines"][0].clone();
    ensure!(status["drill"]["ok"] == true && status["drill_age_ms"].is_u64(), "{status}");

    // A drill that sees no sign of life fails, says so in status, and leaves nothing either; also if the coordinator is killed in it.
    let begun = protected.site.cli(&[
        "drill",
        &machine,
        "--probe",
        "never said",
        "--time-limit",
        "6s",
        "--no-wait",
    ])?;
    wait_for("the drill's machine", PATIENCE, || Ok((!processes(&overlays)?.is_empty()).then_some(())))?;
    protected.site.kill_coordinator()?;
    protected.site.start_coordinator()?;
    let id = begun["id"].as_str().context("its id")?;
    let failed = wait_for("the drill's end", BOOT, || {
        let job = protected.site.cli(&["job", "show", id])?;
        Ok((job["settled"] == true).then_some(job))
    })?;
    ensure!(failed["state"] == "failed", "{failed}");
    ensure!(
        processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0,
        "the drill left something"
    );
    let status = protected.site.cli(&["status"])?["machines"][0].clone();
    ensure!(status["findings"].to_string().contains("its last drill failed"), "{status}");

    // A test, begun by mending the first try: apart from the network, and gone without a trace.
    let job = protected.site.cli(&["job", "retry", &job])?;
    let job = protected.site.cli(&["job", "show", job["id"].as_str().context("its id")?, "--follow"])?;
    ensure!(job["runs"]["runs_as"].as_str().is_some_and(|text| text.contains("QEMU")), "{job}");
    wait_for_login(&job)?;
    let console = protected.site.cli(&["machine", "console", &machine, "--log"])?;
    ensure!(console["log"].as_str().is_some_and(|log| log.contains("login:")), "{console}");
    ensure!(console["kind"] == "test-failover" && console["job"] == job["id"], "{console}");
    let picture = folder.path().join("screen.png");
    protected.site.cli(&["machine", "screenshot", &machine, &picture.to_string_lossy()])?;
    ensure!(fs::read(&picture)?.starts_with(b"\x89PNG"), "the picture is none");
    typed_at_the_console(&console)?;
    let running = processes(&overlays)?;
    ensure!(running.len() == 1, "{running:?}");
    let arguments = fs::read(format!("/proc/{}/cmdline", running[0]))?;
    ensure!(String::from_utf8_lossy(&arguments).contains("restrict=on"), "a test reaches the network");
    let newest = protected.site.wait_for_new_point(&machine, PATIENCE)?;
    protected.site.cli(&["test-failover", &machine, "--cleanup"])?;
    ensure!(
        processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0,
        "the test left something"
    );
    let copies = protected.site.copy_point(&machine, &newest.id, folder.path())?;
    ensure!(fs::read(&copies[0].1)? == fs::read(&disk)?, "a test changed its source or the replica");
    fs::remove_file(&copies[0].1)?;

    // The failover: it boots while the coordinator is killed and comes back, and reads on.
    let job = protected.site.cli(&["failover", &machine, "--point", "latest", "--vm"])?;
    let before = processes(&overlays)?;
    protected.site.kill_coordinator()?;
    ensure!(processes(&overlays)? == before && before.len() == 1, "the machine went with the coordinator");
    protected.site.start_coordinator()?;
    wait_for_login(&job)?;
    ensure!(processes(&overlays)? == before, "it was started anew");
    let lifecycle = protected.site.cli(&["status"])?["machines"][0]["lifecycle"].clone();
    ensure!(lifecycle["stage"] == "failed-over", "{lifecycle}");
    protected.site.cli(&["cancel", &machine])?;
    ensure!(
        processes(&overlays)?.is_empty() && fs::read_dir(&overlays)?.count() == 0,
        "the cancel left something"
    );
    protected.site.wait_for_new_point(&machine, PATIENCE)?;

    // Moved to images of its own, it needs nothing of the coordinator.
    let job = protected.site.cli(&["failover", &machine, "--point", "latest", "--vm", "--stream"])?;
    protected.site.kill_coordinator()?;
    wait_for_login(&job)?;
    let overlay = overlays.join(job["id"].as_str().context("its id")?).join("disk0.qcow2");
    let info = Command::new("qemu-img").args(["info", "-U", "--output=json"]).arg(&overlay).output()?;
    let info: Value = serde_json::from_slice(&info.stdout)?;
    ensure!(
        info["backing-filename"].is_null() && info["virtual-size"] == fs::metadata(&disk)?.len(),
        "{info}"
    );
    protected.site.start_coordinator()?;
    protected.site.cli(&["cancel", &machine])?;
    ensure!(processes(&overlays)?.is_empty(), "the cancel left something");
    Ok(())
}
