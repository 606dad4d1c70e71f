//! The oracle itself: it accepts every prefix and nothing else.

use std::{fs, os::unix::fs::FileExt as _, path::PathBuf};

use super::{HistoryError, SLOT_BYTES, Schedule};

fn schedule(folder: &tempfile::TempDir) -> Schedule {
    let targets = vec![folder.path().join("a"), folder.path().join("b")];
    let schedule = Schedule { seed: 7, targets, slots: 16 };
    schedule.create().unwrap();
    schedule
}

fn copy(schedule: &Schedule, suffix: &str) -> Vec<PathBuf> {
    let copies = schedule.targets.iter().map(|path| {
        let copy = path.with_extension(suffix);
        fs::copy(path, &copy).unwrap();
        copy
    });
    copies.collect()
}

#[test]
fn every_prefix_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let schedule = schedule(&folder);
    let mut writer = schedule.writer(0).unwrap();
    assert_eq!(schedule.check(&schedule.targets).unwrap().operations, 0);
    for _ in 0..300 {
        let number = writer.step().unwrap();
        let prefix = schedule.check(&schedule.targets).unwrap();
        // A discard of a hole changes nothing, so the check may name an earlier, equal state.
        assert!(prefix.operations <= number, "{prefix:?} after {number}");
    }
}

#[test]
fn targets_of_different_times_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let schedule = schedule(&folder);
    let mut writer = schedule.writer(0).unwrap();
    (0..40).for_each(|_| assert!(writer.step().unwrap() > 0));
    let old = copy(&schedule, "old");
    (0..40).for_each(|_| assert!(writer.step().unwrap() > 0));
    let mixed = [old[0].clone(), schedule.targets[1].clone()];
    assert!(matches!(schedule.check(&mixed), Err(HistoryError::NotAPrefix { .. })));
    assert_eq!(schedule.check(&old).unwrap().operations, 40);
}

#[test]
fn foreign_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let schedule = schedule(&folder);
    let mut writer = schedule.writer(0).unwrap();
    (0..40).for_each(|_| assert!(writer.step().unwrap() > 0));
    let file = fs::OpenOptions::new().write(true).open(&schedule.targets[0]).unwrap();
    file.write_all_at(&[9], 3 * SLOT_BYTES as u64 + 100).unwrap();
    let result = schedule.check(&schedule.targets);
    assert!(matches!(result, Err(HistoryError::Foreign { slot: 3, .. })), "{result:?}");
}
