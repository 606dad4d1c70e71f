//! Transitions: all that are possible lead to an end, all others are refused.

use proptest::prelude::*;

use super::{Ending, State, Status, begin, next};
use crate::{
    failover::{
        job::Output,
        log::{Event, Then},
    },
    points::selection::Selection,
};

fn events(step: u32) -> Vec<Event> {
    let by = || String::from("x");
    vec![
        Event::StepStarted { step },
        Event::StepDone { step, output: Output::Nothing },
        Event::StepFailed { step, message: by(), then: Then::GoOn },
        Event::StepFailed { step, message: by(), then: Then::Hold },
        Event::StepFailed { step, message: by(), then: Then::Undo },
        Event::StepWaits { step, reason: by() },
        Event::ContinueRequested { by: by() },
        Event::CancelRequested { by: by() },
        Event::RetryRequested { by: by() },
        Event::UndoDone { step },
        Event::UndoFailed { step, message: by() },
        Event::PointChangeRequested { by: by(), selection: Selection::Latest, step },
        Event::NothingHeld,
    ]
}

fn check(state: State, event: &Event, expected: Option<State>) {
    let begun = match state {
        State::Ready { step } => step,
        State::Running { step } | State::Held { step } | State::Undoing { step, .. } => step + 1,
        _ => 3,
    };
    let status = Status { state, steps: 3, holds: true, begun };
    assert_eq!(next(&status, event).ok().map(|status| status.state), expected, "{state:?} {event:?}");
}

#[test]
fn the_drawing_holds() {
    let cancel = Event::CancelRequested { by: "x".into() };
    let retry = Event::RetryRequested { by: "x".into() };
    let ending = Ending::Cancelled;
    check(State::Ready { step: 0 }, &cancel, Some(State::Cancelled));
    check(State::Ready { step: 2 }, &cancel, Some(State::Undoing { step: 1, ending }));
    check(State::Running { step: 2 }, &cancel, Some(State::Undoing { step: 2, ending }));
    check(State::Holding, &cancel, Some(State::Undoing { step: 2, ending }));
    check(State::Succeeded, &cancel, None);
    check(State::Held { step: 0 }, &retry, Some(State::Running { step: 0 }));
    check(State::Failed, &retry, Some(State::Ready { step: 0 }));
    check(State::Stuck { step: 1, ending }, &retry, Some(State::Undoing { step: 1, ending }));
    check(State::Cancelled, &retry, None);
    let done = |step| Event::StepDone { step, output: Output::Nothing };
    check(State::Running { step: 2 }, &done(2), Some(State::Holding));
    check(State::Running { step: 1 }, &done(1), Some(State::Ready { step: 2 }));
    check(State::Running { step: 1 }, &done(2), None);
    check(
        State::Undoing { step: 0, ending: Ending::Failed },
        &Event::UndoDone { step: 0 },
        Some(State::Failed),
    );
    let change = |step| Event::PointChangeRequested { by: "x".into(), selection: Selection::Latest, step };
    check(State::Holding, &change(1), Some(State::Ready { step: 1 }));
    check(State::Held { step: 2 }, &change(1), Some(State::Ready { step: 1 }));
    check(State::Held { step: 0 }, &change(1), None);
    check(State::Running { step: 2 }, &change(1), None);
    check(State::Holding, &Event::NothingHeld, Some(State::Succeeded));
    check(State::Held { step: 2 }, &Event::NothingHeld, None);
    check(State::Running { step: 2 }, &Event::NothingHeld, None);
    // What was begun before the change is taken back too.
    let changed = Status { state: State::Ready { step: 1 }, steps: 3, holds: true, begun: 3 };
    assert_eq!(next(&changed, &cancel).unwrap().state, State::Undoing { step: 2, ending });
    assert!(begin(0, false).is_err() && begin(10_001, false).is_err());
}

proptest! {
    /// Whatever happens, every step begun is undone before a job is cancelled or failed, last first.
    #[test]
    fn nothing_begun_is_left_behind(choices in prop::collection::vec((0_u32..3, 0_usize..13), 0..80)) {
        let mut status = begin(3, true).unwrap();
        let mut begun = [false; 3];
        for (step, choice) in choices {
            let event = events(step).swap_remove(choice);
            let Ok(after) = next(&status, &event) else { continue };
            match event {
                Event::StepStarted { step } => begun[step as usize] = true,
                Event::UndoDone { step } => {
                    prop_assert!(begun[step as usize + 1..].iter().all(|begun| !begun), "last first");
                    begun[step as usize] = false;
                }
                _ => {}
            }
            status = after;
            if matches!(status.state, State::Cancelled | State::Failed) {
                prop_assert_eq!(begun, [false; 3]);
            }
        }
    }
}
