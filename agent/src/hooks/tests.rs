//! Hooks as real programs, in this process; the keeper as a process is in the tests of the whole.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use holdfast_common::clock::SystemClock;

use super::program::{OUTPUT_BYTES_MAX, call, list};

fn hook(folder: &Path, name: &str, mode: u32, body: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

fn names(folder: &Path) -> Result<Vec<String>, String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    list(folder).map(|hooks| hooks.iter().map(name).collect())
}

#[test]
fn executables_are_hooks_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["20-mysql", "10-postgresql", "30-old.bak", "40-new.sample", ".hidden", "50-edited~"] {
        hook(folder.path(), name, 0o755, "");
    }
    hook(folder.path(), "60-readme", 0o644, "");
    fs::create_dir(folder.path().join("70-folder")).unwrap();
    assert_eq!(names(folder.path()).unwrap(), ["10-postgresql", "20-mysql"]);
}

#[test]
fn no_hooks_and_hooks_that_anybody_may_change_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(names(folder.path()).unwrap_err().contains("there is no freeze hook"));
    assert!(names(Path::new("/nonexistent")).unwrap_err().contains("there is no freeze hook"));
    hook(folder.path(), "10-open", 0o777, "");
    assert!(names(folder.path()).unwrap_err().contains("chmod 755"));
}

#[test]
fn a_call_says_what_went_wrong_with_the_beginning_of_what_was_printed() {
    let folder = tempfile::tempdir().unwrap();
    let second = Duration::from_secs(10);
    let clock = SystemClock::new();
    let good = hook(folder.path(), "good", 0o755, "test \"$1\" = freeze");
    assert_eq!(call(&good, "freeze", second, &clock), Ok(()));
    assert!(call(&good, "thaw", second, &clock).unwrap_err().contains("failed (exit status: 1)"));
    let loud = hook(folder.path(), "loud", 0o755, "yes begin | head -c 1000000; echo last >&2; exit 3");
    let error = call(&loud, "freeze", second, &clock).unwrap_err();
    assert!(error.contains("begin") && error.contains("last"), "{}", error.len());
    assert!(error.len() < 2 * OUTPUT_BYTES_MAX, "{}", error.len());
    assert!(
        call(Path::new("/nonexistent"), "freeze", second, &clock).unwrap_err().contains("cannot be started")
    );
}

#[test]
fn a_call_that_takes_too_long_is_killed_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let slow = hook(folder.path(), "slow", 0o755, &format!("sleep 600 & echo $! > {}; wait", pid.display()));
    let error = call(&slow, "freeze", Duration::from_secs(2), &SystemClock::new()).unwrap_err();
    assert!(error.contains("took more than 2 s and was killed"), "{error}");
    let child = fs::read_to_string(pid).unwrap();
    // The signal is sent to the whole group when the call returns; the child notices it when it next runs. A child that was not
    // killed sleeps on for ten minutes: this test ends by the runner's limit then.
    loop {
        let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        // Gone, or a zombie that waits for its parent.
        if state.is_empty() || state.contains(") Z ") {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_child_that_keeps_the_output_open_does_not_keep_the_call() {
    let folder = tempfile::tempdir().unwrap();
    let leaving = hook(folder.path(), "leaving", 0o755, "sleep 5 & exit 1");
    let error = call(&leaving, "freeze", Duration::from_secs(60), &SystemClock::new()).unwrap_err();
    assert!(error.contains("failed (exit status: 1)"), "{error}");
}
