//! A job: what was asked for, its steps, and how far it is.
//!
//! Owns the types of the request and of the steps' results, and the state that a job's log folds to. Knows no IO and no
//! storage. Invariant: `Job` is a function of the log's records alone.
//! Format: the serialized types here are part of `log.rs`'s format: variants are only ever appended, fields only added
//! with a default.

use std::{collections::BTreeMap, path::PathBuf};

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId, PointId},
};
use serde::{Deserialize, Serialize};

use super::{
    log::{Event, Record},
    machine::{self, Status, TransitionError},
    plan::{MemberOutcome, PlanSpec},
};
use crate::{
    compute::{
        machines::StartedMachine,
        port::{Endpoint, ImageFile, ImageFormat},
    },
    drills::Drill,
    points::selection::Selection,
};

/// What a job is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum JobSpec {
    /// Make a point of one machine usable.
    Failover(FailoverSpec),
    /// Run a recovery plan: a job of jobs.
    Plan(Box<PlanSpec>),
    /// Protect a machine at its target: replicate the other way.
    Reprotect(WayBackSpec),
    /// Bring a machine back to its source, with what it wrote at its target.
    Failback(WayBackSpec),
}

/// A way back of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WayBackSpec {
    /// The machine.
    pub machine: MachineId,
    /// The failover that made it run at its target.
    pub failover: JobId,
    /// Whether a hypervisor runs it there.
    #[serde(default)]
    pub runs: bool,
}

/// A failover of one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverSpec {
    /// The machine.
    pub machine: MachineId,
    /// Which point.
    pub selection: Selection,
    /// What to make of it.
    pub target: Target,
    /// What it means for the source. A job of before there were modes never touched its source: a test.
    #[serde(default)]
    pub mode: Mode,
    /// Whether the source is stopped first (a planned failover always does).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_source: bool,
    /// Networks of the machine's cards at the target, by the cards' names at the source; `*` is any other. What is not named
    /// goes by the coordinator's settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, String>,
    /// Of a test that runs a machine: what proves that it has booted. It is taken back by itself then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<Drill>,
}

/// What a failover means for the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// On a copy, apart from everything; the source goes on being the machine, and replicates.
    #[default]
    Test,
    /// The target becomes the machine. What of the source does not answer does not hold it up.
    Unplanned,
    /// The target becomes the machine with everything that the source has written, or not at all.
    Planned,
}

/// What a point is made into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Devices, served until the job is cancelled.
    Attach,
    /// Images in a folder.
    Image {
        /// The folder on the coordinator's host.
        folder: PathBuf,
        /// The images' format.
        format: ImageFormat,
        /// Whether images of another point that are there already are made these, by writing only what differs.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        update: bool,
    },
    /// A machine that runs, on a hypervisor.
    Machine {
        /// Whether it is moved to images of its own behind its back.
        #[serde(default)]
        stream: bool,
    },
    /// Devices that are written to, served until the job is cancelled; what is written is given up then.
    Branch,
}

impl WayBackSpec {
    /// The way back of what a failover has made; none if the job is none of one machine.
    #[must_use]
    pub fn of(failover: &Job) -> Option<Self> {
        let JobSpec::Failover(spec) = &failover.spec else { return None };
        let runs = matches!(spec.target, Target::Machine { .. });
        Some(Self { machine: spec.machine, failover: failover.id, runs })
    }
}

impl JobSpec {
    /// The machine it is about, if it is about one.
    #[must_use]
    pub fn machine(&self) -> Option<MachineId> {
        match self {
            Self::Failover(spec) => Some(spec.machine),
            Self::Reprotect(spec) | Self::Failback(spec) => Some(spec.machine),
            Self::Plan(_) => None,
        }
    }

    /// The plan, if it is one.
    #[must_use]
    pub fn plan(&self) -> Option<&PlanSpec> {
        match self {
            Self::Failover(_) | Self::Reprotect(_) | Self::Failback(_) => None,
            Self::Plan(spec) => Some(spec),
        }
    }
}

