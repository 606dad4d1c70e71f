//! Simulation of guardian and agent over a model of the kernel's freezing, from seeds.
//!
//! The model: a call that freezes takes time and cannot be interrupted; the thaw of an upper file system blocks while the
//! one below it is frozen; the agent freezes, works, thaws, and may stall or die at any moment.

use std::time::Duration;

use proptest::prelude::{Just, Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::{Outcome, RETRY, Step, Watch};

const BOUND: Duration = Duration::from_millis(100);
const TICK: Duration = Duration::from_millis(1);

/// What happens to the agent, and when (in steps of the model).
#[derive(Clone, Copy, Debug)]
enum Fate {
    Lives,
    StallsAt(u32),
    DiesAt(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Agent {
    /// Inside the call that freezes this folder, for so many more ticks.
    Freezing(usize, u32),
    Working(u32),
    Thawing(usize),
    Done,
    Gone,
}

struct Model {
    frozen: Vec<bool>,
    freeze_ticks: Vec<u32>,
    agent: Agent,
    watch: Watch,
    now: Duration,
    /// How long any folder has been frozen at most.
    overran: Option<bool>,
}

impl Model {
    fn new(freeze_ticks: Vec<u32>) -> Self {
        let mut watch = Watch::default();
        watch.arm(1, freeze_ticks.len(), BOUND, Duration::ZERO);
        watch.begun(1, 0);
        Self {
            frozen: vec![false; freeze_ticks.len()],
            agent: Agent::Freezing(0, freeze_ticks[0]),
            freeze_ticks,
            watch,
            now: Duration::ZERO,
            overran: None,
        }
    }

    /// One tick of the agent. A stalled or killed agent still finishes the call it is in.
    fn agent(&mut self, stalled: bool, killed: bool) {
        self.agent = match self.agent {
            Agent::Freezing(index, 0) => {
                self.frozen[index] = true;
                match (killed, stalled, index + 1 < self.frozen.len()) {
                    (true, ..) => Agent::Gone,
                    (_, true, _) => Agent::Freezing(index, u32::MAX),
                    (.., true) => {
                        self.watch.begun(1, index + 1);
                        Agent::Freezing(index + 1, self.freeze_ticks[index + 1])
                    }
                    _ => {
                        self.watch.settled(1);
                        Agent::Working(20)
                    }
                }
            }
            Agent::Freezing(_, u32::MAX) if killed => Agent::Gone,
            Agent::Freezing(index, u32::MAX) => Agent::Freezing(index, u32::MAX),
            Agent::Freezing(index, left) => Agent::Freezing(index, left - 1),
            _ if killed => Agent::Gone,
            other if stalled => other,
            Agent::Working(0) => Agent::Thawing(self.frozen.len()),
            Agent::Working(left) => Agent::Working(left - 1),
            Agent::Thawing(0) => {
                self.overran = Some(self.watch.released(1));
                Agent::Done
            }
            Agent::Thawing(left) => {
                self.frozen[left - 1] = false;
                Agent::Thawing(left - 1)
            }
            other => other,
        };
        if self.agent == Agent::Gone {
            self.watch.agent_gone();
        }
    }

    /// Lets the guardian do all it wants at this moment. Folder `i + 1` carries folder `i`.
    fn guardian(&mut self) -> Step {
        loop {
            let step = self.watch.step(self.now);
            let Step::Thaw(index) = step else { return step };
            let carrier_frozen = self.frozen[index + 1..].iter().any(|&frozen| frozen);
            assert!(!(self.frozen[index] && carrier_frozen), "the thaw of {index} would block for ever");
            let outcome = if self.frozen[index] { Outcome::Thawed } else { Outcome::WasNotFrozen };
            self.frozen[index] = false;
            self.watch.tried(index, outcome, self.now);
        }
    }
}

fn fates() -> impl Strategy<Value = Fate> {
    proptest::prop_oneof![
        Just(Fate::Lives),
        (0..300_u32).prop_map(Fate::StallsAt),
        (0..300_u32).prop_map(Fate::DiesAt),
    ]
}

proptest! {
    #[test]
    fn nothing_stays_frozen(freeze_ticks in prop::collection::vec(0..60_u32, 1..5), fate in fates(), late in any::<bool>()) {
        let mut model = Model::new(freeze_ticks.clone());
        let mut last = Step::Wait;
        for tick in 0..2000_u32 {
            let stalled = matches!(fate, Fate::StallsAt(at) if tick >= at);
            let killed = matches!(fate, Fate::DiesAt(at) if tick >= at);
            model.agent(stalled, killed);
            // The guardian may be scheduled late.
            if !late || tick % 3 == 0 {
                last = model.guardian();
            }
            model.now += TICK;
        }
        prop_assert!(model.frozen.iter().all(|&frozen| !frozen), "{fate:?} left {:?}", model.frozen);
        let expected = if model.agent == Agent::Gone { Step::Exit } else { last };
        prop_assert_eq!(last, expected);
        if let (Fate::Lives, Some(overran)) = (fate, model.overran) {
            let ticks: u32 = freeze_ticks.iter().map(|ticks| ticks + 1).sum::<u32>() + 21;
            prop_assert!(overran || ticks < 110, "a hold of {ticks} ms passed as within its bound");
            prop_assert!(!overran || ticks > 90, "a hold of {ticks} ms passed as an overrun");
        }
    }
}

#[test]
fn a_hold_within_its_bound_is_left_alone() {
    let mut watch = Watch::default();
    assert_eq!(watch.step(Duration::ZERO), Step::Wait);
    watch.arm(1, 2, BOUND, Duration::ZERO);
    watch.begun(1, 0);
    watch.begun(1, 1);
    watch.settled(1);
    assert_eq!(watch.step(BOUND - TICK), Step::WaitUntil(BOUND));
    assert!(!watch.released(1));
    assert_eq!(watch.step(BOUND + TICK), Step::Wait);
    watch.agent_gone();
    assert_eq!(watch.step(BOUND + TICK), Step::Exit);
}

#[test]
fn a_freeze_under_way_is_asked_for_again() {
    let mut watch = Watch::default();
    watch.arm(1, 2, BOUND, Duration::ZERO);
    watch.begun(1, 0);
    watch.begun(1, 1);
    assert_eq!(watch.step(BOUND), Step::Thaw(1));
    watch.tried(1, Outcome::WasNotFrozen, BOUND);
    assert_eq!(watch.step(BOUND), Step::WaitUntil(BOUND + RETRY));
    assert_eq!(watch.step(BOUND + RETRY), Step::Thaw(1));
    watch.settled(1);
    watch.tried(1, Outcome::WasNotFrozen, BOUND + RETRY);
    assert_eq!(watch.step(BOUND + RETRY), Step::Thaw(0));
    watch.tried(0, Outcome::Thawed, BOUND + RETRY);
    assert_eq!(watch.step(BOUND + RETRY), Step::Wait);
    assert!(watch.released(1), "the guardian thawed, so the hold is void");
}

#[test]
fn messages_of_another_hold_change_nothing() {
    let mut watch = Watch::default();
    watch.arm(2, 1, BOUND, Duration::ZERO);
    watch.begun(1, 0);
    watch.begun(2, 5);
    assert!(watch.released(1), "a release of a hold that is not armed is never a success");
    assert_eq!(watch.step(TICK), Step::WaitUntil(BOUND));
}
