//! The keeper: a process of its own that runs the hooks, and thaws them whatever becomes of the agent.
//!
//! Owns the calls and their order. It is the agent's own program, started with a hidden argument; its standard input ends when
//! the hooks are to be thawed (or the agent is gone), on standard output it says what happened. Invariant: whatever was called
//! with `freeze` is called with `thaw`, in reverse, before it ends; the marker lies there from before the first `freeze` until
//! after the last `thaw`.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, SystemClock},
    durable,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
};

use super::{
    message::Word,
    program::{call, list},
};

/// How long another keeper is waited for that is still thawing.
const OTHER_KEEPER_WAIT: Duration = Duration::from_secs(30);
/// Calls with `thaw` until a hook is given up.
const THAW_ATTEMPTS: u32 = 3;

/// What the hidden argument is followed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeeperArguments {
    /// Folder of the hooks.
    pub folder: PathBuf,
    /// File that says that hooks may be frozen.
    pub marker: PathBuf,
    /// Longest time of one call.
    pub call_max: Duration,
    /// Longest time from the first `freeze` on.
    pub bound: Duration,
    /// Only thaw, if the marker is there.
    pub thaw_only: bool,
}

/// Runs the keeper. What `main` calls for the hidden argument `hook-keeper`.
#[must_use]
pub fn keeper_main(arguments: &KeeperArguments) -> ExitCode {
    // A group of its own: an interrupt from the terminal is meant for the agent.
    let _leader_already = rustix::process::setsid();
    let keeper = Keeper { arguments, clock: SystemClock::new() };
    let done = if arguments.thaw_only { keeper.thaw_abandoned() } else { keeper.run() };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(&Word::Failed { reason });
            ExitCode::FAILURE
        }
    }
}

struct Keeper<'a> {
    arguments: &'a KeeperArguments,
    clock: SystemClock,
}

impl Keeper<'_> {
    fn run(&self) -> Result<(), String> {
        let hooks = list(&self.arguments.folder)?;
        // Locked until this process ends.
        let _lock = self.mark(&hooks)?;
        let start = self.clock.monotonic();
        let mut called = Vec::with_capacity(hooks.len());
        let mut failure = None;
        for hook in &hooks {
            if !self.is_wanted(Duration::ZERO) {
                failure = Some("the agent is gone".to_owned());
                break;
            }
            called.push(hook.as_path());
            if let Err(reason) = call(hook, "freeze", self.arguments.call_max, &self.clock) {
                failure = Some(reason);
                break;
            }
        }
        let mut expired = false;
        if failure.is_none() {
            say(&Word::Frozen { hooks: hooks.iter().map(|hook| name(hook)).collect() });
            expired = self.stand(start);
        }
        let failures = self.thaw(called.iter().rev().copied());
        self.unmark()?;
        if let Some(reason) = failure {
            return Err(reason);
        }
        let frozen = self.clock.monotonic().saturating_sub(start);
        let frozen_us = u64::try_from(frozen.as_micros()).unwrap_or(u64::MAX);
        say(&Word::Thawed { failures, expired, frozen_us });
        Ok(())
    }

    /// Waits until the agent wants the hooks thawed, or is gone; says whether the bound was over before.
    fn stand(&self, start: Duration) -> bool {
        loop {
            let age = self.clock.monotonic().saturating_sub(start);
            let left = self.arguments.bound.saturating_sub(age);
            if left.is_zero() {
                return true;
            }
            if !self.is_wanted(left) {
                return false;
            }
        }
    }

    /// Whether the agent still wants the hooks frozen. Waits for the contrary for at most so long.
    fn is_wanted(&self, at_most: Duration) -> bool {
        let stdin = io::stdin();
        let mut sources = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        let timeout = Timespec::try_from(at_most).ok();
        // Nothing is ever written there: whatever can be read is its end.
        !matches!(poll(&mut sources, timeout.as_ref()), Ok(1..))
    }

    fn thaw<'h>(&self, hooks: impl Iterator<Item = &'h Path>) -> Vec<String> {
        let mut failures = Vec::new();
        for hook in hooks {
            let attempt = |_| call(hook, "thaw", self.arguments.call_max, &self.clock).err();
            let mut reasons = (0..THAW_ATTEMPTS).map_while(attempt);
            if let Some(first) = reasons.next() {
                failures.push(first);
                // Until one succeeds.
                reasons.for_each(drop);
            }
        }
        failures
    }

    /// What a keeper that was killed has left.
    fn thaw_abandoned(&self) -> Result<(), String> {
        let path = &self.arguments.marker;
        let Ok(marker) = File::open(path) else { return Ok(()) };
        self.lock(&marker)?;
        // The keeper that had it may have ended in order meanwhile.
        let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
        let hooks: Vec<PathBuf> = text.lines().map(PathBuf::from).collect();
        let failures = self.thaw(hooks.iter().rev().map(PathBuf::as_path));
        self.unmark()?;
        say(&Word::Thawed { failures, expired: true, frozen_us: 0 });
        Ok(())
    }

    /// Leaves the marker; its lock, which ends with this process, says that somebody takes care.
    fn mark(&self, hooks: &[PathBuf]) -> Result<File, String> {
        let path = &self.arguments.marker;
        let failed = |error: io::Error| format!("{} cannot be written ({error})", path.display());
        if path.exists() {
            self.thaw_abandoned()?;
        }
        let lines: Vec<String> = hooks.iter().map(|hook| hook.display().to_string()).collect();
        durable::replace(path, lines.join("\n").as_bytes(), durable::MODE_PRIVATE).map_err(failed)?;
        let file = File::open(path).map_err(failed)?;
        self.lock(&file)?;
        Ok(file)
    }

    fn unmark(&self) -> Result<(), String> {
        let marker = &self.arguments.marker;
        match std::fs::remove_file(marker) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(format!("{} cannot be removed ({error})", marker.display()))
            }
            _ => Ok(()),
        }
    }

    fn lock(&self, file: &File) -> Result<(), String> {
        let start = self.clock.monotonic();
        while flock(file, FlockOperation::NonBlockingLockExclusive).is_err() {
            if self.clock.monotonic().saturating_sub(start) > OTHER_KEEPER_WAIT {
                return Err("hooks of an earlier cut are still being thawed".to_owned());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

fn name(hook: &Path) -> String {
    hook.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The agent may be gone; then nobody needs to know.
fn say(word: &Word) {
    let mut line = serde_json::to_vec(word).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let _agent_gone = out.write_all(&line).and_then(|()| out.flush());
}
