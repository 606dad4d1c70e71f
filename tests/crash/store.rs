//! The store under kill -9, damage, missing files, a full disk and a read-only folder.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    ids::Sequence,
    units::BLOCK_BYTES,
};
use holdfast_coordinator::{
    index::DiskIndex,
    points::{FrameCache, PointView, view::BlockView as _},
    store::{CheckOrder, DiskLog, DiskRecovery, Store, StoreError},
};
use holdfast_tests::journal::{BLOCKS, append, content, frame, is_cut, manifest, model, settings};
use tempfile::TempDir;

/// Names the folder to a child that writes until it is killed.
const FOLDER: &str = "HOLDFAST_TEST_CRASH_STORE";

fn open(folder: &Path) -> (Arc<Store>, Arc<DiskLog>, Vec<DiskRecovery>) {
    let (store, found) = Store::open(folder, settings()).unwrap();
    let log = store.create_disk(&manifest()).unwrap();
    (store, log, found)
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// Every frame is there as it was sent, and every cut shows exactly what came before it.
fn check(log: &Arc<DiskLog>, last: u64) {
    assert_eq!(log.tail().sequence, Sequence(last));
    for sequence in 1..=last {
        assert_eq!(log.read(Sequence(sequence)).unwrap().bytes(), frame(sequence).bytes());
    }
    let index = DiskIndex::open(Arc::clone(log)).unwrap();
    assert_eq!(index.catch_up().unwrap(), Sequence(last));
    while index.compact().unwrap() {}
    let cuts: Vec<u64> = index.cuts().iter().map(|cut| cut.sequence.0).collect();
    assert_eq!(cuts, (1..=last).filter(|sequence| is_cut(*sequence)).collect::<Vec<_>>());
    let cache = FrameCache::new(4 << 20);
    for cut in cuts.iter().rev().take(3) {
        let view = PointView::at_cut(&index, Arc::clone(&cache), Sequence(*cut)).unwrap();
        check_view(&view, *cut);
    }
    check_view(&PointView::newest(&index, cache), last);
}

/// The view shows what was written up to the frame of this sequence.
pub(crate) fn check_view(view: &PointView, sequence: u64) {
    let mut bytes = vec![0xee; usize::try_from(BLOCKS).unwrap() * BLOCK_BYTES];
    view.read(0, &mut bytes).unwrap();
    let expected: Vec<u8> = model(sequence).into_iter().flat_map(|fill| [fill; BLOCK_BYTES]).collect();
    assert!(bytes == expected, "the view at frame {sequence} is not what was written up to it");
}

/// Waits until the log's thread is gone, so that the folder can be opened again.
pub(crate) fn close(store: Arc<Store>, log: Arc<DiskLog>) {
    while Arc::strong_count(&log) > 2 {
        std::thread::yield_now();
    }
    drop((store, log));
}

/// Not a test of its own: the child of the next one.
#[test]
#[ignore = "runs as a child that is killed"]
fn child_that_writes_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (_store, log, _) = open(Path::new(&folder));
    let entropy = SeededEntropy::new(log.tail().sequence.0);
    let index = DiskIndex::open(Arc::clone(&log)).unwrap();
    runtime().block_on(async {
        let sink = log.sink().unwrap();
        let mut next = log.tail().sequence.0 + 1;
        loop {
            let count = entropy.next_u64() % 40 + 1;
            sink.append((next..next + count).map(frame).collect()).await.unwrap();
            next += count;
            println!("durable {}", sink.settle().await.unwrap());
            if entropy.next_u64().is_multiple_of(3) {
                index.catch_up().unwrap();
                index.compact().unwrap();
            }
        }
    });
}

#[test]
fn nothing_acknowledged_is_lost_by_kill_9() {
    let folder = TempDir::new().unwrap();
    let entropy = SeededEntropy::new(4711);
    for _ in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::child_that_writes_until_killed", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = entropy.next_u64() % 12 + 1;
        let mut acknowledged = 0;
        for line in lines.map_while(Result::ok) {
            // The test runner's own words may stand in front.
            if let Some((_, number)) = line.split_once("durable ") {
                acknowledged = number.parse().unwrap();
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, log, found) = open(folder.path());
        assert!(found.iter().all(|found| found.damage.is_empty() && found.error.is_none()), "{found:?}");
        assert!(acknowledged > 0 && log.tail().sequence.0 >= acknowledged);
        check(&log, log.tail().sequence.0);
        close(store, log);
    }
}

/// A store of 100 frames, all durable, in several segments.
fn filled(folder: &Path) -> Vec<(Sequence, u64)> {
    let (store, log, _) = open(folder);
    runtime().block_on(append(&log, 1..=100, 5)).unwrap();
    let segments = log.layout().list_segments().unwrap();
    assert!(segments.len() >= 3);
    close(store, log);
    segments
}

fn segment(folder: &Path, first: Sequence) -> std::path::PathBuf {
    holdfast_coordinator::store::layout::StoreLayout::new(folder).disk(manifest().disk).segment(first)
}

