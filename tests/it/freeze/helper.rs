//! The processes that these tests kill: this test program, started again with a variable that says what to be.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use holdfast_agent::{
    capture::freeze::{FreezeSettings, Freezer, GuardianCommand, HeldBackLog, guardian_main},
    inventory::{DeviceNumber, DiskDevice},
};
use holdfast_common::telemetry;
use holdfast_tests::loop_device::{self, LoopDevice};

/// What to be: `guardian`, `holder` (holds until killed) or `cutter` (holds again and again, then ends).
const ROLE: &str = "HOLDFAST_FREEZE_ROLE";
/// Device nodes to hold, separated by colons.
const DEVICES: &str = "HOLDFAST_FREEZE_DEVICES";
const BOUND_MS: &str = "HOLDFAST_FREEZE_BOUND_MS";

/// Longest wait for something that must happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// One test of freezing at a time: the start after a death of both thaws whatever is frozen on the machine, also what
/// another test has frozen from outside.
/// `None` if nothing can be frozen here; why is printed.
pub(super) fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return None;
    }
    Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Polls until `condition` holds; false after [`PATIENCE`].
pub(super) fn becomes(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}

/// Whether a file system is frozen: freezing it once more is refused then.
pub(super) fn is_frozen(folder: &Path) -> bool {
    let freeze = |how: &str| Command::new("fsfreeze").arg(how).arg(folder).stderr(Stdio::null()).status();
    if freeze("--freeze").is_ok_and(|status| status.success()) {
        assert!(
            freeze("--unfreeze").is_ok_and(|status| status.success()),
            "cannot thaw {}",
            folder.display()
        );
        return false;
    }
    true
}

/// A loop device as the freezer wants it.
pub(super) fn disk_device(device: &LoopDevice) -> Result<DiskDevice> {
    described(device.path())
}

/// A whole disk as the freezer wants it.
pub(super) fn described(path: &Path) -> Result<DiskDevice> {
    let name = path.file_name().and_then(|name| name.to_str()).context("device name")?;
    let folder = Path::new("/sys/block").join(name);
    let number = DeviceNumber::parse(&fs::read_to_string(folder.join("dev"))?).context("device number")?;
    let sectors: u64 = fs::read_to_string(folder.join("size"))?.trim().parse()?;
    Ok(DiskDevice { path: path.to_owned(), number, size_bytes: sectors * 512 })
}

/// Settings whose guardian is `program` (this test program, or a copy of it).
pub(super) fn settings_with(program: &Path) -> FreezeSettings {
    let mut arguments = vec![format!("{ROLE}=guardian").into(), program.as_os_str().to_owned()];
    arguments.extend(test_arguments().map(Into::into));
    let guardian = GuardianCommand { program: PathBuf::from("/usr/bin/env"), arguments };
    FreezeSettings { guardian, ..FreezeSettings::default() }
}

pub(super) fn settings() -> Result<FreezeSettings> {
    Ok(settings_with(&env::current_exe()?))
}

fn test_arguments() -> [&'static str; 4] {
    ["freeze::helper::process", "--exact", "--nocapture", "--test-threads=1"]
}

/// Another process that holds, killed on drop.
pub(super) struct Holder {
    pub(super) child: Child,
    /// Process number of its guardian.
    pub(super) guardian: i32,
    pub(super) output: BufReader<std::process::ChildStdout>,
}

impl Holder {
    /// Starts a process in a role and waits until it says that it holds.
    pub(super) fn start(
        role: &str,
        program: &Path,
        devices: &[&LoopDevice],
        bound: Duration,
        change: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let devices: Vec<String> = devices.iter().map(|device| device.path().display().to_string()).collect();
        let mut command = Command::new(program);
        command
            .args(test_arguments())
            .env(ROLE, role)
            .env(DEVICES, devices.join(":"))
            .env(BOUND_MS, bound.as_millis().to_string())
            .stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn()?;
        let output = BufReader::new(child.stdout.take().context("standard output")?);
        let mut holder = Self { child, guardian: 0, output };
        let line = holder.line_with("held ")?;
        holder.guardian = line.rsplit(' ').next().context("guardian")?.parse()?;
        Ok(holder)
    }

