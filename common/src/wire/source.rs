//! What the coordinator wants of a source beyond its data: that it stops writing, for a failover without loss; and that it runs a
//! program for a recovery plan.
//!
//! Owns the messages only. Who asks for what is in the coordinator's plans of jobs, what the source does in the agent's
//! `source`. Invariant: a source that was stopped goes on by itself when its time is over and it has not been fenced.

use serde::{Deserialize, Serialize};

use crate::ids::JobId;

/// One order to a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOrder {
    /// Number to carry back.
    pub request: u64,
    /// What to do.
    pub step: SourceStep,
}

/// What a source is to do. Variants are only ever appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceStep {
    /// Stop what writes to the protected disks, and freeze their file systems. Stopped already: the time begins anew.
    Stop {
        /// Longest time for stopping.
        limit_ms: u64,
        /// After this long the source goes on by itself.
        hold_ms: u64,
    },
    /// Say whether everything is frozen still, and stay so for at least this long.
    Prove {
        /// How long.
        hold_ms: u64,
    },
    /// Go on.
    Resume,
    /// Run a program; answered when it has ended.
    Run(SourceRun),
    /// End what a run of this step of this job has left running.
    EndRun {
        /// The job.
        job: JobId,
        /// Its step.
        step: u32,
    },
}

/// A program that the machine's operator has laid out for recovery plans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRun {
    /// For this job;
    pub job: JobId,
    /// for this step of it. What an earlier run of the same step left running is ended first.
    pub step: u32,
    /// Its name in the agent's folder of actions: no path.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// What it is told: names and values.
    pub environment: Vec<(String, String)>,
    /// How long it may take.
    pub limit_ms: u64,
}

/// What a source answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAnswer {
    /// Number of the order.
    pub request: u64,
    /// What was done; or why not, and what to do. For people.
    pub result: Result<String, String>,
}