/// Kinds of steps of all plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Whether the job can be done at all.
    Check,
    /// Choose the point and protect it from retention.
    SelectPoint,
    /// Process the point if it is pending.
    ProcessPoint,
    /// Serve the point's disks.
    Attach,
    /// Write the point's disks to images.
    WriteImages,
    /// The point is not needed any more.
    ReleasePoint,
    /// Have the source stop writing.
    StopSource,
    /// Have the source make a last cut.
    Synchronize,
    /// The target becomes the machine: nothing more of the source is taken.
    Switch,
    /// Make a machine of the point's disks.
    DefineMachine,
    /// Start it.
    StartMachine,
    /// See whether it still runs.
    Verify,
    /// Move it to images of its own.
    MoveMachine,
    /// Whether a plan can be run, and what it needs is held.
    PlanCheck,
    /// A plan's program is run.
    PlanScript,
    /// A plan waits for somebody.
    PlanManual,
    /// Machines of a plan are failed over, side by side.
    PlanMachines,
    /// What the plan itself held is given back.
    PlanEnd,
    /// Whether a target can be protected; from then on the machine is this job's.
    BeginReprotect,
    /// Begin a line of history of the target's own.
    TakeOverLog,
    /// Bring the log to what the target has, and make its first point.
    FollowTarget,
    /// Whether the machine can go back to its source; from then on it is this job's.
    BeginFailback,
    /// Bring the source's disks to a point of the target while that runs.
    WriteBack,
    /// The target writes no more.
    StopTarget,
    /// Its last point.
    LastPoint,
    /// Bring the source's disks to the last point.
    WriteBackRest,
    /// The source becomes the machine.
    SwitchBack,
    /// Remove what the failover made.
    EndTarget,
    /// Wait until the machine of a drill has booted.
    Probe,
    /// What a drill has made is taken away.
    EndDrill,
}

/// What a step found or made, for the steps after it and the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum Output {
    /// Nothing to tell.
    #[default]
    Nothing,
    /// The point was chosen and is leased.
    Selected {
        /// The point.
        point: PointId,
        /// The source's wall clock at its cut.
        at: Timestamp,
        /// What the operator should know about the choice.
        remarks: Vec<String>,
    },
    /// The disks are served.
    Attached {
        /// Where.
        endpoints: Vec<Endpoint>,
        /// From the trigger of the job to the first byte served, in microseconds.
        rto_us: u64,
    },
    /// The images are written.
    Written {
        /// Which.
        images: Vec<ImageFile>,
    },
    /// What was found, for the operator.
    Told {
        /// The line.
        text: String,
    },
    /// The source has made a cut.
    Cut {
        /// Its point.
        point: PointId,
    },
    /// The machine runs.
    Started {
        /// What was started.
        machine: StartedMachine,
        /// From the trigger of the job to the first block that it read, in microseconds.
        rto_us: u64,
    },
    /// What came of machines of a plan.
    Members {
        /// Each of them.
        members: Vec<MemberOutcome>,
    },
    /// The source's disks hold a point of the target.
    WrittenBack {
        /// The point.
        point: PointId,
        /// Bytes that were compared.
        compared_bytes: u64,
        /// Bytes that were written.
        written_bytes: u64,
        /// Bytes that were sent for that.
        sent_bytes: u64,
    },
}

/// A job as its log tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it is to do.
    pub spec: JobSpec,
    /// Who asked for it.
    pub by: String,
    /// When.
    pub created_at: Timestamp,
    /// When it was last asked to make a point usable: at its creation, or at the last change of the point.
    pub triggered_at: Timestamp,
    /// How often its point was changed.
    pub changes: u32,
    /// How often it was retried.
    pub retries: u32,
    /// Where it stands.
    pub status: Status,
    /// Its steps, in order.
    pub steps: Vec<StepRecord>,
    /// What the operator should read, oldest first, at most [`MESSAGES_MAX`].
    pub messages: Vec<Message>,
    /// Number of its last event.
    pub last_event: u64,
    /// When that was.
    pub changed_at: Timestamp,
}

/// A step of a job.
#[derive(Clone, Debug, Serialize)]
pub struct StepRecord {
    /// Which.
    pub kind: StepKind,
    /// How far.
    pub state: StepState,
    /// When it (last) began.
    pub started_at: Option<Timestamp>,
    /// When it (last) ended, whichever way.
    pub ended_at: Option<Timestamp>,
    /// What it made.
    pub output: Output,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Not begun.
    Waiting,
    /// Being done, or interrupted while it was.
    Running,
    /// Done.
    Done,
    /// Failed.
    Failed,
    /// Taken back.
    Undone,
}

/// A line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// When.
    pub at: Timestamp,
    /// What.
    pub text: String,
}

