//! The machine as the source of failovers: stops writing when it is asked to, and knows when it is the machine no more.
//!
//! Also has programs of recovery plans run (`actions`), each on a thread of its own, so that no stop waits for them.
//! Owns one thread's state ([`SourceControl`]): what is stopped, until when, and whether this source is fenced. Knows no
//! capture: a cut finds the file systems frozen and takes them for held. Two programs of the operator are called:
//! `stop` (with `stop`, and `resume` when the source goes on), which is to end what writes to the protected disks, and
//! `fenced` (with `fenced`), once, when the machine runs elsewhere. Where the machine is a guest of QEMU on this host, it is shut
//! down after `stop` and before anything is frozen (`guest`).
//! Invariants: what was stopped goes on when its time is over, unless the source was fenced meanwhile; then it stays as
//! it is until it is let in again, so that there are never two machines. A marker in the state folder names what is
//! frozen; an agent that finds it at its start thaws that, and calls `resume` when it is let in.
//!
//! ```text
//!   running --Stop--> stopped --Resume, time over--> running
//!      |                 |
//!      | Fenced          | Fenced
//!      v                 v
//!    fenced        fenced, stopped --LetIn--> running
//! ```

mod guest;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, select};
use holdfast_common::{
    clock::Clock,
    durable,
    marked::Mark,
    wire::{AgentMessage, SourceAnswer, SourceOrder, SourceRun, SourceStep},
};

use crate::{
    actions,
    capture::freeze::{FreezeSettings, StoppedFileSystems, thaw_left_behind},
    engine::{MessageSink, StatusBoard},
    hooks,
    inventory::{DeviceNumber, DiskDevice},
};

pub use guest::Guest;

/// Name of the marker in the state folder.
const MARKER: &str = "source-stopped";
/// Longest time of the programs that are not given one.
const PROGRAM_MAX: Duration = Duration::from_mins(2);
/// Longest time that a source may be asked to stay stopped.
const HOLD_MAX: Duration = Duration::from_hours(1);
/// How long the thread sleeps when nothing is stopped.
const IDLE: Duration = Duration::from_hours(1);

/// What the link tells the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// The coordinator wants something.
    Order(SourceOrder),
    /// The machine runs elsewhere: this source may not go on.
    Fenced(String),
    /// A session was accepted: this source is the machine.
    LetIn,
    /// The disks of this fenced source are about to be written back: what is frozen on them must not hold them.
    WriteBack,
}

/// The operator's programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePrograms {
    /// Ends what writes to the protected disks, and starts it again.
    pub stop: Option<PathBuf>,
    /// Called when the machine runs elsewhere.
    pub fenced: Option<PathBuf>,
    /// The machine, if it is a guest on this host.
    pub guest: Option<Guest>,
}

/// What the source works with.
pub struct SourceParts {
    /// The operator's programs.
    pub programs: SourcePrograms,
    /// Folder of the programs that recovery plans may have run.
    pub actions: PathBuf,
    /// Folder of the marker.
    pub state: PathBuf,
    /// The protected disks.
    pub status: StatusBoard,
    /// How file systems are found, and what holds are told.
    pub freezing: FreezeSettings,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The thread's state.
pub struct SourceControl {
    parts: SourceParts,
    answers: Answers,
    stopped: Option<Stopped>,
    is_fenced: bool,
    /// What a predecessor has stopped was not started again: that waits until this source is known to be the machine.
    owes_resume: bool,
}

struct Stopped {
    systems: StoppedFileSystems,
    until: Duration,
}

impl SourceControl {
    /// Thaws what a killed predecessor has left frozen. Answers go into `messages`.
    #[must_use]
    pub fn new(parts: SourceParts, messages: Box<dyn MessageSink>) -> Self {
        let marker = parts.state.join(MARKER);
        if let Ok(text) = fs::read_to_string(&marker) {
            let mount_points: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
            thaw_left_behind(&mount_points);
        }
        let owes_resume = marker.exists();
        let answers = Answers(Arc::new(Mutex::new(messages)));
        Self { parts, answers, stopped: None, is_fenced: false, owes_resume }
    }

