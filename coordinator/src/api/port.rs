//! What the interface needs of the job engine and of the store.
//!
//! Owns the contracts only; `app` implements them.

use std::fmt;

use holdfast_common::ids::{DiskId, JobId, MachineId};
use thiserror::Error;

use super::shapes::{JobShape, TargetShape};
use crate::{
    compute::port::BoxFuture,
    points::selection::{Candidate, Selection},
    store::DiskSpace,
};

/// The jobs, as operators handle them.
pub trait JobControl: fmt::Debug + Send + Sync {
    /// Begins a failover of one machine.
    fn failover(
        &self,
        who: String,
        machine: MachineId,
        selection: Selection,
        target: TargetShape,
    ) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// All cuts of a machine that are known here, in the order of its disks' logs, oldest first.
    fn candidates(&self, machine: MachineId) -> BoxFuture<'_, Result<Vec<Candidate>, JobRefusal>>;
    /// All jobs, newest first.
    fn list(&self) -> BoxFuture<'_, Result<Vec<JobShape>, JobRefusal>>;
    /// One job.
    fn show(&self, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
    /// Asks a job to end and to undo what it did.
    fn cancel(&self, who: String, job: JobId) -> BoxFuture<'_, Result<JobShape, JobRefusal>>;
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

/// Figures of the store.
pub trait StoreFigures: fmt::Debug + Send + Sync {
    /// Free and total bytes of the file system, and the bytes kept in reserve.
    fn space(&self) -> Option<Space>;
    /// What is wrong with the store as a whole, if something is.
    fn trouble(&self) -> Vec<String>;
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
}
