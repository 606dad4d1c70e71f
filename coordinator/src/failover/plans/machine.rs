//! Steps that run a machine of the point.

use std::sync::Arc;

use super::failover::{Services, chosen, compute_failed, rto_us, spec};
use crate::{
    compute::{
        machines::{MachineRequest, Stop},
        port::BoxFuture,
    },
    failover::{
        job::{Mode, Output},
        log::Then,
        step::{Context, Outcome, Step, StepError},
    },
};

fn owner(context: &Context) -> String {
    context.job.id.to_string()
}

/// Serves the disks and makes a machine of them, which does not run yet.
#[derive(Debug)]
pub(super) struct DefineMachine(pub(super) Services);

impl DefineMachine {
    async fn define(&self, context: &Context) -> Result<(), StepError> {
        let machine = spec(context)?.machine;
        let facts = self.0.sources.facts(machine);
        let (name, inventory, suited) = facts
            .and_then(|facts| facts.inventory.map(|inventory| (facts.name, inventory, facts.suited)))
            .ok_or_else(|| StepError {
                message:
                    "nothing is known of the machine's hardware; cancel, and fail over to devices or images"
                        .into(),
                then: Then::Hold,
            })?;
        if context.job.changes > 0 {
            // It is made anew: what it runs from goes away.
            self.0.machines.stop(owner(context), Stop::PowerOff).await.map_err(compute_failed)?;
            self.0.end_serving(context).await?;
        }
        let request = MachineRequest {
            owner: owner(context),
            machine,
            point: chosen(context)?,
            name,
            inventory,
            suited,
            disks: self.0.serve(context, true).await?,
            networks: spec(context)?.networks.clone(),
            writable: super::devices::is_branch(context)?,
            isolated: spec(context)?.mode == Mode::Test,
        };
        self.0.machines.define(request).await.map_err(compute_failed)
    }
}

impl Step for DefineMachine {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            self.define(context).await?;
            self.0.keep_chosen(context).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            self.0.machines.destroy(owner(context)).await.map_err(compute_failed)?;
            self.0.attach.discard(owner(context)).await.map_err(compute_failed)
        })
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.0.serve(context, false).await.map(drop) })
    }
}

/// Starts it; done when it has read its first block.
#[derive(Debug)]
pub(super) struct StartMachine(pub(super) Services);

impl Step for StartMachine {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let machine = self.0.machines.start(owner(context)).await.map_err(compute_failed)?;
            Ok(Outcome::Done(Output::Started { machine, rto_us: rto_us(context) }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(
            async move { self.0.machines.stop(owner(context), Stop::PowerOff).await.map_err(compute_failed) },
        )
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.0.machines.start(owner(context)).await.map(drop).map_err(compute_failed) })
    }
}

/// Whether it still runs.
#[derive(Debug)]
pub(super) struct Verify(pub(super) Services);

impl Step for Verify {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            if self.0.machines.is_running(owner(context)).await.map_err(compute_failed)? {
                return Ok(Outcome::Done(Output::Nothing));
            }
            let message = "the machine ended right after it was started; look at its console, then retry or choose another \
                           point with `holdfast change-point`"
                .to_owned();
            Err(StepError { message, then: Then::Hold })
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Moves it to images of its own, behind its back.
#[derive(Debug)]
pub(super) struct MoveMachine(pub(super) Services);

impl Step for MoveMachine {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let task = Arc::clone(&context.task);
            self.0.machines.stream(owner(context), task).await.map_err(compute_failed)?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        // Its images go with the machine.
        Box::pin(async { Ok(()) })
    }
}
