//! The engine on a modelled machine: seeds of writers, faults, kills and disconnects. Every cut must be a state that all
//! the machine's disks had at one instant.
//!
//! `HOLDFAST_SEED=n` runs one seed; `HOLDFAST_SEEDS=n` runs that many.
#![expect(clippy::cast_possible_truncation, reason = "small numbers of a model")]

mod model;
mod world;

use std::time::Duration;

use holdfast_common::{frame::CutMethod, units::BlockRange};

use model::{Fault, Model, Plan};
use world::World;

fn seeds(default: u64) -> Box<dyn Iterator<Item = u64>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("HOLDFAST_SEED") {
        Some(seed) => Box::new(std::iter::once(seed)),
        None => Box::new(0..number("HOLDFAST_SEEDS").unwrap_or(default)),
    }
}

#[test]
fn every_cut_is_a_state_that_the_disks_had() {
    let mut points = 0;
    let mut audits = (0, 0);
    for seed in seeds(40) {
        let mut world = World::new(seed, Plan::random(seed));
        world.run(Duration::from_secs(60));
        points += world.points();
        let (judged, changed, _) = world.audits();
        audits = (audits.0 + judged, audits.1 + changed);
    }
    let one_seed = std::env::var("HOLDFAST_SEED").is_ok();
    assert!(one_seed || (audits.0 > 1000 && audits.1 > 200), "parts of audits: {audits:?}");
    assert!(std::env::var("HOLDFAST_SEED").is_ok() || points > 200, "only {points} points were made");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let history = |seed| {
        let mut world = World::new(seed, Plan::random(seed));
        world.run(Duration::from_secs(20));
        world.history()
    };
    assert_eq!(history(7), history(7));
    assert_ne!(history(7), history(8));
}

#[test]
fn a_machine_at_rest_gets_a_point_per_interval() {
    let mut world = World::new(1, Plan { writes_per_call: 0, ..Plan::calm() });
    world.run(Duration::from_secs(30));
    assert!(world.points() >= 25, "{} points in 30 intervals", world.points());
    assert_eq!(world.voids(), Vec::<String>::new());
}

#[test]
fn a_busy_raw_disk_is_void_with_advice_and_cut_in_a_pause() {
    let mut world = World::new(2, Plan { freezes: false, ..Plan::calm() });
    world.run(Duration::from_secs(25));
    assert_eq!(world.points(), 0);
    assert!(world.voids().iter().any(|reason| reason.contains("pause its writer")), "{:?}", world.voids());
    world.model(Model::pause_writers);
    world.run(Duration::from_secs(5));
    assert!(world.points() >= 2);
    assert_eq!(world.last_method(), Some(CutMethod::QuietWindow));
}

#[test]
fn swap_written_while_held_is_noted_and_harmless() {
    let plan = Plan { swap: Some(BlockRange::new(8, 8)), ..Plan::calm() };
    let mut world = World::new(3, plan);
    world.model(|model| model.fault = Some(Fault::SwapWhileHeld));
    world.run(Duration::from_secs(20));
    assert!(world.points() >= 5);
    assert!(world.notes().iter().any(|note| note.contains("swap")), "{:?}", world.notes());
}

#[test]
fn a_write_that_reaches_a_held_disk_voids_the_cut_and_names_the_range() {
    let mut world = World::new(4, Plan::calm());
    world.model(|model| model.fault = Some(Fault::WriteWhileHeld));
    world.run(Duration::from_secs(10));
    assert_eq!(world.points(), 0);
    assert!(world.voids().iter().any(|reason| reason.contains("blocks ")), "{:?}", world.voids());
    world.model(|model| model.fault = None);
    world.run(Duration::from_secs(5));
    assert!(world.points() >= 2);
}

#[test]
fn an_overrun_voids_the_cut() {
    let mut world = World::new(5, Plan::calm());
    world.model(|model| model.fault = Some(Fault::Overrun));
    world.run(Duration::from_secs(10));
    assert_eq!(world.points(), 0);
    assert!(world.voids().iter().any(|reason| reason.contains("bound")), "{:?}", world.voids());
}

