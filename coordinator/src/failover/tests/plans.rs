//! Recovery plans over doubles: the same walk as for every job, and what a plan adds to it.

use std::collections::BTreeMap;

use holdfast_common::ids::{JobId, MachineId};

use super::{Command, Fault, JobSpec, JobView, Site, State, Target, World, point, walk};
use crate::{
    failover::{
        job::{Mode, Output, StepKind, StepState},
        plan::{Member, MemberOutcome, MemberState, Run, compile, course::Course, read::read},
    },
    points::selection::Selection,
    registry::lifecycle::{Lifecycle, LifecycleEvent, Stage},
};

const FILE: &str = r#"
name = "shop"
[[group]]
name = "databases"
machines = ["db-1", "db-2"]
[[group.before]]
script = ["/announce"]
[[group.before]]
script = ["drain"]
on = "source"
[[group.after]]
manual = "look at the databases"
[[group]]
name = "front"
machines = ["web-1"]
on_error = "continue"
[[group.after]]
script = ["/names"]
"#;

fn machine(name: &str) -> MachineId {
    let number = ["db-1", "db-2", "web-1"].iter().position(|known| *known == name).unwrap();
    MachineId::from_bytes([u8::try_from(number).unwrap() + 10; 16])
}

fn plan_of(text: &str, course: impl Into<Course>, selection: Selection, target: &Target) -> JobSpec {
    let (course, (file, mistakes)) = (course.into(), read(text));
    assert!(mistakes.is_empty(), "{mistakes:?}");
    let member = |name: &str| {
        let (machine, target) = (machine(name), target.clone());
        (name.to_owned(), Member { machine, name: name.to_owned(), selection, target })
    };
    let members: BTreeMap<String, Member> = file.machines().map(member).collect();
    let stop_source = course == Course::Unplanned;
    let agents = file.agents().map(|(name, _)| (name.to_owned(), MachineId::from_bytes([50; 16]))).collect();
    let run = Run { course, stop_source, selection, target: target.clone(), agents };
    JobSpec::Plan(Box::new(compile(&file, &run, &members)))
}

fn plan(course: impl Into<Course>) -> JobSpec {
    plan_of(FILE, course, Selection::Latest, &Target::Attach)
}

/// What every run of the plan has come to when all is done.
fn all_usable(view: &JobView, world: &World, mode: Mode) {
    assert_eq!(view.job.status.state, State::Holding);
    let things = world.things();
    assert_eq!(things.served.len(), 3, "{things:?}");
    assert_eq!(things.leases.len(), 3, "each machine holds its point, the plan none: {things:?}");
    for name in ["db-1", "db-2", "web-1"] {
        let lifecycle = things.of(machine(name));
        match mode {
            Mode::Test => assert_eq!(lifecycle.tests.len(), 1),
            Mode::Unplanned | Mode::Planned => {
                assert!(matches!(lifecycle.stage, Stage::FailedOver { .. }), "{name}: {lifecycle:?}");
            }
        }
    }
    let first = |name: &str| things.ran.iter().position(|ran| ran == name).unwrap();
    for drained in ["drain on db-1", "drain on db-2"] {
        assert!(first("/announce") < first(drained) && first(drained) < first("/names"));
    }
}

#[test]
fn plans_survive_everything() {
    for mode in [Mode::Test, Mode::Unplanned, Mode::Planned] {
        walk(&plan(mode), &|view, world| all_usable(view, world, mode));
    }
}

/// Points that were chosen for all together are held from the beginning.
#[test]
fn a_plan_with_points_survives_everything() {
    let spec = plan_of(FILE, Mode::Unplanned, Selection::Point(point(1)), &Target::Attach);
    walk(&spec, &|view, world| all_usable(view, world, Mode::Unplanned));
}

fn outcomes(view: &JobView) -> Vec<MemberOutcome> {
    let members = view.job.steps.iter().filter_map(|step| match &step.output {
        Output::Members { members } => Some(members.clone()),
        _ => None,
    });
    members.flatten().collect()
}

