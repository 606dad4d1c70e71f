//! Running programs of the system as peers in tests.
//!
//! Owns nothing. Invariant: a program that is not installed is said to be missing, never silently passed.

use std::process::{Command, Output};

/// Whether all these programs are there; says on standard error which one is not.
#[must_use]
pub fn installed(programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for program in programs {
        if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
            eprintln!("skipped: {program} is not installed");
            return false;
        }
    }
    true
}

/// Runs a program to its end.
///
/// # Panics
/// It cannot be started.
#[must_use]
#[expect(clippy::expect_used, reason = "a test without its program cannot go on")]
pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().expect(program)
}

/// Runs a program that must succeed and gives its standard output.
///
/// # Panics
/// It fails.
#[must_use]
pub fn run_ok(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}