#[test]
fn a_newest_segment_cut_anywhere_keeps_all_whole_frames_and_goes_on() {
    let origin = TempDir::new().unwrap();
    let (first, size) = *filled(origin.path()).last().unwrap();
    let bytes = fs::read(segment(origin.path(), first)).unwrap();
    for cut in [0, 50, 96, 97, 159, 160, 161, 255, 256, 271, 272, 5000, size - 4096, size - 1] {
        let cut = cut.min(size);
        let folder = TempDir::new().unwrap();
        filled(folder.path());
        fs::write(segment(folder.path(), first), &bytes[..usize::try_from(cut).unwrap()]).unwrap();
        let (store, log, found) = open(folder.path());
        assert!(found[0].error.is_none(), "{found:?}");
        let last = log.tail().sequence.0;
        assert!(last >= first.0 - 1 && last <= 100);
        runtime().block_on(append(&log, last + 1..=last + 20, 3)).unwrap();
        check(&log, last + 20);
        close(store, log);
    }
}

#[test]
fn a_missing_or_truncated_older_segment_is_named_and_makes_later_cuts_unfit() {
    for truncate in [false, true] {
        let folder = TempDir::new().unwrap();
        let segments = filled(folder.path());
        let (first, size) = segments[1];
        let path = segment(folder.path(), first);
        if truncate {
            fs::File::options().write(true).open(&path).unwrap().set_len(size / 2).unwrap();
        } else {
            fs::remove_file(&path).unwrap();
        }
        let (store, log, _) = open(folder.path());
        assert_eq!(log.tail().sequence, Sequence(100));
        let index = DiskIndex::open(Arc::clone(&log)).unwrap();
        index.catch_up().unwrap();
        let losses = index.losses();
        assert_eq!(losses.len(), 1);
        assert_eq!(losses[0].last.0 + 1, segments[2].0.0);
        assert!(losses[0].first >= first);
        for cut in index.cuts() {
            assert_eq!(cut.whole, cut.sequence < losses[0].first, "{}", cut.sequence);
        }
        runtime().block_on(append(&log, 101..=110, 4)).unwrap();
        drop(index);
        close(store, log);
    }
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_hits_only_its_frame() {
    let folder = TempDir::new().unwrap();
    let segments = filled(folder.path());
    let path = segment(folder.path(), segments[0].0);
    let mut bytes = fs::read(&path).unwrap();
    // The first frame's payload: segment header, mark, frame header, table of one extent.
    bytes[96 + 64 + 96 + 16 + 1000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let (store, log, _) = open(folder.path());
    assert_eq!(log.check(&CheckOrder::all(2), &|_| true).unwrap().bad, [Sequence(1)]);
    let index = DiskIndex::open(Arc::clone(&log)).unwrap();
    index.catch_up().unwrap();
    assert!(index.losses().is_empty() && index.cuts().iter().all(|cut| cut.whole));
    let view = PointView::at_cut(&index, FrameCache::new(1 << 20), Sequence(10)).unwrap();
    for block in 0..BLOCKS {
        let mut bytes = [0; BLOCK_BYTES];
        let read = view.read(block * BLOCK_BYTES as u64, &mut bytes);
        assert_eq!(read.is_err(), block == content(1).0, "{block}: {read:?}");
    }
    drop((view, index));
    close(store, log);
}

/// A file system in memory of its own, unmounted when dropped.
pub(crate) struct Mounted(TempDir);

impl Mounted {
    pub(crate) fn new(size: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        if mount.is_ok_and(|status| status.success()) {
            Some(Self(folder))
        } else {
            eprintln!("skipped: mounting a tmpfs needs root");
            None
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn remount(&self, option: &str) {
        let options = format!("remount,{option}");
        let status = Command::new("mount").args(["-o", &options]).arg(self.0.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_file_system_half_applies_nothing_and_replication_goes_on_when_there_is_room() {
    let Some(mounted) = Mounted::new("2m") else { return };
    let folder = mounted.0.path().join("store");
    let (store, log, _) = open(&folder);
    let ballast = mounted.0.path().join("ballast");
    fs::write(&ballast, vec![1; 900_000]).unwrap();
    let error = runtime().block_on(append(&log, 1..=2000, 7)).unwrap_err();
    assert!(matches!(error, StoreError::Stopped(_)), "{error:?}");
    assert!(error.to_string().contains("No space left"), "{error}");
    let last = log.tail().sequence.0;
    assert!(last > 100 && last < 2000);
    // Still full: the same again, and nothing changes.
    assert!(runtime().block_on(append(&log, last + 1..=last + 7, 7)).is_err());
    assert_eq!(log.tail().sequence, Sequence(last));
    for sequence in 1..=last {
        assert_eq!(log.read(Sequence(sequence)).unwrap().bytes(), frame(sequence).bytes());
    }
    fs::remove_file(&ballast).unwrap();
    runtime().block_on(append(&log, last + 1..=last + 30, 7)).unwrap();
    check(&log, last + 30);
    close(store, log);
    let (store, log, found) = open(&folder);
    assert!(found[0].damage.is_empty());
    check(&log, last + 30);
    close(store, log);
}

#[test]
fn a_read_only_folder_is_a_clear_error() {
    let Some(mounted) = Mounted::new("2m") else { return };
    let folder = mounted.0.path().join("store");
    let (store, log, _) = open(&folder);
    runtime().block_on(append(&log, 1..=20, 7)).unwrap();
    close(store, log);
    mounted.remount("ro");
    let error = Store::open(&folder, settings()).unwrap_err();
    assert!(matches!(&error, StoreError::Io { path, .. } if path.ends_with("lock")), "{error:?}");
    mounted.remount("rw");
    let (store, log, _) = open(&folder);
    check(&log, 20);
    close(store, log);
}
