//! Failover of one machine: a point becomes devices, images or a running machine.
//!
//! ```text
//!   test:       check -> POINT -> MAKE
//!   unplanned:  check -> (stop-source) -> synchronize -> POINT -> (write-images) -> switch -> MAKE
//!   planned:    check ->  stop-source  -> synchronize -> POINT -> (write-images) -> switch -> MAKE
//!
//!   POINT:      select-point -> process-point
//!   MAKE:       attach | define-machine -> start-machine -> verify (-> move-machine)
//!               | write-images -> release-point (test)
//!   drill:      a test with a machine (-> probe -> end-drill); what fails undoes it
//! ```
//!
//! | step | makes | undo | on failure |
//! |---|---|---|---|
//! | check | the machine is this job's (its lifecycle) | gives it back | undo |
//! | stop-source | the source writes no more, for a bounded time | lets it go on | go on; planned: undo |
//! | synchronize | a cut of now | nothing: a point more harms nobody | go on; planned: undo |
//! | select-point | a lease on the chosen point | gives the lease back | undo; after a change of the point: hold |
//! | process-point | the point is processed | nothing: a processed point harms nobody | hold |
//! | write-images | images; goes on where it stopped | removes those it made | hold |
//! | switch | the source is fenced; planned: only if it has proved that the point has everything | lets it in again | hold; planned: undo |
//! | attach | devices, and of writable ones what is written to them, until undone; again after a restart | ends them, gives that up | hold |
//! | define-machine | devices, branches or overlays, a definition | removes them, gives up what is in them | hold |
//! | start-machine | the machine runs; again after a restart | stops it | hold |
//! | verify | nothing | nothing | hold |
//! | move-machine | the machine's own images | with the definition | hold |
//! | probe | waits for a sign of life, and records it | nothing | undo |
//! | end-drill | takes machine, devices and lease away | nothing | hold |
//! | release-point | gives the lease back; a test is over | nothing | hold |
//!
//! Everything up to the switch leaves the source replicating; the switch itself is one durable change of the machine's
//! lifecycle, so a cancel afterwards lets the source in again where it was, without a comparison. Images are written before
//! the switch because that takes long; devices and machines are made after it, because somebody writes to them.
//! A **change of the point** goes back to select-point and runs the steps from there again.
//! Knows points, sources and compute by their contracts only. Invariant: what is opened is leased.

use std::sync::Arc;

use holdfast_common::ids::{MachineId, PointId};

use super::{
    devices::{AttachDisks, WriteImages},
    drill::{self, Drilled, EndDrill, Probe},
    failback,
    machine::{DefineMachine, MoveMachine, StartMachine, Verify},
    plan::{PlanCheck, PlanEnd, PlanManual, PlanScript},
    plan_machines::PlanMachines,
    point::{ProcessPoint, ReleasePoint, SelectPoint},
    reprotect,
    source::{StopSource, Synchronize},
    switch::{Check, Switch},
};
use crate::{
    compute::{
        machines::Machines,
        port::{Attach, ComputeError, DiskView, WriteImage},
    },
    drills::DrillBook,
    failover::{
        job::{FailoverSpec, JobSpec, Mode, StepKind, Target},
        log::Then,
        plan::{Member, PlanSpec, course::Course},
        port::{LifecycleError, Lifecycles, PointSource, PointsError, Scripts, Sources, WayBack},
        step::{Context, Plan, Plans, Step, StepError},
    },
    points::selection::{self, Choice, Selection},
    registry::lifecycle::LifecycleEvent,
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
    /// Running machines.
    pub machines: Arc<dyn Machines>,
    /// Where machines stand between their sites.
    pub lifecycles: Arc<dyn Lifecycles>,
    /// Their sources.
    pub sources: Arc<dyn Sources>,
    /// Programs of plans.
    pub scripts: Arc<dyn Scripts>,
    /// The way back to them.
    pub way_back: Arc<dyn WayBack>,
    /// What is kept of drills.
    pub drills: Arc<dyn DrillBook>,
}

