//! The store: appending, rolling, reopening, refusing.

use std::sync::Arc;

use holdfast_common::{
    frame::{Extent, Frame, FrameIdentity, FrameSealer},
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use tempfile::TempDir;

use super::{CheckOrder, Checked, DiskLog, DiskManifest, Store, StoreError, StoreSettings};

pub(super) const DISK: DiskId = DiskId::from_bytes([0x44; 16]);

fn settings() -> StoreSettings {
    // Small segments, so that every test rolls; the reserve must not depend on the machine.
    StoreSettings { segment_bytes: 30_000, reserve_bytes: 0, ..StoreSettings::default() }
}

fn manifest() -> DiskManifest {
    DiskManifest { disk: DISK, machine: MachineId::from_bytes([1; 16]), size_bytes: 1 << 20 }
}

pub(super) fn frame(sequence: u64) -> Frame {
    let identity = FrameIdentity {
        disk: DISK,
        generation: Generation(1),
        sequence: Sequence(sequence),
        interval: Interval(1),
    };
    let extents = [Extent::data(BlockRange::new(sequence % 100, 1))];
    let fill = u8::try_from(sequence % 251).unwrap();
    let bytes = FrameSealer::new(None).unwrap().seal_data(identity, &extents, &[fill; BLOCK_BYTES]).unwrap();
    Frame::verify(bytes).unwrap()
}

pub(super) fn open(folder: &TempDir) -> (Arc<Store>, Arc<DiskLog>) {
    let (store, found) = Store::open(folder.path(), settings()).unwrap();
    assert!(found.iter().all(|found| found.error.is_none() && found.damage.is_empty()), "{found:?}");
    let log = store.create_disk(&manifest()).unwrap();
    (store, log)
}

pub(super) async fn append(log: &Arc<DiskLog>, sequences: std::ops::RangeInclusive<u64>) {
    let sink = log.sink().unwrap();
    let last = *sequences.end();
    // In small groups, because segments are rolled between groups.
    for sequence in sequences.step_by(3).collect::<Vec<_>>() {
        let end = (sequence + 2).min(last);
        sink.append((sequence..=end).map(frame).collect()).await.unwrap();
        assert_eq!(sink.settle().await.unwrap(), Sequence(end));
    }
}

#[track_caller]
fn check(log: &DiskLog, last: u64) {
    for sequence in 1..=last {
        assert_eq!(log.read(Sequence(sequence)).unwrap().bytes(), frame(sequence).bytes());
    }
    assert!(matches!(log.read(Sequence(last + 1)), Err(error) if error.is_damage()));
    let mut seen = Vec::new();
    let mut at = Sequence(0);
    loop {
        // What another thread does ahead of a reader.
        log.read_tables_ahead(at).unwrap();
        let batch = log.heads_after(at, 500).unwrap();
        seen.extend(batch.heads.iter().map(|head| head.header.sequence.0));
        if batch.up_to == at {
            break;
        }
        at = batch.up_to;
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    // Whoever looks at heads where they lie may stop at any of them.
    let (mut at, mut seen) = (Sequence(0), Vec::new());
    while at < Sequence(last) {
        let mut left = 2;
        at = log
            .each_head_after(at, usize::MAX, &mut |head| {
                seen.push(head.header.sequence.0);
                left -= 1;
                Ok(left > 0)
            })
            .unwrap();
        assert_eq!(Some(&at.0), seen.last());
    }
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    assert_eq!(at, Sequence(last));
    let checked = check_all(log);
    assert_eq!((checked.frames, checked.bad), (last, Vec::new()));
}

pub(super) fn check_all(log: &DiskLog) -> Checked {
    log.check(&CheckOrder::all(3), &|_| true).unwrap()
}

#[tokio::test]
async fn what_was_appended_is_read_back_also_after_reopening() {
    let folder = TempDir::new().unwrap();
    let (store, log) = open(&folder);
    append(&log, 1..=20).await;
    check(&log, 20);
    assert!(log.usage().segments > 2);
    drop((store, log));
    for round in 0..3 {
        let (store, log) = open(&folder);
        let last = 20 + round * 7;
        assert_eq!(log.tail().sequence, Sequence(last));
        check(&log, last);
        append(&log, last + 1..=last + 7).await;
        check(&log, last + 7);
        wait_until_idle(&log).await;
        drop((store, log));
    }
}

async fn wait_until_idle(log: &Arc<DiskLog>) {
    // The thread ends when the sink is dropped; a new sink waits for it.
    let log = Arc::clone(log);
    tokio::task::spawn_blocking(move || drop(log.sink().unwrap())).await.unwrap();
}

#[tokio::test]
async fn a_frame_that_does_not_follow_is_refused() {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open(&folder);
    append(&log, 1..=3).await;
    let sink = log.sink().unwrap();
    for wrong in [3, 5] {
        let error = sink.append(vec![frame(wrong)]).await.unwrap_err();
        assert!(matches!(error, StoreError::Sequence { last: Sequence(3), .. }), "{error:?}");
    }
    sink.append(vec![frame(4)]).await.unwrap();
    assert_eq!(sink.settle().await.unwrap(), Sequence(4));
}

#[tokio::test]
async fn one_sink_at_a_time() {
    let folder = TempDir::new().unwrap();
    let (_store, log) = open(&folder);
    let first = log.sink().unwrap();
    assert!(Arc::ptr_eq(&first, &log.sink().unwrap()));
    first.append((1..=5).map(frame).collect()).await.unwrap();
    drop(first);
    let log_again = Arc::clone(&log);
    let second = tokio::task::spawn_blocking(move || log_again.sink().unwrap()).await.unwrap();
    assert_eq!(*second.durable().borrow(), Sequence(5));
}

#[test]
fn a_store_has_one_owner() {
    let folder = TempDir::new().unwrap();
    let (_store, _log) = open(&folder);
    assert!(matches!(Store::open(folder.path(), settings()), Err(StoreError::Locked(_))));
}

#[test]
fn a_store_that_is_nearly_full_refuses_and_says_so() {
    let folder = TempDir::new().unwrap();
    let settings = StoreSettings { reserve_bytes: u64::MAX, ..settings() };
    let (store, _) = Store::open(folder.path(), settings).unwrap();
    let log = store.create_disk(&manifest()).unwrap();
    let error = log.sink().unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }));
    assert_eq!(error.refusal().code, holdfast_common::wire::RefusalCode::STORAGE);
}

#[test]
fn a_damaged_manifest_is_reported_and_harms_no_other_disk() {
    let folder = TempDir::new().unwrap();
    let (store, log) = open(&folder);
    let other = DiskManifest { disk: DiskId::from_bytes([0x55; 16]), ..manifest() };
    store.create_disk(&other).unwrap();
    let path = log.layout().manifest();
    drop((store, log));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (store, found) = Store::open(folder.path(), settings()).unwrap();
    let failed: Vec<_> = found.iter().filter(|found| found.error.is_some()).map(|found| found.disk).collect();
    assert_eq!(failed, [DISK]);
    assert!(store.disk(other.disk).is_some() && store.disk(DISK).is_none());
}
