//! A disk that fails at one step: the store's process is killed, or meets a full disk, at each call with which appending, merging
//! runs, checkpoints, retention and reclaim change files.
//!
//! The fault is put in by strace, which counts the calls of each thread; so nothing in the program knows of it, and no step is
//! left out that somebody forgot to name. Every so many steps are tried, from a place that the seed gives; all of them with
//! `HOLDFAST_TEST_FAULTS=all`.

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_coordinator::{index::DiskIndex, store::DiskLog};
use holdfast_tests::{journal::frame, program::installed};
use tempfile::TempDir;

use crate::{
    reclaim::{check, open, try_give_up},
    store::{close, runtime},
};

/// Names the folder to the child.
const FOLDER: &str = "HOLDFAST_TEST_CRASH_FAULTS";
/// Calls that change files or make changes durable.
const CALLS: &str = "write,pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir";
/// Calls for which a full disk has an answer of its own.
const WRITES: &str = "pwrite64,pwritev,pwritev2,fsync,fdatasync,mkdir";
/// Frames that the child adds.
const FRAMES: u64 = 150;
/// Frames added at a time.
const STEP: u64 = 30;
/// One in so many steps is tried.
const STRIDE: u64 = 4;
/// More steps than there are.
const STEPS_MAX: u64 = 20_000;
/// A fault comes once for each call and thread; whoever tries so often must get through.
const TRIES: usize = 8;

/// An error and what it comes from.
fn text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// Adds frames, and after each group merges, gives up and reclaims.
fn work(log: &Arc<DiskLog>, index: &Arc<DiskIndex>, up_to: u64) -> Result<(), String> {
    while log.tail().sequence.0 < up_to {
        let next = log.tail().sequence.0 + 1;
        runtime().block_on(async {
            let sink = log.sink().map_err(|error| text(&error))?;
            let frames = (next..(next + STEP).min(up_to + 1)).map(frame).collect();
            sink.append(frames).await.map_err(|error| text(&error))?;
            let durable = sink.settle().await.map_err(|error| text(&error))?;
            println!("durable {durable}");
            Ok::<(), String>(())
        })?;
        index.catch_up().map_err(|error| text(&error))?;
        while index.compact().map_err(|error| text(&error))? {}
        try_give_up(log, index).map_err(|error| text(error.as_ref()))?;
    }
    Ok(())
}

/// Not a test of its own: the child of the next ones.
#[test]
#[ignore = "runs as a child that meets a fault"]
fn child_that_meets_a_fault() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let (_store, log, index) = open(Path::new(&folder));
    let up_to = log.tail().sequence.0 + FRAMES;
    for _ in 0..TRIES {
        match work(&log, &index, up_to) {
            Ok(()) => {
                println!("finished");
                return;
            }
            Err(error) => println!("failed {error}"),
        }
        // As the follower does it: what could not be synced is made again.
        index.rebuild().unwrap();
    }
}

/// Runs the child with a fault at a step.
fn child(folder: &Path, fault: &str) -> Output {
    Command::new("strace")
        .args(["--follow-forks", "--quiet=all", "--output=/dev/null"])
        .arg(format!("--inject={fault}"))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::child_that_meets_a_fault", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .output()
        .unwrap()
}

/// The steps to try: ascending, without an end of their own.
fn steps() -> impl Iterator<Item = u64> {
    let seed = std::env::var("HOLDFAST_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("HOLDFAST_TEST_SEED={seed}");
    let all = std::env::var_os("HOLDFAST_TEST_FAULTS").is_some();
    let stride = if all { 1 } else { STRIDE };
    let first = if all { 1 } else { SeededEntropy::new(seed).next_u64() % stride + 1 };
    (first..STEPS_MAX).step_by(usize::try_from(stride).unwrap())
}

/// Tries faults step by step until one comes later than the child ends; gives how many struck. After each one nothing that was
/// acknowledged may be missing, and all must go on.
fn strike(fault: impl Fn(u64) -> String, struck: impl Fn(&Output) -> bool) -> u64 {
    let (mut count, mut misses) = (0, 0);
    for step in steps() {
        let folder = TempDir::new().unwrap();
        let output = child(folder.path(), &fault(step));
        let said = String::from_utf8_lossy(&output.stdout);
        let mut durable = said.lines().filter_map(|line| line.split_once("durable ")?.1.trim().parse().ok());
        let durable: u64 = durable.next_back().unwrap_or(0);
        let (store, log, index) = open(folder.path());
        let last = log.tail().sequence.0;
        assert!(last >= durable, "step {step}: {durable} was acknowledged, {last} is there\n{said}");
        check(&log, &index, last);
        work(&log, &index, last + STEP).unwrap();
        check(&log, &index, last + STEP);
        drop(index);
        close(store, log);
        if struck(&output) {
            (count, misses) = (count + 1, 0);
        } else {
            // Another thread may have come to its end while one still has more steps.
            misses += 1;
            assert!(said.contains("finished"), "step {step}: {said}");
            if misses == 3 {
                return count;
            }
        }
    }
    panic!("there is no end to the steps");
}

#[test]
fn nothing_is_lost_when_the_process_dies_at_any_step() {
    if !installed(&["strace"]) {
        return;
    }
    let killed = |output: &Output| !String::from_utf8_lossy(&output.stdout).contains("finished");
    let count = strike(|step| format!("{CALLS}:signal=SIGKILL:when={step}"), killed);
    eprintln!("killed at {count} steps");
    assert!(count > 10, "only {count} steps were found");
}

#[test]
fn a_full_disk_at_any_write_is_an_error_and_all_goes_on() {
    if !installed(&["strace"]) {
        return;
    }
    // Trouble with files of the index alone does not come up where it is made good at once.
    let full = |output: &Output| {
        let said = String::from_utf8_lossy(&output.stdout);
        let failed = said.lines().filter(|line| line.contains("failed "));
        assert!(failed.clone().all(|line| line.contains("No space left")), "{said}");
        failed.count() > 0
    };
    let count = strike(|step| format!("{WRITES}:error=ENOSPC:when={step}"), full);
    eprintln!("full at {count} steps");
    assert!(count > 3, "only {count} steps were found");
}