/// An unplanned failover goes on to its end whatever fails, and says what did.
#[test]
fn an_unplanned_plan_goes_on_to_its_end() {
    let site = Site::new(Fault::None);
    site.world.things().without_point.insert(machine("db-2"));
    site.world.things().failing.insert("/announce".to_owned());
    let job = site.submit(&plan(Mode::Unplanned));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    let failed: Vec<_> =
        view.job.steps.iter().filter(|step| step.state == StepState::Failed).map(|step| step.kind).collect();
    assert_eq!(failed, [StepKind::PlanScript]);
    let states: Vec<_> = outcomes(&view).into_iter().map(|member| (member.name, member.state)).collect();
    let expected = [("db-1", MemberState::Done), ("db-2", MemberState::Failed), ("web-1", MemberState::Done)];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
    let reason = outcomes(&view)[1].reason.clone();
    assert!(reason.contains("has no") && reason.contains("failed"), "{reason}");
    assert_eq!(site.world.things().served.len(), 2);
    assert!(
        view.job.messages[0].text.contains("/announce failed with exit code 1"),
        "{:?}",
        view.job.messages
    );
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    assert!(site.world.is_clean(), "{:?}", site.world);
}

/// The others stop where the plan says so, and go on when what was wrong is mended and they are retried.
#[test]
fn a_test_stops_at_what_fails_and_goes_on_when_it_is_retried() {
    let mut site = Site::new(Fault::None);
    site.world.things().failing.insert("/announce".to_owned());
    let job = site.submit(&plan(Mode::Test));
    let view = site.settle(job).unwrap();
    assert!(matches!(view.job.status.state, State::Held { step: 1 }), "{view:?}");
    assert!(site.world.things().served.is_empty());
    site.world.things().failing.clear();
    // The point is lost between the plan's look and the machine's turn.
    site.set(Fault::Run(StepKind::SelectPoint, 1));
    site.command(job, Command::Retry).unwrap();
    let view = site.settle(job).unwrap();
    assert!(matches!(view.job.status.state, State::Held { step: 3 }), "{view:?}");
    assert!(
        view.job.messages.last().unwrap().text.contains("1 of 2 machines failed"),
        "{:?}",
        view.job.messages
    );
    site.crash();
    site.start();
    site.command(job, Command::Retry).unwrap();
    all_usable(&site.settle(job).unwrap(), &site.world, Mode::Test);
    // Nothing is begun where it is known that it cannot end well.
    let site = Site::new(Fault::None);
    site.world.things().without_point.insert(machine("web-1"));
    let job = site.submit(&plan(Mode::Test));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Failed);
    assert!(view.job.messages[0].text.contains("1 of 3 machines cannot be failed over: web-1"), "{view:?}");
    assert!(site.world.is_clean() && site.world.things().ran.is_empty());
}

