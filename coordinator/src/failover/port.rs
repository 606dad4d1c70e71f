//! What jobs need of the catalog and of points.
//!
//! Owns the contracts only. Invariant of all implementations: a call that returned `Ok` is durable where its text says so,
//! and every call may be repeated.

use std::{fmt, sync::Arc};

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId, PointId},
};
use thiserror::Error;

use crate::{
    compute::port::{BoxFuture, DiskView, Task},
    points::selection::Candidate,
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

    /// Opens all disks of a processed point, in a fixed order.
    fn open(&self, machine: MachineId, point: PointId) -> BoxFuture<'_, Result<Vec<DiskView>, PointsError>>;
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
