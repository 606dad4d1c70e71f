//! The stored form: golden text of each event, refusals.

use std::collections::BTreeMap;

use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId, PointId},
};

use super::{BODY_BYTES_MAX, Event, LogError, Record, Then, bounded, decode, encode};
use crate::{
    compute::port::ImageFormat,
    failover::job::{FailoverSpec, JobSpec, Mode, Output, StepKind, Target},
    points::selection::Selection,
};

fn record(event: Event) -> Record {
    Record { job: JobId::from_bytes([1; 16]), number: 3, at: Timestamp(4), event }
}

/// What is stored must never change; a new text here means a new version.
#[test]
fn golden() {
    let machine = MachineId::from_bytes([2; 16]);
    let target = Target::Image { folder: "/images".into(), format: ImageFormat::Qcow2, update: false };
    let selection = Selection::Point(PointId::from_bytes([3; 16]));
    let spec = JobSpec::Failover(FailoverSpec {
        machine,
        selection,
        target,
        mode: Mode::Planned,
        stop_source: true,
        networks: BTreeMap::new(),
        drill: None,
    });
    let created = Event::Created { spec, by: "root".into(), steps: vec![StepKind::Check], holds: false };
    let selected =
        Output::Selected { point: PointId::from_bytes([3; 16]), at: Timestamp(5), remarks: vec!["a".into()] };
    let cases = [
        (
            created,
            r#"{"type":"created","spec":{"kind":"failover","machine":"02020202-0202-0202-0202-020202020202","selection":{"point":"03030303-0303-0303-0303-030303030303"},"target":{"image":{"folder":"/images","format":"qcow2"}},"mode":"planned","stop_source":true},"by":"root","steps":["check"],"holds":false}"#,
        ),
        (
            Event::StepDone { step: 1, output: selected },
            r#"{"type":"step-done","step":1,"output":{"result":"selected","point":"03030303-0303-0303-0303-030303030303","at":5,"remarks":["a"]}}"#,
        ),
        (
            Event::StepFailed { step: 1, message: "no".into(), then: Then::Hold },
            r#"{"type":"step-failed","step":1,"message":"no","then":"hold"}"#,
        ),
        (
            Event::PointChangeRequested { by: "x".into(), selection, step: 1 },
            r#"{"type":"point-change-requested","by":"x","selection":{"point":"03030303-0303-0303-0303-030303030303"},"step":1}"#,
        ),
        (Event::UndoDone { step: 0 }, r#"{"type":"undo-done","step":0}"#),
        (Event::CancelRequested { by: "x".into() }, r#"{"type":"cancel-requested","by":"x"}"#),
        (Event::NothingHeld, r#"{"type":"nothing-held"}"#),
    ];
    for (event, expected) in cases {
        let record = record(event);
        let stored = encode(&record).unwrap();
        assert_eq!(stored.body, format!(r#"{{"version":1,"event":{expected}}}"#));
        assert_eq!(decode(&stored).unwrap(), record);
    }
}

/// A log of before there were modes: what it does not say is that the source is touched.
#[test]
fn an_older_version_s_job_is_a_test() {
    let mut stored = encode(&record(Event::UndoDone { step: 0 })).unwrap();
    stored.body = r#"{"version":1,"event":{"type":"created","spec":{"kind":"failover","machine":"02020202-0202-0202-0202-020202020202","selection":"latest","target":"attach"},"by":"root","steps":["check"],"holds":true}}"#.into();
    let Event::Created { spec: JobSpec::Failover(spec), .. } = decode(&stored).unwrap().event else {
        panic!()
    };
    assert_eq!((spec.mode, spec.stop_source), (Mode::Test, false));
}

#[test]
fn what_is_not_understood_is_refused() {
    let mut stored = encode(&record(Event::UndoDone { step: 0 })).unwrap();
    stored.body = stored.body.replace("\"version\":1", "\"version\":2");
    assert!(matches!(decode(&stored), Err(LogError::Newer { version: 2, .. })));
    stored.body = r#"{"version":1,"event":{"type":"dance"}}"#.into();
    assert!(matches!(decode(&stored), Err(LogError::Malformed { .. })));
    stored.body = "x".repeat(BODY_BYTES_MAX + 1);
    assert!(matches!(decode(&stored), Err(LogError::TooLong { .. })));
    let long = Event::Message { text: "x".repeat(BODY_BYTES_MAX) };
    assert!(matches!(encode(&record(long)), Err(LogError::TooLong { .. })));
}

#[test]
fn long_texts_are_cut_at_a_character() {
    assert_eq!(bounded("ä".repeat(4096)).len(), 4096);
    assert_eq!(bounded(format!("x{}", "ä".repeat(4096))).len(), 4095);
}
