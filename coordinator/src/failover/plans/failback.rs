//! Failback: a machine goes back to its source, with everything that it wrote at its target.
//!
//! ```text
//!   begin-failback -> write-back -> stop-target -> last-point -> write-back-rest -> switch-back -> end-target
//! ```
//!
//! | step | makes | undo | on failure |
//! |---|---|---|---|
//! | begin-failback | the machine is this job's (its lifecycle); the source stands by | gives it back | undo |
//! | write-back | the source's disks hold a point of the target, which runs meanwhile | gives the lease back: the source is fenced, whatever its disks hold | hold |
//! | stop-target | the target writes no more | it writes again | hold |
//! | last-point | a point of all that it has written | nothing | hold |
//! | write-back-rest | the source's disks hold that point | nothing | hold |
//! | switch-back | the source is the machine | nothing: the target's job is ended, or it stays sealed | hold |
//! | end-target | what the failover made is gone | nothing | hold |
//!
//! Everything up to the switch can be cancelled, and the target goes on as if nothing had been. The first pass takes as long as
//! the comparison of the disks; only what was written since that is left for the time in which the machine stands still.
//! Invariant: there are never two machines: the target takes no writes before its last point is made, nor afterwards.

use std::{sync::Arc, time::Duration};

use holdfast_common::{ids::PointId, units::BLOCK_BYTES};

use super::{
    failover::{Services, compute_failed, failed as points_failed},
    reprotect::{failed, way},
};
use crate::{
    compute::{machines::Stop, port::BoxFuture},
    failover::{
        job::{Output, StepKind, WayBackSpec},
        log::Then,
        step::{Context, Outcome, Step, StepError},
    },
    registry::lifecycle::{LifecycleEvent, Stage},
};

/// The steps, in order.
pub(super) const STEPS: [StepKind; 7] = [
    StepKind::BeginFailback,
    StepKind::WriteBack,
    StepKind::StopTarget,
    StepKind::LastPoint,
    StepKind::WriteBackRest,
    StepKind::SwitchBack,
    StepKind::EndTarget,
];

/// Longest wait for a source to stand by: it asks every second.
const SOURCE_LIMIT: Duration = Duration::from_secs(30);
/// Longest time for a machine's operating system to shut down.
const SHUT_DOWN_LIMIT_MS: u64 = 120_000;

/// Whether the machine can go back.
#[derive(Debug)]
pub(super) struct BeginFailback(pub(super) Services);

impl Step for BeginFailback {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            self.0.way_back.check(*machine, *failover).await.map_err(failed(Then::Undo))?;
            self.0.way_back.source_ready(*machine, SOURCE_LIMIT).await.map_err(failed(Then::Undo))?;
            self.0.advance(context, LifecycleEvent::BeginFailback(context.job.id), Then::Undo).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            self.0.advance(context, LifecycleEvent::AbandonFailback(context.job.id), Then::Hold).await
        })
    }
}

impl Services {
    async fn write_back(&self, context: &Context, point: PointId) -> Result<Outcome, StepError> {
        let WayBackSpec { machine, .. } = way(context)?;
        self.points.lease(*machine, point, context.job.id).await.map_err(points_failed(Then::Hold))?;
        self.points.keep(context.job.id, point).await.map_err(points_failed(Then::Hold))?;
        let done = self.way_back.write_back(*machine, point, Arc::clone(&context.task)).await;
        let done = done.map_err(failed(Then::Hold))?;
        Ok(Outcome::Done(Output::WrittenBack {
            point,
            compared_bytes: done.compared * BLOCK_BYTES as u64,
            written_bytes: done.written * BLOCK_BYTES as u64,
            sent_bytes: done.received_bytes,
        }))
    }

    /// Whether the machine is on its way back by this job still; after the switch it is not.
    fn is_failing_back(&self, context: &Context) -> Result<bool, StepError> {
        let now = self.lifecycles.now(way(context)?.machine);
        Ok(matches!(now.map(|now| now.stage), Some(Stage::FailingBack { by, .. }) if by == context.job.id))
    }
}

/// Brings the source's disks to a point while the target runs.
#[derive(Debug)]
pub(super) struct WriteBack(pub(super) Services);

impl Step for WriteBack {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            let made = self.0.way_back.point(*machine, *failover, Arc::default()).await;
            self.0.write_back(context, made.map_err(failed(Then::Hold))?).await
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(
            async move { self.0.points.release(context.job.id).await.map_err(points_failed(Then::Hold)) },
        )
    }
}

/// The target writes no more.
#[derive(Debug)]
pub(super) struct StopTarget(pub(super) Services);

impl Step for StopTarget {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { failover, runs, .. } = way(context)?;
            if *runs {
                let stop = Stop::ShutDown { limit_ms: SHUT_DOWN_LIMIT_MS };
                self.0.machines.stop(failover.to_string(), stop).await.map_err(compute_failed)?;
            } else if !context.continued && self.0.way_back.clients(*failover).await > 0 {
                return Ok(Outcome::Waits(format!(
                    "the machine still uses its disks at the target: shut it down there (or unmount and disconnect them), then \
                     `holdfast job continue {}`; what is connected then can write no more",
                    context.job.id
                )));
            }
            self.0.way_back.seal(*failover, true).await.map_err(failed(Then::Hold))?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let WayBackSpec { failover, runs, .. } = way(context)?;
            if !self.0.is_failing_back(context)? {
                // The source is the machine.
                return Ok(());
            }
            self.0.way_back.seal(*failover, false).await.map_err(failed(Then::Hold))?;
            if *runs {
                self.0.machines.start(failover.to_string()).await.map_err(compute_failed)?;
            }
            Ok(())
        })
    }
}

/// A point of all that the target has written.
#[derive(Debug)]
pub(super) struct LastPoint(pub(super) Services);

impl Step for LastPoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let WayBackSpec { machine, failover, .. } = way(context)?;
            let made = self.0.way_back.point(*machine, *failover, Arc::clone(&context.task)).await;
            Ok(Outcome::Done(Output::Cut { point: made.map_err(failed(Then::Hold))? }))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Brings the source's disks to that point.
#[derive(Debug)]
pub(super) struct WriteBackRest(pub(super) Services);

impl Step for WriteBackRest {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let Some(Output::Cut { point }) = context.job.output(StepKind::LastPoint) else {
                return Err(StepError {
                    message: "no last point was made; cancel this job".into(),
                    then: Then::Hold,
                });
            };
            self.0.write_back(context, *point).await
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// The source is the machine.
#[derive(Debug)]
pub(super) struct SwitchBack(pub(super) Services);

impl Step for SwitchBack {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            // Before the source is let in: a log has one writer.
            self.0.way_back.release(way(context)?.machine).await;
            self.0.advance(context, LifecycleEvent::FailedBack(context.job.id), Then::Hold).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Ends what the failover made.
#[derive(Debug)]
pub(super) struct EndTarget(pub(super) Services);

impl Step for EndTarget {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            self.0.way_back.end_target(way(context)?.failover).await.map_err(failed(Then::Hold))?;
            self.0.points.release(context.job.id).await.map_err(points_failed(Then::Hold))?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}
