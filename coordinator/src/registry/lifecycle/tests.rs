use holdfast_common::ids::{DiskId, Generation, JobId, PointId, Sequence};

use super::{Lifecycle, LifecycleEvent as Event, SourceLine, Stage};

fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

fn point(number: u8) -> PointId {
    PointId::from_bytes([number; 16])
}

fn all_events() -> Vec<Event> {
    let mut events = vec![Event::Commit, Event::Resume];
    for number in [1, 2] {
        let job = job(number);
        events.extend([
            Event::BeginFailover(job),
            Event::AbandonFailover(job),
            Event::Switch(job, point(number)),
            Event::Unswitch(job),
            Event::BeginReprotect(job),
            Event::AbandonReprotect(job),
            Event::Reprotected(job),
            Event::BeginFailback(job),
            Event::AbandonFailback(job),
            Event::FailedBack(job),
            Event::BeginTest(job),
            Event::EndTest(job),
        ]);
    }
    events
}

/// Everything that can be reached.
fn reachable() -> Vec<Lifecycle> {
    let mut found = vec![Lifecycle::default()];
    let mut next = 0;
    while let Some(from) = found.get(next).cloned() {
        next += 1;
        for event in all_events() {
            if let Ok(after) = from.after(event)
                && !found.contains(&after)
            {
                found.push(after);
            }
        }
    }
    found
}

#[test]
fn there_and_back() {
    let (failover, back) = (job(1), job(2));
    let path = [
        (Event::BeginFailover(failover), "failing-over", false),
        (Event::Switch(failover, point(1)), "failed-over", true),
        (Event::Switch(failover, point(2)), "failed-over", true),
        (Event::Commit, "committed", true),
        (Event::Switch(failover, point(3)), "committed", true),
        (Event::BeginReprotect(back), "re-protecting", true),
        (Event::Reprotected(back), "protected-reversed", true),
        (Event::BeginFailback(back), "failing-back", true),
        (Event::FailedBack(back), "protected", false),
    ];
    let mut lifecycle = Lifecycle::default();
    for (event, name, fenced) in path {
        lifecycle = lifecycle.after(event).unwrap();
        assert_eq!((lifecycle.stage.name(), lifecycle.is_fenced()), (name, fenced), "{event:?}");
    }
    assert_eq!(lifecycle, Lifecycle::default());
}

#[test]
fn every_event_may_be_repeated() {
    for from in reachable() {
        for event in all_events() {
            if let Ok(after) = from.after(event) {
                assert_eq!(after.after(event), Ok(after), "{from:?} {event:?}");
            }
        }
    }
}

/// The fence falls only by the job that raised it, by the end of a failback, or because an operator gives the target up;
/// and a failover that was committed is not undone by the end of its job.
#[test]
fn nobody_else_lets_the_source_in() {
    for from in reachable().into_iter().filter(|lifecycle| lifecycle.is_fenced()) {
        for event in all_events() {
            let Ok(after) = from.after(event) else { continue };
            let may = match event {
                Event::Unswitch(by) => matches!(from.stage, Stage::FailedOver { job, .. } if job == by),
                Event::FailedBack(of) => matches!(from.stage, Stage::FailingBack { by, .. } if by == of),
                Event::Resume => true,
                _ => false,
            };
            assert!(may || after.is_fenced(), "{from:?} {event:?} {after:?}");
        }
    }
}

/// Cancel leads back from everywhere before the commit.
#[test]
fn a_failover_can_be_cancelled_until_it_is_committed() {
    let begun = Lifecycle::default().after(Event::BeginFailover(job(1))).unwrap();
    let switched = begun.after(Event::Switch(job(1), point(1))).unwrap();
    for from in [begun, switched.clone()] {
        let back =
            from.after(Event::Unswitch(job(1))).unwrap().after(Event::AbandonFailover(job(1))).unwrap();
        assert_eq!(back, Lifecycle::default());
    }
    let committed = switched.after(Event::Commit).unwrap();
    assert_eq!(committed.after(Event::Unswitch(job(1))), Ok(committed.clone()));
}

#[test]
fn tests_change_nothing_else_in_any_stage() {
    for from in reachable().into_iter().filter(|lifecycle| lifecycle.tests.is_empty()) {
        let tested = from.after(Event::BeginTest(job(1))).unwrap();
        assert_eq!((tested.stage, tested.is_fenced()), (from.stage, from.is_fenced()));
        assert_eq!(tested.after(Event::EndTest(job(2))), Ok(tested.clone()));
        assert_eq!(tested.after(Event::EndTest(job(1))), Ok(from));
    }
    let many = (0..super::TESTS_MAX).fold(Lifecycle::default(), |lifecycle, number| {
        lifecycle.after(Event::BeginTest(job(u8::try_from(number).unwrap()))).unwrap()
    });
    assert!(many.after(Event::BeginTest(job(200))).unwrap_err().to_string().contains("--cleanup"));
    assert_eq!(many.after(Event::BeginTest(job(0))), Ok(many));
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |lifecycle: Lifecycle, event| lifecycle.after(event).unwrap_err().to_string();
    let protected = Lifecycle::default();
    assert!(refused(protected, Event::Commit).contains("holdfast failover"));
    let failed_over =
        Lifecycle { stage: Stage::FailedOver { job: job(1), point: point(1) }, ..Lifecycle::default() };
    let text = refused(failed_over.clone(), Event::BeginFailover(job(2)));
    assert!(text.contains("failed-over") && text.contains("holdfast commit"), "{text}");
    let text = refused(failed_over, Event::BeginFailback(job(2)));
    assert!(text.contains("failback is not possible"), "{text}");
}

#[test]
fn the_persisted_form_is_stable() {
    let job = JobId::from_bytes([1; 16]);
    let stage = Stage::FailedOver { job, point: point(2) };
    let failed_over = Lifecycle { stage, tests: [job].into(), ..Lifecycle::default() };
    let text = r#"{"stage":{"stage":"failed-over","job":"01010101-0101-0101-0101-010101010101","point":"02020202-0202-0202-0202-020202020202"},"tests":["01010101-0101-0101-0101-010101010101"]}"#;
    assert_eq!(serde_json::to_string(&failed_over).unwrap(), text);
    assert_eq!(serde_json::from_str::<Lifecycle>(text).unwrap(), failed_over);
    let line = SourceLine { generation: Generation(3), end: Sequence(40) };
    let lines = [(DiskId::from_bytes([4; 16]), line)].into();
    let with_lines = Lifecycle { lines, ..failed_over };
    let more = r#","lines":{"04040404-0404-0404-0404-040404040404":{"generation":3,"end":40}}}"#;
    let text = format!("{}{more}", text.strip_suffix('}').unwrap());
    assert_eq!(serde_json::to_string(&with_lines).unwrap(), text);
    assert_eq!(serde_json::from_str::<Lifecycle>(&text).unwrap(), with_lines);
    assert!(with_lines.after(Event::Commit).unwrap().lines.len() == 1);
    assert!(with_lines.after(Event::Resume).unwrap().lines.is_empty());
    let least = r#"{"stage":{"stage":"protected"}}"#;
    assert_eq!(serde_json::from_str::<Lifecycle>(least).unwrap(), Lifecycle::default());
    assert!(serde_json::from_str::<Lifecycle>(r#"{"stage":{"stage":"teleported"}}"#).is_err());
}
