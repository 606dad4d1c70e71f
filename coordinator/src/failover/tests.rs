//! Every kind of job: each step failing, repeated, undone twice, the coordinator killed at each event, cancelled at each
//! event. One helper walks all of it; a new plan is one more call of `walk`.

// Recovery plans: jobs of jobs.
mod plans;

use std::{
    collections::BTreeSet,
    collections::{BTreeMap, HashSet},
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
    doubles::{Fault, FaultyPlans, MemoryStore, NoMachines, Source, World, failover_of, point},
    job::{FailoverSpec, JobSpec, Mode, Output, StepKind, StepState, Target, WayBackSpec},
    machine::State,
    plans::failover::Services,
    runner::{Command, JobError, JobView, Jobs, Parts},
    step::Plans as _,
};
use crate::{
    compute::port::ImageFormat,
    drills::Drill,
    points::selection::Selection,
    registry::lifecycle::{Lifecycle, LifecycleEvent, Stage},
};

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
        Self::with(World::default(), fault)
    }

    /// Where a job of this kind begins.
    fn of(spec: &JobSpec, fault: Fault) -> Self {
        Self::with(World::where_begins(spec), fault)
    }

    fn with(world: World, fault: Fault) -> Self {
        let store = MemoryStore::default();
        for machine in world.were_there() {
            let failover = spec_of(machine, Mode::Unplanned, Target::Branch);
            store.put_over(failover_of(machine), failover, vec![StepKind::Check]);
        }
        let world = Arc::new(world);
        let services = Services {
            points: world.clone(),
            attach: world.clone(),
            images: world.clone(),
            machines: world.clone(),
            lifecycles: world.clone(),
            sources: world.clone(),
            scripts: world.clone(),
            way_back: world.clone(),
            drills: world.clone(),
        };
        let plans = FaultyPlans { services, fault: Arc::new(Mutex::new(fault)) };
        let mut site = Self {
            runtime: None,
            jobs: None,
            store: Arc::new(store),
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

    /// The job once it is settled, or `None` if the store died first. What is to be done by hand is done.
    fn settle(&self, job: JobId) -> Option<JobView> {
        self.reach(job, JobView::is_settled)
    }

    /// The job once this is so, or is settled.
    fn reach(&self, job: JobId, wanted: impl Fn(&JobView) -> bool) -> Option<JobView> {
        let mut watch = self.jobs().watch(job).unwrap();
        let reached = async {
            loop {
                let view = watch.wait_for(|view| wanted(view) || view.is_settled()).await.unwrap().clone();
                if !matches!(view.job.status.state, State::Waiting { .. }) {
                    return view;
                }
                self.jobs().command(job, Command::Continue, "test").await.unwrap();
            }
        };
        self.block_on(async {
            tokio::select! {
                view = reached => Some(view),
                () = self.store.dies() => None,
                () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the job does not settle"),
            }
        })
    }

    /// Lets what was woken up finish.
    fn breathe(&self) {
        self.block_on(async {
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        });
    }

    fn set(&self, fault: Fault) {
        *self.plans.fault.lock().unwrap() = fault;
    }
}

fn spec(mode: Mode, target: Target) -> JobSpec {
    spec_of(MachineId::from_bytes([9; 16]), mode, target)
}

fn spec_of(machine: MachineId, mode: Mode, target: Target) -> JobSpec {
    let selection = Selection::Latest;
    // Planned failovers stop their source anyway; the unplanned ones here do if they can.
    let stop_source = mode == Mode::Unplanned;
    let networks = BTreeMap::new();
    JobSpec::Failover(FailoverSpec { machine, selection, target, mode, stop_source, networks, drill: None })
}

fn image() -> Target {
    Target::Image { folder: "/images".into(), format: ImageFormat::Raw, update: false }
}

fn machine() -> Target {
    Target::Machine { stream: true }
}

fn to_image() -> JobSpec {
    spec(Mode::Test, image())
}

/// Walks a kind of job through every fault. `check` is given the job and the world after it has ended well.
fn walk(spec: &JobSpec, check: &dyn Fn(&JobView, &World)) {
    let good_end = Site::of(spec, Fault::None);
    let steps = good_end.plans.plan(spec).steps;
    let before = good_end.store.len();
    let job = good_end.submit(spec);
    let view = good_end.settle(job).unwrap();
    assert!(view.job.steps.iter().all(|step| step.state == StepState::Done), "{view:?}");
    check(&view, &good_end.world);
    let events = good_end.store.len() - before;

    repeated(spec, check);
    for appends in 1..events {
        killed_and_continued(spec, appends, check);
        cancelled_after_kill(spec, appends);
    }
    for kind in steps.into_iter().collect::<HashSet<_>>() {
        failing(spec, kind, check);
        hanging(spec, kind);
        undo_failing(spec, kind);
    }
    if view.job.status.state == State::Holding && view.job.spec.plan().is_none() {
        let events = good_end.change_of_point(job, check);
        for appends in 1..events {
            killed_in_a_change(spec, appends, check);
        }
    }
}

impl Site {
    /// Changes the point of a job that holds one. Gives how many events that took.
    fn change_of_point(&self, job: JobId, check: &dyn Fn(&JobView, &World)) -> usize {
        let (before, older) = (self.store.len(), Selection::Point(point(1)));
        self.command(job, Command::ChangePoint(older)).unwrap();
        let view = self.settle(job).unwrap();
        check(&view, &self.world);
        assert_eq!((view.job.point(), view.job.changes), (Some(point(1)), 1));
        assert_eq!(self.world.things().shown.last(), Some(&point(1)));
        // One that does not exist costs nothing that is held, and another one can be taken.
        self.command(job, Command::ChangePoint(Selection::Point(point(200)))).unwrap();
        let held = self.settle(job).unwrap();
        assert!(matches!(held.job.status.state, State::Held { .. }), "{held:?}");
        assert_eq!(self.world.things().lifecycle().is_fenced(), view.job.spec != to_test(&view.job.spec));
        self.command(job, Command::ChangePoint(Selection::Point(point(2)))).unwrap();
        let view = self.settle(job).unwrap();
        check(&view, &self.world);
        assert_eq!(view.job.point(), Some(point(2)));
        let events = self.store.len() - before;
        self.command(job, Command::Cancel).unwrap();
        assert_eq!(self.settle(job).unwrap().job.status.state, State::Cancelled);
        self.world.let_in();
        assert!(self.world.is_clean(), "{:?}", self.world);
        events
    }
}

/// The same without consequences for the source.
fn to_test(spec: &JobSpec) -> JobSpec {
    let JobSpec::Failover(mut spec) = spec.clone() else { panic!() };
    spec.mode = Mode::Test;
    JobSpec::Failover(spec)
}

/// Killed somewhere in a change of the point, then it goes on; or it is cancelled there.
fn killed_in_a_change(spec: &JobSpec, appends: usize, check: &dyn Fn(&JobView, &World)) {
    for cancelled in [false, true] {
        let mut site = Site::of(spec, Fault::None);
        let job = site.submit(spec);
        site.settle(job).unwrap();
        site.store.die_after(appends);
        let change = Command::ChangePoint(Selection::Point(point(1)));
        let died = site.block_on(async {
            tokio::select! {
                _taken = site.jobs().command(job, change, "test") => false,
                () = site.store.dies() => true,
            }
        });
        let died = died || site.settle(job).is_none();
        site.store.revive();
        if died {
            site.crash();
            site.start();
        }
        if cancelled {
            site.command(job, Command::Cancel).unwrap();
            assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
            site.world.let_in();
            assert!(site.world.is_clean(), "{:?}", site.world);
        } else {
            let view = site.settle(job).unwrap();
            site.breathe();
            check(&view, &site.world);
        }
    }
}

fn repeated(spec: &JobSpec, check: &dyn Fn(&JobView, &World)) {
    let site = Site::of(spec, Fault::Twice);
    let job = site.submit(spec);
    let view = site.settle(job).unwrap();
    check(&view, &site.world);
    if view.job.status.state == State::Holding {
        site.command(job, Command::Cancel).unwrap();
        assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
        site.world.let_in();
        assert!(site.world.is_clean());
    }
}

/// The coordinator is killed after this many events were stored: whatever came after in the world was not recorded.
fn killed_and_continued(spec: &JobSpec, appends: usize, check: &dyn Fn(&JobView, &World)) {
    let mut site = Site::of(spec, Fault::None);
    site.store.die_after(appends);
    let job = site.submit(spec);
    assert!(site.settle(job).is_none());
    site.crash();
    site.start();
    let view = site.settle(job).unwrap();
    site.breathe();
    check(&view, &site.world);
    // Once more, now that it has settled.
    site.crash();
    site.start();
    let view = site.settle(job).unwrap();
    site.breathe();
    check(&view, &site.world);
}

/// The same, and cancelled after the restart, with a second kill while it is taken back.
fn cancelled_after_kill(spec: &JobSpec, appends: usize) {
    let mut site = Site::of(spec, Fault::None);
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
            () = site.store.dies() => None,
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
    site.world.let_in();
    let things = site.world.things().clone();
    if state == State::Succeeded {
        // Images of a test stay.
        site.world.things().images.clear();
    }
    assert!(site.world.is_clean(), "{things:?}");
    assert_eq!(things.leases, BTreeSet::new(), "{things:?}");
}

fn failing(spec: &JobSpec, kind: StepKind, check: &dyn Fn(&JobView, &World)) {
    // Retried.
    let mut site = Site::of(spec, Fault::Run(kind, 2));
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
    let site = Site::of(spec, Fault::Run(kind, 1));
    let job = site.submit(spec);
    site.settle(job).unwrap();
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

fn hanging(spec: &JobSpec, kind: StepKind) {
    let site = Site::of(spec, Fault::Hang(kind));
    let job = site.submit(spec);
    let running = |view: &JobView| {
        view.job.steps.iter().any(|step| step.kind == kind && step.state == StepState::Running)
    };
    site.reach(job, running).unwrap();
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

fn undo_failing(spec: &JobSpec, kind: StepKind) {
    let site = Site::of(spec, Fault::Run(kind, 1));
    let job = site.submit(spec);
    site.settle(job).unwrap();
    site.set(Fault::Undo(kind, 1));
    site.command(job, Command::Cancel).unwrap();
    assert!(matches!(site.settle(job).unwrap().job.status.state, State::Stuck { .. }));
    site.command(job, Command::Retry).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    assert!(site.world.is_clean(), "{kind:?}: {:?}", site.world);
}

/// What every failover has come to when all its steps are done.
fn usable(view: &JobView, world: &World, mode: Mode) {
    assert_eq!(view.job.status.state, State::Holding);
    let things = world.things();
    assert_eq!(things.leases.len(), 1, "exactly one point is held");
    let point = view.job.point().unwrap();
    assert_eq!(things.leases.first().unwrap().1, point);
    let job = view.job.id;
    let lifecycle = match mode {
        Mode::Test => Lifecycle { tests: [job].into(), ..Lifecycle::default() },
        Mode::Unplanned | Mode::Planned => {
            Lifecycle { stage: Stage::FailedOver { job, point }, ..Lifecycle::default() }
        }
    };
    assert_eq!(things.lifecycle(), lifecycle);
    assert_eq!(things.stopped.is_empty(), mode == Mode::Test);
}

const MODES: [Mode; 3] = [Mode::Test, Mode::Unplanned, Mode::Planned];

fn way_back(runs: bool) -> WayBackSpec {
    let machine = MachineId::from_bytes([9; 16]);
    WayBackSpec { machine, failover: failover_of(machine), runs }
}

#[test]
fn reprotection_survives_everything() {
    walk(&JobSpec::Reprotect(way_back(false)), &|view, world| {
        assert_eq!(view.job.status.state, State::Succeeded);
        assert!(world.things().is_protected_there(way_back(false).machine), "{world:?}");
    });
}

#[test]
fn failback_survives_everything() {
    walk(&JobSpec::Failback(way_back(false)), &|view, world| {
        assert_eq!(view.job.status.state, State::Succeeded);
        let (things, machine) = (world.things(), way_back(false).machine);
        assert!(things.is_back(machine) && things.way(machine).ended, "{things:?}");
    });
}

#[test]
fn attach_survives_everything() {
    for mode in MODES {
        walk(&spec(mode, Target::Attach), &|view, world| {
            usable(view, world, mode);
            assert_eq!(world.things().served.iter().collect::<Vec<_>>(), [&view.job.id.to_string()]);
        });
    }
}

#[test]
fn a_writable_attachment_survives_everything() {
    for mode in MODES {
        walk(&spec(mode, Target::Branch), &|view, world| {
            usable(view, world, mode);
            let (things, job) = (world.things(), view.job.id.to_string());
            assert!(things.served.contains(&job));
            assert_eq!(
                things.branches.get(&job),
                view.job.point().map(|point| (point, view.job.changes)).as_ref()
            );
        });
    }
}

#[test]
fn machine_survives_everything() {
    for mode in MODES {
        walk(&spec(mode, machine()), &|view, world| {
            usable(view, world, mode);
            let (things, job) = (world.things(), view.job.id.to_string());
            assert_eq!(things.machines.get(&job), view.job.point().as_ref());
            assert!(things.running.contains(&job) && things.served.contains(&job));
        });
    }
}

#[test]
fn image_survives_everything() {
    walk(&to_image(), &|view, world| {
        assert_eq!(view.job.status.state, State::Succeeded);
        let things = world.things();
        assert!(things.leases.is_empty());
        assert_eq!(things.lifecycle(), Lifecycle::default(), "the test is over");
        assert_eq!(things.images.len(), 1);
        let Some(Output::Written { images }) = view.job.output(StepKind::WriteImages) else { panic!() };
        assert_eq!(images.len(), 1);
    });
    for mode in [Mode::Unplanned, Mode::Planned] {
        walk(&spec(mode, image()), &|view, world| {
            usable(view, world, mode);
            assert_eq!(world.things().images.len(), 1);
        });
    }
}

/// A source that is gone, or that answers nothing, does not hold an unplanned failover up.
#[test]
fn an_unplanned_failover_needs_no_source() {
    let site = Site::new(Fault::None);
    let disconnected = Source { disconnected: true, ..Source::default() };
    site.world.things().source = disconnected;
    let job = site.submit(&spec(Mode::Unplanned, Target::Attach));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    assert!(site.world.things().lifecycle().is_fenced());
    let states: Vec<_> = view.job.steps.iter().map(|step| (step.kind, step.state)).collect();
    assert!(states.contains(&(StepKind::StopSource, StepState::Failed)), "{states:?}");
    assert!(states.contains(&(StepKind::Synchronize, StepState::Done)), "{states:?}");
    assert!(view.job.messages[0].text.contains("not connected"), "{:?}", view.job.messages);
}

/// A planned failover is begun only with its source, and given up if the source wrote on: then that is the machine.
#[test]
fn a_planned_failover_loses_nothing_or_does_not_happen() {
    for (source, why) in [
        (Source { disconnected: true, ..Source::default() }, "not connected"),
        (Source { writes_on: true, ..Source::default() }, "were written since"),
    ] {
        let site = Site::new(Fault::None);
        site.world.things().source = source;
        let job = site.submit(&spec(Mode::Planned, machine()));
        let view = site.settle(job).unwrap();
        assert_eq!(view.job.status.state, State::Failed);
        assert!(view.job.messages[0].text.contains(why), "{:?}", view.job.messages);
        assert!(site.world.is_clean(), "{:?}", site.world);
    }
    // The point is the last cut, whatever was made meanwhile.
    let site = Site::new(Fault::None);
    let job = site.submit(&spec(Mode::Planned, Target::Attach));
    let view = site.settle(job).unwrap();
    let Some(Output::Cut { point }) = view.job.output(StepKind::Synchronize) else { panic!("{view:?}") };
    assert_eq!(view.job.point(), Some(*point));
}

#[test]
fn a_second_failover_of_the_same_machine_is_refused_and_changes_nothing() {
    let site = Site::new(Fault::None);
    let first = site.submit(&spec(Mode::Unplanned, Target::Attach));
    site.settle(first).unwrap();
    let before = site.world.things().clone();
    let second = site.submit(&spec(Mode::Unplanned, Target::Attach));
    let view = site.settle(second).unwrap();
    assert_eq!(view.job.status.state, State::Failed);
    assert!(view.job.messages[0].text.contains("holdfast commit"), "{:?}", view.job.messages);
    let after = site.world.things().clone();
    assert_eq!(
        (before.lifecycle(), before.leases, before.served),
        (after.lifecycle(), after.leases, after.served)
    );
    // A test goes on beside it.
    let test = site.submit(&spec(Mode::Test, Target::Attach));
    assert_eq!(site.settle(test).unwrap().job.status.state, State::Holding);
}

/// What was committed stays the machine, whatever becomes of what its job holds; the point can still be changed.
#[test]
fn a_committed_failover_is_not_taken_back_by_the_end_of_its_job() {
    let site = Site::new(Fault::None);
    let job = site.submit(&spec(Mode::Unplanned, machine()));
    site.settle(job).unwrap();
    {
        let mut things = site.world.things();
        let committed = things.lifecycle().after(LifecycleEvent::Commit).unwrap();
        things.lifecycles.insert(MachineId::from_bytes([9; 16]), committed);
    }
    site.command(job, Command::ChangePoint(Selection::Point(point(1)))).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Holding);
    let committed = Stage::Committed { job, point: point(1) };
    assert_eq!(site.world.things().lifecycle().stage, committed);
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert_eq!(site.world.things().lifecycle().stage, committed);
}

/// Where no machine can run, a failover to one is refused before anything of the source is touched.
#[test]
fn a_machine_that_cannot_run_here_is_refused_first() {
    let mut site = Site::new(Fault::None);
    site.plans.services.machines = Arc::new(NoMachines);
    site.crash();
    site.start();
    let job = site.submit(&spec(Mode::Unplanned, machine()));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Failed);
    assert!(view.job.messages[0].text.contains("--attach"), "{:?}", view.job.messages);
    assert!(site.world.is_clean());
}

/// A change to a point that is not there leaves what is served as it is, also over a restart.
#[test]
fn an_impossible_change_of_the_point_costs_nothing() {
    let mut site = Site::new(Fault::None);
    let job = site.submit(&spec(Mode::Unplanned, Target::Attach));
    let before = site.settle(job).unwrap().job.point();
    site.command(job, Command::ChangePoint(Selection::Point(point(200)))).unwrap();
    assert!(matches!(site.settle(job).unwrap().job.status.state, State::Held { .. }));
    site.crash();
    site.start();
    site.breathe();
    assert_eq!(site.settle(job).unwrap().job.point(), before);
    assert_eq!(site.world.things().served.iter().collect::<Vec<_>>(), [&job.to_string()]);
    assert_eq!(site.world.things().shown.last().copied(), before);
}

/// A source that answers nothing, neither when it is to stop nor when it is to go on, does not hold up a cancel.
#[test]
fn a_source_that_hangs_does_not_hold_up_a_cancel() {
    for stop_source in [false, true] {
        let site = Site::new(Fault::None);
        site.world.things().source.hangs = true;
        let JobSpec::Failover(mut failover) = spec(Mode::Unplanned, Target::Attach) else { panic!() };
        failover.stop_source = stop_source;
        let job = site.submit(&JobSpec::Failover(failover));
        let mut watch = site.jobs().watch(job).unwrap();
        let running = |view: &JobView| view.job.steps[1].state == StepState::Running;
        drop(site.block_on(watch.wait_for(running)).unwrap());
        site.command(job, Command::Cancel).unwrap();
        assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
        assert!(site.world.is_clean(), "{:?}", site.world);
    }
}

#[test]
fn the_time_to_the_first_byte_is_recorded() {
    let site = Site::new(Fault::Run(StepKind::ProcessPoint, 1));
    let job = site.submit(&spec(Mode::Test, Target::Attach));
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
    let JobSpec::Failover(mut failover) = spec(Mode::Test, Target::Attach) else { panic!() };
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
    let held = site.submit(&spec(Mode::Test, Target::Attach));
    assert!(site.jobs().watch(first).is_none(), "the oldest is forgotten");
    assert_eq!(site.jobs().list().len(), super::runner::JOBS_MAX);
    assert!(site.settle(held).is_some());
}

#[test]
fn a_drill_proves_the_machine_and_takes_itself_back() {
    let mut spec = spec(Mode::Test, Target::Machine { stream: false });
    if let JobSpec::Failover(failover) = &mut spec {
        failover.drill = Some(Drill::default());
    }
    walk(&spec, &|view, world| {
        assert_eq!(view.job.status.state, State::Succeeded);
        assert!(world.is_clean(), "{world:?}");
        let drills = world.drills();
        assert_eq!(drills.len(), 1, "one record per drill");
        assert!(
            drills[0].ok && drills[0].point == view.job.point() && drills[0].job == view.job.id,
            "{drills:?}"
        );
    });
}

#[test]
fn a_machine_that_says_nothing_fails_its_drill_and_leaves_nothing() {
    let mut spec = spec(Mode::Test, Target::Machine { stream: false });
    if let JobSpec::Failover(failover) = &mut spec {
        failover.drill = Some(Drill { probe: "never".to_owned(), limit_ms: 0 });
    }
    let site = Site::new(Fault::None);
    let job = site.submit(&spec);
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Failed, "{view:?}");
    assert!(site.world.is_clean(), "{:?}", site.world);
    let drills = site.world.drills();
    assert!(!drills[0].ok && drills[0].text.contains("did not say `never`"), "{drills:?}");
}
