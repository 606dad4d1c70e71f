//! The record's format: records of all versions keep being understood, newer ones are not.

use std::fs;

use holdfast_common::ids::{DiskId, PointId, Sequence};

use super::{Base, ImageRecord, VERSION};
use crate::compute::port::ImageFormat;

fn record() -> ImageRecord {
    ImageRecord {
        version: VERSION,
        owner: "job".into(),
        point: PointId::from_bytes([1; 16]),
        disk: DiskId::from_bytes([2; 16]),
        format: ImageFormat::Raw,
        size_bytes: 8192,
        data_bytes: 65536,
        map: "00".into(),
        written_to: 0,
        complete: false,
        cut: Some(Sequence(7)),
        base: Some(Base { point: PointId::from_bytes([3; 16]), cut: Sequence(5) }),
        modified_ns: Some(12),
    }
}

/// As version 1 wrote it.
const FIRST: &str = r#"{"version":1,"owner":"job","point":"01010101-0101-0101-0101-010101010101",
"disk":"02020202-0202-0202-0202-020202020202","format":"raw","size_bytes":8192,"data_bytes":65536,"map":"00",
"written_to":0,"complete":true}"#;

/// As version 2 writes it.
const SECOND: &str = r#"{"version":2,"owner":"job","point":"01010101-0101-0101-0101-010101010101","disk":"02020202-0202-0202-0202-020202020202","format":"raw","size_bytes":8192,"data_bytes":65536,"map":"00","written_to":0,"complete":false,"cut":7,"base":{"point":"03030303-0303-0303-0303-030303030303","cut":5},"modified_ns":12}"#;

#[test]
fn the_format_stays() {
    assert_eq!(serde_json::to_string(&record()).unwrap(), SECOND);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.holdfast.json");
    let load = |text: &str| {
        fs::write(&path, text).unwrap();
        ImageRecord::load(&path).unwrap()
    };
    assert_eq!(load(SECOND), Some(record()));
    let first = load(FIRST).expect("version 1 is understood");
    assert!(first.complete && first.as_base().is_none(), "it cannot be the base of an update");
    assert_eq!(load(&SECOND.replace("\"version\":2", "\"version\":3")), None);
    assert_eq!(load("half"), None);
}

#[test]
fn only_a_complete_image_is_a_base() {
    assert_eq!(record().as_base(), None);
    let complete = ImageRecord { complete: true, ..record() };
    assert_eq!(complete.as_base(), Some(Base { point: complete.point, cut: Sequence(7) }));
}
