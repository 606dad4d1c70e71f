//! Checking: what is damaged is found, what is not wanted is not read, a stop leaves a beginning.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_common::ids::Sequence;
use tempfile::TempDir;

use super::{CheckOrder, Checked};
use crate::store::{
    DiskLog, FrameSet, Store,
    tests::{append, check_all, open},
};

/// A log of 60 frames in several segments, the newest still being written.
async fn log() -> (TempDir, Arc<Store>, Arc<DiskLog>) {
    let folder = TempDir::new().unwrap();
    let (store, log) = open(&folder);
    append(&log, 1..=60).await;
    assert!(log.usage().segments > 3);
    (folder, store, log)
}

fn segments(log: &DiskLog) -> Vec<std::path::PathBuf> {
    let listed = log.layout().list_segments().unwrap();
    listed.into_iter().map(|(first, _)| log.layout().segment(first)).collect()
}

/// Flips a bit in the payload of a frame.
fn damage(log: &DiskLog, sequence: u64) {
    let frame = log.read(Sequence(sequence)).unwrap().bytes().clone();
    for path in segments(log) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(frame.len()).position(|window| window == frame) {
            bytes[at + frame.len() - 1] ^= 4;
            overwrite(&path, &bytes);
            return;
        }
    }
    panic!("frame {sequence} is in no segment");
}

/// In place, so that open handles see it.
fn overwrite(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, 0).unwrap();
}

fn check(log: &DiskLog, wanted: &FrameSet, threads: usize) -> Checked {
    let (after, up_to) = (Sequence(0), log.tail().sequence);
    let order = CheckOrder { after, up_to, wanted: Some(wanted), threads, keep_cached: true };
    log.check(&order, &|_| true).unwrap()
}

#[tokio::test]
async fn damage_is_named_wherever_it_is() {
    let (_folder, _store, log) = log().await;
    for sequence in [1, 17, 18, 40, 60] {
        damage(&log, sequence);
    }
    let checked = check_all(&log);
    assert_eq!(checked.bad, [1, 17, 18, 40, 60].map(Sequence));
    assert_eq!((checked.frames, checked.up_to), (55, Sequence(60)));
}

#[tokio::test]
async fn only_what_is_wanted_is_read() {
    let (_folder, _store, log) = log().await;
    damage(&log, 17);
    damage(&log, 40);
    let mut wanted = FrameSet::new(Sequence(0));
    for sequence in (1..=60).filter(|sequence| sequence % 3 == 1) {
        wanted.insert(Sequence(sequence));
    }
    for threads in [1, 4] {
        let checked = check(&log, &wanted, threads);
        // 17 is damaged too, and nobody asked for it.
        assert_eq!(checked.bad, [Sequence(40)]);
        assert_eq!(checked.frames, wanted.len() - 1);
    }
    let frame_bytes = log.read(Sequence(1)).unwrap().bytes().len() as u64;
    // Behind the last frame of a group stands a mark.
    let expected = wanted.len() * frame_bytes..wanted.len() * (frame_bytes + 64);
    assert!(expected.contains(&log.bytes_to_check(&wanted).unwrap()));
}

#[tokio::test]
async fn what_a_lost_list_or_a_lost_file_held_is_bad() {
    let (folder, store, log) = log().await;
    let paths = segments(&log);
    drop((store, log));
    // The second segment loses its footer and a frame, the third one altogether.
    let mut bytes = std::fs::read(&paths[1]).unwrap();
    let magic = holdfast_common::frame::header::FRAME_MAGIC;
    let frames: Vec<_> = bytes.windows(4).enumerate().filter(|(_, four)| *four == magic).collect();
    let second = frames[1].0;
    bytes[second + 100] ^= 1;
    bytes.truncate(bytes.len() - 1);
    std::fs::write(&paths[1], &bytes).unwrap();
    let (_store, found) = Store::open(folder.path(), crate::store::StoreSettings::default()).unwrap();
    assert!(found.iter().all(|found| found.error.is_none()));
    let log = _store.disks().remove(0);
    std::fs::remove_file(&paths[2]).unwrap();
    let first = |path: &Path| u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    let mut expected: BTreeSet<u64> = (first(&paths[2])..first(&paths[3])).collect();
    expected.insert(first(&paths[1]) + 1);
    let checked = check_all(&log);
    assert_eq!(checked.bad.iter().map(|bad| bad.0).collect::<BTreeSet<_>>(), expected);
    let mut wanted = FrameSet::new(Sequence(0));
    (1..=60).for_each(|sequence| wanted.insert(Sequence(sequence)));
    assert_eq!(check(&log, &wanted, 2).bad, checked.bad);
}

#[tokio::test]
async fn a_stopped_check_covers_a_beginning_and_goes_on_from_there() {
    let (_folder, _store, log) = log().await;
    damage(&log, 50);
    let (mut at, mut frames, mut bad, mut rounds) = (Sequence(0), 0, Vec::new(), 0);
    while at < Sequence(60) {
        let pieces = AtomicU64::new(0);
        let order =
            CheckOrder { after: at, up_to: Sequence(60), wanted: None, threads: 2, keep_cached: false };
        let checked = log.check(&order, &|_| pieces.fetch_add(1, Ordering::Relaxed) > 0).unwrap();
        assert!(checked.up_to > at);
        frames += checked.frames;
        bad.extend(checked.bad);
        at = checked.up_to;
        rounds += 1;
    }
    assert!(rounds > 1);
    assert_eq!((frames, bad), (59, vec![Sequence(50)]));
}
