//! A disk that fails at one step: the store's process is killed, or meets a full disk, at each call with which appending, merging
//! runs, checkpoints, retention and reclaim change files.
//!
//! The fault is put in by strace, which counts the calls of each thread; so nothing in the program knows of it, and no step is
//! left out that somebody forgot to name. Every so many steps are tried, from a place that the seed gives; all of them with
//! `HOLDFAST_TEST_FAULTS=all`. That a file cannot be created for want of space, strace cannot tell from other opening: for that
//! a real file system has room for so many names, or pages, and no more.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use holdfast_common::{
    causes::in_one_line,
    entropy::{Entropy as _, SeededEntropy},
};
use holdfast_coordinator::{index::DiskIndex, store::DiskLog};
use holdfast_tests::{asked, journal::frame, program::installed};
use tempfile::{NamedTempFile, TempDir};

use crate::{
    reclaim::{check, open, try_give_up},
    store::{Mounted, close, runtime},
};

/// Names the folder to the child.
const FOLDER: &str = "HOLDFAST_TEST_CRASH_FAULTS";
/// Calls that change files or make changes durable.
const CALLS: &str = "write,pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir";
/// Calls for which a full disk has an answer of its own, besides `write`.
const WRITES: &str =
    "pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2,mkdir";
/// The test runner writes too, to its output and less often than this; the child's own `write`s are counted from here.
const RUNNER_WRITES: u64 = 16;
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

/// Adds frames, and after each group merges, gives up and reclaims.
fn work(log: &Arc<DiskLog>, index: &Arc<DiskIndex>, up_to: u64) -> Result<(), String> {
    while log.tail().sequence.0 < up_to {
        let next = log.tail().sequence.0 + 1;
        runtime().block_on(async {
            let sink = log.sink().map_err(|error| in_one_line(&error))?;
            let frames = (next..(next + STEP).min(up_to + 1)).map(frame).collect();
            sink.append(frames).await.map_err(|error| in_one_line(&error))?;
            let durable = sink.settle().await.map_err(|error| in_one_line(&error))?;
            say(&format!("durable {durable}"));
            Ok::<(), String>(())
        })?;
        index.catch_up().map_err(|error| in_one_line(&error))?;
        while index.compact().map_err(|error| in_one_line(&error))? {}
        try_give_up(log, index).map_err(|error| in_one_line(error.as_ref()))?;
    }
    Ok(())
}

/// Tells the parent, by a call in which no fault is put.
fn say(line: &str) {
    let line = format!("{line}\n");
    rustix::io::writev(std::io::stdout(), &[std::io::IoSlice::new(line.as_bytes())]).unwrap();
}

/// Not a test of its own: the child of the next ones.
#[test]
#[ignore = "runs as a child that meets a fault"]
fn child_that_meets_a_fault() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    for _ in 0..RUNNER_WRITES {
        (&null).write_all(b"-").unwrap();
    }
    let (_store, log, index) = open(Path::new(&folder));
    let up_to = log.tail().sequence.0 + FRAMES;
    for _ in 0..TRIES {
        match work(&log, &index, up_to) {
            Ok(()) => {
                say("finished");
                return;
            }
            Err(error) => say(&format!("failed {error}")),
        }
        // As the follower does it: what could not be synced is made again.
        index.rebuild().unwrap();
    }
}

/// Runs the child with faults; strace writes down which of its calls met one.
fn child(folder: &Path, faults: &[String], trace: &Path) -> Output {
    Command::new("strace")
        .args(["--follow-forks", "--quiet=all", &format!("--trace={CALLS},fallocate"), "--output"])
        .arg(trace)
        .args(faults.iter().map(|fault| format!("--inject={fault}")))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "faults::child_that_meets_a_fault", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .output()
        .unwrap()
}

/// The steps to try: ascending, without an end of their own.
fn steps() -> impl Iterator<Item = u64> {
    let seed = asked::seed();
    let all = asked::all_faults();
    let stride = if all { 1 } else { STRIDE };
    let first = if all { 1 } else { SeededEntropy::new(seed).next_u64() % stride + 1 };
    (first..STEPS_MAX).step_by(usize::try_from(stride).unwrap())
}

