//! Quickstart: the whole path on this machine, shown with the programs' own commands.
//!
//! Owns the story and the check of what came out. Uses only what any user has: the `holdfast` command and the programs
//! beside it. Invariant: everything is made in one temporary folder and taken down again, also after an error.
//! Limit: [`QuickstartOptions::seconds`] of load, and patience of [`PATIENCE`] for each step.

mod commands;
pub mod background;
pub mod history;
mod interrupt;
pub mod nbd_reader;
mod report;
pub mod scenery;

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::clock::{Clock, SystemClock};

use background::{BackgroundWriter, Pace};
use commands::{Commands, Point};
use history::{SLOT_BYTES, Schedule};
use interrupt::Interrupt;
use nbd_reader::NbdReader;
use report::Report;
use scenery::{LoopDisk, Mount, Service};

/// How long one step may take before the quickstart gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

const DISK_BYTES: u64 = 256 << 20;
const SLOTS: u64 = 4096;
const SEED: u64 = 0x686f_6c64;
const POINTS_CHECKED: usize = 5;
/// Pause of the writer between two operations: about 20 MB/s of small writes at most.
const WRITER_PAUSE: Duration = Duration::from_micros(200);
/// Rest of the writer between its bursts where file systems cannot be frozen.
const WRITER_REST: Duration = Duration::from_millis(1500);
/// Where the kernel keeps tracking that outlives the agent.
const PINS: &str = "/sys/fs/bpf/holdfast";

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct QuickstartOptions {
    /// Print one JSON object at the end, and nothing before it.
    pub json: bool,
    /// Seconds of load under which points are made.
    pub seconds: u64,
}

/// The disk of the story: a real one, or a file where there is no root.
struct Disk {
    /// What is protected.
    path: PathBuf,
    /// Where the writer writes.
    target: PathBuf,
    /// "tracked" or "scan".
    capture: &'static str,
    mount: Option<Mount>,
    _device: Option<LoopDisk>,
}

impl Disk {
    fn pace(&self) -> Pace {
        let rest = if self.mount.is_some() { Duration::ZERO } else { WRITER_REST };
        Pace { pause: WRITER_PAUSE, rest }
    }
}

/// The disk is protected; ended on drop, so that no tracking stays in the kernel.
struct Protection<'a> {
    commands: &'a Commands,
    machine: &'a str,
}

impl Drop for Protection<'_> {
    fn drop(&mut self) {
        let status = self.commands.ask_at_the_end(&["status"]).unwrap_or_default();
        let disks = status["machines"][0]["disks"].as_array().cloned().unwrap_or_default();
        let pins = disks.iter().filter_map(|disk| Some(Path::new(PINS).join(disk["id"].as_str()?)));
        let pins: Vec<PathBuf> = pins.collect();
        if let Err(error) = self.commands.ask_at_the_end(&["unprotect", self.machine]) {
            tracing::warn!("the protection could not be ended: {error:#}");
            return;
        }
        for _ in 0..100 {
            if pins.iter().all(|pin| !pin.exists()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        tracing::warn!(?pins, "tracking was left in the kernel; remove these folders");
    }
}

/// Runs the story and prints it.
///
/// # Errors
/// A step failed; the text says which and what to do. Everything was taken down again.
pub fn run(options: &QuickstartOptions) -> Result<()> {
    let clock = SystemClock::new();
    let interrupt = Interrupt::listen()?;
    let folder = temporary_folder()?;
    let outcome = Story::new(options, &folder, &clock, interrupt).and_then(|mut story| story.tell());
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let mut report = outcome?;
    report.seconds = clock.monotonic().as_secs_f64();
    if options.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("\n{report}");
    }
    Ok(())
}

fn temporary_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("holdfast-quickstart-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

struct Story<'a> {
    options: &'a QuickstartOptions,
    folder: &'a Path,
    clock: &'a SystemClock,
    commands: Commands,
    coordinator: Service,
    address: String,
}

