//! What capture's threads and the link's tasks share, and capture's handle on it.
//!
//! Owns the lock around the session and the ways to wait for it. Does not know quinn's streams.
//! Invariant: the lock is never held across an await or a blocking call.

use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use holdfast_common::{
    clock::Clock,
    ids::DiskId,
    wire::{AgentMessage, OrderStep},
};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    ShipSettings,
    port::{Inbound, OutgoingFrame},
    rate::Bucket,
    session::{AgentSession, Said},
    window::PushError,
};
use crate::{group::Marks, source::SourceEvent};

/// Events that wait for the source; more are dropped.
const SOURCE_EVENTS_MAX: usize = 64;

/// How long to wait before an event is offered again to a full queue.
const INBOUND_RETRY: Duration = Duration::from_millis(5);

/// Figures of the link as the agent sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentLinkFigures {
    /// Round-trip time in microseconds.
    pub rtt_us: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets given up for lost.
    pub lost_packets: u64,
    /// Congestion window in bytes.
    pub congestion_window_bytes: u64,
    /// UDP payload bytes sent.
    pub sent_bytes: u64,
    /// UDP payload bytes received.
    pub received_bytes: u64,
    /// Size of packets that the path carries, in bytes.
    pub mtu_bytes: u16,
    /// Times that the path stopped carrying large packets.
    pub black_holes: u64,
}

/// Why ship did not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShipError {
    /// The link was shut down.
    #[error("the link was shut down")]
    Closed,
    /// There is no session now; capture says it again after the next `Connected`, if it still holds.
    #[error("the coordinator is not connected")]
    Offline,
    /// Frames were not numbered in order.
    #[error(transparent)]
    Order(#[from] PushError),
}

/// State shared by all tasks and threads of the link.
pub(super) struct Shared {
    session: Mutex<AgentSession>,
    /// Signalled when frames were acknowledged or the link closes.
    room: Condvar,
    /// Signalled when there is something new to send.
    pub(super) wake: Notify,
    /// Cancelled when the link is to end.
    pub(super) closing: CancellationToken,
    /// Control messages of the connection that is up.
    control: Mutex<Option<mpsc::Sender<AgentMessage>>>,
    pub(super) connection: Mutex<Option<quinn::Connection>>,
    events: crossbeam_channel::Sender<Inbound>,
    /// For orders that a held capture thread waits for.
    marks: Marks,
    /// What the source is told.
    source: (Sender<SourceEvent>, Receiver<SourceEvent>),
    bucket: Mutex<Bucket>,
    own_limit: u64,
    sent_frame_bytes: AtomicU64,
    pub(super) clock: Arc<dyn Clock>,
}

impl Shared {
    pub(super) fn new(
        settings: ShipSettings,
        clock: Arc<dyn Clock>,
        events: crossbeam_channel::Sender<Inbound>,
    ) -> Self {
        let shared = Self {
            session: Mutex::new(AgentSession::new(settings.window_bytes_max)),
            room: Condvar::new(),
            wake: Notify::new(),
            closing: CancellationToken::new(),
            control: Mutex::new(None),
            connection: Mutex::new(None),
            events,
            marks: Marks::default(),
            source: crossbeam_channel::bounded(SOURCE_EVENTS_MAX),
            bucket: Mutex::new(Bucket::default()),
            own_limit: settings.send_bytes_per_second_max,
            sent_frame_bytes: AtomicU64::new(0),
            clock,
        };
        shared.limit(0);
        shared
    }

