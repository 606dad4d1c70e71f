//! A whole installation on this machine: a coordinator, agents and the operator's command, as processes.
//!
//! Owns the processes and their folders; ends them (kill -9 if need be) on drop. Drives them only through the programs'
//! own command lines, as a user would. The one place in the tests that knows the shape of the commands' JSON.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use holdfast_agent::capture::tracked::{TrackedOptions, TrackedSource};
use holdfast_common::ids::DiskId;
use serde_json::Value;
use tempfile::TempDir;

use crate::{file_system::run, stepped_clock::SteppedClock};

/// A coordinator's data folder, its process while it runs, and how to talk to it.
#[derive(Debug)]
pub struct Site {
    folder: TempDir,
    data: PathBuf,
    listen: String,
    operators: Option<String>,
    /// Where agents are told to connect to.
    reach: String,
    /// The coordinator's clock, if it is not the host's.
    clock: Option<SteppedClock>,
    process: Option<Process>,
}

/// An enrolled agent: its state folder, and its process while it runs.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    state: PathBuf,
    prefix: Vec<String>,
    process: Option<Process>,
}

/// A running program of ours; killed on drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// An attached recovery point.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The job that serves it.
    pub job: String,
    /// One export per disk: source path and NBD URI.
    pub exports: Vec<(String, String)>,
}

/// A recovery point as `holdfast points` lists it.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its id.
    pub id: String,
    /// "pending", "processed", ...
    pub state: String,
    /// The whole JSON object.
    pub all: Value,
}

/// Path of one of our programs, built beside this test.
///
/// # Panics
/// If it has not been built; `tests/run` does that, by hand it is `cargo build --workspace --bins`.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let folder = test.ancestors().find(|folder| folder.join(name).is_file());
    folder.unwrap_or_else(|| panic!("{name} is not built: run cargo build --workspace --bins")).join(name)
}

/// Path of one of our programs for a machine with an emulated processor: the optimized one if it is no older than the
/// other, so that it is never one of yesterday's.
///
/// # Panics
/// If the program has not been built at all.
#[must_use]
pub fn fast_program(name: &str) -> PathBuf {
    let usual = program(name);
    let optimized = usual.parent().and_then(Path::parent).map(|target| target.join("release").join(name));
    let built = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    optimized.filter(|optimized| built(optimized) >= built(&usual)).unwrap_or_else(|| {
        eprintln!("{name} is not optimized and will be slow here: run cargo build --release --bins");
        usual
    })
}

/// Waits until `condition` gives a value, or the time is up.
///
/// # Errors
/// The time is up (the text says for what), or the condition fails for good.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(started.elapsed() < limit, "waited {limit:?} for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A system on an emulated processor boots in a quarter of a minute, and in more when much else runs.
pub const BOOT: Duration = Duration::from_secs(180);

/// Waits for the login prompt of the machine that a job runs.
///
/// # Errors
/// It does not come; the text is what the console printed.
pub fn wait_for_login(job: &Value) -> Result<()> {
    let log = PathBuf::from(job["runs"]["console_log"].as_str().context("a console's log")?);
    let found = wait_for("the machine's login prompt", BOOT, || {
        Ok(fs::read_to_string(&log).unwrap_or_default().contains("login:").then_some(()))
    });
    found.with_context(|| fs::read_to_string(&log).unwrap_or_default())
}