/// A machine that is cancelled alone is begun anew when the plan is retried; one that is at its target is left alone.
#[test]
fn who_was_cancelled_alone_begins_anew_and_who_is_over_there_is_left_alone() {
    let site = Site::new(Fault::None);
    let alone = site.submit(&super::spec_of(machine("web-1"), Mode::Unplanned, Target::Attach));
    site.settle(alone).unwrap();
    site.set(Fault::Run(StepKind::Attach, 1));
    let job = site.submit(&plan(Mode::Planned));
    let view = site.settle(job).unwrap();
    assert!(matches!(view.job.status.state, State::Held { step: 3 }), "{view:?}");
    let held = site
        .jobs()
        .list()
        .into_iter()
        .find(|view| matches!(view.job.status.state, State::Held { .. }) && view.job.id != job);
    let held = held.unwrap().job;
    assert_eq!(held.by, format!("plan job {job}"));
    site.command(held.id, Command::Cancel).unwrap();
    assert_eq!(site.settle(held.id).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    site.command(job, Command::Retry).unwrap();
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    let skipped = outcomes(&view).into_iter().find(|member| member.name == "web-1").unwrap();
    assert_eq!((skipped.state, skipped.job), (MemberState::Skipped, None));
    // The plan takes back what it did, and nothing else.
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert!(site.world.things().of(machine("web-1")).is_fenced());
    assert!(!site.world.things().of(machine("db-1")).is_fenced());
}

/// A run holds what its machines' jobs hold, and nothing once these are over, whoever has ended them; also if the coordinator was away
/// meanwhile.
#[test]
fn a_run_whose_machines_have_all_gone_back_is_over() {
    let mut site = Site::new(Fault::None);
    let job = site.submit(&plan(Mode::Unplanned));
    let done = site.settle(job).unwrap();
    let machines: Vec<_> = outcomes(&done).into_iter().filter_map(|member| member.job).collect();
    let (last, first) = machines.split_last().unwrap();
    for machine in first {
        site.command(*machine, Command::Cancel).unwrap();
        assert_eq!(site.settle(*machine).unwrap().job.status.state, State::Cancelled);
        site.crash();
        site.start();
        assert_eq!(site.settle(job).unwrap().job.status.state, State::Holding);
    }
    site.command(*last, Command::Cancel).unwrap();
    is_over(&site, job);
    site.world.let_in();
    assert!(site.world.is_clean(), "{:?}", site.world);
    // A run that finds nothing to do holds nothing.
    let alone = |name: &str| site.submit(&super::spec_of(machine(name), Mode::Unplanned, Target::Attach));
    for there in ["db-1", "db-2", "web-1"].map(alone) {
        site.settle(there).unwrap();
    }
    let idle = site.submit(&plan(Mode::Unplanned));
    site.settle(idle).unwrap();
    is_over(&site, idle);
}

/// Waits until it has ended by itself.
fn is_over(site: &Site, job: JobId) {
    let mut watch = site.jobs().watch(job).unwrap();
    let ended = site.block_on(watch.wait_for(|view| view.job.status.state.is_over())).unwrap().clone();
    assert_eq!(ended.job.status.state, State::Succeeded);
}

/// What was committed is not ended with the plan.
#[test]
fn a_committed_machine_keeps_its_plan_from_being_taken_back() {
    let site = Site::new(Fault::None);
    let job = site.submit(&plan(Mode::Unplanned));
    site.settle(job).unwrap();
    {
        let mut things = site.world.things();
        let committed = things.of(machine("db-1")).after(LifecycleEvent::Commit).unwrap();
        things.lifecycles.insert(machine("db-1"), committed);
    }
    site.command(job, Command::Cancel).unwrap();
    let view = site.settle(job).unwrap();
    assert!(matches!(view.job.status.state, State::Stuck { step: 3, .. }), "{view:?}");
    assert!(view.job.messages.last().unwrap().text.contains("holdfast resume db-1"));
    assert_eq!(site.world.things().served.len(), 2, "both databases; the front was behind them");
}

const GUARDED: &str = r#"
name = "shop"
[[group]]
name = "databases"
machines = ["db-1"]
time_limit = "100ms"
[[group.before]]
manual = "unlock the safe"
[[group]]
name = "front"
machines = ["web-1"]
time_limit = "100ms"
"#;

/// Whoever unlocks the safe may take days: what was chosen for all together is there then.
#[test]
fn points_are_held_while_a_plan_waits_for_somebody() {
    let mut site = Site::new(Fault::None);
    let job = site.submit(&plan_of(GUARDED, Mode::Unplanned, Selection::Point(point(1)), &Target::Attach));
    for _ in 0..2 {
        let mut watch = site.jobs().watch(job).unwrap();
        let waits = |view: &JobView| matches!(view.job.status.state, State::Waiting { .. });
        let view = site.block_on(watch.wait_for(waits)).unwrap().clone();
        assert_eq!(view.job.messages[0].text, "to do: unlock the safe");
        assert_eq!(site.world.things().leases.iter().collect::<Vec<_>>(), [&(job, point(1))]);
        site.crash();
        site.start();
    }
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    assert!(site.world.is_clean());
}

/// A machine that takes longer than its group may does not hold an unplanned failover up; its job goes on.
#[test]
fn a_machine_that_is_too_slow_does_not_hold_up_the_others() {
    let site = Site::new(Fault::Hang(StepKind::Attach));
    let job = site.submit(&plan_of(GUARDED, Mode::Unplanned, Selection::Latest, &Target::Attach));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Holding, "{view:?}");
    let outcomes = outcomes(&view);
    assert!(outcomes.len() == 2 && outcomes.iter().all(|member| member.state == MemberState::Failed));
    assert_eq!(outcomes[0].reason, "it took longer than 0.1 s; its job goes on");
    let jobs: Vec<_> = outcomes.iter().filter_map(|member| member.job).collect();
    let goes_on = |job: &_| site.jobs().watch(*job).is_some_and(|view| !view.borrow().is_settled());
    assert!(jobs.len() == 2 && jobs.iter().all(goes_on));
    site.command(job, Command::Cancel).unwrap();
    assert_eq!(site.settle(job).unwrap().job.status.state, State::Cancelled);
    site.world.let_in();
    assert!(site.world.is_clean(), "{:?}", site.world);
}

