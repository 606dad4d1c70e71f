//! Group cuts: the coordinator's and the members' state machines together, under faults, with an oracle over causality.
//!
//! Owns the runs and the oracle. What may happen is in [`world`]: orders and answers are lost, delayed, doubled and come
//! again seconds later; every party is stopped, killed and started at any step; every clock runs at its own speed and starts
//! anywhere. Meanwhile the machines' applications write, and tell each other what they have written.
//! The seed of a failing run is in its panic message; `HOLDFAST_SIM_SEED` runs that one only, `HOLDFAST_SIM_COUNT` sets
//! how many are run.

mod machine;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::ids::{GroupCutId, MachineId};
use holdfast_tests::asked;
use machine::Record;
use world::{Faults, World};

/// Runs unless `HOLDFAST_SIM_COUNT` says otherwise.
const COUNT_DEFAULT: u64 = 40;
/// Simulated time of one run, in microseconds.
const RUN_US: u64 = 20_000_000;

/// What a run has shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Shown {
    group_points: usize,
    partial_cuts: usize,
    own_points: usize,
    /// Own points that are parts of group points.
    parts: usize,
    writes: u64,
}

/// The rule by which group points are found: every member's durable record has the mark of the same group cut.
fn group_points(records: &[Record]) -> (Vec<Vec<&Record>>, usize) {
    let mut cuts: BTreeMap<GroupCutId, BTreeMap<MachineId, &Record>> = BTreeMap::new();
    for record in records {
        if let Some(mark) = &record.mark {
            let before = cuts.entry(mark.cut).or_default().insert(record.machine, record);
            assert!(before.is_none(), "a machine has two points in one group cut");
        }
    }
    let (mut whole, mut partial) = (Vec::new(), 0);
    for found in cuts.into_values() {
        let members: BTreeSet<MachineId> = found.keys().copied().collect();
        let wanted = |record: &&Record| {
            record
                .mark
                .as_ref()
                .is_some_and(|mark| mark.members.iter().copied().collect::<BTreeSet<_>>() == members)
        };
        if found.values().all(wanted) {
            whole.push(found.into_values().collect());
        } else {
            partial += 1;
        }
    }
    (whole, partial)
}

/// An effect is never in a group point without its cause: whatever a member's image has seen of another machine's writes
/// is in that machine's image.
fn check_causality(point: &[&Record]) {
    for effect in point {
        for cause in point {
            let seen = effect.seen[cause.index];
            let has = cause.seen[cause.index];
            assert!(
                seen <= has,
                "machine {} has an effect of write {seen} of machine {}, whose image ends with write {has}",
                effect.index,
                cause.index
            );
        }
    }
}

fn run(seed: u64, faults: Faults) -> Shown {
    let mut world = World::new(seed, faults);
    world.run(RUN_US);
    let records = world.records();
    let (points, partial_cuts) = group_points(records);
    points.iter().for_each(|point| check_causality(point));
    Shown {
        group_points: points.len(),
        partial_cuts,
        own_points: records.len(),
        parts: points.iter().map(Vec::len).sum(),
        writes: world.writes(),
    }
}

fn sweep(faults: Faults) -> Shown {
    let seeds = match asked::number("HOLDFAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked::number("HOLDFAST_SIM_COUNT").unwrap_or(COUNT_DEFAULT),
    };
    let mut all = Shown::default();
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed, faults)) {
            Ok(shown) => {
                all.group_points += shown.group_points;
                all.partial_cuts += shown.partial_cuts;
                all.own_points += shown.own_points;
                all.parts += shown.parts;
                all.writes += shown.writes;
            }
            Err(panic) => {
                eprintln!("group cut simulation failed: re-run with HOLDFAST_SIM_SEED={seed} ({faults:?})");
                std::panic::resume_unwind(panic);
            }
        }
    }
    all
}

#[test]
fn no_effect_is_in_a_group_point_without_its_cause() {
    let shown = sweep(Faults::All);
    eprintln!("{shown:?}");
    // A world in which no point is made, or in which nothing goes wrong, would prove nothing.
    assert!(shown.group_points > 0 && shown.partial_cuts > 0, "{shown:?}");
    // A void group cut leaves the members' own points.
    assert!(shown.own_points > shown.parts + shown.partial_cuts, "{shown:?}");
}

#[test]
fn without_faults_group_cuts_succeed() {
    let shown = run(1, Faults::None);
    // One is tried every 300 ms.
    assert!(shown.group_points >= 50, "{shown:?}");
    // The last one may be under way when the run ends.
    assert!(shown.partial_cuts <= 1, "{shown:?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7, Faults::All), run(7, Faults::All));
    assert_ne!(run(7, Faults::All), run(8, Faults::All));
}

#[test]
fn the_oracle_notices_holds_that_hold_nothing() {
    let caught =
        std::panic::catch_unwind(|| run(1, Faults::NothingHeld)).expect_err("writes went on in every hold");
    let said = caught.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(said.contains("has an effect of write"), "{said}");
}
