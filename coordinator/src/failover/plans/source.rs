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
fn then(context: &Context) -> Result<Then, StepError> {
    Ok(match spec(context)?.mode {
        Mode::Planned => Then::Undo,
        Mode::Test | Mode::Unplanned => Then::GoOn,
    })
}

/// What comes of it, unless the job is cancelled meanwhile.
async fn unless_cancelled<T>(
    context: &Context,
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<Result<T, SourceError>, StepError> {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            () = tokio::time::sleep(CANCEL_LOOK) => {
                if context.task.is_cancelled() {
                    return Err(StepError { message: "cancelled".to_owned(), then: Then::Undo });
                }
            }
        }
    }
}

/// The source stops writing, for a bounded time.
#[derive(Debug)]
pub(super) struct StopSource(pub(super) Services);

impl Step for StopSource {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let then = then(context)?;
            let stopping = self.0.sources.stop(spec(context)?.machine, STOP_LIMIT, HOLD);
            let text =
                unless_cancelled(context, stopping).await?.map_err(|error| StepError::new(&error, then))?;
            Ok(Outcome::Done(Output::Told { text }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            // One that was fenced meanwhile goes on as soon as it is let in again, one that is busy stopping when it gets to
            // the order, any other when its time is over: that is no reason to hold up a cancel.
            let resumed =
                tokio::time::timeout(RESUME_WAIT, self.0.sources.resume(spec(context)?.machine)).await;
            match resumed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(job = %context.job.id, %error, "the source goes on by itself")
                }
                Err(_elapsed) => {
                    tracing::warn!(job = %context.job.id, "the source goes on as soon as it can")
                }
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
            let then = then(context)?;
            let limit = match spec(context)?.mode {
                Mode::Planned => CUT_LIMIT_PLANNED,
                Mode::Test | Mode::Unplanned => CUT_LIMIT,
            };
            let cut = self.0.sources.cut(spec(context)?.machine, limit);
            match unless_cancelled(context, cut).await? {
                Ok(point) => Ok(Outcome::Done(Output::Cut { point })),
                Err(error @ SourceError::NotConnected) if then == Then::GoOn => {
                    let text = format!("{error}: what has arrived is what there is");
                    Ok(Outcome::Done(Output::Told { text }))
                }
                Err(error) => Err(StepError::new(&error, then)),
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
/// Longest wait for a source to say that it goes on, when a failover is taken back.
const RESUME_WAIT: Duration = Duration::from_secs(1);
/// How often a step that waits looks whether it was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(50);
