//! Steps that want something of the source. An unplanned failover goes on without it.

use std::time::Duration;

use super::failover::{Services, spec};
use crate::{
    compute::port::BoxFuture,
    failover::{
        job::{Mode, Output},
        log::Then,
        port::SourceError,
        step::{Context, Outcome, Step, StepError},
    },
};

/// What follows if the source does not do it.
fn then(context: &Context) -> Then {
    match spec(context).mode {
        Mode::Planned => Then::Undo,
        Mode::Test | Mode::Unplanned => Then::GoOn,
    }
}

/// The source stops writing, for a bounded time.
#[derive(Debug)]
pub(super) struct StopSource(pub(super) Services);

impl Step for StopSource {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let stopped = self.0.sources.stop(spec(context).machine, STOP_LIMIT, HOLD).await;
            let text = stopped.map_err(|error| StepError::new(&error, then(context)))?;
            Ok(Outcome::Done(Output::Told { text }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            match self.0.sources.resume(spec(context).machine).await {
                Ok(()) => {}
                // One that was fenced meanwhile goes on as soon as it is let in again, any other when its time is over:
                // that is no reason to hold up a cancel.
                Err(error) => tracing::warn!(job = %context.job.id, %error, "the source goes on by itself"),
            }
            Ok(())
        })
    }
}

/// The source makes a cut of now.
#[derive(Debug)]
pub(super) struct Synchronize(pub(super) Services);

impl Step for Synchronize {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let limit = match spec(context).mode {
                Mode::Planned => CUT_LIMIT_PLANNED,
                Mode::Test | Mode::Unplanned => CUT_LIMIT,
            };
            let cut = self.0.sources.cut(spec(context).machine, limit);
            tokio::pin!(cut);
            loop {
                tokio::select! {
                    made = &mut cut => return match made {
                        Ok(point) => Ok(Outcome::Done(Output::Cut { point })),
                        Err(error @ SourceError::NotConnected) if then(context) == Then::GoOn => {
                            let text = format!("{error}: what has arrived is what there is");
                            Ok(Outcome::Done(Output::Told { text }))
                        }
                        Err(error) => Err(StepError::new(&error, then(context))),
                    },
                    () = tokio::time::sleep(CANCEL_LOOK) => {
                        if context.task.is_cancelled() {
                            let message = "cancelled".to_owned();
                            return Err(StepError { message, then: Then::Undo });
                        }
                    }
                }
            }
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Longest time for the source to stop what its operator has set.
const STOP_LIMIT: Duration = Duration::from_mins(2);
/// Longest time that it stays stopped before it goes on by itself.
const HOLD: Duration = Duration::from_mins(10);
/// Longest wait for the last cut of a source that may be dying.
const CUT_LIMIT: Duration = Duration::from_secs(5);
/// And of one that is well.
const CUT_LIMIT_PLANNED: Duration = Duration::from_mins(5);
/// How often a step that waits looks whether it was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(50);