    /// Works until `stop` is closed. What is stopped then goes on; what is fenced is only thawed, and the next start goes on
    /// from there.
    pub fn run(mut self, events: &Receiver<SourceEvent>, stop: &Receiver<()>) {
        loop {
            let left = self.time_left();
            select! {
                recv(events) -> event => match event {
                    Ok(event) => self.take(event),
                    Err(_) => break,
                },
                recv(stop) -> _ => break,
                default(left.unwrap_or(IDLE)) => {}
            }
        }
        if !self.is_fenced {
            self.resume();
        }
    }

    /// How long what is stopped may stay so; it goes on if that is over.
    fn time_left(&mut self) -> Option<Duration> {
        let now = self.parts.clock.monotonic();
        let until = self.stopped.as_ref().filter(|_| !self.is_fenced)?.until;
        if until > now {
            return Some(until.saturating_sub(now));
        }
        tracing::warn!("this source was stopped for a failover that did not happen in time; it goes on");
        self.resume();
        None
    }

    fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Order(SourceOrder { request, step: SourceStep::Run(run) }) => {
                self.run_action(request, run);
            }
            SourceEvent::Order(SourceOrder { request, step }) => {
                let result = self.follow(&step);
                if let Err(reason) = &result {
                    tracing::warn!(reason, ?step, "an order to this source was not followed");
                }
                self.answers.send(request, result);
            }
            SourceEvent::Fenced(reason) if !self.is_fenced => {
                tracing::error!(
                    reason,
                    "FENCED: this machine runs elsewhere now, and its source must not write any more"
                );
                self.is_fenced = true;
                if let Some(program) = self.parts.programs.fenced.clone() {
                    self.call(&program, "fenced", PROGRAM_MAX).unwrap_or_else(|reason| {
                        tracing::error!(reason, "what is to be done when this source is fenced has failed");
                    });
                }
            }
            SourceEvent::LetIn if self.is_fenced || (self.owes_resume && self.stopped.is_none()) => {
                tracing::warn!("this source is the machine again");
                self.is_fenced = false;
                self.resume();
            }
            SourceEvent::WriteBack => {
                // Frozen, it could not be unmounted. What else was stopped is started again when this is the machine again.
                self.owes_resume |= self.stopped.take().is_some();
            }
            SourceEvent::Fenced(_) | SourceEvent::LetIn => {}
        }
    }

    fn follow(&mut self, step: &SourceStep) -> Result<String, String> {
        match *step {
            SourceStep::Stop { limit_ms, hold_ms } => {
                self.stop(Duration::from_millis(limit_ms), Duration::from_millis(hold_ms))
            }
            SourceStep::Prove { hold_ms } => self.prove(Duration::from_millis(hold_ms)),
            SourceStep::Resume => {
                self.resume();
                Ok("it goes on".to_owned())
            }
            SourceStep::EndRun { job, step } => {
                actions::end(&Mark { job, step, by: self.started_by() });
                Ok("it is ended".to_owned())
            }
            SourceStep::Run(_) => Err("a program is run on a thread of its own".to_owned()),
        }
    }

    /// What tells this agent's programs from those of others on this host: no other has the same state folder.
    fn started_by(&self) -> String {
        self.parts.state.display().to_string()
    }

    /// Has a program run, and answers when it has ended.
    fn run_action(&self, request: u64, run: SourceRun) {
        // Each of them holds the answers, as this thread does.
        if Arc::strong_count(&self.answers.0) > actions::RUNS_MAX {
            let text = format!("{} programs of plans run on this machine already", actions::RUNS_MAX);
            self.answers.send(request, Err(text));
            return;
        }
        let (answers, folder, by) = (self.answers.clone(), self.parts.actions.clone(), self.started_by());
        let clock = Arc::clone(&self.parts.clock);
        tracing::info!(job = %run.job, step = run.step, program = run.program, "a program is run for a recovery plan");
        let work = move || {
            let result = actions::run(&folder, &run, &by, clock.as_ref());
            if let Err(reason) = &result {
                tracing::warn!(program = run.program, reason, "a program of a recovery plan has failed");
            }
            answers.send(request, result);
        };
        if let Err(error) = thread::Builder::new().name("action".into()).spawn(work) {
            self.answers.send(request, Err(format!("it cannot be started: {error}")));
        }
    }

    fn stop(&mut self, limit: Duration, hold: Duration) -> Result<String, String> {
        let until = self.parts.clock.monotonic() + hold.min(HOLD_MAX);
        if let Some(stopped) = &mut self.stopped {
            stopped.until = until;
            return Ok("it was stopped already".to_owned());
        }
        let mut done = Vec::new();
        if let Some(program) = self.parts.programs.stop.clone() {
            self.call(&program, "stop", limit).inspect_err(|_| self.start_again())?;
            done.push(format!("{} was run", program.display()));
        }
        if let Some(guest) = self.parts.programs.guest.clone() {
            let off = guest.shut_down(limit, self.parts.clock.as_ref());
            done.push(off.inspect_err(|_| self.start_again())?);
        }
        let stopped = self.freeze(until).inspect_err(|_| self.start_again())?;
        match stopped.systems.mount_points().as_slice() {
            [] => done.push("no file system is mounted from its protected disks".to_owned()),
            mounts => {
                let mounts: Vec<String> = mounts.iter().map(|mount| mount.display().to_string()).collect();
                done.push(format!("{} no longer take writes", mounts.join(", ")));
            }
        }
        self.stopped = Some(stopped);
        Ok(done.join("; "))
    }

    fn freeze(&self, until: Duration) -> Result<Stopped, String> {
        let disks: Vec<DiskDevice> = self
            .parts
            .status
            .read()
            .disks
            .iter()
            .filter_map(|disk| device(&disk.path, disk.size_bytes))
            .collect();
        let planned = StoppedFileSystems::plan(self.parts.freezing.clone(), &disks);
        let mut systems = planned.map_err(|error| error.to_string())?;
        let text: String =
            systems.mount_points().iter().map(|mount| format!("{}\n", mount.display())).collect();
        let marker = self.parts.state.join(MARKER);
        durable::replace(&marker, text.as_bytes(), durable::MODE_PRIVATE)
            .map_err(|error| format!("{} cannot be written ({error})", marker.display()))?;
        systems.freeze().map_err(|error| error.to_string())?;
        Ok(Stopped { systems, until })
    }

    fn prove(&mut self, hold: Duration) -> Result<String, String> {
        let now = self.parts.clock.monotonic();
        let Some(stopped) = &mut self.stopped else {
            return Err(
                "it has gone on meanwhile: the time for which it was stopped is over; try again".to_owned()
            );
        };
        stopped.systems.check().map_err(|error| error.to_string())?;
        stopped.until = stopped.until.max(now + hold.min(HOLD_MAX));
        Ok("it is stopped still".to_owned())
    }

    /// What was stopped goes on.
    fn resume(&mut self) {
        let stopped = self.stopped.take();
        if stopped.is_none() && !self.owes_resume {
            return;
        }
        // Dropping thaws.
        drop(stopped);
        self.owes_resume = false;
        remove(&self.parts.state.join(MARKER));
        self.start_again();
    }

    fn start_again(&self) {
        if let Some(guest) = &self.parts.programs.guest
            && let Err(reason) = guest.switch_on()
        {
            tracing::warn!(reason, "the guest that was shut down for a failover is not switched on again");
        }
        let Some(program) = &self.parts.programs.stop else { return };
        self.call(program, "resume", PROGRAM_MAX).unwrap_or_else(|reason| {
            tracing::error!(reason, "what was stopped for a failover was not started again");
        });
    }

    fn call(&self, program: &Path, verb: &str, limit: Duration) -> Result<(), String> {
        hooks::call(program, verb, limit, self.parts.clock.as_ref())
    }
}

/// Where answers go, from every thread that has one.
#[derive(Clone)]
struct Answers(Arc<Mutex<Box<dyn MessageSink>>>);

impl Answers {
    fn send(&self, request: u64, result: Result<String, String>) {
        let message = AgentMessage::Source(SourceAnswer { request, result });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(message);
    }
}

/// A block device by its node; plain files have no file system of their own that could be stopped.
fn device(path: &str, size_bytes: u64) -> Option<DiskDevice> {
    let metadata = fs::metadata(path).ok()?;
    let is_block = rustix::fs::FileType::from_raw_mode(metadata.mode()).is_block_device();
    let number =
        DeviceNumber { major: rustix::fs::major(metadata.rdev()), minor: rustix::fs::minor(metadata.rdev()) };
    is_block.then(|| DiskDevice { path: PathBuf::from(path), number, size_bytes })
}

fn remove(marker: &Path) {
    if let Err(error) = fs::remove_file(marker) {
        tracing::debug!(path = %marker.display(), %error, "the marker of a stopped source stays");
    }
}

#[cfg(test)]
mod tests;