/// Tries faults step by step until one comes later than the child ends; gives how many struck, and how many frames were given back in
/// all. After each one nothing that was acknowledged may be missing, and all must go on.
fn strike(faults: impl Fn(u64) -> Vec<String>, struck: impl Fn(&Output, &str) -> bool) -> (u64, u64) {
    let (mut count, mut given_back) = (0, 0);
    for step in steps() {
        let folder = TempDir::new().unwrap();
        let trace = NamedTempFile::new().unwrap();
        let output = child(folder.path(), &faults(step), trace.path());
        let said = String::from_utf8_lossy(&output.stdout);
        let mut durable = said.lines().filter_map(|line| line.split_once("durable ")?.1.trim().parse().ok());
        let durable: u64 = durable.next_back().unwrap_or(0);
        let (store, log, index) = open(folder.path());
        let last = log.tail().sequence.0;
        assert!(last >= durable, "step {step}: {durable} was acknowledged, {last} is there\n{said}");
        check(&log, &index, last);
        work(&log, &index, last + STEP).unwrap();
        given_back += check(&log, &index, last + STEP);
        drop(index);
        close(store, log);
        if struck(&output, &fs::read_to_string(trace.path()).unwrap()) {
            count += 1;
        } else {
            assert!(said.contains("finished"), "step {step}: {said}");
            return (count, given_back);
        }
    }
    panic!("there is no end to the steps");
}

#[test]
fn nothing_is_lost_when_the_process_dies_at_any_step() {
    if !installed(&["strace"]) {
        return;
    }
    let killed = |output: &Output, _: &str| !String::from_utf8_lossy(&output.stdout).contains("finished");
    // strace counts each kind of call for itself: of several at once, only the most frequent would be met at its later steps.
    let (mut in_all, mut found) = ((0, 0), Vec::new());
    for call in CALLS.split(',') {
        let before = if call == "write" { RUNNER_WRITES } else { 0 };
        let faults = |step| vec![format!("{call}:signal=SIGKILL:when={}", step + before)];
        let (count, given_back) = strike(faults, killed);
        in_all = (in_all.0 + count, in_all.1 + given_back);
        found.push(format!("{count} of {call}"));
    }
    eprintln!("killed at {} steps: {}", in_all.0, found.join(", "));
    assert!(in_all.0 > 20, "only {found:?} were found");
    assert!(in_all.1 > 0, "there was nothing to reclaim");
}

#[test]
fn a_full_disk_at_any_write_is_an_error_and_all_goes_on() {
    if !installed(&["strace"]) {
        return;
    }
    let failures = AtomicU64::new(0);
    let full = |output: &Output, trace: &str| {
        let said = String::from_utf8_lossy(&output.stdout);
        let mut failed = said.lines().filter(|line| line.contains("failed "));
        assert!(failed.clone().all(|line| line.contains("No space left")), "{said}");
        // Trouble with files of the index alone does not come up where it is made good at once.
        failures.fetch_add(u64::from(failed.next().is_some()), Ordering::Relaxed);
        trace.contains("INJECTED")
    };
    let faults = |step| {
        let own = step + RUNNER_WRITES;
        vec![format!("{WRITES}:error=ENOSPC:when={step}"), format!("write:error=ENOSPC:when={own}")]
    };
    let (count, given_back) = strike(faults, full);
    let failures = failures.into_inner();
    eprintln!("full at {count} steps, of which {failures} failed");
    assert!(failures > 10, "only {failures} steps were found");
    assert!(given_back > 0, "there was nothing to reclaim");
}

/// Lets a store grow in a file system with room for so many more pages or names; gives how often it was full. Then there is
/// room, and nothing may be missing.
fn grow(limit: &str, more: u64) -> usize {
    let Some(mounted) = Mounted::new("4m") else { return 0 };
    let folder = mounted.path().join("store");
    let (store, log, index) = open(&folder);
    work(&log, &index, STEP).unwrap();
    let used = rustix::fs::statvfs(mounted.path()).unwrap();
    let used = if limit == "size" {
        (used.f_blocks - used.f_bfree) * used.f_frsize
    } else {
        used.f_files - used.f_ffree
    };
    mounted.remount(&format!("{limit}={}", used + more));
    let up_to = STEP + FRAMES;
    let mut failures = 0;
    while let Err(error) = work(&log, &index, up_to) {
        assert!(error.contains("No space left"), "{limit} of {more} more: {error}");
        index.rebuild().unwrap();
        failures += 1;
        if failures == 2 {
            mounted.remount(&format!("{limit}={}", if limit == "size" { "16m" } else { "10000" }));
        }
        assert!(failures < TRIES, "{limit} of {more} more: {error}");
    }
    check(&log, &index, up_to);
    drop(index);
    close(store, log);
    let (store, log, index) = open(&folder);
    check(&log, &index, up_to);
    drop(index);
    close(store, log);
    failures
}

#[test]
fn a_file_system_that_fills_at_any_page_or_name_loses_nothing_and_all_goes_on() {
    let all = asked::all_faults();
    for (limit, unit, stride) in [("size", 4096, if all { 1 } else { 12 }), ("nr_inodes", 1, 1)] {
        let mut count = 0;
        for step in (0..).step_by(stride) {
            if grow(limit, step * unit) == 0 {
                break;
            }
            count += 1;
        }
        eprintln!("{limit}: full at {count} steps");
    }
}
