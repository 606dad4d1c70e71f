//! The agent's end of the keeper.
//!
//! Owns the child process and what it said. Never waits but in [`HookLink::thaw`] and [`thaw_abandoned`]: there for the hooks'
//! own limits. Invariant: dropping it thaws.

use std::{
    ffi::OsString,
    io::Read as _,
    os::fd::AsFd as _,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use holdfast_common::frame::ApplicationFreeze;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{HookSettings, message::Word};

/// How far the hooks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookState {
    /// Some have not answered yet.
    Running,
    /// All are frozen.
    Frozen,
    /// One failed, or there is none; whatever was frozen is thawed.
    Failed(String),
}

/// Hooks that are frozen, or on the way.
#[derive(Debug)]
pub struct HookLink {
    settings: HookSettings,
    child: Child,
    output: Option<ChildStdout>,
    unread: Vec<u8>,
    frozen: Option<Vec<String>>,
    failed: Option<String>,
}

impl HookLink {
    /// Starts freezing.
    ///
    /// # Errors
    /// The keeper cannot be started.
    pub fn start(settings: &HookSettings) -> Result<Self, String> {
        let mut child = keeper(settings, false)
            .spawn()
            .map_err(|error| format!("the keeper of the freeze hooks cannot be started ({error})"))?;
        let output = child.stdout.take();
        let settings = settings.clone();
        Ok(Self { settings, child, output, unread: Vec::new(), frozen: None, failed: None })
    }

    /// How far they are. Does not wait.
    pub fn poll(&mut self) -> HookState {
        while self.failed.is_none() {
            match self.hear(Duration::ZERO) {
                Heard::Nothing => break,
                Heard::Word(Word::Frozen { hooks }) => self.frozen = Some(hooks),
                Heard::Word(Word::Failed { reason }) => self.failed = Some(reason),
                Heard::Word(Word::Thawed { .. }) => {
                    self.failed = Some("the hooks were frozen for longer than their bound".into());
                }
                Heard::End => {
                    self.failed = Some("the keeper of the freeze hooks was killed".into());
                    self.thaw_for_the_dead();
                }
            }
        }
        match (&self.failed, &self.frozen) {
            (Some(reason), _) => HookState::Failed(reason.clone()),
            (None, Some(_)) => HookState::Frozen,
            (None, None) => HookState::Running,
        }
    }

    /// Thaws, and waits for it. Nothing may be frozen below the hooks any more.
    ///
    /// # Errors
    /// Not every hook was frozen all the time, and thawed: nothing may be called app-consistent.
    pub fn thaw(mut self) -> Result<ApplicationFreeze, String> {
        let state = self.poll();
        drop(self.child.stdin.take());
        let last = loop {
            match self.hear(self.settings.call_max) {
                Heard::Word(Word::Thawed { failures, expired, frozen_us }) => {
                    break (failures, expired, frozen_us);
                }
                Heard::Word(_) | Heard::Nothing => {}
                Heard::End => {
                    self.thaw_for_the_dead();
                    return Err(match state {
                        HookState::Failed(reason) => reason,
                        _ => "the keeper of the freeze hooks was killed".into(),
                    });
                }
            }
        };
        match (state, self.frozen.take(), last) {
            (HookState::Failed(reason), ..) => Err(reason),
            (_, _, (_, true, _)) => Err("the hooks were frozen for longer than their bound".into()),
            (_, _, (failures, _, _)) if !failures.is_empty() => Err(failures.join("; ")),
            (HookState::Frozen, Some(hooks), (_, _, frozen_us)) => Ok(ApplicationFreeze { hooks, frozen_us }),
            _ => Err("not all hooks were frozen".into()),
        }
    }

    /// The keeper was killed: another one thaws.
    fn thaw_for_the_dead(&mut self) {
        let _reaped = self.child.wait();
        thaw_abandoned(&self.settings);
    }

    /// The next word; waits for it for at most so long.
    fn hear(&mut self, at_most: Duration) -> Heard {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(word) => return Heard::Word(word),
                    Err(_) => continue,
                }
            }
            let Some(output) = &mut self.output else { return Heard::End };
            let mut sources = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
            let timeout = Timespec::try_from(at_most).ok();
            match poll(&mut sources, timeout.as_ref()) {
                Ok(0) => return Heard::Nothing,
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) | Err(_) => {}
            }
            let mut bytes = [0; 4096];
            match output.read(&mut bytes) {
                Ok(0) | Err(_) => self.output = None,
                Ok(count) => self.unread.extend_from_slice(bytes.get(..count).unwrap_or_default()),
            }
        }
    }
}

enum Heard {
    Word(Word),
    Nothing,
    End,
}

impl Drop for HookLink {
    fn drop(&mut self) {
        // The end of its input is what makes the keeper thaw; it ends within the hooks' own limits.
        drop(self.child.stdin.take());
        let _reaped = self.child.wait();
    }
}

/// Thaws what a killed agent and its killed keeper have left frozen, if anything, and waits for it.
pub fn thaw_abandoned(settings: &HookSettings) {
    if !settings.marker.exists() {
        return;
    }
    tracing::warn!("freeze hooks were left frozen; thawing them");
    let ended = keeper(settings, true).spawn().and_then(|mut child| child.wait());
    match ended {
        Ok(status) if status.success() => {}
        Ok(status) => {
            tracing::error!(%status, "freeze hooks were not all thawed: call them with `thaw` by hand")
        }
        Err(error) => tracing::error!(%error, "freeze hooks cannot be thawed: call them with `thaw` by hand"),
    }
}

fn keeper(settings: &HookSettings, thaw_only: bool) -> Command {
    let mut command = Command::new(&settings.program);
    let millis = |time: Duration| OsString::from(time.as_millis().to_string());
    command
        .args(&settings.arguments)
        .arg("--folder")
        .arg(&settings.folder)
        .arg("--marker")
        .arg(&settings.marker)
        .arg("--call-ms")
        .arg(millis(settings.call_max))
        .arg("--bound-ms")
        .arg(millis(settings.bound))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if thaw_only {
        command.arg("--thaw-only");
    }
    command
}