impl<'a> Story<'a> {
    fn new(
        options: &'a QuickstartOptions,
        folder: &'a Path,
        clock: &'a SystemClock,
        interrupt: Interrupt,
    ) -> Result<Self> {
        let data = folder.join("coordinator");
        let commands = Commands::beside_this(&data.join("holdfast.sock"), options.json, interrupt)?;
        let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        commands.say("1. A coordinator, with all it needs in one folder:");
        commands.show("holdfast-coordinator serve --data DIR");
        let data_text = data.to_string_lossy();
        let arguments = ["serve", "--data", data_text.as_ref(), "--listen", &address];
        let program = commands.program("holdfast-coordinator");
        let mut coordinator = Service::start("coordinator", &program, arguments, folder)?;
        commands.wait("the coordinator", PATIENCE, || {
            coordinator.check()?;
            Ok(commands.ask(&["machines"]).ok())
        })?;
        Ok(Self { options, folder, clock, commands, coordinator, address })
    }

    fn tell(&mut self) -> Result<Report> {
        let disk = self.disk()?;
        let mut agent = self.agent(&disk)?;
        let machine = self.commands.wait("the agent to connect", PATIENCE, || {
            agent.check()?;
            let machines = self.commands.ask(&["machines"])?;
            let connected = machines[0]["connected"].as_bool().unwrap_or(false);
            Ok(machines[0]["name"].as_str().filter(|_| connected).map(str::to_owned))
        })?;
        let schedule = Schedule { seed: SEED, targets: vec![disk.target.clone()], slots: SLOTS };
        let mut writer = BackgroundWriter::start(schedule, disk.pace())?;
        self.commands.say("4. The disk is protected while the writer runs:");
        if disk.mount.is_none() {
            self.commands.say(
                "   (It rests now and then: where nothing can be frozen, a point needs a moment without writes.)",
            );
        }
        let path = disk.path.to_string_lossy();
        let protection = Protection { commands: &self.commands, machine: &machine };
        self.commands.tell(&["protect", &machine, "--disk", &path, "--interval", "1s"])?;
        let points = self.load(&machine, &mut agent)?;
        let operations_before = writer.done();
        let mut report = self.fail_over(&machine, &disk, writer.schedule(), &points, operations_before)?;
        let operations = writer.finish()?;
        self.commands.say(&format!("   The writer made {operations} writes and discards in all."));
        self.figures(&machine, &disk, &mut report)?;
        drop(protection);
        agent.stop()?;
        self.coordinator.stop()?;
        Ok(report)
    }

    /// A real ext4 on a loop device as root; otherwise a plain image file.
    fn disk(&self) -> Result<Disk> {
        let image = self.folder.join("disk.img");
        if !rustix::process::geteuid().is_root() {
            self.commands.say(
                "2. Without root there is no change tracking (it needs CAP_BPF and CAP_PERFMON), no loop device and no \
                 freezing of file systems. The same is shown on a plain disk-image file, compared by digests (scan):",
            );
            // The file is the history: it must not change its size once it is protected.
            scenery::create_image(&image, SLOTS * SLOT_BYTES as u64)?;
            let target = image.clone();
            return Ok(Disk { path: image, target, capture: "scan", mount: None, _device: None });
        }
        self.commands.say("2. A disk: ext4 on a loop device, with a writer whose history can be checked.");
        scenery::create_image(&image, DISK_BYTES)?;
        let device = LoopDisk::attach(&image, false)?;
        scenery::run("mkfs.ext4", ["-qF".as_ref(), device.device().as_os_str()])?;
        let mount = Mount::new(device.device(), &self.folder.join("source"))?;
        let target = mount.folder().join("history");
        let path = device.device().to_owned();
        Ok(Disk { path, target, capture: "tracked", mount: Some(mount), _device: Some(device) })
    }

    fn agent(&self, disk: &Disk) -> Result<Service> {
        self.commands.say("3. An agent on the source host, enrolled with a one-time token:");
        let created = self.commands.tell(&["token", "create"])?;
        let token = created["token"].as_str().context("the token")?;
        self.commands
            .show("holdfast-agent enroll --coordinator HOST:PORT --token TOKEN && holdfast-agent run");
        let state = self.folder.join("agent");
        let state = state.to_string_lossy();
        let program = self.commands.program("holdfast-agent");
        let enrol = ["--state", state.as_ref(), "enroll", "--coordinator", &self.address, "--token", token];
        scenery::run(&program.to_string_lossy(), enrol)?;
        let image = disk.path.to_string_lossy();
        let mut run = vec!["--state", state.as_ref(), "run"];
        if disk.mount.is_none() {
            run.extend(["--image", image.as_ref()]);
        }
        Service::start("agent", &program, run, self.folder)
    }

