//! Shorter freezes: the kernel's switch for expedited grace periods (`/sys/kernel/rcu_expedited`).
//!
//! Owns the switch while something is held. A freeze mostly waits for RCU; expedited, 20 times shorter. Invariant: the
//! switch ends as it was found, also after kill -9 of everybody. For that no memory is needed: the switch takes any
//! number, and is only ever raised from 0, to [`MARK`]. So whoever finds the mark knows that 0 was there before. A shared
//! lock on the file, kept by agent and guardian, says that somebody alive will lower it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

/// What the switch says while we hold ("HLDS").
const MARK: &[u8] = b"1212957779";

/// Attempts of a guardian whose agent is gone, and the pause between them: two seconds, the usual bound of another's hold.
const LAST_ATTEMPTS: u32 = 100;
const LAST_PAUSE: Duration = Duration::from_millis(20);

/// The switch, opened before anything is frozen.
#[derive(Debug)]
pub(super) struct RcuExpedited {
    file: Option<File>,
}

impl RcuExpedited {
    /// Opens the switch. Where it cannot be written, holds are longer, and that is all.
    pub(super) fn open(path: &Path) -> Self {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Self { file: Some(file) },
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "holds will be longer: the switch cannot be written");
                Self { file: None }
            }
        }
    }

    /// Raises the switch, unless it is raised already.
    pub(super) fn raise(&self) {
        if let Some(file) = &self.file {
            let _shorter_or_not = flock(file, FlockOperation::NonBlockingLockShared);
            if value_is(file, b"0") {
                let _shorter_or_not = file.write_at(MARK, 0);
            }
        }
    }

    /// Says that somebody alive will clean up; the guardian's part.
    pub(super) fn claim(&self) {
        if let Some(file) = &self.file {
            let _only_others_would_wait = flock(file, FlockOperation::NonBlockingLockShared);
        }
    }

    /// Takes the word back.
    pub(super) fn disclaim(&self) {
        if let Some(file) = &self.file {
            let _closed_anyway_at_the_end = flock(file, FlockOperation::Unlock);
        }
    }

    /// Lowers the switch if it was raised by a hold and nobody else is holding.
    pub(super) fn lower(&self) {
        if let Some(file) = &self.file {
            if value_is(file, MARK) && flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _left_for_the_next_hold = file.write_at(b"0", 0);
            }
            let _closed_anyway_at_the_end = flock(file, FlockOperation::Unlock);
        }
    }

    /// Lowers the switch for an agent that is gone. The kernel may let go of the agent's socket, which is how its end is noticed,
    /// before its lock on the switch: while that stands, it is tried again. Somebody else who is holding will lower it.
    pub(super) fn lower_for_the_dead(&self) {
        for _ in 0..LAST_ATTEMPTS {
            self.lower();
            if !self.is_marked() {
                return;
            }
            std::thread::sleep(LAST_PAUSE);
        }
    }

    /// Whether the switch was left raised by somebody who is dead.
    pub(super) fn was_abandoned(&self) -> bool {
        self.file.as_ref().is_some_and(|file| {
            let alone = || flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
            let abandoned = value_is(file, MARK) && alone();
            let _closed_anyway_at_the_end = flock(file, FlockOperation::Unlock);
            abandoned
        })
    }

    /// Whether a hold has raised the switch, ours or another's.
    pub(super) fn is_marked(&self) -> bool {
        self.file.as_ref().is_some_and(|file| value_is(file, MARK))
    }
}

fn value_is(file: &File, expected: &[u8]) -> bool {
    let mut value = [0; 16];
    let read: io::Result<usize> = file.read_at(&mut value, 0);
    read.ok().and_then(|bytes| value.get(..bytes)).is_some_and(|value| value.trim_ascii() == expected)
}
