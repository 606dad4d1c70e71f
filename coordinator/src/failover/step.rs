//! The contract of a step.
//!
//! Owns the contract only. Invariants that every step keeps (and that one test walks all steps for): `Step::run` may be
//! repeated, also after it was interrupted anywhere; `Step::undo` may be repeated, and also follows a run that failed, was
//! interrupted or never got anywhere; dropping either's future leaves something that a repetition copes with.

use std::{error::Error, fmt, sync::Arc};

use holdfast_common::{causes::in_one_line, clock::Clock};

use super::{
    children::ChildJobs,
    job::{Job, JobSpec, Output, StepKind},
    log::{self, Then},
};
use crate::compute::port::{BoxFuture, Task};

/// What a step may know.
#[derive(Clone, Debug)]
pub struct Context {
    /// The job as it stands; outputs of earlier steps are in it.
    pub job: Job,
    /// Which step of it this is, counted from zero.
    pub step: u32,
    /// The jobs that a job may begin for its own.
    pub children: Arc<dyn ChildJobs>,
    /// Where to report progress to, and where cancellation comes from: a step ends soon after it.
    pub task: Arc<Task>,
    /// Whether the operator has answered the step's [`Outcome::Waits`].
    pub continued: bool,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// How a run ended without failing.
#[derive(Debug)]
pub enum Outcome {
    /// Done.
    Done(Output),
    /// The operator has to do something; the step runs again afterwards.
    Waits(String),
}

/// A step failed.
#[derive(Debug)]
pub struct StepError {
    /// Why and what to do, for the operator.
    pub message: String,
    /// What follows; undoing ignores it.
    pub then: Then,
}

impl StepError {
    /// From an error and all its sources, in one line.
    pub fn new(error: &dyn Error, then: Then) -> Self {
        Self { message: log::bounded(in_one_line(error)), then }
    }
}

/// One step of a plan.
pub trait Step: fmt::Debug + Send + Sync {
    /// Does the step.
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>>;

    /// Takes it back.
    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>>;

    /// Brings back what the step keeps up, after a restart of the coordinator: it was done before, and is not undone.
    fn restore<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The steps of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub steps: Vec<StepKind>,
    /// Whether the job holds something after the last one, until it is cancelled.
    pub holds: bool,
}

/// All plans and steps of the program.
pub trait Plans: fmt::Debug + Send + Sync {
    /// The steps of a new job.
    fn plan(&self, spec: &JobSpec) -> Plan;

    /// The implementation of a step.
    fn step(&self, kind: StepKind) -> Arc<dyn Step>;
}