    pub(super) fn session(&self) -> MutexGuard<'_, AgentSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_control(&self, control: Option<mpsc::Sender<AgentMessage>>) {
        *self.control.lock().unwrap_or_else(PoisonError::into_inner) = control;
    }

    pub(super) fn set_connection(&self, connection: Option<quinn::Connection>) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// Lets waiting capture threads and streams look again.
    pub(super) fn changed(&self) {
        self.room.notify_all();
        self.wake.notify_waiters();
    }

    /// The stricter of the machine's limit and our own; zero means none.
    pub(super) fn limit(&self, policy: u64) {
        let strictest = [policy, self.own_limit].into_iter().filter(|limit| *limit > 0).min();
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.set_rate(strictest.unwrap_or(0), self.clock.monotonic());
    }

    /// How long a frame of this size must wait.
    pub(super) fn throttle(&self, bytes: usize) -> Duration {
        self.sent_frame_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, self.clock.monotonic())
    }

    /// Whether capture takes part in a group cut, or holds.
    pub(super) fn is_occupied(&self) -> bool {
        self.marks.is_occupied()
    }

    /// Tells the source. One that does not follow is asked again by whoever wants something of it.
    pub(super) fn tell_source(&self, event: SourceEvent) {
        if self.source.0.try_send(event).is_err() {
            tracing::warn!("the source is busy; what it was told is dropped");
        }
    }

    /// Capture is to let go of its disks. If its queue is full it does not, and they are written back untracked.
    pub(super) fn let_go(&self) {
        if self.events.try_send(Inbound::LetGo).is_err() {
            tracing::warn!("capture is busy; it keeps its disks");
        }
    }

    /// Hands an event to capture; waits while its queue is full. Gives up only if capture is gone or the link closes.
    pub(super) async fn deliver(&self, event: Inbound) {
        if let Inbound::GroupCut(order) = &event
            && matches!(order.step, OrderStep::Mark(_) | OrderStep::Cancel { .. })
        {
            self.marks.put(order.as_ref().clone());
        }
        let mut event = event;
        loop {
            match self.events.try_send(event) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => event = back,
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(INBOUND_RETRY) => {}
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Capture's end of the link. Clones share it.
#[derive(Clone, Debug)]
pub struct ShipHandle {
    shared: Arc<Shared>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl ShipHandle {
    pub(super) fn new(shared: Arc<Shared>, task: JoinHandle<()>) -> Self {
        Self { shared, task: Arc::new(Mutex::new(Some(task))) }
    }

    /// Hands a frame over. Blocks while the byte budget is used up; not for async threads. Frames of a generation that
    /// was replaced meanwhile are dropped silently, and capture is told by an event.
    ///
    /// # Errors
    /// [`ShipError::Closed`], or [`ShipError::Order`] if it does not follow the last one.
    pub fn send_frame(&self, frame: OutgoingFrame) -> Result<(), ShipError> {
        let mut session = self.shared.session();
        loop {
            if self.shared.closing.is_cancelled() {
                return Err(ShipError::Closed);
            }
            if session.has_room(frame.bytes.len()) {
                session.push(frame)?;
                drop(session);
                self.shared.wake.notify_waiters();
                return Ok(());
            }
            session = self.shared.room.wait(session).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until a frame of this size would be taken at once, for at most this long; says whether it would.
    #[must_use]
    pub fn wait_for_room(&self, bytes: usize, at_most: Duration) -> bool {
        let session = self.shared.session();
        let full =
            |session: &mut AgentSession| !session.has_room(bytes) && !self.shared.closing.is_cancelled();
        let waited = self.shared.room.wait_timeout_while(session, at_most, full);
        waited.unwrap_or_else(PoisonError::into_inner).0.has_room(bytes)
    }

    /// Says something to the coordinator. Blocks while many messages wait; not for async threads. `TrustLost` and
    /// `CutVoided` are kept for the next session if there is none; other messages would be stale by then.
    ///
    /// # Errors
    /// [`ShipError::Offline`] if there is no session and the message was dropped.
    pub fn send_message(&self, message: AgentMessage) -> Result<(), ShipError> {
        let (said, action) = self.shared.session().say(message);
        let Some(super::session::Action::Send(message)) = action else {
            return if said == Said::Accepted { Ok(()) } else { Err(ShipError::Offline) };
        };
        let control = self.shared.control.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let control = control.ok_or(ShipError::Offline)?;
        if matches!(message, AgentMessage::GroupCut(_)) {
            // Said while writes are held: it does not wait, and a lost one costs the group cut only.
            return control.try_send(message).map_err(|_| ShipError::Offline);
        }
        control.blocking_send(message).map_err(|_| ShipError::Offline)
    }

    /// What the source is told. Clones share the events: there is one reader.
    #[must_use]
    pub fn source_events(&self) -> Receiver<SourceEvent> {
        self.shared.source.1.clone()
    }

    /// Where orders arrive that a held capture thread waits for.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.shared.marks.clone()
    }

    /// Bytes captured and not yet acknowledged, of one disk.
    #[must_use]
    pub fn unacknowledged_bytes(&self, disk: DiskId) -> u64 {
        self.shared.session().window().held_bytes_of(disk) as u64
    }

    /// Bytes captured and not yet acknowledged, of all disks.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.shared.session().window().held_bytes()
    }

    /// Bytes of frames given to the transport since the start, frames sent again included.
    #[must_use]
    pub fn sent_frame_bytes(&self) -> u64 {
        self.shared.sent_frame_bytes.load(Ordering::Relaxed)
    }

    /// Figures of the connection that is up.
    #[must_use]
    pub fn figures(&self) -> Option<AgentLinkFigures> {
        let connection = self.shared.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let stats = connection.stats();
        Some(AgentLinkFigures {
            rtt_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            congestion_window_bytes: stats.path.cwnd,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            mtu_bytes: stats.path.current_mtu,
            black_holes: stats.path.black_holes_detected,
        })
    }

    /// Ends the link in order: what is held is sent and acknowledged if that takes no longer than a few seconds. What
    /// was not acknowledged is still remembered by capture's maps.
    pub async fn shutdown(&self) {
        self.shared.closing.cancel();
        self.shared.changed();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _panicked = task.await;
        }
    }
}
