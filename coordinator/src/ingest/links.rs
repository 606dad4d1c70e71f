//! Live links: figures of the connections that are up, and orders to them.
//!
//! Owns the table of live sessions, and of the connections on which fenced sources stand by. Does not know what is sent over them.
//! Invariant: at most one live session per machine. A session whose peer is not heard any more is told nothing; what it was
//! told behind the last packet is told to the session that takes over.
//! Limit: [`ORDERS_MAX`] orders wait per session; more are refused, never queued.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, MachineId},
    units::BlockRange,
    wire::{AuditOrder, GroupOrder, Refusal, RefusalCode, SourceOrder},
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::ear::Ear;

/// Most orders that wait for one session.
pub const ORDERS_MAX: usize = 256;

/// The table of live sessions. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct LiveLinks {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    live: HashMap<MachineId, Live>,
    /// Fenced sources that stand by, each to be told why it has to end.
    standing: HashMap<MachineId, Vec<oneshot::Sender<Refusal>>>,
    /// What sessions were told that are being taken over.
    handed_over: HashMap<MachineId, Vec<Push>>,
}

/// Figures of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkFigures {
    /// The machine.
    pub machine: MachineId,
    /// Address of the agent.
    pub peer: SocketAddr,
    /// Version of the agent's program.
    pub agent_version: String,
    /// When the session was opened.
    pub connected_at: Timestamp,
    /// Round-trip time in microseconds.
    pub rtt_us: u64,
    /// Packets that the coordinator sent and had to give up for lost (the agent's losses are in its own figures).
    pub lost_packets: u64,
    /// Packets that the coordinator sent.
    pub sent_packets: u64,
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
    /// Bytes of frames accepted in this session.
    pub frame_bytes: u64,
}

/// What can be told to a live session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Push {
    /// Make a recovery point; the cut record carries `request` back.
    MakePoint {
        /// Number to carry back.
        request: u64,
    },
    /// Ask the agent to send these ranges again.
    SendAgain {
        /// The disk.
        disk: DiskId,
        /// The ranges.
        ranges: Vec<BlockRange>,
    },
    /// Make an app-consistent recovery point; the cut record carries `request` back.
    MakeApplicationPoint {
        /// Number to carry back.
        request: u64,
        /// Whether it is void if a hook fails.
        strict: bool,
    },
    /// What a group cut wants of the machine.
    GroupCut(Box<GroupOrder>),
    /// What a failover wants of it as its source.
    Source(SourceOrder),
    /// Read and hash a range of a disk.
    Audit(AuditOrder),
}

/// Why an order did not reach a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PushError {
    /// No session is open; the agent gets the assignment at its next connect, other orders must be given again.
    #[error("the machine is not connected")]
    NotConnected,
    /// A session is open, but the machine has not been heard for longer than a link that is well is silent.
    #[error("nothing is heard of the machine any more: it is down, or its link is")]
    Silent,
    /// The session does not keep up with its orders.
    #[error("the machine's session has {ORDERS_MAX} orders waiting")]
    Busy,
}

/// Orders to a session's task.
#[derive(Debug)]
pub(super) enum Order {
    /// Send this message.
    Push(Push),
    /// The assignment changed: fetch it and tell the agent.
    Reassign(oneshot::Sender<()>),
    /// End the session with this refusal.
    Close(Refusal),
}

/// Measures a live connection.
pub(super) type Gauge = Arc<dyn Fn() -> LinkFigures + Send + Sync>;

pub(super) struct Live {
    /// Tells sessions of the same machine apart.
    pub(super) number: u64,
    pub(super) orders: mpsc::Sender<Order>,
    pub(super) gauge: Gauge,
    pub(super) ear: Arc<Ear>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("number", &self.number).finish_non_exhaustive()
    }
}

impl LiveLinks {
    /// Figures of a machine's link, if it is up.
    #[must_use]
    pub fn figures(&self, machine: MachineId) -> Option<LinkFigures> {
        let gauge = self.table().live.get(&machine).map(|live| Arc::clone(&live.gauge))?;
        Some(gauge())
    }

    /// Whether a machine has a session, and something was heard of it a moment ago.
    #[must_use]
    pub fn is_heard(&self, machine: MachineId) -> bool {
        let ear = self.table().live.get(&machine).map(|live| Arc::clone(&live.ear));
        ear.is_some_and(|ear| !ear.is_silent())
    }

