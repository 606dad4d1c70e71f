//! Every kind of job: each step failing, repeated, undone twice, the coordinator killed at each event, cancelled at each
//! event. One helper walks all of it; a new plan is one more call of `walk`.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, ManualClock},
    entropy::SeededEntropy,
    ids::{JobId, MachineId},
};
use tokio::runtime::{Builder, Runtime};

use super::{
    doubles::{Fault, FaultyPlans, MemoryStore, World, point},
    job::{FailoverSpec, JobSpec, Output, StepKind, StepState, Target},
    machine::State,
    plans::failover::Services,
    runner::{Command, JobError, JobView, Jobs, Parts},
    step::Plans as _,
};
use crate::{compute::port::ImageFormat, points::selection::Selection};

/// A coordinator over doubles that can crash and start again.
struct Site {
    runtime: Option<Runtime>,
    jobs: Option<Jobs>,
    store: Arc<MemoryStore>,
    world: Arc<World>,
    plans: FaultyPlans,
    clock: ManualClock,
    entropy: Arc<SeededEntropy>,
}

impl Site {
    fn new(fault: Fault) -> Self {
        let world = Arc::new(World::default());
        let services = Services { points: world.clone(), attach: world.clone(), images: world.clone() };
        let plans = FaultyPlans { services, fault: Arc::new(Mutex::new(fault)) };
        let mut site = Self {
            runtime: None,
            jobs: None,
            store: Arc::default(),
            world,
            plans,
            clock: ManualClock::default(),
            entropy: Arc::new(SeededEntropy::new(1)),
        };
        site.start();
        site
    }

    fn start(&mut self) {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let parts = Parts {
            store: self.store.clone(),
            plans: Arc::new(self.plans.clone()),
            clock: Arc::new(self.clock.clone()) as Arc<dyn Clock>,
            entropy: self.entropy.clone(),
        };
        self.jobs = Some(runtime.block_on(Jobs::start(parts)).unwrap());
        self.runtime = Some(runtime);
    }

    /// kill -9: everything in memory is gone, nothing gets to clean up.
    fn crash(&mut self) {
        self.jobs = None;
        self.runtime = None;
        self.world.crash();
        self.store.revive();
    }

    fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    fn jobs(&self) -> &Jobs {
        self.jobs.as_ref().unwrap()
    }

    fn submit(&self, spec: &JobSpec) -> JobId {
        self.block_on(self.jobs().submit(spec.clone(), "test")).unwrap()
    }

    fn command(&self, job: JobId, command: Command) -> Result<(), JobError> {
        self.block_on(self.jobs().command(job, command, "test"))
    }

    /// The job once it is settled, or `None` if the store died first.
    fn settle(&self, job: JobId) -> Option<JobView> {
        let mut watch = self.jobs().watch(job).unwrap();
        self.block_on(async {
            tokio::select! {
                view = watch.wait_for(JobView::is_settled) => Some(view.unwrap().clone()),
                () = self.store.died.notified() => None,
                () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the job does not settle"),
            }
        })
    }

    fn set(&self, fault: Fault) {
        *self.plans.fault.lock().unwrap() = fault;
    }
}

fn spec(target: Target) -> JobSpec {
    let machine = MachineId::from_bytes([9; 16]);
    JobSpec::Failover(FailoverSpec { machine, selection: Selection::Latest, target })
}

fn to_image() -> JobSpec {
    spec(Target::Image { folder: "/images".into(), format: ImageFormat::Raw, update: false })
}

/// Walks a kind of job through every fault. `check` is given the job and the world after it has ended well.
fn walk(spec: &JobSpec, check: &dyn Fn(&JobView, &World)) {
    let good_end = Site::new(Fault::None);
    let steps = good_end.plans.plan(spec).steps;
    let job = good_end.submit(spec);
    let view = good_end.settle(job).unwrap();
    assert!(view.job.steps.iter().all(|step| step.state == StepState::Done), "{view:?}");
    check(&view, &good_end.world);
    let events = good_end.store.len();

    repeated(spec, check);
    for appends in 1..events {
        killed_and_continued(spec, appends, check);
        cancelled_after_kill(spec, appends);
    }
    for kind in steps {
        failing(spec, kind, check);
        hanging(spec, kind);
        undo_failing(spec, kind);
    }
}

fn repeated(spec: &JobSpec, check: &dyn Fn(&JobView, &World)) {
    let site = Site::new(Fault::Twice);
    let job = site.submit(spec);
    let view = site.settle(job).unwrap();
    check(&view, &site.world);
    if view.job.status.state == State::Holding {
        site.command(job, Command::Cancel).unwrap();
        assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
        assert!(site.world.is_clean());
    }
}

/// The coordinator is killed after this many events were stored: whatever came after in the world was not recorded.
fn killed_and_continued(spec: &JobSpec, appends: usize, check: &dyn Fn(&JobView, &World)) {
    let mut site = Site::new(Fault::None);
    site.store.die_after(appends);
    let job = site.submit(spec);
    assert!(site.settle(job).is_none());
    site.crash();
    site.start();
    let view = site.settle(job).unwrap();
    check(&view, &site.world);
    // Once more, now that it has settled.
    site.crash();
    site.start();
    let view = site.settle(job).unwrap();
    site.block_on(async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    });
    check(&view, &site.world);
}

