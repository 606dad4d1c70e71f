//! What the interface needs of the job engine and of the store.
//!
//! Owns the contracts only; `app` implements them.

use std::{collections::BTreeMap, fmt, path::Path};

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, JobId, MachineId, Sequence},
};
use thiserror::Error;

use super::shapes::{DiffShape, JobShape, TargetShape};
use crate::{
    compute::port::BoxFuture,
    drills::Drill,
    failover::{
        plan::{course::Course, file::PlanFile},
        port::PointsError,
    },
    points::selection::{Candidate, Selection},
    registry::health::Finding,
    store::{Alarm, DiskSpace},
};

/// What a failover means for its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    /// Nothing: it goes on.
    Test,
    /// It is not the machine any more; whether it is asked to stop first.
    Unplanned {
        /// Asked.
        stop_source: bool,
    },
    /// It is stopped, and gives everything that it has written.
    Planned,
}

/// The coordinator's host, as plans need it.
pub trait PlanHost: fmt::Debug + Send + Sync {
    /// Whether a program can be run.
    ///
    /// # Errors
    /// Not; the text says why.
    fn program(&self, path: &Path) -> Result<(), String>;

    /// Whether there is such a bridge.
    ///
    /// # Errors
    /// Not; the text says what is there.
    fn network(&self, name: &str) -> Result<(), String>;

    /// Keeps a copy of a plan beside the catalog, which can be made anew from it.
    fn keep(&self, name: String, text: String) -> BoxFuture<'_, Result<(), String>>;

    /// Removes that. None there is success.
    fn forget(&self, name: String) -> BoxFuture<'_, Result<(), String>>;
}

/// A run of a plan.
#[derive(Clone, Debug)]
pub struct PlanRun {
    /// The plan.
    pub file: PlanFile,
    /// What it does.
    pub course: Course,
    /// Whether sources are asked to stop first.
    pub stop_source: bool,
    /// Which points, for people.
    pub selection: Selection,
    /// What is made of them, for people.
    pub target: TargetShape,
    /// Its machines.
    pub members: Vec<PlanMember>,
    /// What the names of agents that run programs stand for.
    pub agents: BTreeMap<String, MachineId>,
}

/// A machine of a plan's run.
#[derive(Clone, Debug)]
pub struct PlanMember {
    /// The machine.
    pub machine: MachineId,
    /// Its name in the plan.
    pub name: String,
    /// Which point.
    pub selection: Selection,
    /// What is made of it.
    pub target: TargetShape,
}

/// A run of a plan, as it is known.
#[derive(Clone, Debug)]
pub struct PlanJob {
    /// Its job.
    pub id: JobId,
    /// What it does.
    pub course: Course,
    /// Whether nothing of it is left.
    pub is_over: bool,
    /// Whether it does nothing more by itself, and waits for nobody.
    pub is_settled: bool,
    /// Machines with their jobs.
    pub children: Vec<(MachineId, JobId)>,
}

/// A way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayBackVerb {
    /// Protect the machine at its target.
    Reprotect,
    /// Bring it back to its source.
    Failback,
}

