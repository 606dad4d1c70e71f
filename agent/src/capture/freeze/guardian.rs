//! The guardian: a process of its own that thaws when the agent cannot.
//!
//! Owns the shell around [`Watch`]. It is the agent's own program, started with a hidden argument; standard input is the
//! socket to the agent, standard output a pipe whose end tells the agent that the guardian is gone. It holds the same open
//! folders as the agent, and has all its memory locked. Does not know disks or cuts.
//! Invariants: while anything may be frozen it opens nothing, logs nothing and allocates nothing; it ends only when
//! the agent is gone and everything is thawed.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use holdfast_common::clock::{Clock, SystemClock};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    FILE_SYSTEMS_MAX, RCU_EXPEDITED, memory,
    message::{self, Message},
    rcu::RcuExpedited,
    system::{self, Thawed},
    watch::{Outcome, RETRY, Step, Watch},
};

/// Runs the guardian until the agent is gone. What `main` calls for the hidden argument `guardian`.
#[must_use]
pub fn guardian_main() -> ExitCode {
    match run(io::stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nothing is frozen by us any more: `run` thaws before it gives up.
            tracing::error!(%error, "the guardian of frozen file systems cannot go on");
            ExitCode::FAILURE
        }
    }
}

struct Guardian<'agent> {
    agent: BorrowedFd<'agent>,
    folders: Vec<OwnedFd>,
    watch: Watch,
    clock: SystemClock,
    rcu: RcuExpedited,
}

fn run(agent: BorrowedFd<'_>) -> io::Result<()> {
    system::ignore_requests_to_end();
    // A group of its own: an interrupt from the terminal is meant for the agent.
    let _leader_already = rustix::process::setsid();
    // Killed for want of memory, it could not help; without the right to say so it is small anyway.
    let _not_allowed = fs::write("/proc/self/oom_score_adj", "-1000");
    let mut guardian = Guardian {
        agent,
        folders: Vec::with_capacity(FILE_SYSTEMS_MAX),
        watch: Watch::default(),
        clock: SystemClock::new(),
        rcu: RcuExpedited::open(Path::new(RCU_EXPEDITED)),
    };
    memory::lock_guardian()?;
    message::send(agent, Message::Ready, &[])?;
    guardian.serve();
    guardian.rcu.lower_for_the_dead();
    Ok(())
}

impl Guardian<'_> {
    fn serve(&mut self) {
        loop {
            let now = self.clock.monotonic();
            match self.watch.step(now) {
                Step::Wait => self.listen(None),
                Step::WaitUntil(time) => self.listen(Some(time.saturating_sub(now))),
                Step::Thaw(index) => self.thaw(index),
                Step::Exit => return,
            }
        }
    }

    fn thaw(&mut self, index: usize) {
        let outcome = match self.folders.get(index).map(|folder| system::thaw(folder.as_fd())) {
            Some(Thawed::Yes) => Outcome::Thawed,
            Some(Thawed::WasNotFrozen) | None => Outcome::WasNotFrozen,
            Some(Thawed::Failed(_)) => Outcome::Failed,
        };
        self.watch.tried(index, outcome, self.clock.monotonic());
    }

    /// Waits for a message, at most so long. Any trouble with the agent counts as its end, so that it leads to a thaw.
    fn listen(&mut self, at_most: Option<Duration>) {
        if self.watch.is_agent_gone() {
            std::thread::sleep(at_most.unwrap_or(RETRY));
            return;
        }
        let timeout = at_most.and_then(|time| Timespec::try_from(time).ok());
        let mut sources = [PollFd::from_borrowed_fd(self.agent, PollFlags::IN)];
        match poll(&mut sources, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => match message::receive(self.agent, &mut self.folders) {
                Ok(Some(message)) => self.told(message),
                Ok(None) | Err(_) => self.watch.agent_gone(),
            },
            Err(_) => self.watch.agent_gone(),
        }
    }

    fn told(&mut self, message: Message) {
        match message {
            Message::Arm { hold, bound } => {
                self.rcu.claim();
                self.watch.arm(hold, self.folders.len(), bound, self.clock.monotonic());
                self.answer(Message::Armed { hold });
            }
            Message::Begun { hold, index } => self.watch.begun(hold, index),
            Message::Settled { hold } => self.watch.settled(hold),
            Message::Released { hold } => {
                let overran = self.watch.released(hold);
                self.folders.clear();
                self.rcu.disclaim();
                self.answer(Message::Disarmed { hold, overran });
            }
            Message::Ready | Message::Armed { .. } | Message::Disarmed { .. } => self.watch.agent_gone(),
        }
    }

    fn answer(&mut self, answer: Message) {
        if message::send(self.agent, answer, &[]).is_err() {
            self.watch.agent_gone();
        }
    }
}
