//! What makes a test failover a drill: it waits for a sign of life, is recorded, and takes itself back.
//!
//! A drill never waits for its operator: whatever fails is recorded, and then undone.

use std::{sync::Arc, time::Duration};

use holdfast_common::ids::MachineId;

use super::failover::{Services, compute_failed, failed, rto_us, spec};
use crate::{
    compute::{machines::Stop, port::BoxFuture},
    drills::{Drill, DrillRecord},
    failover::{
        job::{Output, StepKind, StepRecord, StepState},
        log::{self, Then},
        step::{Context, Outcome, Step, StepError},
    },
    registry::lifecycle::LifecycleEvent,
};

/// Time between two looks at the console.
const LOOK: Duration = Duration::from_millis(500);

/// A step of a drill: what fails is recorded, and the job is undone. In other jobs it is the step itself.
#[derive(Debug)]
pub(super) struct Drilled {
    pub(super) services: Services,
    pub(super) step: Arc<dyn Step>,
}

fn drill(context: &Context) -> Option<(MachineId, &Drill)> {
    spec(context).ok().and_then(|spec| spec.drill.as_ref().map(|drill| (spec.machine, drill)))
}

impl Step for Drilled {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let error = match self.step.run(context).await {
                Err(error) if drill(context).is_some() => error,
                ended => return ended,
            };
            let mut message = error.message;
            if !context.task.is_cancelled()
                && !is_proved(context)
                && let Err(unkept) = keep(&self.services, context, false, message.clone()).await
            {
                message = log::bounded(format!("{message}; {}", unkept.message));
            }
            Err(StepError { message, then: Then::Undo })
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        self.step.undo(context)
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            // What a drill has taken away already cannot come back, and what is missing too early its probe finds out.
            let ends =
                |step: &StepRecord| step.kind == StepKind::EndDrill && step.state != StepState::Waiting;
            if context.job.steps.iter().any(ends) {
                return Ok(());
            }
            match self.step.restore(context).await {
                Err(_) if drill(context).is_some() => Ok(()),
                ended => ended,
            }
        })
    }
}

/// Whether the machine has booted: what goes wrong behind that is not the machine's fault.
fn is_proved(context: &Context) -> bool {
    context.job.steps.iter().any(|step| step.kind == StepKind::Probe && step.state == StepState::Done)
}

/// Writes down how a drill has ended.
async fn keep(services: &Services, context: &Context, ok: bool, text: String) -> Result<(), StepError> {
    let Some((machine, _)) = drill(context) else { return Ok(()) };
    let job = context.job.id;
    let started = context.job.runs().is_some();
    let screenshot = if started { picture(services, machine, context).await } else { None };
    let record = DrillRecord {
        job,
        point: context.job.point(),
        at: context.clock.wall(),
        ok,
        rto_us: rto_us(context),
        text,
        screenshot,
    };
    let kept = services.drills.record(machine, record).await;
    kept.map_err(|error| StepError {
        message: format!("the drill cannot be recorded: {error}"),
        then: Then::Undo,
    })
}

/// A picture of the screen; a drill is none the worse without.
async fn picture(services: &Services, machine: MachineId, context: &Context) -> Option<std::path::PathBuf> {
    let path = services.drills.screenshot(machine, context.job.id).ok()?;
    match services.machines.screenshot(context.job.id.to_string(), path.clone()).await {
        Ok(()) => Some(path),
        Err(error) => {
            tracing::info!(job = %context.job.id, %error, "a drill has no picture of its screen");
            None
        }
    }
}

/// Waits until the machine says what it says when it has booted.
#[derive(Debug)]
pub(super) struct Probe(pub(super) Services);

impl Probe {
    async fn wait(&self, context: &Context, drill: &Drill) -> Result<String, StepError> {
        let undo = |message: String| StepError { message: log::bounded(message), then: Then::Undo };
        let expression = drill.expression().map_err(undo)?;
        let owner = context.job.id.to_string();
        let limit = Duration::from_millis(drill.limit_ms);
        let began = context.clock.monotonic();
        loop {
            let said = self.0.machines.console_text(owner.clone()).await.map_err(compute_failed)?;
            if let Some(found) = expression.find(&said) {
                let found = String::from_utf8_lossy(found.as_bytes());
                let took = context.clock.monotonic().saturating_sub(began);
                return Ok(format!("the console said `{}` after {} s", found.trim(), took.as_secs()));
            }
            let last = || {
                let text = String::from_utf8_lossy(&said).into_owned();
                let line = text
                    .lines()
                    .rev()
                    .find(|line| !line.trim().is_empty())
                    .unwrap_or("nothing")
                    .trim()
                    .to_owned();
                line.chars().filter(|letter| !letter.is_control()).take(200).collect::<String>()
            };
            if !self.0.machines.is_running(owner.clone()).await.map_err(compute_failed)? {
                return Err(undo(format!(
                    "the machine ended before it had booted; its console said last: {}",
                    last()
                )));
            }
            if context.clock.monotonic().saturating_sub(began) >= limit {
                return Err(undo(format!(
                    "the console did not say `{}` within {} s; it said last: {}",
                    drill.probe,
                    limit.as_secs(),
                    last()
                )));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Step for Probe {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let Some((_, drill)) = drill(context) else { return Ok(Outcome::Done(Output::Nothing)) };
            let text = self.wait(context, drill).await?;
            keep(&self.0, context, true, text.clone()).await?;
            Ok(Outcome::Done(Output::Told { text }))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Takes away everything that the drill has made.
#[derive(Debug)]
pub(super) struct EndDrill(pub(super) Services);

impl Step for EndDrill {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let owner = context.job.id.to_string();
            self.0.machines.stop(owner.clone(), Stop::PowerOff).await.map_err(compute_failed)?;
            self.0.machines.destroy(owner.clone()).await.map_err(compute_failed)?;
            self.0.attach.discard(owner).await.map_err(compute_failed)?;
            self.0.points.release(context.job.id).await.map_err(failed(Then::Hold))?;
            self.0.advance(context, LifecycleEvent::EndTest(context.job.id), Then::Hold).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The steps of a drill behind those of a test failover.
pub(super) const STEPS: [StepKind; 2] = [StepKind::Probe, StepKind::EndDrill];
