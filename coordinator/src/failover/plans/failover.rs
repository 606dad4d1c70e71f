//! Failover of one machine: a point becomes devices or images.
//!
//! ```text
//!   attach:  check -> select-point -> process-point -> attach  (held until cancelled)
//!   image:   check -> select-point -> process-point -> write-images -> release-point
//! ```
//!
//! | step | makes | undo | on failure |
//! |---|---|---|---|
//! | check | nothing | nothing | undo |
//! | select-point | a lease on the chosen point | gives the lease back | undo |
//! | process-point | the point is processed | nothing: a processed point harms nobody | hold |
//! | attach | devices, until undone; again after a restart | ends them | hold |
//! | write-images | images; goes on where it stopped | removes those it made | hold |
//! | release-point | gives the lease back | nothing | hold |
//!
//! Knows points and compute by their contracts only. Invariant: what is opened is leased.

use std::sync::Arc;

use holdfast_common::ids::{MachineId, PointId};

use crate::{
    compute::port::{Attach, BoxFuture, ComputeError, DiskView, ImageRequest, WriteImage},
    failover::{
        job::{FailoverSpec, JobSpec, Output, StepKind, Target},
        log::Then,
        port::{PointSource, PointsError},
        step::{Context, Outcome, Plan, Plans, Step, StepError},
    },
    points::selection::{self, Choice, Selection},
};

/// What the steps use.
#[derive(Clone, Debug)]
pub struct Services {
    /// Points of machines.
    pub points: Arc<dyn PointSource>,
    /// Serving.
    pub attach: Arc<dyn Attach>,
    /// Writing images.
    pub images: Arc<dyn WriteImage>,
}

impl Plans for Services {
    fn plan(&self, spec: &JobSpec) -> Plan {
        let JobSpec::Failover(spec) = spec;
        let mut steps = vec![StepKind::Check, StepKind::SelectPoint, StepKind::ProcessPoint];
        match spec.target {
            Target::Attach => steps.push(StepKind::Attach),
            Target::Image { .. } => steps.extend([StepKind::WriteImages, StepKind::ReleasePoint]),
        }
        Plan { steps, holds: spec.target == Target::Attach }
    }

    fn step(&self, kind: StepKind) -> Arc<dyn Step> {
        let services = self.clone();
        match kind {
            StepKind::Check => Arc::new(Check(services)),
            StepKind::SelectPoint => Arc::new(SelectPoint(services)),
            StepKind::ProcessPoint => Arc::new(ProcessPoint(services)),
            StepKind::Attach => Arc::new(AttachDisks(services)),
            StepKind::WriteImages => Arc::new(WriteImages(services)),
            StepKind::ReleasePoint => Arc::new(ReleasePoint(services)),
        }
    }
}

impl Services {
    async fn choose(&self, machine: MachineId, selection: Selection) -> Result<Choice, StepError> {
        let candidates = self.points.candidates(machine).await.map_err(failed(Then::Undo))?;
        selection::choose(&candidates, selection).map_err(|refusal| StepError::new(&refusal, Then::Undo))
    }

    async fn open(&self, context: &Context) -> Result<(PointId, Vec<DiskView>), StepError> {
        let point = chosen(context)?;
        let disks = self.points.open(context.job.spec.machine(), point).await.map_err(failed(Then::Hold))?;
        Ok((point, disks))
    }
}

/// Whether the machine and the selection exist and the target makes sense. Changes nothing.
#[derive(Debug)]
struct Check(Services);

impl Step for Check {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let FailoverSpec { machine, selection, target } = spec(context);
            if let Target::Image { folder, .. } = target
                && !folder.is_absolute()
            {
                let message = format!("`{}` is not an absolute path", folder.display());
                return Err(StepError { message, then: Then::Undo });
            }
            self.0.choose(*machine, *selection).await?;
            Ok(Outcome::Done(Output::Nothing))
        })
    }

    fn undo<'a>(&'a self, _context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Chooses the point and holds it against retention.
#[derive(Debug)]
struct SelectPoint(Services);