impl Job {
    /// The job that its first record makes.
    ///
    /// # Errors
    /// The record is no first record.
    pub fn begin(record: &Record) -> Result<Self, TransitionError> {
        let Event::Created { spec, by, steps, holds } = &record.event else {
            return Err(TransitionError::NotCreated);
        };
        let status = machine::begin(steps.len(), *holds)?;
        let waiting = |kind: &StepKind| StepRecord {
            kind: *kind,
            state: StepState::Waiting,
            started_at: None,
            ended_at: None,
            output: Output::Nothing,
        };
        Ok(Self {
            id: record.job,
            spec: spec.clone(),
            by: by.clone(),
            created_at: record.at,
            triggered_at: record.at,
            changes: 0,
            retries: 0,
            status,
            steps: steps.iter().map(waiting).collect(),
            messages: Vec::new(),
            last_event: record.number,
            changed_at: record.at,
        })
    }

    /// Takes the next record in.
    ///
    /// # Errors
    /// It does not follow; the job is unchanged.
    pub fn apply(&mut self, record: &Record) -> Result<(), TransitionError> {
        if record.job != self.id || record.number != self.last_event + 1 {
            return Err(TransitionError::Gap { expected: self.last_event + 1, found: record.number });
        }
        self.status = machine::next(&self.status, &record.event)?;
        self.last_event = record.number;
        self.changed_at = record.at;
        self.note(record);
        Ok(())
    }

    /// What an earlier step of this kind made.
    #[must_use]
    pub fn output(&self, kind: StepKind) -> Option<&Output> {
        self.steps
            .iter()
            .find(|step| step.kind == kind && step.state == StepState::Done)
            .map(|step| &step.output)
    }

    /// The point that was chosen.
    #[must_use]
    pub fn point(&self) -> Option<PointId> {
        self.steps.iter().find_map(|step| match step.output {
            Output::Selected { point, .. } => Some(point),
            _ => None,
        })
    }

    /// The point that a source's disks were brought to last.
    #[must_use]
    pub fn written_back(&self) -> Option<PointId> {
        self.steps.iter().rev().find_map(|step| match step.output {
            Output::WrittenBack { point, .. } => Some(point),
            _ => None,
        })
    }

    /// The machine that it has started.
    #[must_use]
    pub fn runs(&self) -> Option<&StartedMachine> {
        self.steps.iter().find_map(|step| match &step.output {
            Output::Started { machine, .. } => Some(machine),
            _ => None,
        })
    }

    /// Brings steps and messages up to a record that the machine has accepted.
    fn note(&mut self, record: &Record) {
        let at = record.at;
        match &record.event {
            Event::StepStarted { step } => self.mark(*step, |step| {
                (step.state, step.started_at, step.ended_at) = (StepState::Running, Some(at), None);
                // What was chosen before is in use until something else is chosen.
                if step.kind != StepKind::SelectPoint {
                    step.output = Output::Nothing;
                }
            }),
            Event::StepDone { step, output } => self.mark(*step, |step| {
                (step.state, step.ended_at) = (StepState::Done, Some(at));
                step.output = output.clone();
            }),
            Event::StepFailed { step, message, .. } => {
                self.mark(*step, |step| (step.state, step.ended_at) = (StepState::Failed, Some(at)));
                self.say(at, message.clone());
            }
            Event::UndoDone { step } => self.mark(*step, |step| {
                if step.state != StepState::Waiting {
                    (step.state, step.ended_at) = (StepState::Undone, Some(at));
                }
            }),
            Event::UndoFailed { message, .. } | Event::Message { text: message } => {
                self.say(at, message.clone());
            }
            Event::PointChangeRequested { by, selection, .. } => {
                if let JobSpec::Failover(spec) = &mut self.spec {
                    spec.selection = *selection;
                }
                (self.triggered_at, self.changes) = (at, self.changes.saturating_add(1));
                self.say(at, format!("change of the point to {selection} was asked for by {by}"));
            }
            Event::CancelRequested { by } => self.say(at, format!("cancel was asked for by {by}")),
            Event::RetryRequested { by } => {
                self.retries = self.retries.saturating_add(1);
                self.say(at, format!("retry was asked for by {by}"));
            }
            Event::StepWaits { reason, .. } => self.say(at, reason.clone()),
            Event::ContinueRequested { by } => self.say(at, format!("continued by {by}")),
            Event::Created { .. } | Event::NothingHeld => {}
        }
    }

    fn mark(&mut self, step: u32, change: impl FnOnce(&mut StepRecord)) {
        if let Some(step) = usize::try_from(step).ok().and_then(|step| self.steps.get_mut(step)) {
            change(step);
        }
    }

    fn say(&mut self, at: Timestamp, text: String) {
        if self.messages.len() == MESSAGES_MAX {
            self.messages.remove(0);
        }
        self.messages.push(Message { at, text });
    }
}

/// Messages kept in memory with a job; the log has them all.
pub const MESSAGES_MAX: usize = 200;
