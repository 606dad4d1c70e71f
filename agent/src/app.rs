//! The agent as a running program: wiring, threads, the lock on the state folder, the status socket.
//!
//! Owns the start and the end of everything; the only place that spawns threads and tasks. Does not know business rules.
//! Invariant: one agent per state folder. At the end tracking stays on, so nothing is lost.
//! Limits: the pools of [`crate::config::Settings`], one connection at a time on the status socket.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{
        fs::OpenOptionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use crossbeam_channel::bounded;
use holdfast_common::{
    clock::{Clock, SystemClock},
    durable,
    entropy::{Entropy, SystemEntropy},
    wire::{AgentMessage, Firmware, Inventory, Platform},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{FrameSink, ReaderPool, SealPool, SinkClosed},
    capture::{
        freeze::{FreezeSettings, HeldBackLog},
        tracked::TrackedOptions,
    },
    config::Settings,
    engine::{
        Engine, EngineParts, Incarnations, LinuxHost, LinuxParts, MessageSink, StatusBoard, StatusReport,
    },
    identity::IdentityStore,
    inventory::{self, Roots},
    ship::{self, ShipHandle, ShipParts, port::OutgoingFrame},
    source::{SourceControl, SourceParts},
    write_back::TrackedDisks,
};

/// The lock's name in the state folder.
const LOCK: &str = "agent.lock";

/// The name of the record of what disks are built on, in the state folder.
const INCARNATIONS: &str = "incarnations.json";

/// The status socket's name in the state folder.
const SOCKET: &str = "agent.sock";

/// How long a status request may take.
const STATUS_WAIT: Duration = Duration::from_secs(5);

/// What a running agent takes from its surroundings.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// How freezing is set up; the guardian's program is named here (needed where this program is not the agent's own).
    pub freezing: FreezeSettings,
    /// How tracking is set up.
    pub tracking: TrackedOptions,
}

impl Surroundings {
    /// The usual ones, with the program's log held back while file systems are frozen.
    #[must_use]
    pub fn with_log(log: Arc<HeldBackLog>) -> Self {
        Self { freezing: FreezeSettings { log: Some(log), ..FreezeSettings::default() }, ..Self::default() }
    }
}

/// Runs the agent on the current tokio runtime until `stop` is cancelled.
///
/// # Errors
/// It cannot start (not enrolled, state folder in use), or the link or the capture thread ended by itself.
pub async fn run(settings: Settings, surroundings: Surroundings, stop: CancellationToken) -> Result<()> {
    settings.check()?;
    let _lock = lock_state(&settings.state)?;
    tracing::info!(?settings, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy::new());
    let incarnations = Incarnations::load(settings.state.join(INCARNATIONS));
    let images = settings.images.clone();
    let parts = ShipParts {
        store: IdentityStore::new(&settings.state),
        inventory: Arc::new(move || machine(&images)),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
        tracked: Some(TrackedDisks {
            options: surroundings.tracking.clone(),
            incarnations: incarnations.clone(),
            entropy: Arc::clone(&entropy),
        }),
    };
    let (ship, inbound) = ship::start(settings.ship(), parts, &Handle::current())?;

    let status = StatusBoard::default();
    let socket = StatusSocket::listen(&settings.state, status.clone())?;
    let (wake, woken) = bounded(1);
    let (stop_capture, stopped) = bounded::<()>(1);
    let seal = SealPool::new(settings.seal(), Box::new(ShipSink(ship.clone())), wake)?;
    let stopping = surroundings.freezing.clone();
    let (source_status, source_clock) = (status.clone(), Arc::clone(&clock));
    let host = LinuxParts {
        incarnations,
        images: settings.images.clone(),
        readers: ReaderPool::new(settings.processor.reading_threads)?,
        tracking: surroundings.tracking,
        freezing: surroundings.freezing,
        hooks: settings.hooks(),
        clock: Arc::clone(&clock),
        entropy: Arc::clone(&entropy),
    };
    let parts = EngineParts {
        host: Box::new(LinuxHost::new(host)),
        hand_over: Box::new(seal),
        messages: Box::new(ShipMessages(ship.clone())),
        clock,
        entropy,
        budget: settings.budget(),
        status,
        marks: ship.marks(),
    };
    let source = SourceParts {
        programs: settings.source(),
        actions: settings.actions.clone(),
        state: settings.state.clone(),
        status: source_status,
        freezing: stopping,
        clock: source_clock,
    };
    let source = SourceControl::new(source, Box::new(ShipMessages(ship.clone())));
    let source_events = ship.source_events();
    let (source_stop, source_stopped) = bounded::<()>(1);
    let source = thread::Builder::new()
        .name("source".into())
        .spawn(move || source.run(&source_events, &source_stopped))?;
    let (ended, mut end) = tokio::sync::oneshot::channel();
    let capture = thread::Builder::new().name("capture".into()).spawn(move || {
        let result = Engine::new(parts).run(&inbound, &woken, &stopped);
        // Nobody listens any more only when the program is ending anyway.
        let _ = ended.send(result);
    })?;
    let early = tokio::select! {
        () = stop.cancelled() => None,
        result = &mut end => Some(result),
    };
    tracing::info!("agent stops; tracking stays on");
    // The link first: what waits for its window is let go, so that the capture thread can end.
    drop(stop_capture);
    ship.shutdown().await;
    drop(source_stop);
    let joined = tokio::task::spawn_blocking(move || {
        let _panicked = source.join();
        capture.join()
    })
    .await?;
    drop(socket);
    joined.map_err(|_| anyhow!("the capture thread panicked; see the log"))?;
    match early {
        None | Some(Ok(Ok(()))) => Ok(()),
        Some(Ok(Err(closed))) => Err(closed.into()),
        Some(Err(_)) => bail!("the capture thread died; see the log"),
    }
}