/// What an action says of itself goes before what its group and the kind of failover say.
#[test]
fn an_action_that_must_not_fail_stops_every_plan() {
    let text = FILE.replace("script = [\"/announce\"]", "script = [\"/announce\"]\non_error = \"stop\"");
    let lenient =
        FILE.replace("script = [\"/announce\"]", "script = [\"/announce\"]\non_error = \"continue\"");
    for mode in [Mode::Test, Mode::Unplanned, Mode::Planned] {
        for (text, stops) in [(&text, true), (&lenient, false)] {
            let site = Site::new(Fault::None);
            site.world.things().failing.insert("/announce".to_owned());
            let job = site.submit(&plan_of(text, mode, Selection::Latest, &Target::Attach));
            let state = site.settle(job).unwrap().job.status.state;
            assert_eq!(matches!(state, State::Held { step: 1 }), stops, "{mode:?}: {state:?}");
            assert_eq!(state == State::Holding, !stops, "{mode:?}: {state:?}");
        }
    }
}

/// A source that cannot run what the plan wants of it does not hold an unplanned failover up; a test stops.
#[test]
fn what_fails_on_a_source_is_told_by_machine() {
    for (mode, stops) in [(Mode::Unplanned, false), (Mode::Test, true)] {
        let site = Site::new(Fault::None);
        site.world.things().failing.insert("drain".to_owned());
        let job = site.submit(&plan(mode));
        let view = site.settle(job).unwrap();
        assert_eq!(matches!(view.job.status.state, State::Held { step: 2 }), stops, "{view:?}");
        let said = &view.job.messages[0].text;
        let expected = "drain failed on 2 of 2 sources: db-1: the source says: failed (exit status: 1); db-2: the source says: \
                        failed (exit status: 1)";
        assert_eq!(said, expected);
    }
}

/// What every plan that leads back has come to: who was at the target is where the plan leads, who was not is left alone.
fn all_back(view: &JobView, world: &World, course: Course) {
    assert_eq!(view.job.status.state, State::Succeeded);
    let things = world.things();
    assert!(things.leases.is_empty(), "{things:?}");
    for name in ["db-1", "db-2"] {
        match course {
            Course::Reprotect => assert!(things.is_protected_there(machine(name)), "{name}: {things:?}"),
            _ => assert!(
                things.is_back(machine(name)) && things.way(machine(name)).ended,
                "{name}: {things:?}"
            ),
        }
    }
    assert_eq!(things.of(machine("web-1")), Lifecycle::default());
    let states: Vec<_> = outcomes(view).into_iter().map(|member| (member.name, member.state)).collect();
    let expected =
        [("db-1", MemberState::Done), ("db-2", MemberState::Done), ("web-1", MemberState::Skipped)];
    assert_eq!(states, expected.map(|(name, state)| (name.to_owned(), state)));
}