    /// The next line that has `word` in it.
    pub(super) fn line_with(&mut self, word: &str) -> Result<String> {
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(self.output.read_line(&mut line)? > 0, "the process ended without saying {word:?}");
            if let Some(at) = line.find(word) {
                return Ok(line[at..].trim_end().to_owned());
            }
        }
    }

    pub(super) fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        Ok(rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal)?)
    }

    /// Stops it; none of its threads does anything any more.
    pub(super) fn stop(&self) -> Result<()> {
        self.signal(rustix::process::Signal::STOP)?;
        // The signal is sent, not obeyed: the threads are stopped one by one.
        let tasks = PathBuf::from(format!("/proc/{}/task", self.child.id()));
        let is_stopped = |task: &Path| {
            let status = fs::read_to_string(task.join("stat")).unwrap_or_default();
            status.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
        };
        let stopped =
            || fs::read_dir(&tasks).is_ok_and(|all| all.flatten().all(|task| is_stopped(&task.path())));
        ensure!(becomes(stopped), "the process was not stopped");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Not a test: what this program does when it is started again by the tests.
#[test]
fn process() -> Result<()> {
    match env::var(ROLE).as_deref() {
        Ok("guardian") => {
            let _code = guardian_main();
            std::process::exit(0)
        }
        Ok("holder") => hold_until_killed(),
        Ok("cutter") => cut_again_and_again(),
        _ => Ok(()),
    }
}

fn devices() -> Result<(Vec<DiskDevice>, Duration)> {
    let devices = env::var(DEVICES)?;
    let disks = devices.split(':').map(|path| described(Path::new(path))).collect::<Result<_>>()?;
    Ok((disks, Duration::from_millis(env::var(BOUND_MS)?.parse()?)))
}

fn hold_until_killed() -> Result<()> {
    let (disks, bound) = devices()?;
    let mut freezer = Freezer::start(settings()?)?;
    let guardian = freezer.guardian_process_id();
    let plan = freezer.plan(&disks)?;
    let hold = freezer.hold(&plan, bound)?;
    println!("\nheld by {guardian}");
    // Stopped or killed here; a process that goes on finds its hold void.
    let error = loop {
        if let Err(error) = hold.check() {
            break error;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    drop(hold);
    println!("\nvoid: {error}");
    std::process::exit(0)
}

/// Holds many times while its own log, its folder and its program lie on what it freezes.
fn cut_again_and_again() -> Result<()> {
    let log = Arc::new(HeldBackLog::to_standard_error());
    telemetry::start(Arc::clone(&log));
    let (disks, bound) = devices()?;
    let settings = FreezeSettings { log: Some(log), ..settings()? };
    let mut freezer = Freezer::start(settings)?;
    println!("\nheld by {}", freezer.guardian_process_id());
    let stop = Arc::new(AtomicBool::new(false));
    let others: Vec<_> = (0..2)
        .map(|number| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || chatter(number, &stop))
        })
        .collect();
    for round in 0..40 {
        let plan = freezer.plan(&disks)?;
        plan.sync()?;
        let hold = freezer.hold(&plan, bound)?;
        tracing::info!(round, "held");
        std::thread::sleep(Duration::from_millis(5));
        let report = hold.release()?;
        tracing::info!(round, ?report.held, "released");
    }
    stop.store(true, Ordering::SeqCst);
    for other in others {
        other.join().map_err(|_| anyhow::anyhow!("a thread that logs died"))??;
    }
    println!("\ndone");
    std::process::exit(0)
}

/// A thread as agents have others: it logs, and writes state in the current folder.
fn chatter(number: usize, stop: &AtomicBool) -> Result<()> {
    let mut state = fs::File::create(format!("state-{number}"))?;
    let mut count = 0_u64;
    while !stop.load(Ordering::SeqCst) {
        tracing::info!(number, count, "going on");
        state.write_all(&count.to_le_bytes())?;
        count += 1;
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
