//! Changes of a real file are found, and only then.

use std::{fs, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use holdfast_common::{
    clock::ManualClock,
    entropy::SeededEntropy,
    ids::Interval,
    units::{BLOCK_BYTES, BlockRange},
};

use super::{ImageFile, SETTLED};
use crate::capture::{CaptureError, ChangeSource as _};

fn take(file: &mut ImageFile) -> Vec<BlockRange> {
    let mut found = Vec::new();
    file.take(Interval(1), &mut |range| found.push(range)).unwrap();
    found
}

#[test]
fn finds_changes_until_the_file_has_settled() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, vec![3; 100 * BLOCK_BYTES + 5]).unwrap();
    let clock = ManualClock::default();
    let mut file = ImageFile::open(&path, Arc::new(clock.clone()), &SeededEntropy::new(1)).unwrap();
    assert!(take(&mut file).is_empty());
    let writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all_at(b"x", 40 * BLOCK_BYTES as u64).unwrap();
    let before = file.counters().unwrap();
    assert_eq!(take(&mut file), [BlockRange::new(32, 16)]);
    assert!(take(&mut file).is_empty());
    // The last chunk is short.
    writer.write_all_at(b"y", 100 * BLOCK_BYTES as u64 + 4).unwrap();
    assert_eq!(take(&mut file), [BlockRange::new(96, 5)]);
    assert_ne!(file.counters().unwrap(), before);
    // Zeroes written over data are a change too.
    writer.write_all_at(&[0; 16 * BLOCK_BYTES], 0).unwrap();
    assert_eq!(take(&mut file), [BlockRange::new(0, 16)]);
    clock.advance(SETTLED + Duration::from_secs(1));
    assert!(!file.is_settled(), "the last pass is not late enough");
    assert!(take(&mut file).is_empty());
    assert!(file.is_settled());
    writer.write_all_at(b"z", 0).unwrap();
    assert_eq!(take(&mut file), [BlockRange::new(0, 16)]);
}

#[test]
fn what_is_marked_is_taken_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, vec![3; 64 * BLOCK_BYTES]).unwrap();
    let mut file = ImageFile::open(&path, Arc::new(ManualClock::default()), &SeededEntropy::new(1)).unwrap();
    file.mark(BlockRange::new(7, 2));
    assert_eq!(file.marked().0, 2);
    assert_eq!(take(&mut file), [BlockRange::new(7, 2)]);
    assert!(take(&mut file).is_empty());
}

#[test]
fn a_replaced_file_is_not_trusted_and_a_missing_one_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, vec![3; 64 * BLOCK_BYTES]).unwrap();
    let mut file = ImageFile::open(&path, Arc::new(ManualClock::default()), &SeededEntropy::new(1)).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(9).unwrap();
    assert!(matches!(file.counters(), Err(CaptureError::Untrusted { .. })));
    fs::remove_file(&path).unwrap();
    assert!(matches!(file.counters(), Err(CaptureError::Missing { .. })));
}