/// Machines on both sides come to one.
#[test]
fn plans_that_lead_back_survive_everything() {
    for course in [Course::Reprotect, Course::Failback] {
        // What runs at a source is not there for who is at the target.
        let text = FILE.replace("[[group.before]]\nscript = [\"drain\"]\non = \"source\"\n", "");
        let spec = plan_of(&text, course, Selection::Latest, &Target::Attach);
        walk(&spec, &|view, world| all_back(view, world, course));
    }
}

/// Nothing is begun where it is known that it cannot end well; what is not possible says what is.
#[test]
fn a_plan_does_not_lead_back_who_is_not_ready() {
    let site = Site::of(&plan(Course::Reprotect), Fault::None);
    let job = site.submit(&plan(Course::Failback));
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Failed);
    let said = &view.job.messages[0].text;
    assert!(said.contains("2 of 3 machines cannot go back") && said.contains("holdfast reprotect"), "{said}");
    assert!(site.world.is_clean() && site.world.things().ran.is_empty());
}

/// A machine whose disks somebody uses is waited for, with the others of its group; the answer to the plan is the answer to it.
#[test]
fn what_a_machine_waits_for_the_plan_waits_for() {
    let spec = plan_of(GUARDED, Course::Failback, Selection::Latest, &Target::Attach);
    let mut site = Site::of(&spec, Fault::None);
    site.world.things().clients = true;
    let job = site.submit(&spec);
    let waits = |site: &Site| {
        let mut watch = site.jobs().watch(job).unwrap();
        let waits = |view: &JobView| matches!(view.job.status.state, State::Waiting { .. });
        site.block_on(watch.wait_for(waits)).unwrap().clone()
    };
    assert_eq!(waits(&site).job.messages[0].text, "to do: unlock the safe");
    site.command(job, Command::Continue).unwrap();
    for _ in 0..2 {
        let said = waits(&site).job.messages.pop().unwrap().text;
        assert!(
            said.starts_with(&format!("to do, then `holdfast job continue {job}`: db-1: the machine still")),
            "{said}"
        );
        site.crash();
        site.start();
    }
    site.command(job, Command::Continue).unwrap();
    let view = site.settle(job).unwrap();
    assert_eq!(view.job.status.state, State::Succeeded, "{view:?}");
    assert!(site.world.things().is_back(machine("db-1")));
}

/// A program on a host that is no machine of the plan runs once for its group; what fails there follows the plan's rules.
#[test]
fn a_script_runs_on_the_agent_that_is_named() {
    let text = FILE.replace("on = \"source\"", "on = \"agent dr-host\"");
    let spec = plan_of(&text, Mode::Test, Selection::Latest, &Target::Attach);
    let site = Site::new(Fault::None);
    let job = site.submit(&spec);
    site.settle(job).unwrap();
    assert_eq!(site.world.things().ran, ["/announce", "drain on ", "/names"]);
    for disconnected in [false, true] {
        let site = Site::new(Fault::None);
        site.world.things().failing.insert("drain".to_owned());
        site.world.things().source.disconnected = disconnected;
        let job = site.submit(&spec);
        let view = site.settle(job).unwrap();
        assert!(matches!(view.job.status.state, State::Held { step: 2 }), "{view:?}");
        let why = if disconnected { "its agent is not connected" } else { "failed (exit status: 1)" };
        assert_eq!(view.job.messages[0].text, format!("drain failed on dr-host: {why}"));
    }
}
