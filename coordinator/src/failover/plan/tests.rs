//! The order of groups, and what is frozen of a plan.

use std::collections::BTreeMap;

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId},
};
use proptest::prelude::*;

use super::{
    Member, MemberOutcome, MemberState, PlanSpec, PlanStep, REASON_BYTES_MAX, Run, Selection, Target,
    compile,
    course::Course,
    file::PlanFile,
    read::{PLAN_BYTES_MAX, read},
};
use crate::failover::{
    job::{JobSpec, Output},
    log::{Event, Record, encode},
};

fn file(groups: &[Option<Vec<usize>>]) -> PlanFile {
    let mut text = "name = \"p\"\n".to_owned();
    for (number, needs) in groups.iter().enumerate() {
        text.push_str(&format!("[[group]]\nname = \"g{number}\"\nmachines = [\"m{number}\"]\n"));
        if let Some(needs) = needs {
            let names: Vec<String> = needs.iter().map(|need| format!("\"g{need}\"")).collect();
            text.push_str(&format!("needs = [{}]\n", names.join(", ")));
        }
    }
    let (file, mistakes) = read(&text);
    assert_eq!(mistakes, [], "{text}");
    file
}

/// Needs that lead to earlier groups only, then shuffled, so that the file's order says nothing.
fn needs() -> impl Strategy<Value = Vec<Option<Vec<usize>>>> {
    (1_usize..40).prop_flat_map(|count| {
        let order = Just((0..count).collect::<Vec<_>>()).prop_shuffle();
        let needs = prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), count);
        (order, needs).prop_map(|(order, needs)| {
            let mut groups = vec![None; order.len()];
            for (rank, group) in order.iter().enumerate() {
                let earlier = needs[rank].iter().filter(|_| rank > 0).map(|need| order[need.index(rank)]);
                groups[*group] = Some(earlier.collect());
            }
            groups
        })
    })
}

proptest! {
    /// Every group comes once, after all that it needs, and as early as that allows.
    #[test]
    fn groups_come_after_what_they_need(groups in needs()) {
        let file = file(&groups);
        let waves = file.waves().unwrap();
        let place = |group: usize| waves.iter().position(|wave| wave.contains(&group)).unwrap();
        prop_assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), groups.len());
        for (number, group) in file.groups.iter().enumerate() {
            let earliest = group.needs.iter().map(|need| place(*need) + 1).max().unwrap_or(0);
            prop_assert_eq!(place(number), earliest, "group {} of {:?}", number, &waves);
        }
    }
}

#[test]
fn groups_follow_each_other_unless_they_say_what_they_need() {
    assert_eq!(file(&[None, None, None]).waves().unwrap(), [vec![0], vec![1], vec![2]]);
    let side_by_side = [None, None, Some(vec![]), None];
    assert_eq!(file(&side_by_side).waves().unwrap(), [vec![0, 2], vec![1, 3]]);
    assert_eq!(file(&[None, Some(vec![2]), Some(vec![1])]).waves().unwrap_err(), [1, 2]);
}

fn compiled(text: &str, course: Course) -> PlanSpec {
    let (file, mistakes) = read(text);
    assert_eq!(mistakes, []);
    let member = |name: &str| {
        let (machine, name) = (MachineId::from_bytes([1; 16]), name.to_owned());
        (name.clone(), Member { machine, name, selection: Selection::Latest, target: Target::Attach })
    };
    let members: BTreeMap<String, Member> = file.machines().map(member).collect();
    compile(
        &file,
        &Run {
            course,
            stop_source: false,
            selection: Selection::Latest,
            target: Target::Attach,
            agents: file
                .agents()
                .map(|(name, _)| (name.to_owned(), MachineId::from_bytes([3; 16])))
                .collect(),
        },
        &members,
    )
}

const SHOP: &str = r#"
name = "shop"
[networks]
eth0 = "br0"
[test_networks]
"*" = "isolated"
[[group]]
name = "a"
machines = ["m"]
time_limit = "5m"
[[group.before]]
name = "say"
script = ["/bin/say", "hello"]
on_error = "continue"
time_limit = "1s"
[[group.before]]
script = "drain"
on = "source"
[[group]]
name = "b"
needs = []
machines = ["n"]
on_error = "continue"
[[group.after]]
manual = "look"
"#;

