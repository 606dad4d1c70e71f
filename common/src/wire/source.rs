//! What the coordinator wants of a source beyond its data: that it stops writing, for a failover without loss.
//!
//! Owns the messages only. Who asks for what is in the coordinator's plans of jobs, what the source does in the agent's
//! `source`. Invariant: a source that was stopped goes on by itself when its time is over and it has not been fenced.

use serde::{Deserialize, Serialize};

/// One order to a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOrder {
    /// Number to carry back.
    pub request: u64,
    /// What to do.
    pub step: SourceStep,
}

/// What a source is to do. Variants are only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What a source answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceAnswer {
    /// Number of the order.
    pub request: u64,
    /// What was done; or why not, and what to do. For people.
    pub result: Result<String, String>,
}
