//! What jobs need of the catalog and of points.
//!
//! Owns the contracts only. Invariant of all implementations: a call that returned `Ok` is durable where its text says so,
//! and every call may be repeated.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId, PointId},
    wire::{Inventory, WrittenBack},
};
use thiserror::Error;

use crate::{
    compute::{
        machines::Suited,
        port::{BoxFuture, DiskView, Task},
    },
    points::selection::Candidate,
    registry::lifecycle::{Lifecycle, LifecycleEvent, LifecycleRefusal},
};

/// One event of a job, as it is stored. The body's format is `log.rs`'s; the store does not look inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    /// The job.
    pub job: JobId,
    /// Number of the event in its job: 1, 2, 3, ... without gaps.
    pub number: u64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened, as JSON (see `log.rs`), at most `log::BODY_BYTES_MAX` bytes.
    pub body: String,
}

/// Where jobs' events are kept.
pub trait JobStore: fmt::Debug + Send + Sync {
    /// Appends an event; it is durable when this returns. (job, number) is unique: a second record of the same number
    /// is refused with [`StoreError::Taken`], so that two coordinators can never run one job.
    fn append(&self, record: LogRecord) -> BoxFuture<'_, Result<(), StoreError>>;

    /// All events of all jobs, ordered by job and number. The number of jobs is bounded by [`forget`](Self::forget).
    fn load(&self) -> BoxFuture<'_, Result<Vec<LogRecord>, StoreError>>;

    /// Removes all events of a job that is over. No events is success.
    fn forget(&self, job: JobId) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Why an event was not stored or read. The job does not go on.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The job already has an event of this number: somebody else runs the job.
    #[error("job {job} already has an event {number}")]
    Taken {
        /// The job.
        job: JobId,
        /// The event's number.
        number: u64,
    },
    /// The store failed.
    #[error("the catalog cannot {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The recovery points of machines.
pub trait PointSource: fmt::Debug + Send + Sync {
    /// All cuts of a machine that are known here, in the order of its disks' logs, oldest first; those that have not
    /// fully arrived and void ones too, marked as such.
    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, PointsError>>;

    /// Processes a pending point, so that [`open`](Self::open) can give it. Already processed is success. Reports to
    /// `task` and ends soon when that is cancelled.
    fn process(
        &self,
        machine: MachineId,
        point: PointId,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<(), PointsError>>;

    /// Protects the point from retention on behalf of a job; durable when it returns. Held already is success;
    /// a point that retention has taken meanwhile is [`PointsError::PointUnknown`].
    fn lease(&self, machine: MachineId, point: PointId, job: JobId)
    -> BoxFuture<'_, Result<(), PointsError>>;

    /// Gives all leases of a job back; durable when it returns. None held is success.
    fn release(&self, job: JobId) -> BoxFuture<'_, Result<(), PointsError>>;

    /// Gives all leases of a job back but the one on this point, at once; durable when it returns.
    fn keep(&self, job: JobId, point: PointId) -> BoxFuture<'_, Result<(), PointsError>>;

    /// Opens all disks of a processed point, in a fixed order.
    fn open(&self, machine: MachineId, point: PointId) -> BoxFuture<'_, Result<Vec<DiskView>, PointsError>>;
}

/// Where machines stand between their sites.
pub trait Lifecycles: fmt::Debug + Send + Sync {
    /// Where the machine stands now.
    fn now(&self, machine: MachineId) -> Option<Lifecycle>;