/// What is stored must never change: a plan that runs is read by the next version.
#[test]
fn golden() {
    let spec = compiled(SHOP, Course::Unplanned);
    let text = serde_json::to_string(&spec).unwrap();
    let machine = |name: &str| {
        format!(
            r#"{{"machine":"01010101-0101-0101-0101-010101010101","name":"{name}","selection":"latest","target":"attach"}}"#
        )
    };
    let expected = format!(
        r#"{{"plan":"shop","mode":"unplanned","selection":"latest","target":"attach","networks":{{"eth0":"br0"}},"groups":[{{"name":"a","members":[{}],"time_limit_ms":300000,"on_error":"stop"}},{{"name":"b","members":[{}],"time_limit_ms":1800000,"on_error":"continue"}}],"steps":[{{"step":"check"}},{{"step":"action","group":0,"when":"before","action":{{"name":"say","on_error":"continue","what":{{"script":{{"command":["/bin/say","hello"],"time_limit_ms":1000}}}}}}}},{{"step":"action","group":0,"when":"before","action":{{"name":"drain","what":{{"script":{{"on":"source","command":["drain"],"time_limit_ms":600000}}}}}}}},{{"step":"machines","groups":[0,1]}},{{"step":"action","group":1,"when":"after","action":{{"name":"look","what":{{"manual":{{"text":"look"}}}}}}}},{{"step":"end"}}]}}"#,
        machine("m"),
        machine("n")
    );
    assert_eq!(text, expected);
    assert_eq!(serde_json::from_str::<PlanSpec>(&text).unwrap(), spec);
}

/// The same of what came later.
#[test]
fn golden_of_agents_and_ways_back() {
    let text = SHOP.replace("on = \"source\"", "on = \"agent dr host\"");
    let stored = serde_json::to_value(compiled(&text, Course::Failback)).unwrap();
    assert_eq!(stored["mode"], "failback");
    assert_eq!(stored["steps"][2]["action"]["what"]["script"]["on"]["agent"], "dr host");
    assert_eq!(stored["agents"]["dr host"], "03030303-0303-0303-0303-030303030303");
    assert_eq!(serde_json::to_value(Course::Reprotect).unwrap(), "reprotect");
    assert_eq!(serde_json::from_value::<PlanSpec>(stored).unwrap(), compiled(&text, Course::Failback));
}

/// The example of the documentation is a plan.
#[test]
fn the_example_in_the_documentation_is_right() {
    let page = include_str!("../../../../docs/plans.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (file, mistakes) = read(example);
    assert_eq!(mistakes, []);
    assert_eq!(file.waves().unwrap(), [vec![0, 2], vec![1]]);
    assert_eq!(file.machines().count(), 5);
}

/// The largest file makes a job that can be stored, and so does what comes of its machines.
#[test]
fn the_largest_plan_fits_into_the_log_of_its_job() {
    let machine = |number: usize| format!("{number:08}-0000-7000-8000-000000000000");
    let mut text = "name = \"all\"\n[[group]]\nname = \"all\"\nmachines = [\n".to_owned();
    let mut names = Vec::new();
    while text.len() + 100 < PLAN_BYTES_MAX {
        names.push(machine(names.len()));
        text.push_str(&format!("\"{}\",\n", names[names.len() - 1]));
    }
    text.push_str("]\n");
    let spec = compiled(&text, Course::Unplanned);
    assert!(names.len() > 4000 && spec.members().count() == names.len());
    let stored = |event: Event| {
        encode(&Record { job: JobId::from_bytes([1; 16]), number: 1, at: Timestamp(1), event }).unwrap()
    };
    let outcome = |member: &Member| MemberOutcome {
        machine: member.machine,
        name: member.name.clone(),
        job: Some(JobId::from_bytes([2; 16])),
        state: MemberState::Failed,
        reason: "x".repeat(REASON_BYTES_MAX),
    };
    let members = spec.members().map(|(_, member)| outcome(member)).collect();
    stored(Event::StepDone { step: 1, output: Output::Members { members } });
    let (steps, by) = (spec.kinds(), "x".to_owned());
    stored(Event::Created { spec: JobSpec::Plan(Box::new(spec)), by, steps, holds: true });
}

#[test]
fn a_test_has_its_own_networks_and_steps_have_titles() {
    let spec = compiled(SHOP, Course::Test);
    assert_eq!(spec.networks, BTreeMap::from([("*".to_owned(), "isolated".to_owned())]));
    let titles: Vec<_> = (0..6).map(|step| spec.title(step)).collect();
    let expected = [
        None,
        Some("before a: say"),
        Some("before a: drain"),
        Some("machines of a, b"),
        Some("after b: look"),
        None,
    ];
    assert_eq!(titles, expected.map(|title| title.map(str::to_owned)));
    assert!(matches!(spec.step(3), Some(PlanStep::Machines { groups }) if *groups == [0, 1]));
}

/// Actions of the other direction are left out, and what moves nothing has none.
#[test]
fn the_way_back_has_its_own_actions() {
    let text = SHOP.replace("name = \"say\"\n", "name = \"say\"\ndirection = \"to-target\"\n");
    let text = text.replace("manual = \"look\"", "manual = \"look\"\ndirection = \"to-source\"");
    let titles = |course| {
        let spec = compiled(&text, course);
        (0..6).filter_map(|step| spec.title(step)).collect::<Vec<_>>()
    };
    assert_eq!(titles(Course::Planned), ["before a: say", "before a: drain", "machines of a, b"]);
    assert_eq!(titles(Course::Failback), ["before a: drain", "machines of a, b", "after b: look"]);
    assert_eq!(titles(Course::Reprotect), ["machines of a, b"]);
}