/// Describes this machine; `images` are plain files that may be protected like disks. What cannot be read is left out.
#[must_use]
pub fn machine(images: &[PathBuf]) -> Inventory {
    inventory::collect(&Roots::default(), images).unwrap_or_else(|(path, error)| {
        tracing::error!(path = %path.display(), %error, "the machine cannot be described");
        unknown_machine()
    })
}

/// A machine of which nothing can be read.
fn unknown_machine() -> Inventory {
    Inventory {
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        operating_system: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        firmware: Firmware::Bios,
        platform: Platform::Physical,
        hardware: String::new(),
        hardware_uuid: String::new(),
        processors: 0,
        memory_bytes: 0,
        network_cards: Vec::new(),
        disks: Vec::new(),
        drivers: Vec::new(),
    }
}

/// Asks a running agent for its state.
///
/// # Errors
/// None runs on this state folder, or it does not answer.
pub fn status(state: &Path) -> Result<StatusReport> {
    let path = state.join(SOCKET);
    let stream = UnixStream::connect(&path).with_context(|| {
        format!("no agent answers at {}: start it with `holdfast-agent run`", path.display())
    })?;
    stream.set_read_timeout(Some(STATUS_WAIT))?;
    serde_json::from_reader(stream).context("the agent's answer cannot be read; is it of another version?")
}

/// Locks the state folder; the lock ends with the process.
///
/// # Errors
/// The folder cannot be made, or another agent has it.
pub fn lock_state(state: &Path) -> Result<File> {
    durable::create_folder(state)
        .with_context(|| format!("state folder {} cannot be made", state.display()))?;
    let path = state.join(LOCK);
    let file =
        File::options().create(true).truncate(false).write(true).mode(durable::MODE_PRIVATE).open(&path);
    let mut file = file.with_context(|| {
        format!("{} cannot be opened; the state folder must be writable and have room", path.display())
    })?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        let state = state.display();
        anyhow!("another agent runs on state folder {state}: stop it, or give this one a folder of its own (--state)")
    })?;
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// The status socket and its thread; both end when this is dropped.
#[derive(Debug)]
struct StatusSocket {
    path: PathBuf,
    thread: Option<thread::JoinHandle<()>>,
    ending: Arc<std::sync::atomic::AtomicBool>,
}

impl StatusSocket {
    fn listen(state: &Path, board: StatusBoard) -> Result<Self> {
        let path = state.join(SOCKET);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("status socket {} cannot be made", path.display()))?;
        let ending = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = Arc::clone(&ending);
        let serve = move || {
            for stream in listener.incoming() {
                if seen.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                if let Err(error) = stream.and_then(|stream| answer(&stream, &board)) {
                    tracing::debug!(%error, "a status request failed");
                }
            }
        };
        let thread = thread::Builder::new().name("status".into()).spawn(serve)?;
        Ok(Self { path, thread: Some(thread), ending })
    }
}

fn answer(mut stream: &UnixStream, board: &StatusBoard) -> io::Result<()> {
    stream.set_write_timeout(Some(STATUS_WAIT))?;
    stream.write_all(&serde_json::to_vec(&board.read())?)
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        self.ending.store(true, std::sync::atomic::Ordering::Relaxed);
        // Wakes the thread; if that fails it is left to the end of the process.
        if UnixStream::connect(&self.path).is_ok() {
            let _panicked = self.thread.take().map(thread::JoinHandle::join);
        }
        let _gone_already = fs::remove_file(&self.path);
    }
}

/// Frames go to the link.
struct ShipSink(ShipHandle);

impl FrameSink for ShipSink {
    fn push(&mut self, frame: OutgoingFrame) -> Result<(), SinkClosed> {
        self.0.send_frame(frame).map_err(|error| SinkClosed { reason: error.to_string() })
    }
}

/// Messages go to the link; what cannot be said now is said again.
struct ShipMessages(ShipHandle);

impl MessageSink for ShipMessages {
    fn send(&mut self, message: AgentMessage) {
        if let Err(error) = self.0.send_message(message) {
            tracing::trace!(%error, "a message was dropped");
        }
    }
}
