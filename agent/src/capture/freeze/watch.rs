//! What the guardian does when: a state machine without IO or clock.
//!
//! Owns the guardian's knowledge of one hold. Does not know sockets or file systems; the shell asks [`Watch::step`]
//! what to do next and reports what came of it.
//!
//! ```text
//! idle --arm--> armed --released--> idle
//!                 |
//!                 +--bound over, or agent gone--> thawing --released, or agent gone and all thawed--> idle
//! ```
//!
//! Invariants:
//! - Thawing goes strictly backwards through the order of freezing. The thaw of an upper file system writes to the one that
//!   carries it, and would wait for ever behind it.
//! - While the agent may be inside the call that freezes the last folder begun, "was not frozen" is not believed: the
//!   call cannot be interrupted, and may end frozen after all. It is asked again every [`RETRY`] until the agent settles
//!   or is gone (its descriptors close only after its calls have returned).

use std::time::Duration;

/// Time between attempts to thaw what may be about to be frozen.
pub(super) const RETRY: Duration = Duration::from_millis(2);

/// Refusals of one folder's thaw after which the next folder has its turn: a dead disk must not keep others frozen.
const FAILURES_MAX: u32 = 50;

/// What the shell does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Wait for the agent.
    Wait,
    /// Wait for the agent, but not beyond this time.
    WaitUntil(Duration),
    /// Thaw this folder and report the outcome.
    Thaw(usize),
    /// Nothing is frozen and nobody is left to guard.
    Exit,
}

/// What came of an attempt to thaw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Was frozen, is not any more.
    Thawed,
    /// Was not frozen.
    WasNotFrozen,
    /// The system refused; it may still be frozen.
    Failed,
}

/// The guardian's state.
#[derive(Debug, Default)]
pub(super) struct Watch {
    armed: Option<Armed>,
    agent_gone: bool,
}

#[derive(Debug)]
struct Armed {
    hold: u64,
    folders: usize,
    deadline: Duration,
    /// Folders whose freezing has begun.
    begun: usize,
    /// No freezing is under way.
    settled: bool,
    thaw: Option<Thaw>,
}

#[derive(Debug)]
struct Thaw {
    /// Folders from zero up that are still to be thawed.
    remaining: usize,
    /// Not before this time.
    not_before: Duration,
    /// Refusals of the current folder.
    failures: u32,
}

impl Watch {
    /// The agent is about to freeze.
    pub(super) fn arm(&mut self, hold: u64, folders: usize, bound: Duration, now: Duration) {
        let deadline = now.saturating_add(bound);
        self.armed = Some(Armed { hold, folders, deadline, begun: 0, settled: false, thaw: None });
    }

    /// The agent is about to make the call that freezes a folder.
    pub(super) fn begun(&mut self, hold: u64, index: usize) {
        if let Some(armed) = self.armed.as_mut().filter(|armed| armed.hold == hold && index < armed.folders) {
            armed.begun = armed.begun.max(index + 1);
            if let Some(thaw) = &mut armed.thaw {
                thaw.remaining = armed.begun;
            }
        }
    }

    /// The agent makes no more calls that freeze.
    pub(super) fn settled(&mut self, hold: u64) {
        if let Some(armed) = self.armed.as_mut().filter(|armed| armed.hold == hold) {
            armed.settled = true;
        }
    }

    /// The agent has thawed everything. Says whether the guardian had begun to.
    pub(super) fn released(&mut self, hold: u64) -> bool {
        let ended = self.armed.take_if(|armed| armed.hold == hold);
        ended.is_none_or(|armed| armed.thaw.is_some())
    }

    /// The agent is gone: all its calls have ended.
    pub(super) fn agent_gone(&mut self) {
        self.agent_gone = true;
    }

    /// Whether nobody is there to listen to any more.
    pub(super) fn is_agent_gone(&self) -> bool {
        self.agent_gone
    }

    /// What to do now.
    pub(super) fn step(&mut self, now: Duration) -> Step {
        let Some(armed) = &mut self.armed else {
            return if self.agent_gone { Step::Exit } else { Step::Wait };
        };
        if armed.thaw.is_none() {
            if !self.agent_gone && now < armed.deadline {
                return Step::WaitUntil(armed.deadline);
            }
            armed.thaw = Some(Thaw { remaining: armed.begun, not_before: now, failures: 0 });
        }
        match &armed.thaw {
            Some(thaw) if thaw.remaining > 0 && now < thaw.not_before => Step::WaitUntil(thaw.not_before),
            Some(thaw) if thaw.remaining > 0 => Step::Thaw(thaw.remaining - 1),
            _ if self.agent_gone => Step::Exit,
            _ => Step::Wait,
        }
    }

    /// What came of the thaw that [`Watch::step`] asked for.
    pub(super) fn tried(&mut self, index: usize, outcome: Outcome, now: Duration) {
        let agent_gone = self.agent_gone;
        let Some(armed) = &mut self.armed else { return };
        let may_be_freezing = !agent_gone && !armed.settled && index + 1 == armed.begun;
        let Some(thaw) = armed.thaw.as_mut().filter(|thaw| thaw.remaining == index + 1) else { return };
        match outcome {
            Outcome::WasNotFrozen if may_be_freezing => thaw.not_before = now.saturating_add(RETRY),
            Outcome::Failed if thaw.failures < FAILURES_MAX => {
                thaw.failures += 1;
                thaw.not_before = now.saturating_add(RETRY);
            }
            Outcome::Thawed | Outcome::WasNotFrozen | Outcome::Failed => {
                thaw.failures = 0;
                thaw.remaining = index;
            }
        }
    }
}

#[cfg(test)]
mod tests;
