//! Re-protection: a machine that runs at its target is protected the other way.
//!
//! ```text
//!   begin-reprotect -> take-over-log -> follow-target
//! ```
//!
//! | step | makes | undo | on failure |
//! |---|---|---|---|
//! | begin-reprotect | the machine is this job's (its lifecycle) | gives it back | undo |
//! | take-over-log | a line of history of the target's own | nothing: the source is compared anew whenever it goes on | hold |
//! | follow-target | the first point of the target; from then on points come by the machine's policy | follows it no more | hold |
//!
//! Nothing that the machine has or that was kept of it is taken away: a cancel leaves it committed at its target, with all points.

use std::sync::Arc;

use super::failover::{Services, machine_of};
use crate::{
    compute::port::BoxFuture,
    failover::{
        job::{JobSpec, Output, StepKind, WayBackSpec},
        log::Then,
        port::WayBackError,
        step::{Context, Outcome, Step, StepError},
    },
    registry::lifecycle::{LifecycleEvent, Stage},
};

/// The steps, in order.
pub(super) const STEPS: [StepKind; 3] =
    [StepKind::BeginReprotect, StepKind::TakeOverLog, StepKind::FollowTarget];

/// The way back that the job is.
pub(super) fn way(context: &Context) -> Result<&WayBackSpec, StepError> {
    match &context.job.spec {
        JobSpec::Reprotect(spec) | JobSpec::Failback(spec) => Ok(spec),
        JobSpec::Failover(_) | JobSpec::Plan(_) => {
            Err(StepError { message: "this job is no way back; cancel it".into(), then: Then::Hold })
        }
    }
}

pub(super) fn failed(then: Then) -> impl Fn(WayBackError) -> StepError {
    move |error| StepError::new(&error, then)
}

/// Whether the target can be followed.
#[derive(Debug)]
pub(super) struct BeginReprotect(pub(super) Services);

impl Step for BeginReprotect {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            self.0.way_back.check(*machine, *failover).await.map_err(failed(Then::Undo))?;
            self.0.advance(context, LifecycleEvent::BeginReprotect(context.job.id), Then::Undo).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            self.0.advance(context, LifecycleEvent::AbandonReprotect(context.job.id), Then::Hold).await
        })
    }
}

/// Begins a line of history of the target's own.
#[derive(Debug)]
pub(super) struct TakeOverLog(pub(super) Services);

impl Step for TakeOverLog {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            self.0.way_back.begin(*machine, *failover).await.map_err(failed(Then::Hold))?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Makes the first point of the target.
#[derive(Debug)]
pub(super) struct FollowTarget(pub(super) Services);

impl Step for FollowTarget {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            let task = Arc::clone(&context.task);
            let made = self.0.way_back.point(*machine, *failover, task).await;
            let point = made.map_err(failed(Then::Hold))?;
            self.0.advance(context, LifecycleEvent::Reprotected(context.job.id), Then::Hold).await?;
            Ok(Outcome::Done(Output::Cut { point }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let machine = machine_of(context)?;
            let stage = self.0.lifecycles.now(machine).map(|now| now.stage);
            // Protected already when the cancel came: it stays so.
            if matches!(stage, Some(Stage::Reprotecting { by, .. }) if by == context.job.id) {
                self.0.way_back.release(machine).await;
            }
            Ok(())
        })
    }
}