    /// Something happens to the machine: durable when it returns, and once its source is fenced, nothing more of that is
    /// taken.
    fn advance(
        &self,
        machine: MachineId,
        event: LifecycleEvent,
        job: JobId,
    ) -> BoxFuture<'_, Result<Lifecycle, LifecycleError>>;
}

/// Why a machine cannot be moved on between its sites.
#[derive(Debug, Error)]
pub enum LifecycleError {
    /// Not in its stage.
    #[error(transparent)]
    Refused(#[from] LifecycleRefusal),
    /// Something failed below.
    #[error("where the machine stands cannot be recorded")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The sources of machines, through their agents.
pub trait Sources: fmt::Debug + Send + Sync {
    /// What is known of a machine, and whether its agent is connected.
    fn facts(&self, machine: MachineId) -> Option<SourceFacts>;

    /// Has the source make a cut; returns its point when that is durable here.
    fn cut(&self, machine: MachineId, limit: Duration) -> BoxFuture<'_, Result<PointId, SourceError>>;

    /// Has the source stop writing: what its operator has set for that is run, then its file systems are frozen. They
    /// stay so for `hold` at most, then the source goes on by itself. Gives what was done, for people. Stopped already
    /// is success, and the time begins anew.
    fn stop(
        &self,
        machine: MachineId,
        limit: Duration,
        hold: Duration,
    ) -> BoxFuture<'_, Result<String, SourceError>>;

    /// Lets a stopped source go on. Not stopped is success; one that does not answer goes on by itself.
    fn resume(&self, machine: MachineId) -> BoxFuture<'_, Result<(), SourceError>>;

    /// Has the source run a program that its operator has laid out for plans, by its name; like [`Scripts::run`] else.
    fn run(&self, machine: MachineId, request: ScriptRequest) -> BoxFuture<'_, Result<String, SourceError>>;

    /// Ends what a run of this step has left running there, as far as the source answers.
    fn end_run(&self, machine: MachineId, job: JobId, step: u32) -> BoxFuture<'_, Result<(), SourceError>>;

    /// Proves that the source has been stopped without a break since before its last cut, that nothing was written since
    /// that, and that it stays stopped for some time yet.
    fn prove_last(&self, machine: MachineId, point: PointId) -> BoxFuture<'_, Result<(), SourceError>>;
}

/// Programs that plans have run on this host.
pub trait Scripts: fmt::Debug + Send + Sync {
    /// Runs a program to its end; what an earlier run of the same step left running is ended first. Gives the end of what it
    /// printed; if it failed, could not be started, was too slow or cancelled: why, and that, so that it reads on from the
    /// program's name.
    fn run(&self, request: ScriptRequest, task: Arc<Task>) -> BoxFuture<'_, Result<String, String>>;

    /// Ends what a run of this step left running. Nothing there is success.
    fn end(&self, job: JobId, step: u32) -> BoxFuture<'_, ()>;
}

/// A program to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptRequest {
    /// For this job;
    pub job: JobId,
    /// for this step of it, counted from zero.
    pub step: u32,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// What it is told, beside the job and the step.
    pub environment: BTreeMap<String, String>,
    /// How long it may take.
    pub limit: Duration,
}

/// What is known of a source.
#[derive(Clone, Debug)]
pub struct SourceFacts {
    /// The machine's name.
    pub name: String,
    /// Whether its agent is connected.
    pub connected: bool,
    /// What it is, as its agent told last.
    pub inventory: Option<Inventory>,
    /// What it starts on, as a look into its replica has found last.
    pub suited: Suited,
}

/// Why a source did not do what was asked.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Its agent is not connected.
    #[error("the source is not connected")]
    NotConnected,
    /// It did not answer in time.
    #[error("the source did not {action} within {} s", limit.as_secs())]
    Late {
        /// What it was to do.
        action: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// It answered that it did not.
    #[error("the source says: {text}")]
    Refused {
        /// Why, and what to do.
        text: String,
    },
    /// Something failed here.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why points cannot give what was asked for. The text is shown to the operator.
#[derive(Debug, Error)]
pub enum PointsError {
    /// No such machine.
    #[error("there is no machine {machine}; `holdfast machines` lists them")]
    MachineUnknown {
        /// What was asked for.
        machine: MachineId,
    },
    /// The machine has no such point (any more).
    #[error("the machine has no point {point}; `holdfast points` lists them")]
    PointUnknown {
        /// What was asked for.
        point: PointId,
    },
    /// Asked to end.
    #[error("cancelled")]
    Cancelled,
    /// Something failed below.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The way back from a target to its source.
pub trait WayBack: fmt::Debug + Send + Sync {
    /// Whether what a failover made can be followed: its disks are served for writing, and all of them are protected.
    fn check(&self, machine: MachineId, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>>;

    /// Begins a new line of history of the machine's disks, whose writer is the coordinator.
    fn begin(&self, machine: MachineId, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>>;

    /// Makes a point of what the target's disks hold now; it is durable and listed when this returns. Reports to `task`, and
    /// ends soon when that is cancelled.
    fn point(
        &self,
        machine: MachineId,
        failover: JobId,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<PointId, WayBackError>>;

    /// How many clients use the target's disks.
    fn clients(&self, failover: JobId) -> BoxFuture<'_, usize>;

    /// The target's disks take no more writes, also after a restart; or, with `false`, take them again.
    fn seal(&self, failover: JobId, sealed: bool) -> BoxFuture<'_, Result<(), WayBackError>>;

    /// Waits until the source stands by to be written to.
    fn source_ready(&self, machine: MachineId, limit: Duration) -> BoxFuture<'_, Result<(), WayBackError>>;

    /// Brings the source's disks to a point; durable there when this returns. Reports to `task`, and ends soon when that is
    /// cancelled. A repetition goes on from what is there.
    fn write_back(
        &self,
        machine: MachineId,
        point: PointId,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<WrittenBack, WayBackError>>;

    /// Follows the target no more, until it is begun again. Nothing is written to the machine's logs when this returns.
    fn release(&self, machine: MachineId) -> BoxFuture<'_, ()>;

    /// Ends what a failover made. Ended already is success.
    fn end_target(&self, failover: JobId) -> BoxFuture<'_, Result<(), WayBackError>>;
}

/// Why the way back does not go on. The text says what to do.
#[derive(Debug, Error)]
pub enum WayBackError {
    /// Asked to end.
    #[error("cancelled")]
    Cancelled,
    /// Not possible as it is.
    #[error("{0}")]
    Refused(String),
    /// Something failed below.
    #[error("cannot {action}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
