//! The log of a job: what is persisted, and nothing else is.
//!
//! Owns the format of events. Knows no storage. Invariant: what is written can be read by this and every later version;
//! a newer version's log is refused, never guessed at.
//! Limits: `BODY_BYTES_MAX` per event, `TEXT_BYTES_MAX` per text in it.
//!
//! Format of a record's body: a JSON object `{"version": 1, "event": {"type": ..., ...}}`, fields as at `Event`. Records of a job
//! are numbered 1, 2, 3, ... in the order in which they happened; the number is the store's key beside the job's id.
//! Version history: 1, the first.

use holdfast_common::{clock::Timestamp, ids::JobId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    job::{JobSpec, Output, StepKind},
    port::LogRecord,
};
use crate::points::selection::Selection;

/// Something that happened to a job. Variants are only ever appended, fields only added with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Event {
    /// The job was asked for. Always number 1. The steps are fixed here, so that a later version of the program runs
    /// the steps that this job began with.
    Created {
        /// What it is to do.
        spec: JobSpec,
        /// Who asked for it.
        by: String,
        /// Its steps.
        steps: Vec<StepKind>,
        /// Whether it holds something after its last step, until it is cancelled.
        holds: bool,
    },
    /// A step begins, or begins again after an interruption.
    StepStarted {
        /// Which, counted from zero.
        step: u32,
    },
    /// A step is done.
    StepDone {
        /// Which.
        step: u32,
        /// What it made.
        output: Output,
    },
    /// A step failed.
    StepFailed {
        /// Which.
        step: u32,
        /// Why, for the operator.
        message: String,
        /// What follows.
        then: Then,
    },
    /// A step waits for the operator.
    StepWaits {
        /// Which.
        step: u32,
        /// For what.
        reason: String,
    },
    /// The operator lets a waiting step go on.
    ContinueRequested {
        /// Who.
        by: String,
    },
    /// The operator wants everything taken back.
    CancelRequested {
        /// Who.
        by: String,
    },
    /// The operator wants a failed job to go on.
    RetryRequested {
        /// Who.
        by: String,
    },
    /// A step was taken back.
    UndoDone {
        /// Which.
        step: u32,
    },
    /// A step could not be taken back.
    UndoFailed {
        /// Which.
        step: u32,
        /// Why, for the operator.
        message: String,
    },
    /// The operator wants what the job holds to be of another point: the job goes back to choosing one.
    PointChangeRequested {
        /// Who.
        by: String,
        /// Which point.
        selection: Selection,
        /// The step that chooses it.
        step: u32,
    },
    /// A line for the operator.
    Message {
        /// The line.
        text: String,
    },
    /// What the job held has ended by itself: the jobs of a plan's machines are over.
    NothingHeld,
}

/// What follows a step's failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Then {
    /// The step was optional: the job goes on with the next one.
    GoOn,
    /// The job stops where it is and keeps what it has, until the operator retries or cancels.
    Hold,
    /// Everything is taken back.
    Undo,
}

/// An event with its place and time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The job.
    pub job: JobId,
    /// Number in the job, from 1.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub event: Event,
}

#[derive(Serialize)]
struct BodyOut<'a> {
    version: u32,
    event: &'a Event,
}

#[derive(Deserialize)]
struct BodyIn {
    version: u32,
    event: serde_json::Value,
}

/// A stored event cannot be read, or one cannot be stored.
#[derive(Debug, Error)]
pub enum LogError {
    /// Too long.
    #[error("event {number} of job {job} has {bytes} bytes, more than {BODY_BYTES_MAX}")]
    TooLong {
        /// The job.
        job: JobId,
        /// The event.
        number: u64,
        /// Its size.
        bytes: usize,
    },
    /// Written by a newer version.
    #[error(
        "event {number} of job {job} has format version {version}; this program knows {VERSION}: upgrade it"
    )]
    Newer {
        /// The job.
        job: JobId,
        /// The event.
        number: u64,
        /// Its version.
        version: u32,
    },
    /// Not an event.
    #[error("event {number} of job {job} cannot be understood")]
    Malformed {
        /// The job.
        job: JobId,
        /// The event.
        number: u64,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A record in its stored form.
///
/// # Errors
/// It is over the limit.
pub fn encode(record: &Record) -> Result<LogRecord, LogError> {
    let (job, number) = (record.job, record.number);
    let body = serde_json::to_string(&BodyOut { version: VERSION, event: &record.event })
        .map_err(|source| LogError::Malformed { job, number, source })?;
    if body.len() > BODY_BYTES_MAX {
        return Err(LogError::TooLong { job, number, bytes: body.len() });
    }
    Ok(LogRecord { job, number, at: record.at, body })
}

/// A record from its stored form.
///
/// # Errors
/// It is not readable by this version; the job is left alone.
pub fn decode(stored: &LogRecord) -> Result<Record, LogError> {
    let (job, number) = (stored.job, stored.number);
    if stored.body.len() > BODY_BYTES_MAX {
        return Err(LogError::TooLong { job, number, bytes: stored.body.len() });
    }
    let malformed = |source| LogError::Malformed { job, number, source };
    let body: BodyIn = serde_json::from_str(&stored.body).map_err(malformed)?;
    if body.version != VERSION {
        return Err(LogError::Newer { job, number, version: body.version });
    }
    let event = serde_json::from_value(body.event).map_err(malformed)?;
    Ok(Record { job, number, at: stored.at, event })
}

/// Cuts a text to what fits an event.
#[must_use]
pub fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

/// Version of the body's format.
const VERSION: u32 = 1;
/// A stored event, at most: the largest recovery plan fits, and what came of all its machines.
pub const BODY_BYTES_MAX: usize = 8 << 20;
/// One text in an event, at most.
pub const TEXT_BYTES_MAX: usize = 4096;

#[cfg(test)]
mod tests;
