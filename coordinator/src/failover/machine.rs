//! The states of a job and which event leads from one to another.
//!
//! Pure: no IO, no clock. Used when an event happens and again when a log is read back, so both always agree.
//! Invariant: a step is undone only after it was begun, and all steps begun are undone, last first, before a job is
//! `Cancelled` or `Failed`; also those that were begun before the job went back to another point.
//!
//! ```text
//!                 StepStarted             StepDone (not last)
//!    Ready{i} ---------------> Running{i} -------------------> Ready{i+1}
//!       ^                       |  |  |  ^  StepStarted (again after an interruption)
//!       |                       |  |  |  +---- Waiting{i} <-- StepWaits; ContinueRequested leads back
//!       |     Held{i} <-- StepFailed hold; RetryRequested leads back
//!       |                          |  |
//!                                  |  +-- StepDone (last) --> Succeeded, or Holding while the job holds something
//!                 StepFailed undo  |
//!    any but the final ones -------+--Cancel--> Undoing{i} --UndoDone--> Undoing{i-1} ... --> Cancelled / Failed
//!                                               |     ^                              Failed --Retry--> Ready{0}
//!                                     UndoFailed+     +--Retry-- Stuck{i}
//!
//!    Holding, Held{j} --PointChangeRequested{i}--> Ready{i}    (i <= j; the steps from i on are run again)
//!    Holding --NothingHeld--> Succeeded                        (what it held has ended by itself: nothing is to be undone)
//! ```
//!
//! What a crash comes back to: what steps that are done keep up is restored; `Ready{i}` starts step i; `Running{i}` runs it again (steps are idempotent); `Waiting`, `Held`,
//! `Stuck` and `Holding` wait for the operator; `Undoing{i}` undoes step i again. Final states stay.

use serde::Serialize;
use thiserror::Error;

use super::log::{Event, Then};

/// Where a job stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The state.
    pub state: State,
    /// Number of steps.
    pub steps: u32,
    /// Whether the job holds something after its last step.
    pub holds: bool,
    /// Steps from the first one on that were begun and not undone.
    pub begun: u32,
}

/// States of a job; see the module's drawing. Steps are counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum State {
    /// The step is next.
    Ready {
        /// Which.
        step: u32,
    },
    /// The step is being done.
    Running {
        /// Which.
        step: u32,
    },
    /// The step waits for the operator.
    Waiting {
        /// Which.
        step: u32,
    },
    /// The step failed; everything before it is kept until retry or cancel.
    Held {
        /// Which.
        step: u32,
    },
    /// All steps are done, and what they made is kept up until cancel.
    Holding,
    /// The steps up to this one are being taken back.
    Undoing {
        /// Which is next.
        step: u32,
        /// How the job ends.
        ending: Ending,
    },
    /// The step could not be taken back; retry tries again.
    Stuck {
        /// Which.
        step: u32,
        /// How the job would end.
        ending: Ending,
    },
    /// Done. Final.
    Succeeded,
    /// Everything is taken back, as the operator wanted. Final.
    Cancelled,
    /// A step failed, and everything is taken back. Final but for retry.
    Failed,
}

/// How a job ends that is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The operator wanted it.
    Cancelled,
    /// A step failed.
    Failed,
}

impl State {
    /// Whether nothing will happen any more unless the operator asks for it, and nothing is held.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Cancelled | Self::Failed)
    }
}

/// An event that does not fit.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TransitionError {
    /// The first record is not a creation.
    #[error("the log does not begin with the job's creation")]
    NotCreated,
    /// A job without steps or with too many.
    #[error("a job has 1 to {STEPS_MAX} steps")]
    Steps,
    /// A record is missing or of another job.
    #[error("event {expected} was expected, and event {found} was found")]
    Gap {
        /// What should have come.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// Not possible now.
    #[error("this is not possible while the job is {state}")]
    NotNow {
        /// The state's name.
        state: &'static str,
    },
}

/// The status of a job that was just created.
///
/// # Errors
/// It has no steps, or too many.
pub fn begin(steps: usize, holds: bool) -> Result<Status, TransitionError> {
    let steps = u32::try_from(steps).ok().filter(|steps| (1..=STEPS_MAX).contains(steps));
    Ok(Status {
        state: State::Ready { step: 0 },
        steps: steps.ok_or(TransitionError::Steps)?,
        holds,
        begun: 0,
    })
}