#[test]
fn a_read_error_voids_cuts_and_names_the_range_until_it_is_gone() {
    let mut world = World::new(6, Plan::calm());
    world.run(Duration::from_secs(5));
    world.model(|model| model.fault = Some(Fault::ReadError));
    world.run(Duration::from_secs(30));
    assert!(world.voids().iter().any(|reason| reason.contains("cannot be read")), "{:?}", world.voids());
    world.model(|model| model.fault = None);
    let before = world.points();
    world.run(Duration::from_secs(40));
    assert!(world.points() > before);
}

#[test]
fn lost_trust_means_a_new_generation_and_a_scan() {
    let mut world = World::new(8, Plan::calm());
    world.run(Duration::from_secs(5));
    let generation = world.generation();
    world.model(Model::lose_marks);
    let before = world.points();
    world.run(Duration::from_secs(20));
    assert!(world.generation() > generation, "a new generation was given");
    assert!(world.points() > before, "points go on after the resync");
}

#[test]
fn an_operator_gets_the_point_asked_for() {
    let mut world = World::new(9, Plan { interval: Duration::from_secs(3600), ..Plan::calm() });
    world.run(Duration::from_secs(5));
    let before = world.points();
    world.ask_for_point(77);
    world.run(Duration::from_secs(5));
    assert_eq!(world.points(), before + 1);
    assert_eq!(world.last_request(), Some(77));
}

#[test]
fn no_more_than_two_intervals_are_open_while_nothing_is_acknowledged() {
    let mut world = World::new(10, Plan::calm());
    world.run(Duration::from_secs(5));
    world.hold_acknowledgements(true);
    world.run(Duration::from_secs(20));
    assert!(world.most_open_intervals() <= 2, "{} were open", world.most_open_intervals());
    world.hold_acknowledgements(false);
    let before = world.points();
    world.run(Duration::from_secs(5));
    assert!(world.points() > before, "it goes on once acknowledgements come");
}

#[test]
fn damage_reported_by_the_coordinator_is_sent_again() {
    let mut world = World::new(11, Plan { writes_per_call: 0, ..Plan::calm() });
    world.run(Duration::from_secs(5));
    world.damage_replica_and_ask_again(BlockRange::new(3, 5));
    world.run(Duration::from_secs(3));
    world.assert_replica_is_equal();
}

#[test]
fn cuts_are_witnessed_and_a_write_that_tracking_missed_is_found() {
    let mut world = World::new(12, Plan::calm());
    world.run(Duration::from_secs(20));
    assert!(world.witnessed() > 100, "{} blocks", world.witnessed());
    world.tolerate();
    // A part that no writer of the model is likely to write over soon, and many blocks, since 16 are drawn of 1200.
    world.model(|model| model.write_unseen(BlockRange::new(100, 400)));
    world.run(Duration::from_secs(5));
    assert!(world.differing() > 0, "of {} blocks", world.witnessed());
    assert!(world.audits().2 > 0, "{:?}", world.audits());
}

#[test]
fn a_block_that_cannot_be_read_is_not_witnessed_and_voids_nothing() {
    let mut world = World::new(13, Plan { writes_per_call: 0, ..Plan::calm() });
    world.run(Duration::from_secs(5));
    world.model(|model| model.fault = Some(Fault::ReadError));
    let (points, witnessed) = (world.points(), world.witnessed());
    world.run(Duration::from_secs(20));
    assert_eq!(world.voids(), Vec::<String>::new());
    assert!(world.points() >= points + 15 && world.witnessed() > witnessed);
}

#[test]
fn the_model_itself_can_fail_the_oracle() {
    // Marks at issue without in-flight carry: the fault that the contract of `take` exists for.
    let mut caught = 0;
    for seed in 0..20 {
        let mut world = World::new(seed, Plan { carries: false, freezes: true, ..Plan::random(seed) });
        world.tolerate();
        world.run(Duration::from_secs(30));
        caught += world.mistakes();
    }
    assert!(caught > 0, "a source that forgets writes in flight must be noticed");
}