/// The same, and cancelled after the restart, with a second kill while it is taken back.
fn cancelled_after_kill(spec: &JobSpec, appends: usize) {
    let mut site = Site::new(Fault::None);
    site.store.die_after(appends);
    let job = site.submit(spec);
    assert!(site.settle(job).is_none());
    site.crash();
    site.start();
    // The driver has not run yet: the order meets the very state that the log had, and is stored; then the store dies.
    site.store.die_after(1 + appends % 3);
    let taken = site.block_on(async {
        tokio::select! {
            taken = site.jobs().command(job, Command::Cancel, "test") => Some(taken),
            () = site.store.died.notified() => None,
        }
    });
    let _view = taken.is_some().then(|| site.settle(job));
    site.crash();
    site.start();
    let state = site.settle(job).unwrap().job.status.state;
    if !matches!(state, State::Cancelled | State::Succeeded) {
        site.command(job, Command::Cancel).unwrap();
        assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    }
    let things = site.world.things().clone();
    assert!(things.leases.is_empty() && things.served.is_empty(), "{things:?}");
    assert!(state == State::Succeeded || things.images.is_empty(), "{things:?}");
}

fn failing(spec: &JobSpec, kind: StepKind, check: &dyn Fn(&JobView, &World)) {
    // Retried.
    let mut site = Site::new(Fault::Run(kind, 2));
    let job = site.submit(spec);
    for _ in 0..2 {
        let view = site.settle(job).unwrap();
        assert!(matches!(view.job.status.state, State::Held { .. }), "{view:?}");
        assert_eq!(view.job.messages.last().unwrap().text, "made to fail");
        site.crash();
        site.start();
        assert!(matches!(site.settle(job).unwrap().job.status.state, State::Held { .. }));
        site.command(job, Command::Retry).unwrap();
    }
    check(&site.settle(job).unwrap(), &site.world);
    // Given up.
    let site = Site::new(Fault::Run(kind, 1));
    let job = site.submit(spec);
    site.settle(job).unwrap();
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

fn hanging(spec: &JobSpec, kind: StepKind) {
    let site = Site::new(Fault::Hang(kind));
    let job = site.submit(spec);
    let mut watch = site.jobs().watch(job).unwrap();
    let running = |view: &JobView| {
        view.job.steps.iter().any(|step| step.kind == kind && step.state == StepState::Running)
    };
    drop(site.block_on(watch.wait_for(running)).unwrap());
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

fn undo_failing(spec: &JobSpec, kind: StepKind) {
    let site = Site::new(Fault::Run(kind, 1));
    let job = site.submit(spec);
    site.settle(job).unwrap();
    site.set(Fault::Undo(kind, 1));
    site.command(job, Command::Cancel).unwrap();
    assert!(matches!(site.settle(job).unwrap().job.status.state, State::Stuck { .. }));
    site.command(job, Command::Retry).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

#[test]
fn attach_survives_everything() {
    walk(&spec(Target::Attach), &|view, world| {
        assert_eq!(view.job.status.state, State::Holding);
        let things = world.things();
        assert_eq!(things.leases.len(), 1, "exactly one point is held");
        assert_eq!(things.leases.first().unwrap().1, view.job.point().unwrap());
        assert_eq!(things.served.iter().collect::<Vec<_>>(), [&view.job.id.to_string()]);
    });
}

#[test]
fn image_survives_everything() {
    walk(&to_image(), &|view, world| {
        assert_eq!(view.job.status.state, State::Succeeded);
        let things = world.things();
        assert!(things.leases.is_empty());
        assert_eq!(things.images.len(), 1);
        let Some(Output::Written { images }) = view.job.output(StepKind::WriteImages) else { panic!() };
        assert_eq!(images.len(), 1);
    });
}

#[test]
fn the_time_to_the_first_byte_is_recorded() {
    let site = Site::new(Fault::Run(StepKind::ProcessPoint, 1));
    let job = site.submit(&spec(Target::Attach));
    site.settle(job).unwrap();
    site.clock.advance(Duration::from_millis(1500));
    site.command(job, Command::Retry).unwrap();
    let view = site.settle(job).unwrap();
    assert!(matches!(view.job.output(StepKind::Attach), Some(Output::Attached { rto_us: 1_500_000, .. })));
    assert_eq!(view.job.point(), Some(point(2)));
}

#[test]
fn a_refused_selection_ends_the_job_and_says_why() {
    let site = Site::new(Fault::None);
    let wanted = Selection::Point(point(200));
    let JobSpec::Failover(mut failover) = spec(Target::Attach);
    failover.selection = wanted;
    let job = site.submit(&JobSpec::Failover(failover));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Failed);
    assert!(view.job.messages[0].text.contains("has no point"), "{:?}", view.job.messages);
    assert!(matches!(site.command(job, Command::Cancel), Err(JobError::NotNow(_))));
    assert!(matches!(site.command(JobId::from_bytes([0; 16]), Command::Cancel), Err(JobError::Unknown(_))));
}

#[test]
fn old_jobs_make_room_for_new_ones() {
    let site = Site::new(Fault::None);
    let first = site.submit(&to_image());
    site.settle(first).unwrap();
    for _ in 1..super::runner::JOBS_MAX {
        site.world.things().newest = 0;
        site.clock.advance(Duration::from_millis(1));
        let job = site.submit(&to_image());
        site.settle(job).unwrap();
    }
    site.world.things().newest = 0;
    let held = site.submit(&spec(Target::Attach));
    assert!(site.jobs().watch(first).is_none(), "the oldest is forgotten");
    assert_eq!(site.jobs().list().len(), super::runner::JOBS_MAX);
    assert!(site.settle(held).is_some());
}
