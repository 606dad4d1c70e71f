//! Giving up cuts, joining runs, checkpoints of the index and reclaim under kill -9.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    ids::Sequence,
};
use holdfast_coordinator::{
    index::DiskIndex,
    points::{FrameCache, PointView},
    store::{CheckOrder, DiskLog, NeededCuts, Store, StoreSettings, reclaim},
};
use holdfast_tests::journal::{frame, is_cut, manifest, settings};
use tempfile::TempDir;

use crate::store::{check_view, close, runtime};

/// Names the folder to a child that works until it is killed.
const FOLDER: &str = "HOLDFAST_TEST_CRASH_RECLAIM";
/// Times that a child is killed.
const KILLS: u64 = 10;
/// Of the older cuts, one in so many stays.
const KEPT_OF: usize = 4;

pub(crate) fn open(folder: &Path) -> (Arc<Store>, Arc<DiskLog>, Arc<DiskIndex>) {
    let settings = StoreSettings { segment_bytes: 40_000, ..settings() };
    let (store, found) = Store::open(folder, settings).unwrap();
    assert!(found.iter().all(|found| found.damage.is_empty() && found.error.is_none()), "{found:?}");
    // A crash between the first record of what is kept and its copy leaves no copy.
    assert!(
        found.iter().flat_map(|found| &found.records).all(|record| record.contains("missing")),
        "{found:?}"
    );
    let log = store.create_disk(&manifest()).unwrap();
    let index = DiskIndex::open(Arc::clone(&log)).unwrap();
    (store, log, index)
}

/// The newest five cuts, and of the others every fourth by its number, so that what stays does not depend on when one asks.
fn needed(index: &DiskIndex) -> NeededCuts {
    let cuts: Vec<Sequence> = index.cuts().iter().map(|cut| cut.sequence).collect();
    let young = cuts.len().saturating_sub(5);
    let stays = |at: usize, cut: &Sequence| at >= young || (cut.0 / 10).is_multiple_of(KEPT_OF as u64);
    let kept: Vec<Sequence> =
        cuts.iter().enumerate().filter(|(at, cut)| stays(*at, cut)).map(|(_, cut)| *cut).collect();
    NeededCuts { horizon: kept.last().copied().unwrap_or_default(), cuts: kept }
}

pub(crate) fn try_give_up(log: &DiskLog, index: &DiskIndex) -> Result<(), Box<dyn std::error::Error>> {
    while index.retire(&needed(index))?.more {}
    while index.tidy()? {}
    let plan = reclaim::plan(&log.census()?, 40_000);
    log.reclaim(&plan, &mut |_| true)?;
    Ok(())
}

fn give_up(log: &DiskLog, index: &DiskIndex) {
    try_give_up(log, index).unwrap();
}

/// Not a test of its own: the child of the next one.
#[test]
#[ignore = "runs as a child that is killed"]
fn child_that_gives_up_until_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (_store, log, index) = open(Path::new(&folder));
    let runtime = runtime();
    let sink = log.sink().unwrap();
    let mut next = log.tail().sequence.0 + 1;
    loop {
        runtime.block_on(async {
            sink.append((next..next + 30).map(frame).collect()).await.unwrap();
            println!("durable {}", sink.settle().await.unwrap());
        });
        next += 30;
        index.catch_up().unwrap();
        while index.compact().unwrap() {}
        give_up(&log, &index);
    }
}

/// Each frame is there, or named as one that nobody needs; gives how many are not there any more.
fn missing(log: &DiskLog) -> u64 {
    let (kept, last) = (log.kept(), log.tail().sequence);
    let (mut after, mut missing) = (Sequence(0), 0);
    while after < last {
        let batch = log.heads_after(after, 1 << 20).unwrap();
        assert!(batch.up_to > after, "there is nothing behind {after}");
        let there: HashSet<Sequence> = batch.heads.iter().map(|head| head.header.sequence).collect();
        for sequence in
            (after.0 + 1..=batch.up_to.0).map(Sequence).filter(|sequence| !there.contains(sequence))
        {
            assert!(kept.is_gone(sequence), "frame {sequence} is missing, and was not given up");
            missing += 1;
        }
        after = batch.up_to;
    }
    missing
}

/// Every cut that the log's record keeps shows exactly what came before it. Gives how many frames were given back.
pub(crate) fn check(log: &Arc<DiskLog>, index: &Arc<DiskIndex>, last: u64) -> u64 {
    assert_eq!(index.catch_up().unwrap(), Sequence(last));
    assert_eq!((index.losses(), log.check(&CheckOrder::all(2), &|_| true).unwrap().bad), (vec![], vec![]));
    let kept = log.kept();
    let cuts: Vec<u64> = index.cuts().iter().map(|cut| cut.sequence.0).collect();
    let expected: Vec<u64> =
        (1..=last).filter(|sequence| is_cut(*sequence) && kept.needs_cut(Sequence(*sequence))).collect();
    assert_eq!(cuts, expected);
    let cache = FrameCache::new(4 << 20);
    let some = cuts.iter().step_by(cuts.len().div_ceil(12).max(1)).chain(cuts.last());
    for cut in some {
        check_view(&PointView::at_cut(index, Arc::clone(&cache), Sequence(*cut)).unwrap(), *cut);
    }
    check_view(&PointView::newest(index, cache), last);
    missing(log)
}

#[test]
fn no_needed_cut_is_lost_by_kill_9_while_others_are_given_up() {
    let folder = TempDir::new().unwrap();
    let entropy = SeededEntropy::new(815);
    let mut given_back = 0;
    for round in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "reclaim::child_that_gives_up_until_killed", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let durable = lines.map_while(Result::ok).filter(|line| line.contains("durable "));
        let count = usize::try_from(entropy.next_u64() % 8 + 2).unwrap();
        assert_eq!(durable.take(count).count(), count, "the child ended by itself");
        // Somewhere in what follows the acknowledgement.
        std::thread::sleep(std::time::Duration::from_micros(entropy.next_u64() % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, log, index) = open(folder.path());
        check(&log, &index, log.tail().sequence.0);
        if round % 3 == 2 {
            index.rebuild().unwrap();
            check(&log, &index, log.tail().sequence.0);
        }
        give_up(&log, &index);
        given_back = check(&log, &index, log.tail().sequence.0);
        drop(index);
        close(store, log);
    }
    assert!(given_back > 0, "there was nothing to reclaim");
}
