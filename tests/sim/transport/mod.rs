//! Both ends of the transport, simulated together.
//!
//! Owns the runs: from seeds, with faults, then a healing time after which everything must have arrived. What may happen is
//! in [`world`]. The seed of a failing run is in its panic message; `HOLDFAST_SIM_SEED` runs that one only,
//! `HOLDFAST_SIM_COUNT` sets how many are run.

mod model;
mod world;

use holdfast_tests::asked;
use world::World;

/// Runs unless `HOLDFAST_SIM_COUNT` says otherwise.
const COUNT_DEFAULT: u64 = 300;

/// Steps with faults in each run.
const FAULTY_STEPS: u32 = 4000;

/// Runs one seed and returns what tells runs apart.
fn run(seed: u64) -> ([u8; 32], usize) {
    let mut world = World::new(seed);
    for _ in 0..FAULTY_STEPS {
        world.step();
    }
    world.heal();
    (world.trace(), world.frames())
}

#[test]
fn nothing_acknowledged_is_lost_and_everything_arrives() {
    let seeds = match asked::number("HOLDFAST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked::number("HOLDFAST_SIM_COUNT").unwrap_or(COUNT_DEFAULT),
    };
    let mut frames = 0;
    let count = seeds.end - seeds.start;
    for seed in seeds {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok((_, made)) => frames += made as u64,
            Err(panic) => {
                eprintln!("transport simulation failed: re-run with HOLDFAST_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // A world in which nothing moves would prove nothing.
    assert!(frames / count > 50, "only {frames} frames in {count} runs");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