impl Site {
    /// Says what hardware a machine (its id, or its name) is given at its target.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_hardware(&self, machine: &str, settings: &str) -> Result<()> {
        let folder = self.data.join("hardware");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("{machine}.toml")), settings)?;
        Ok(())
    }

    /// Starts a coordinator with a new data folder on a free port of the loopback interface.
    ///
    /// # Errors
    /// It does not start.
    pub fn start() -> Result<Self> {
        Self::start_at("127.0.0.1", None)
    }

    /// Starts a coordinator that listens on `address`, with its data in `data` if given.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_at(address: &str, data: Option<&Path>) -> Result<Self> {
        let folder = TempDir::with_prefix("holdfast-site-")?;
        let port = UdpSocket::bind((address, 0))?.local_addr()?.port();
        let data = data.map_or_else(|| folder.path().join("data"), Path::to_owned);
        let listen = format!("{address}:{port}");
        let reach = listen.clone();
        let mut site = Self { folder, data, reach, listen, operators: None, clock: None, process: None };
        site.start_coordinator()?;
        Ok(site)
    }

    /// From now on agents are told to connect to this address, at the port that the coordinator listens on.
    ///
    /// # Errors
    /// The coordinator has no port.
    pub fn reach_at(&mut self, address: &str) -> Result<()> {
        let (_, port) = self.listen.rsplit_once(':').context("the port")?;
        self.reach = format!("{address}:{port}");
        Ok(())
    }

    /// Where agents are told to connect to.
    #[must_use]
    pub fn reach(&self) -> &str {
        &self.reach
    }

    /// From now on agents are told to connect to a relay in front of the coordinator.
    pub fn reach_through(&mut self, relay: SocketAddr) {
        self.reach = relay.to_string();
    }

    /// Starts it anew, so that operators reach it over the network, too. Gives where.
    ///
    /// # Errors
    /// It does not start.
    pub fn let_operators_in(&mut self) -> Result<String> {
        self.stop_coordinator()?;
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.to_string();
        self.operators = Some(address.clone());
        self.start_coordinator()?;
        Ok(address)
    }

    /// Starts it anew, with a wall clock that is so far ahead of the host's.
    ///
    /// # Errors
    /// It does not start.
    pub fn step_clock(&mut self, ahead: Duration) -> Result<()> {
        self.stop_coordinator()?;
        self.clock = Some(SteppedClock::build(self.folder.path(), ahead)?);
        self.start_coordinator()
    }

    /// Where agents connect to.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.listen
    }

    /// The coordinator's data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Process id of the coordinator, 0 if it does not run.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.child.id())
    }

    /// Starts the coordinator and waits until it answers.
    ///
    /// # Errors
    /// It ends by itself or does not answer in time.
    pub fn start_coordinator(&mut self) -> Result<()> {
        let mut command = Command::new(program("holdfast-coordinator"));
        command.arg("serve").arg("--data").arg(&self.data).arg("--listen").arg(&self.listen);
        command.args(self.operators.iter().flat_map(|address| ["--api-listen", address]));
        if let Some(clock) = &self.clock {
            clock.give_to(&mut command);
        }
        self.process = Some(Process::start(command, &self.folder.path().join("coordinator.log"))?);
        wait_for("the coordinator to answer", Duration::from_secs(30), || {
            if let Some(process) = &mut self.process {
                process.check()?;
            }
            Ok(self.cli(&["machines"]).ok().map(drop))
        })
    }

    /// kill -9.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks the coordinator to end, and waits.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop_coordinator(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.stop())
    }

    /// Runs `holdfast --json ARGUMENTS` and returns what it printed.
    ///
    /// # Errors
    /// It exits non-zero; the text is what it said.
    pub fn cli(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(program("holdfast"));
        command.arg("--coordinator").arg(self.data.join("holdfast.sock")).arg("--json").args(arguments);
        let text = run(&mut command)?;
        let last = text.lines().last().unwrap_or("null");
        serde_json::from_str(&text).or_else(|_| serde_json::from_str(last)).context("the command's JSON")
    }

    /// Enrols a new agent on this host and starts it.
    ///
    /// # Errors
    /// Enrolment or start fails.
    pub fn add_agent(&self) -> Result<Agent> {
        self.add_agent_with(&[], "")
    }

    /// Like `add_agent`; the agent's commands run behind `prefix` (for example `ip netns exec NAME`), with these lines
    /// in its settings file.
    ///
    /// # Errors
    /// Enrolment or start fails.
    pub fn add_agent_with(&self, prefix: &[&str], settings: &str) -> Result<Agent> {
        self.add(prefix, settings, None)
    }

    /// Like `add_agent`, with its state in this folder.
    ///
    /// # Errors
    /// Enrolment or start fails.
    pub fn add_agent_in(&self, state: &Path) -> Result<Agent> {
        self.add(&[], "", Some(state))
    }

    /// Enrols a machine that is known and fenced again, by an agent on this host that takes it over, and starts that.
    ///
    /// # Errors
    /// Enrolment or start fails.
    pub fn add_agent_of(&self, machine: &str) -> Result<Agent> {
        self.enrol(&[], "", None, &["--machine", machine])
    }

    fn add(&self, prefix: &[&str], settings: &str, state: Option<&Path>) -> Result<Agent> {
        let agent = self.enrol(prefix, settings, state, &[])?;
        self.wait_until_connected(Duration::from_secs(30))
            .with_context(|| format!("the agent's log: {}", agent.log()))?;
        Ok(agent)
    }

    fn enrol(&self, prefix: &[&str], settings: &str, state: Option<&Path>, of: &[&str]) -> Result<Agent> {
        let folder = TempDir::with_prefix("holdfast-agent-")?;
        fs::write(folder.path().join("agent.toml"), settings)?;
        let prefix = prefix.iter().map(ToString::to_string).collect();
        let state = state.map_or_else(|| folder.path().join("state"), Path::to_owned);
        let mut agent = Agent { folder, state, prefix, process: None };
        let created = self.cli(&[&["token", "create"], of].concat())?;
        let token = created["token"].as_str().context("token in the answer")?;
        let mut enrol = agent.command();
        enrol.args(["enroll", "--coordinator", &self.reach, "--token", token]);
        run(&mut enrol)?;
        agent.start()?;
        Ok(agent)
    }

    /// Waits until every enrolled machine is connected.
    ///
    /// # Errors
    /// One is not in time.
    pub fn wait_until_connected(&self, limit: Duration) -> Result<()> {
        wait_for("the agent to connect", limit, || {
            let machines = self.cli(&["machines"])?;
            let connected = |machine: &Value| machine["connected"].as_bool().unwrap_or(false);
            Ok(machines.as_array().is_some_and(|list| list.iter().all(connected)).then_some(()))
        })
    }

    /// Name of the only machine.
    ///
    /// # Errors
    /// There is none or more than one.
    pub fn only_machine(&self) -> Result<String> {
        let machines = self.cli(&["machines"])?;
        let list = machines.as_array().context("machines is a list")?;
        ensure!(list.len() == 1, "expected one machine: {machines}");
        Ok(list[0]["id"].as_str().context("id of the machine")?.to_owned())
    }

    /// Protects disks of a machine.
    ///
    /// # Errors
    /// The command refuses.
    pub fn protect(&self, machine: &str, disks: &[&Path], interval: &str) -> Result<()> {
        let mut arguments = vec!["protect", machine, "--interval", interval];
        for disk in disks {
            arguments.extend(["--disk", disk.to_str().context("path")?]);
        }
        self.cli(&arguments).map(drop)
    }

    /// Complete points of a machine, oldest first.
    ///
    /// # Errors
    /// The command fails.
    pub fn points(&self, machine: &str) -> Result<Vec<Point>> {
        let listed = self.cli(&["points", machine])?;
        let list = listed.as_array().or_else(|| listed["points"].as_array()).context("list of points")?;
        let mut points = Vec::new();
        for point in list {
            points.push(Point {
                id: point["id"].as_str().context("id of the point")?.to_owned(),
                state: point["state"].as_str().unwrap_or_default().to_owned(),
                all: point.clone(),
            });
        }
        points.sort_by_key(|point| point.all["at_us"].as_i64());
        Ok(points)
    }

    /// Waits until the machine has at least `count` complete points.
    ///
    /// # Errors
    /// It does not get them in time; the text has the machine's status.
    pub fn wait_for_points(&self, machine: &str, count: usize, limit: Duration) -> Result<Vec<Point>> {
        let waited = wait_for(&format!("{count} points"), limit, || {
            let points = self.points(machine).unwrap_or_default();
            Ok((points.len() >= count).then_some(points))
        });
        waited.with_context(|| format!("status: {}", self.cli(&["status"]).unwrap_or_default()))
    }

    /// Waits for a point whose cut lies after this call (agent and test have the same clock).
    ///
    /// # Errors
    /// None is made in time.
    pub fn wait_for_new_point(&self, machine: &str, limit: Duration) -> Result<Point> {
        // Not the first that was not known: two cuts may have been under way, made long ago.
        let asked_at_us = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        let waited = wait_for("a new point", limit, || {
            let points = self.points(machine).unwrap_or_default();
            Ok(points
                .into_iter()
                .find(|point| point.all["at_us"].as_i64().is_some_and(|at| at > asked_at_us)))
        });
        waited.with_context(|| format!("status: {}", self.cli(&["status"]).unwrap_or_default()))
    }

    /// Attaches a point ("latest", "latest-processed" or an id).
    ///
    /// # Errors
    /// The failover is refused or fails.
    pub fn attach(&self, machine: &str, point: &str) -> Result<Attached> {
        let answer = self.cli(&["test-failover", machine, "--point", point, "--attach"])?;
        let job = answer["id"].as_str().or_else(|| answer["job"].as_str()).context("job of the failover")?;
        let list = answer["exports"].as_array().with_context(|| format!("exports in {answer}"))?;
        let mut exports = Vec::new();
        for export in list {
            let path = export["path"].as_str().unwrap_or_default();
            exports.push((path.to_owned(), export["uri"].as_str().context("uri")?.to_owned()));
        }
        Ok(Attached { job: job.to_owned(), exports })
    }

    /// Ends an attachment.
    ///
    /// # Errors
    /// The job does not end.
    pub fn detach(&self, attached: &Attached) -> Result<()> {
        self.cli(&["job", "cancel", &attached.job]).map(drop)
    }

    /// Attaches a point, copies every disk with `nbdcopy` into `folder`, and ends the attachment. Returns (source path, copy).
    ///
    /// # Errors
    /// Any of it fails.
    pub fn copy_point(&self, machine: &str, point: &str, folder: &Path) -> Result<Vec<(String, PathBuf)>> {
        let attached = self.attach(machine, point)?;
        let mut copies = Vec::new();
        for (number, (path, uri)) in attached.exports.iter().enumerate() {
            let copy = folder.join(format!("{point}-{number}.img"));
            run(Command::new("nbdcopy").arg(uri).arg(&copy))?;
            copies.push((path.clone(), copy));
        }
        self.detach(&attached)?;
        Ok(copies)
    }

    /// The end of the coordinator's log, for messages.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("coordinator.log")).unwrap_or_default()
    }
}