/// The status after an event.
///
/// # Errors
/// The event is not possible in this status.
pub fn next(status: &Status, event: &Event) -> Result<Status, TransitionError> {
    let state = match event {
        Event::Message { .. } => Some(status.state),
        Event::CancelRequested { .. } => cancelled(status),
        Event::RetryRequested { .. } => retried(status.state),
        Event::PointChangeRequested { step, .. } if *step < status.steps => changed(status.state, *step),
        Event::PointChangeRequested { .. } => None,
        Event::UndoDone { .. } | Event::UndoFailed { .. } => undone(status.state, event),
        Event::Created { .. } => None,
        _ => forward(status, event),
    };
    let state = state.ok_or(TransitionError::NotNow { state: status.state.name() })?;
    let begun = match *event {
        Event::StepStarted { step } => status.begun.max(step + 1),
        Event::UndoDone { step } => step,
        _ => status.begun,
    };
    Ok(Status { state, begun, ..*status })
}

fn forward(status: &Status, event: &Event) -> Option<State> {
    match (status.state, event) {
        (State::Ready { step } | State::Running { step }, Event::StepStarted { step: started })
            if step == *started =>
        {
            Some(State::Running { step })
        }
        (State::Running { step }, Event::StepDone { step: done, .. }) if step == *done => {
            Some(after(status, step))
        }
        (State::Running { step }, Event::StepFailed { step: failed, then, .. }) if step == *failed => {
            Some(match then {
                Then::GoOn => after(status, step),
                Then::Hold => State::Held { step },
                Then::Undo => undoing(status, Ending::Failed, State::Failed),
            })
        }
        (State::Running { step }, Event::StepWaits { step: waits, .. }) if step == *waits => {
            Some(State::Waiting { step })
        }
        (State::Waiting { step }, Event::ContinueRequested { .. }) => Some(State::Running { step }),
        (State::Holding, Event::NothingHeld) => Some(State::Succeeded),
        _ => None,
    }
}

/// What follows a step that needs no more.
fn after(status: &Status, step: u32) -> State {
    if step + 1 < status.steps {
        State::Ready { step: step + 1 }
    } else if status.holds {
        State::Holding
    } else {
        State::Succeeded
    }
}

fn cancelled(status: &Status) -> Option<State> {
    match status.state {
        State::Ready { .. }
        | State::Running { .. }
        | State::Waiting { .. }
        | State::Held { .. }
        | State::Holding => Some(undoing(status, Ending::Cancelled, State::Cancelled)),
        _ => None,
    }
}

/// Taking back what was begun; over at once if that is nothing.
fn undoing(status: &Status, ending: Ending, over: State) -> State {
    status.begun.checked_sub(1).map_or(over, |step| State::Undoing { step, ending })
}

/// Back to the choice of the point.
fn changed(state: State, to: u32) -> Option<State> {
    match state {
        State::Holding => Some(State::Ready { step: to }),
        State::Held { step } if to <= step => Some(State::Ready { step: to }),
        _ => None,
    }
}

fn retried(state: State) -> Option<State> {
    match state {
        // Not `Ready`: the step was begun, and a cancel has to undo it.
        State::Held { step } => Some(State::Running { step }),
        State::Stuck { step, ending } => Some(State::Undoing { step, ending }),
        State::Failed => Some(State::Ready { step: 0 }),
        _ => None,
    }
}

fn undone(state: State, event: &Event) -> Option<State> {
    let State::Undoing { step, ending } = state else { return None };
    match event {
        Event::UndoDone { step: done } if *done == step => Some(match (step, ending) {
            (0, Ending::Cancelled) => State::Cancelled,
            (0, Ending::Failed) => State::Failed,
            (step, ending) => State::Undoing { step: step - 1, ending },
        }),
        Event::UndoFailed { step: failed, .. } if *failed == step => Some(State::Stuck { step, ending }),
        _ => None,
    }
}

impl State {
    /// The state's name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready { .. } | Self::Running { .. } => "running",
            Self::Waiting { .. } => "waiting",
            Self::Held { .. } => "held",
            Self::Holding => "active",
            Self::Undoing { .. } => "undoing",
            Self::Stuck { .. } => "stuck",
            Self::Succeeded => "succeeded",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }
}

/// Steps of a job, at most.
pub const STEPS_MAX: u32 = 10_000;

#[cfg(test)]
mod tests;