    /// Figures of all links that are up, by machine.
    #[must_use]
    pub fn all(&self) -> Vec<LinkFigures> {
        let gauges: Vec<Gauge> = self.table().live.values().map(|live| Arc::clone(&live.gauge)).collect();
        let mut figures: Vec<LinkFigures> = gauges.iter().map(|gauge| gauge()).collect();
        figures.sort_by_key(|figures| figures.machine);
        figures
    }

    /// Tells a session something.
    ///
    /// # Errors
    /// It is not there, or does not keep up.
    pub fn push(&self, machine: MachineId, push: Push) -> Result<(), PushError> {
        let ear = self.table().live.get(&machine).map(|live| Arc::clone(&live.ear));
        let ear = ear.ok_or(PushError::NotConnected)?;
        if ear.is_silent() {
            return Err(PushError::Silent);
        }
        ear.told(&push);
        self.order(machine, Order::Push(push))
    }

    /// Looks whether the machine is heard.
    pub(super) fn listen(&self, machine: MachineId) {
        let ear = self.table().live.get(&machine).map(|live| Arc::clone(&live.ear));
        if let Some(ear) = ear {
            ear.listen();
        }
    }

    /// Has the session fetch the machine's assignment and tell the agent; resolves once frames of replaced generations
    /// are no longer taken. Without a session there is nothing to do.
    ///
    /// # Errors
    /// [`PushError::Busy`] only.
    pub async fn reassign(&self, machine: MachineId) -> Result<(), PushError> {
        let (done, wait) = oneshot::channel();
        match self.order(machine, Order::Reassign(done)) {
            Ok(()) => {
                // An error means that the session ended, which fences as well.
                let _ended = wait.await;
                Ok(())
            }
            Err(PushError::NotConnected) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A connection on which a fenced source stands by: resolves with why it has to end. To be asked for before its certificate is
    /// looked up, so that none is missed that is revoked meanwhile.
    pub(super) fn stand_by(&self, machine: MachineId) -> oneshot::Receiver<Refusal> {
        let (end, ended) = oneshot::channel();
        let mut table = self.table();
        let standing = table.standing.entry(machine).or_default();
        standing.retain(|other| !other.is_closed());
        standing.push(end);
        ended
    }

    /// Ends all that a machine has open: what its certificates were is worth nothing from now on.
    pub fn revoke(&self, machine: MachineId, text: &str) {
        self.close(machine, RefusalCode::REVOKED, text);
        for end in self.table().standing.remove(&machine).into_iter().flatten() {
            // It has ended by itself.
            let _gone = end.send(Refusal::new(RefusalCode::REVOKED, text));
        }
    }

    /// Ends a machine's session, if one is open, with this code and text. A source that stands by is left alone.
    pub fn close(&self, machine: MachineId, code: RefusalCode, text: &str) {
        if self.order(machine, Order::Close(Refusal::new(code, text))) == Err(PushError::Busy) {
            // A session that does not take orders is ended by taking its channel away.
            self.table().live.remove(&machine);
        }
    }

    fn order(&self, machine: MachineId, order: Order) -> Result<(), PushError> {
        let sender = self.table().live.get(&machine).map(|live| live.orders.clone());
        let sender = sender.ok_or(PushError::NotConnected)?;
        sender.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => PushError::Busy,
            mpsc::error::TrySendError::Closed(_) => PushError::NotConnected,
        })
    }

    pub(super) fn insert(&self, machine: MachineId, live: Live) {
        let mut table = self.table();
        for push in table.handed_over.remove(&machine).into_iter().flatten() {
            live.ear.told(&push);
            // The queue of a new session has room for all that one ear remembers.
            let _busy = live.orders.try_send(Order::Push(push));
        }
        table.live.insert(machine, live);
    }

    /// Takes a session out, unless a newer one has taken its place.
    pub(super) fn remove(&self, machine: MachineId, number: u64) {
        let mut table = self.table();
        let _ended = table.take(machine, number);
        // Whoever was to take over did not.
        table.handed_over.remove(&machine);
    }

    /// The same for a session that a newer one takes over: that one is told what this one was and cannot have answered.
    pub(super) fn hand_over(&self, machine: MachineId, number: u64) {
        let mut table = self.table();
        if let Some(live) = table.take(machine, number) {
            table.handed_over.insert(machine, live.ear.unheard());
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Takes a session out if it is this one.
    fn take(&mut self, machine: MachineId, number: u64) -> Option<Live> {
        let is_meant = self.live.get(&machine).is_some_and(|live| live.number == number);
        if is_meant { self.live.remove(&machine) } else { None }
    }
}