    /// Lets points be made for the chosen time.
    fn load(&self, machine: &str, agent: &mut Service) -> Result<Vec<Point>> {
        let enough = usize::try_from(self.options.seconds).unwrap_or(usize::MAX).clamp(2, 1000) * 2 / 3;
        let limit = PATIENCE + Duration::from_secs(self.options.seconds);
        let points = self.commands.wait("recovery points", limit, || {
            agent.check()?;
            let points = self.commands.points(machine)?;
            Ok((points.len() >= enough).then_some(points))
        })?;
        self.commands.say(&format!("   {} recovery points while the writer ran.", points.len()));
        Ok(points)
    }

    /// Attaches some points, the newest first, copies the disk and checks it against the writer's history.
    fn fail_over(
        &self,
        machine: &str,
        disk: &Disk,
        schedule: &Schedule,
        points: &[Point],
        operations_before: u64,
    ) -> Result<Report> {
        self.commands.say("5. Failover, first to the latest point, then to earlier ones:");
        let mut report = Report { capture: disk.capture, points: points.len(), ..Report::default() };
        let step = points.len().div_ceil(POINTS_CHECKED).max(1);
        // The newest of them is the latest, or behind it.
        let chosen = points.iter().rev().step_by(step).skip(1).map(|point| point.id.as_str());
        for choice in std::iter::once("latest").chain(chosen).take(POINTS_CHECKED) {
            let (operations, rto_ms) = self.check_point(machine, disk, schedule, choice)?;
            self.commands.say(&format!(
                "   {choice}: first byte after {rto_ms:.0} ms; holds exactly the first {operations} operations."
            ));
            ensure!(
                choice != "latest" || operations + SLOTS >= operations_before,
                "latest holds {operations} operations, but {operations_before} had been made long before"
            );
            if choice == "latest" {
                report.rto_ms = rto_ms;
            }
            report.points_checked += 1;
        }
        report.ok = true;
        Ok(report)
    }

    /// Returns the length of the prefix that the point holds, and the time to its first byte in milliseconds.
    fn check_point(
        &self,
        machine: &str,
        disk: &Disk,
        schedule: &Schedule,
        choice: &str,
    ) -> Result<(u64, f64)> {
        if choice == "latest" {
            self.commands.show(&format!("holdfast failover {machine} --point latest --attach"));
        }
        let started = self.clock.monotonic();
        let attachment = self.commands.attach(machine, choice)?;
        let mut reader = NbdReader::connect(&attachment.socket, &attachment.export)?;
        reader.read(0, &mut [0; 512])?;
        let rto = self.clock.monotonic().saturating_sub(started);
        let copy = self.folder.join("point.img");
        reader.copy_to(&copy)?;
        self.commands.ask(&["job", "cancel", &attachment.job])?;
        let prefix = if disk.mount.is_some() {
            let device = LoopDisk::attach(&copy, false)?;
            let mount = Mount::new(device.device(), &self.folder.join("target"))?;
            schedule.check(&[mount.folder().join("history")])?
        } else {
            schedule.check(std::slice::from_ref(&copy))?
        };
        fs::remove_file(copy)?;
        Ok((prefix.operations, rto.as_secs_f64() * 1000.0))
    }

    fn figures(&self, machine: &str, disk: &Disk, report: &mut Report) -> Result<()> {
        let points = self.commands.points(machine)?;
        report.points = points.len();
        report.set_rpo(points.iter().map(|point| point.rpo_ms).collect());
        report.set_hold(points.iter().map(|point| point.hold_ms).collect());
        let status = self.commands.tell(&["status"])?;
        let shown = &status["machines"][0];
        report.sent_bytes = shown["link"]["sent_bytes"].as_u64().unwrap_or(0);
        report.stored_bytes = shown["stored_bytes"].as_u64().unwrap_or(0);
        ensure!(disk.capture != "tracked" || report.hold_ms_p50 > 0.0, "no hold was recorded");
        Ok(())
    }
}