impl Agent {
    fn command(&self) -> Command {
        let binary = program("holdfast-agent");
        let mut command = match self.prefix.split_first() {
            None => Command::new(binary),
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary);
                command
            }
        };
        command.arg("--state").arg(&self.state);
        command.arg("--config").arg(self.folder.path().join("agent.toml"));
        command
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.command();
        command.arg("run");
        self.process = Some(Process::start(command, &self.folder.path().join("agent.log"))?);
        Ok(())
    }

    /// kill -9.
    ///
    /// # Errors
    /// It cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill())
    }

    /// Asks the agent to end, and waits.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.stop())
    }

    /// Ends the tracking that a stopped agent has left on; of every agent of this machine that does not run.
    ///
    /// # Errors
    /// The command fails.
    pub fn forget(&self) -> Result<()> {
        run(self.command().args(["forget", "--all"])).map(drop)
    }

    /// Process id, 0 if it does not run.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.child.id())
    }

    /// What `holdfast-agent status` says.
    ///
    /// # Errors
    /// The agent does not run.
    pub fn status(&self) -> Result<Value> {
        let text = run(self.command().args(["status", "--json"]))?;
        serde_json::from_str(&text).context("the agent's JSON")
    }

    /// The agent's log, for messages.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    /// Tracking outlives an agent. What nobody will ever go on with must not slow every request of this machine down.
    fn drop(&mut self) {
        drop(self.process.take());
        let record = fs::read_to_string(self.folder.path().join("state/incarnations.json"));
        let record =
            record.ok().and_then(|text| serde_json::from_str::<Value>(&text).ok()).unwrap_or_default();
        for disk in record["disks"].as_object().into_iter().flat_map(|disks| disks.keys()) {
            let Ok(disk) = disk.parse::<DiskId>() else { continue };
            if let Err(error) = TrackedSource::remove(disk, &TrackedOptions::default()) {
                eprintln!("pins of disk {disk} are left behind: {error}");
            }
        }
    }
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("ended by itself ({status}): {}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.context("process id")?, rustix::process::Signal::TERM)?;
        let ended = wait_for("a clean end", Duration::from_secs(20), || Ok(self.child.try_wait()?));
        if ended.is_err() {
            self.kill()?;
        }
        ended.map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _gone = self.kill();
        }
    }
}
