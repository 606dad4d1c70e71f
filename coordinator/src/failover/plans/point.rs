//! Steps about the point: choose it, have it processed, give it back.

use std::sync::Arc;

use super::failover::{Services, chosen, failed, spec};
use crate::{
    compute::port::BoxFuture,
    failover::{
        job::{FailoverSpec, Mode, Output, StepKind},
        log::Then,
        port::PointsError,
        step::{Context, Outcome, Step, StepError},
    },
    points::selection::{Choice, Selection},
    registry::lifecycle::LifecycleEvent,
};

/// Chooses the point and holds it against retention. A lease on what was chosen before stays until that is not in use
/// any more.
#[derive(Debug)]
pub(super) struct SelectPoint(pub(super) Services);

/// A planned failover takes the cut that it has had made.
fn selection(context: &Context) -> Result<Selection, StepError> {
    let FailoverSpec { selection, mode, .. } = spec(context)?;
    Ok(match context.job.output(StepKind::Synchronize) {
        Some(Output::Cut { point }) if *mode == Mode::Planned && context.job.changes == 0 => {
            Selection::Point(*point)
        }
        _ => *selection,
    })
}

impl Step for SelectPoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let machine = spec(context)?.machine;
            // A change that turns out impossible does not cost the failover.
            let then = if context.job.changes == 0 { Then::Undo } else { Then::Hold };
            for _ in 0..CHOICES_MAX {
                let choice = self.0.choose(machine, selection(context)?, then).await?;
                match self.0.points.lease(machine, choice.point, context.job.id).await {
                    Ok(()) => {
                        let Choice { point, at, remarks, .. } = choice;
                        return Ok(Outcome::Done(Output::Selected { point, at, remarks }));
                    }
                    // Retention was faster: choose again.
                    Err(PointsError::PointUnknown { .. }) => {}
                    Err(error) => return Err(StepError::new(&error, then)),
                }
            }
            let message = "retention removed each chosen point before it could be held; retry".into();
            Err(StepError { message, then })
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        release(&self.0, context)
    }
}

/// Has the point processed if it is pending.
#[derive(Debug)]
pub(super) struct ProcessPoint(pub(super) Services);

impl Step for ProcessPoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let machine = spec(context)?.machine;
            let task = Arc::clone(&context.task);
            let processed = self.0.points.process(machine, chosen(context)?, task).await;
            processed.map_err(failed(Then::Hold))?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Gives the lease back once the point is not needed any more; a test is over then.
#[derive(Debug)]
pub(super) struct ReleasePoint(pub(super) Services);

impl Step for ReleasePoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            release(&self.0, context).await?;
            self.0.advance(context, LifecycleEvent::EndTest(context.job.id), Then::Hold).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

fn release<'a>(services: &'a Services, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
    Box::pin(async move { services.points.release(context.job.id).await.map_err(failed(Then::Hold)) })
}

/// Times that a point is chosen when retention removes what was chosen.
const CHOICES_MAX: usize = 3;
