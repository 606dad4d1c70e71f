//! The agent's end of the guardian: starting it, talking to it, and noticing its death.
//!
//! Owns the child process, the socket, and a thread that waits for the guardian's end. Does not know the order of
//! freezing. Invariant: if the guardian dies while something is frozen, that thread thaws at once, so that at every
//! moment of a hold two processes watch each other.

use std::{
    ffi::OsString,
    io::{self, Read as _},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair},
};

use super::{
    error::FreezeError,
    message::{self, Message},
    system,
};

/// Longest wait for the guardian's first word (its program may have to be read from a slow disk).
const START_WAIT: Duration = Duration::from_secs(20);
/// Longest wait for an answer; nothing is frozen meanwhile.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How the guardian is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardianCommand {
    /// Program.
    pub program: PathBuf,
    /// Arguments.
    pub arguments: Vec<OsString>,
}

impl Default for GuardianCommand {
    /// This program with the hidden argument. The link leads to the right program even after an upgrade replaced it.
    fn default() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), arguments: vec![OsString::from("guardian")] }
    }
}

/// Folders of one hold and how far freezing has got.
#[derive(Debug)]
pub(super) struct HeldFolders {
    pub(super) folders: Arc<[OwnedFd]>,
    pub(super) begun: AtomicUsize,
}

impl HeldFolders {
    /// Thaws whatever is frozen, in order, without asking whether it worked.
    fn thaw_all(&self) {
        let begun = self.begun.load(Ordering::SeqCst).min(self.folders.len());
        for folder in self.folders.iter().take(begun).rev() {
            let _was_not_frozen_or_the_guardians_turn = system::thaw(folder.as_fd());
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    lost: AtomicBool,
    current: Mutex<Option<Arc<HeldFolders>>>,
}

/// A running guardian.
#[derive(Debug)]
pub(super) struct GuardianLink {
    socket: OwnedFd,
    child: Child,
    /// Whether it ever said so; before that nothing can be frozen.
    ready: bool,
    waiter: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl GuardianLink {
    /// Starts a guardian and waits until it is ready.
    pub(super) fn start(command: &GuardianCommand) -> Result<Self, FreezeError> {
        let failed = |step| move |source: io::Error| FreezeError::GuardianStart { step, source };
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed("socket")(error.into()))?;
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed("starting the program"))?;
        let shared = Arc::new(Shared::default());
        let end = child.stdout.take();
        let mut link = Self { socket: ours, child, ready: false, waiter: None, shared };
        let waiter = {
            let shared = Arc::clone(&link.shared);
            let thread = std::thread::Builder::new().name("guardian-waiter".to_owned());
            thread.spawn(move || wait_for_end(end, &shared)).map_err(failed("starting a thread"))?
        };
        link.waiter = Some(waiter);
        match link.receive(START_WAIT) {
            Ok(Message::Ready) => {
                link.ready = true;
                Ok(link)
            }
            Ok(_) => Err(failed("unexpected answer")(io::ErrorKind::InvalidData.into())),
            Err(error) => Err(failed("waiting for it to lock its memory")(error)),
        }
    }

    /// Whether the guardian has died.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Process number of the guardian.
    pub(super) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Hands the folders over; the bound runs when this returns.
    pub(super) fn arm(&self, hold: u64, held: &Arc<HeldFolders>, bound: Duration) -> Result<(), FreezeError> {
        *self.current() = Some(Arc::clone(held));
        let folders: Vec<BorrowedFd<'_>> = held.folders.iter().map(|folder| folder.as_fd()).collect();
        message::send(self.socket(), Message::Arm { hold, bound }, &folders)
            .map_err(|_| FreezeError::GuardianLost { what: "cannot be told of the hold" })?;
        match self.receive(ANSWER_WAIT) {
            Ok(Message::Armed { hold: armed }) if armed == hold => Ok(()),
            _ => Err(FreezeError::GuardianLost { what: "does not answer" }),
        }
    }

    /// Tells the guardian how far freezing has got. Does not wait.
    pub(super) fn tell(&self, message: Message) -> Result<(), FreezeError> {
        message::send(self.socket(), message, &[])
            .map_err(|_| FreezeError::GuardianLost { what: "died while writes were held" })
    }

    /// Ends the hold at the guardian. Everything is thawed. Says whether the guardian had begun to thaw.
    pub(super) fn disarm(&self, hold: u64) -> Result<bool, FreezeError> {
        *self.current() = None;
        self.tell(Message::Released { hold })?;
        match self.receive(ANSWER_WAIT) {
            Ok(Message::Disarmed { hold: disarmed, overran }) if disarmed == hold => Ok(overran),
            _ => Err(FreezeError::GuardianLost { what: "died while writes were held" }),
        }
    }

    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Arc<HeldFolders>>> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, at_most: Duration) -> io::Result<Message> {
        let timeout = Timespec::try_from(at_most).map_err(io::Error::other)?;
        let mut sources = [PollFd::from_borrowed_fd(self.socket(), PollFlags::IN)];
        loop {
            match poll(&mut sources, Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        message::receive(self.socket(), &mut Vec::new())?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Drop for GuardianLink {
    fn drop(&mut self) {
        // The end of the socket is what ends the guardian; it thaws first if it has to.
        let _ended_already = shutdown(&self.socket, Shutdown::Both);
        if !self.ready {
            let _ended_already = self.child.kill();
        }
        if let Some(waiter) = self.waiter.take() {
            let _it_only_reads = waiter.join();
        }
        let _reaped = self.child.wait();
    }
}

/// Reads until the guardian has closed its standard output, that is: ended.
fn wait_for_end(end: Option<ChildStdout>, shared: &Shared) {
    if let Some(mut end) = end {
        let mut ignored = [0; 256];
        loop {
            match end.read(&mut ignored) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                _ => {}
            }
        }
    }
    // The order matters: the capture thread looks at `lost` after each freeze, and thaws itself what this pass missed.
    shared.lost.store(true, Ordering::SeqCst);
    let current = shared.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(held) = current {
        held.thaw_all();
    }
}