impl Plans for Services {
    fn plan(&self, spec: &JobSpec) -> Plan {
        let spec = match spec {
            JobSpec::Failover(spec) => spec,
            JobSpec::Plan(spec) => return plan_of(spec),
            JobSpec::Reprotect(_) => return Plan { steps: reprotect::STEPS.to_vec(), holds: false },
            JobSpec::Failback(_) => return Plan { steps: failback::STEPS.to_vec(), holds: false },
        };
        let mut steps = vec![StepKind::Check];
        match spec.mode {
            Mode::Test => {}
            Mode::Unplanned => {
                steps.extend(spec.stop_source.then_some(StepKind::StopSource));
                // Only who wants the newest waits for one more.
                steps.extend(wants_newest(spec.selection).then_some(StepKind::Synchronize));
            }
            Mode::Planned => steps.extend([StepKind::StopSource, StepKind::Synchronize]),
        }
        steps.extend([StepKind::SelectPoint, StepKind::ProcessPoint]);
        let switch = (spec.mode != Mode::Test).then_some(StepKind::Switch);
        match spec.target {
            Target::Attach | Target::Branch => {
                steps.extend(switch);
                steps.push(StepKind::Attach);
            }
            Target::Image { .. } => {
                steps.push(StepKind::WriteImages);
                steps.push(switch.unwrap_or(StepKind::ReleasePoint));
            }
            Target::Machine { stream } => {
                steps.extend(switch);
                steps.extend([StepKind::DefineMachine, StepKind::StartMachine, StepKind::Verify]);
                steps.extend(stream.then_some(StepKind::MoveMachine));
            }
        }
        if spec.drill.is_some() {
            steps.extend(drill::STEPS);
            return Plan { steps, holds: false };
        }
        // Only images of a test are left to themselves.
        let holds = spec.mode != Mode::Test || !matches!(spec.target, Target::Image { .. });
        Plan { steps, holds }
    }

    fn step(&self, kind: StepKind) -> Arc<dyn Step> {
        Arc::new(Drilled { services: self.clone(), step: self.plain_step(kind) })
    }
}

impl Services {
    fn plain_step(&self, kind: StepKind) -> Arc<dyn Step> {
        let services = self.clone();
        match kind {
            StepKind::Probe => Arc::new(Probe(services)),
            StepKind::EndDrill => Arc::new(EndDrill(services)),
            StepKind::Check => Arc::new(Check(services)),
            StepKind::StopSource => Arc::new(StopSource(services)),
            StepKind::Synchronize => Arc::new(Synchronize(services)),
            StepKind::SelectPoint => Arc::new(SelectPoint(services)),
            StepKind::ProcessPoint => Arc::new(ProcessPoint(services)),
            StepKind::Switch => Arc::new(Switch(services)),
            StepKind::Attach => Arc::new(AttachDisks(services)),
            StepKind::WriteImages => Arc::new(WriteImages(services)),
            StepKind::ReleasePoint => Arc::new(ReleasePoint(services)),
            StepKind::DefineMachine => Arc::new(DefineMachine(services)),
            StepKind::StartMachine => Arc::new(StartMachine(services)),
            StepKind::Verify => Arc::new(Verify(services)),
            StepKind::MoveMachine => Arc::new(MoveMachine(services)),
            StepKind::PlanCheck => Arc::new(PlanCheck(services)),
            StepKind::PlanScript => Arc::new(PlanScript(services)),
            StepKind::PlanManual => Arc::new(PlanManual),
            StepKind::PlanMachines => Arc::new(PlanMachines(services)),
            StepKind::PlanEnd => Arc::new(PlanEnd(services)),
            StepKind::BeginReprotect => Arc::new(reprotect::BeginReprotect(services)),
            StepKind::TakeOverLog => Arc::new(reprotect::TakeOverLog(services)),
            StepKind::FollowTarget => Arc::new(reprotect::FollowTarget(services)),
            StepKind::BeginFailback => Arc::new(failback::BeginFailback(services)),
            StepKind::WriteBack => Arc::new(failback::WriteBack(services)),
            StepKind::StopTarget => Arc::new(failback::StopTarget(services)),
            StepKind::LastPoint => Arc::new(failback::LastPoint(services)),
            StepKind::WriteBackRest => Arc::new(failback::WriteBackRest(services)),
            StepKind::SwitchBack => Arc::new(failback::SwitchBack(services)),
            StepKind::EndTarget => Arc::new(failback::EndTarget(services)),
        }
    }
}