impl Step for SelectPoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let FailoverSpec { machine, selection, .. } = spec(context);
            let points = &self.0.points;
            // An interrupted run may have leased another point, which was the newest then.
            points.release(context.job.id).await.map_err(failed(Then::Undo))?;
            for _ in 0..CHOICES_MAX {
                let choice = self.0.choose(*machine, *selection).await?;
                match points.lease(*machine, choice.point, context.job.id).await {
                    Ok(()) => {
                        let Choice { point, at, remarks, .. } = choice;
                        return Ok(Outcome::Done(Output::Selected { point, at, remarks }));
                    }
                    // Retention was faster: choose again.
                    Err(PointsError::PointUnknown { .. }) => {}
                    Err(error) => return Err(StepError::new(&error, Then::Undo)),
                }
            }
            let message = "retention removed each chosen point before it could be held; retry".into();
            Err(StepError { message, then: Then::Undo })
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        release(&self.0, context)
    }
}

/// Has the point processed if it is pending.
#[derive(Debug)]
struct ProcessPoint(Services);

impl Step for ProcessPoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let machine = context.job.spec.machine();
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

/// Serves the disks, under the job's id.
#[derive(Debug)]
struct AttachDisks(Services);

impl AttachDisks {
    async fn attach(&self, context: &Context) -> Result<Output, StepError> {
        let (_, disks) = self.0.open(context).await?;
        let attached = self.0.attach.attach(context.job.id.to_string(), disks).await;
        let endpoints = attached.map_err(compute_failed)?;
        let rto = context.clock.wall().since(context.job.created_at);
        Ok(Output::Attached { endpoints, rto_us: u64::try_from(rto.as_micros()).unwrap_or(u64::MAX) })
    }
}

impl Step for AttachDisks {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move { self.attach(context).await.map(Outcome::Done) })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(
            async move { self.0.attach.detach(context.job.id.to_string()).await.map_err(compute_failed) },
        )
    }

    fn restore<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move { self.attach(context).await.map(drop) })
    }
}

/// Writes the disks to images.
#[derive(Debug)]
struct WriteImages(Services);

impl Step for WriteImages {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            let Target::Image { folder, format, update } = &spec(context).target else {
                return Ok(Outcome::Done(Output::Nothing));
            };
            let (point, disks) = self.0.open(context).await?;
            let mut images = Vec::with_capacity(disks.len());
            for disk in disks {
                let (owner, folder) = (context.job.id.to_string(), folder.clone());
                let request = ImageRequest { owner, point, disk, folder, format: *format, update: *update };
                let written = self.0.images.write(request, Arc::clone(&context.task)).await;
                images.push(written.map_err(compute_failed)?);
            }
            Ok(Outcome::Done(Output::Written { images }))
        })
    }

    fn undo<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<(), StepError>> {
        Box::pin(async move {
            let Target::Image { folder, .. } = &spec(context).target else { return Ok(()) };
            let discarded = self.0.images.discard(folder.clone(), context.job.id.to_string()).await;
            discarded.map_err(compute_failed)
        })
    }
}

/// Gives the lease back once the point is not needed any more.
#[derive(Debug)]
struct ReleasePoint(Services);

impl Step for ReleasePoint {
    fn run<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<Outcome, StepError>> {
        Box::pin(async move {
            release(&self.0, context).await?;
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

fn spec(context: &Context) -> &FailoverSpec {
    let JobSpec::Failover(spec) = &context.job.spec;
    spec
}

fn chosen(context: &Context) -> Result<PointId, StepError> {
    let missing = || StepError { message: "no point was chosen; cancel this job".into(), then: Then::Hold };
    context.job.point().ok_or_else(missing)
}

fn failed(then: Then) -> impl Fn(PointsError) -> StepError {
    move |error| StepError::new(&error, then)
}

fn compute_failed(error: ComputeError) -> StepError {
    StepError::new(&error, Then::Hold)
}

/// Times that a point is chosen when retention removes what was chosen.
const CHOICES_MAX: usize = 3;
