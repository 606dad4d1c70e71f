//! The first step, which takes the machine for the job, and the one from which on the target is the machine.

use super::failover::{Services, chosen, spec};
use crate::{
    compute::port::BoxFuture,
    failover::{
        job::{FailoverSpec, Mode, Output, Target},
        log::Then,
        step::{Context, Outcome, Step, StepError},
    },
    registry::lifecycle::LifecycleEvent,
};

/// Whether the machine and the selection exist, the target makes sense and the machine is free. From then on it is this
/// job's.
#[derive(Debug)]
pub(super) struct Check(pub(super) Services);

impl Check {
    fn check_target(&self, context: &Context) -> Result<(), StepError> {
        let undo = |message: String| StepError { message, then: Then::Undo };
        let FailoverSpec { machine, target, mode, .. } = spec(context)?;
        let facts = self.0.sources.facts(*machine);
        match target {
            Target::Image { folder, .. } if !folder.is_absolute() => {
                return Err(undo(format!("`{}` is not an absolute path", folder.display())));
            }
            Target::Machine { .. } if facts.as_ref().is_none_or(|facts| facts.inventory.is_none()) => {
                return Err(undo(
                    "nothing is known of the machine's hardware, because its agent has never connected; fail over to \
                     devices or images"
                        .to_owned(),
                ));
            }
            _ => {}
        }
        if *mode == Mode::Planned && !facts.is_some_and(|facts| facts.connected) {
            return Err(undo(
                "the source is not connected, so it cannot give what it has written last; start it and its agent, or, if \
                 it is lost, use `holdfast failover`"
                    .to_owned(),
            ));
        }
        Ok(())
    }
}

impl Step for Check {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            self.check_target(context)?;
            if matches!(spec(context)?.target, Target::Machine { .. }) {
                let ready = self.0.machines.ready().await;
                ready.map_err(|error| StepError::new(&error, Then::Undo))?;
            }
            let FailoverSpec { machine, selection, mode, .. } = spec(context)?;
            if *mode != Mode::Planned {
                self.0.choose(*machine, *selection, Then::Undo).await?;
            }
            let job = context.job.id;
            let begins = match mode {
                Mode::Test => LifecycleEvent::BeginTest(job),
                Mode::Unplanned | Mode::Planned => LifecycleEvent::BeginFailover(job),
            };
            self.0.advance(context, begins, Then::Undo).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let job = context.job.id;
            let ends = match spec(context)?.mode {
                Mode::Test => LifecycleEvent::EndTest(job),
                Mode::Unplanned | Mode::Planned => LifecycleEvent::AbandonFailover(job),
            };
            self.0.advance(context, ends, Then::Hold).await
        })
    }
}

/// The target becomes the machine: from here on nothing of the source is taken.
#[derive(Debug)]
pub(super) struct Switch(pub(super) Services);

impl Step for Switch {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let FailoverSpec { machine, mode, .. } = spec(context)?;
            let (job, point) = (context.job.id, chosen(context)?);
            // After the first switch the source is fenced, and an operator who changes the point wants another state.
            let is_first = context.job.changes == 0
                && !self.0.lifecycles.now(*machine).is_some_and(|lifecycle| lifecycle.is_fenced());
            if *mode == Mode::Planned && is_first {
                let proved = self.0.sources.prove_last(*machine, point).await;
                proved.map_err(|error| StepError::new(&error, Then::Undo))?;
            }
            self.0.advance(context, LifecycleEvent::Switch(job, point), Then::Hold).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            self.0.advance(context, LifecycleEvent::Unswitch(context.job.id), Then::Hold).await
        })
    }
}
