//! A wall clock that is ahead, for one program: what is due in a day can be waited for.
//!
//! Owns a small library that is loaded before the C library's and answers for it when a program asks for the time of day. Time
//! that only ever runs, by which programs wait, stays as it is. Programs that it starts have the same clock.
//! Limit: programs that are linked dynamically.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::file_system::run;

/// Environment variable with the seconds.
const AHEAD: &str = "HOLDFAST_TEST_CLOCK_AHEAD_S";
/// The library.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    const char *ahead = getenv("HOLDFAST_TEST_CLOCK_AHEAD_S");
    if (!failed && clock == CLOCK_REALTIME && ahead)
        now->tv_sec += atol(ahead);
    return failed;
}
"#;

/// Why no clock can be stepped here, or `None` if it can. Tests print it as `skipped: ...`.
#[must_use]
pub fn unavailable() -> Option<String> {
    let found = Command::new("cc").arg("--version").output();
    (!found.is_ok_and(|output| output.status.success())).then(|| "there is no C compiler (cc)".to_owned())
}

/// A clock that is so far ahead.
#[derive(Clone, Debug)]
pub struct SteppedClock {
    library: PathBuf,
    ahead: Duration,
}

impl SteppedClock {
    /// Makes the library in this folder.
    ///
    /// # Errors
    /// It cannot be compiled.
    pub fn build(folder: &Path, ahead: Duration) -> Result<Self> {
        let (source, library) = (folder.join("stepped-clock.c"), folder.join("stepped-clock.so"));
        fs::write(&source, SOURCE)?;
        run(Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source))?;
        Ok(Self { library, ahead })
    }

    /// Has a program that is about to be started live by it.
    pub fn give_to(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env(AHEAD, self.ahead.as_secs().to_string());
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use super::{SteppedClock, unavailable};

    #[test]
    fn a_program_has_another_day_and_the_same_seconds() {
        if let Some(reason) = unavailable() {
            eprintln!("skipped: {reason}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let clock = SteppedClock::build(folder.path(), Duration::from_secs(86_400)).unwrap();
        let asked = |clock: Option<&SteppedClock>| {
            let mut command = Command::new("date");
            if let Some(clock) = clock {
                clock.give_to(&mut command);
            }
            let output = command.arg("+%s").output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap()
        };
        let (before, ahead, after) = (asked(None), asked(Some(&clock)), asked(None));
        assert!((before..=after).contains(&(ahead - 86_400)), "{before} {ahead} {after}");
    }
}