/// The steps of a plan's run; its machines hold what it made, as those of their own do.
fn plan_of(spec: &PlanSpec) -> Plan {
    let leaves = |member: &Member| matches!(member.target, Target::Image { .. });
    let holds = match spec.mode {
        Course::Test => !spec.members().all(|(_, member)| leaves(member)),
        Course::Unplanned | Course::Planned => true,
        Course::Reprotect | Course::Failback => false,
    };
    Plan { steps: spec.kinds(), holds }
}

const fn wants_newest(selection: Selection) -> bool {
    matches!(selection, Selection::Latest)
}

impl Services {
    pub(super) async fn choose(
        &self,
        machine: MachineId,
        selection: Selection,
        then: Then,
    ) -> Result<Choice, StepError> {
        let candidates = self.points.candidates(machine).await.map_err(failed(then))?;
        selection::choose(&candidates, selection).map_err(|refusal| StepError::new(&refusal, then))
    }

    /// The chosen point and its disks.
    pub(super) async fn open(&self, context: &Context) -> Result<(PointId, Vec<DiskView>), StepError> {
        let point = chosen(context)?;
        let disks = self.points.open(spec(context)?.machine, point).await.map_err(failed(Then::Hold))?;
        Ok((point, disks))
    }

    pub(super) async fn advance(
        &self,
        context: &Context,
        event: LifecycleEvent,
        then: Then,
    ) -> Result<(), StepError> {
        let advanced = self.lifecycles.advance(machine_of(context)?, event, context.job.id).await;
        advanced.map(drop).map_err(|error: LifecycleError| StepError::new(&error, then))
    }

    /// What is usable now is of the chosen point: leases on others are needed no more.
    pub(super) async fn keep_chosen(&self, context: &Context) -> Result<(), StepError> {
        let kept = self.points.keep(context.job.id, chosen(context)?).await;
        kept.map_err(failed(Then::Hold))
    }
}

/// The failover that the job is.
pub(super) fn spec(context: &Context) -> Result<&FailoverSpec, StepError> {
    let other = || StepError { message: "this job is no failover; cancel it".into(), then: Then::Hold };
    match &context.job.spec {
        JobSpec::Failover(spec) => Ok(spec),
        JobSpec::Plan(_) | JobSpec::Reprotect(_) | JobSpec::Failback(_) => Err(other()),
    }
}

/// The machine that the job is about.
pub(super) fn machine_of(context: &Context) -> Result<MachineId, StepError> {
    let none = || StepError { message: "this job is about no machine; cancel it".into(), then: Then::Hold };
    context.job.spec.machine().ok_or_else(none)
}

pub(super) fn chosen(context: &Context) -> Result<PointId, StepError> {
    let missing = || StepError { message: "no point was chosen; cancel this job".into(), then: Then::Hold };
    context.job.point().ok_or_else(missing)
}

/// From the trigger to now, in microseconds.
pub(super) fn rto_us(context: &Context) -> u64 {
    let rto = context.clock.wall().since(context.job.triggered_at);
    u64::try_from(rto.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn failed(then: Then) -> impl Fn(PointsError) -> StepError {
    move |error| StepError::new(&error, then)
}

pub(super) fn compute_failed(error: ComputeError) -> StepError {
    StepError::new(&error, Then::Hold)
}