/// The jobs, as operators handle them.
pub trait JobControl: fmt::Debug + Send + Sync {
    /// Begins a failover of one machine.
    fn failover(
        &self,
        who: String,
        machine: MachineId,
        selection: Selection,
        target: TargetShape,
        mode: FailoverMode,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Begins a drill: a test failover that proves that the machine boots, and ends by itself.
    fn drill(
        &self,
        who: String,
        machine: MachineId,
        selection: Selection,
        drill: Drill,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Begins a plan.
    fn run_plan(&self, who: String, run: PlanRun) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// All runs of a plan that are known, or of all plans, newest first.
    fn plan_jobs(&self, plan: Option<&str>) -> Vec<PlanJob>;
    /// Begins a re-protection or a failback of what a failover made.
    fn way_back(
        &self,
        who: String,
        machine: MachineId,
        failover: JobId,
        verb: WayBackVerb,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Follows what a failover made no more: nothing is written to its machine's logs when this returns.
    fn release_target(&self, machine: MachineId) -> BoxFuture<'_, ()>;
    /// All cuts of a machine that are known here, in the order of its disks' logs, oldest first.
    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, JobRefusal>>;
    /// All jobs, newest first.
    fn list(&self) -> BoxFuture<'_, Result<Vec<JobShape>, JobRefusal>>;
    /// One job.
    fn show(&self, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Asks a job to end and to undo what it did.
    fn cancel(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Has a job make another point usable instead of the one that it holds.
    fn change_point(
        &self,
        who: String,
        job: JobId,
        selection: Selection,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Cancels a job and waits until what it did is undone, or cannot be. One that is over is success.
    fn end(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Lets a job that waits for its operator go on.
    fn go_on(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Tries a failed job again.
    fn retry(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
}

/// Why a job was not begun or changed.
#[derive(Debug, Error)]
pub enum JobRefusal {
    /// No such job.
    #[error("there is no job {0}")]
    Unknown(JobId),
    /// It cannot be done in the job's state.
    #[error("{0}")]
    NotNow(String),
    /// Something failed below.
    #[error("the job engine failed")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What differs between points.
pub trait PointDiff: fmt::Debug + Send + Sync {
    /// The blocks written between two points, in either order, at most `ranges_max` ranges of each disk.
    fn diff(
        &self,
        machine: MachineId,
        from: Selection,
        to: Selection,
        ranges_max: usize,
    ) -> BoxFuture<'_, Result<DiffShape, DiffRefusal>>;
}

/// Why points cannot be compared.
#[derive(Debug, Error)]
pub enum DiffRefusal {
    /// There is no such point, or it cannot be used.
    #[error("{0}")]
    Unknown(String),
    /// Something failed below.
    #[error("the points cannot be compared")]
    Failed(#[from] PointsError),
}

/// Figures of the store.
pub trait StoreFigures: fmt::Debug + Send + Sync {
    /// Free and total bytes of the file system, and the bytes kept in reserve.
    fn space(&self) -> Option<Space>;
    /// What is wrong with the store as a whole, if something is.
    fn trouble(&self) -> Vec<Finding>;
    /// Figures of one disk.
    fn disk(&self, disk: DiskId) -> DiskFigures;
}

/// Space of the data folder's file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Free bytes.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// Free bytes below which nothing is taken.
    pub reserve_bytes: u64,
}

/// Figures of a disk in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Bytes of its log.
    pub stored_bytes: u64,
    /// Bytes of it that are not in the index yet.
    pub pending_bytes: u64,
    /// Last durable frame.
    pub durable: u64,
    /// Last frame in the index.
    pub indexed: u64,
    /// What is wrong with its log, if something is.
    pub trouble: Option<String>,
    /// What its log is made of, as of the last count.
    pub space: DiskSpace,
    /// Why space was not given back the last time, if so.
    pub reclaim_trouble: Option<String>,
    /// What was found to differ from the source since all was last known to be equal.
    pub alarm: Option<Alarm>,
}

/// The background checks of stored data.
pub trait StoreChecks: fmt::Debug + Send + Sync {
    /// How far a disk's log was checked; `None` until it was looked at.
    fn figures(&self, disk: DiskId) -> Option<CheckFigures>;
    /// Begins a pass over all stored data of a disk, or hastens the one under way. `false` if there is nothing to read.
    fn start(&self, disk: DiskId) -> bool;
}

/// Comparisons of whole disks with their sources.
pub trait SourceAudits: fmt::Debug + Send + Sync {
    /// Begins one of all protected disks of a machine.
    fn start(&self, machine: MachineId) -> AuditStart;
    /// Ends the one under way; `false` if there is none.
    fn cancel(&self, machine: MachineId) -> bool;
    /// How far a disk was compared; `None` if nothing is stored of it.
    fn figures(&self, disk: DiskId) -> Option<AuditFigures>;
}

/// What came of beginning an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditStart {
    /// It is under way.
    Begun,
    /// One was under way already.
    Running,
    /// The machine has no protected disk.
    NothingProtected,
    /// It cannot be recorded.
    Failed(String),
}

/// How far a disk was compared with its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFigures {
    /// The comparison under way.
    pub pass: Option<AuditedFigures>,
    /// The last one that ended.
    pub last: Option<AuditedFigures>,
    /// Size of the disk.
    pub size_bytes: u64,
    /// What the one under way waits for, if it does not go on.
    pub waiting: Option<String>,
    /// Rate of the one under way.
    pub bytes_per_second: Option<u64>,
}

/// A comparison of a whole disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedFigures {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Of them: written meanwhile, so that the source has sent them anew.
    pub sent_anew_bytes: u64,
    /// Of them: different.
    pub differed_bytes: u64,
    /// Of them: not readable here, or known to be wrong before.
    pub unreadable_bytes: u64,
}

/// How far a disk's log was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckFigures {
    /// The last cut that is fully verified, with all before it.
    pub verified: Sequence,
    /// Bytes of the log behind it.
    pub unverified_bytes: u64,
    /// Bytes of the whole log.
    pub journal_bytes: u64,
    /// The pass under way.
    pub pass: Option<PassFigures>,
    /// The last one that ended.
    pub last: Option<PassFigures>,
    /// When the next one is due.
    pub next_at: Timestamp,
    /// The rate of the pass under way; `None` for as fast as it goes.
    pub bytes_per_second: Option<u64>,
    /// Frames that are known to be damaged.
    pub damaged_frames: u64,
}

/// A pass over all stored data of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassFigures {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Bytes found good.
    pub good_bytes: u64,
    /// Frames found damaged.
    pub bad_frames: u64,
    /// Frames up to here were read.
    pub position: u64,
    /// It ends here.
    pub up_to: u64,
}
