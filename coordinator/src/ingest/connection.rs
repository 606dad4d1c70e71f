//! One session's connection: its tasks, and what they share.
//!
//! Owns the order of a session's life: hello, seat, settled logs, welcome, work, end. Decisions are
//! [`super::session`]'s.
//! Invariant: when [`run`] returns, no task of the connection is left, and every frame handed to a sink was awaited.
//! Limits: [`REQUESTS_MAX`], [`CONTROL_MAX`], `ORDERS_MAX`, the byte budget per agent.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use holdfast_common::{
    clock::{Clock, Timestamp},
    ids::{DiskId, MachineId},
    wire::{CoordinatorMessage, DataStreamStart, Hello, Refusal, RefusalCode},
};
use quinn::Connection;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{
    control,
    ear::Ear,
    ending::Ending,
    enrolment,
    links::{Gauge, LinkFigures, Live, LiveLinks, ORDERS_MAX, Order, Push},
    port::{CertificateSerial, FrameSink, PortError, Ports},
    seats::Seats,
    session::{CoordinatorSession, Request, Verdict},
    verify::{Verified, VerifyPool},
};
use crate::authority::Authority;

/// Most requests of the agent that wait to be worked on; its control stream is not read on meanwhile.
pub(super) const REQUESTS_MAX: usize = 64;

/// Most control messages that wait to be sent.
const CONTROL_MAX: usize = 256;

/// Longest time from the handshake to the hello.
const HELLO_MAX: Duration = Duration::from_secs(15);

/// How often it is looked whether the peer is still heard.
const LISTEN_EVERY: Duration = Duration::from_secs(1);

/// Priority of the control stream.
const CONTROL_PRIORITY: i32 = 10;

/// What all connections share.
pub(super) struct Hall {
    pub(super) ports: Ports,
    pub(super) authority: Arc<Authority>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) links: LiveLinks,
    pub(super) seats: Seats,
    pub(super) pool: VerifyPool,
    pub(super) agent_budget_bytes: usize,
    /// Silence after which a session is told nothing any more.
    pub(super) silence_max: Duration,
    pub(super) next_number: AtomicU64,
}

impl fmt::Debug for Hall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hall").field("links", &self.links).finish_non_exhaustive()
    }
}

/// What the tasks of one connection share.
pub(super) struct Context {
    pub(super) hall: Arc<Hall>,
    pub(super) machine: MachineId,
    pub(super) serial: CertificateSerial,
    pub(super) number: u64,
    pub(super) connection: Connection,
    pub(super) ending: Ending,
    pub(super) control: mpsc::Sender<CoordinatorMessage>,
    pub(super) acknowledge: Notify,
    pub(super) frame_bytes: AtomicU64,
    session: Mutex<CoordinatorSession>,
    lines: Mutex<Lines>,
    budget: Arc<Semaphore>,
}

/// The sinks of the session's disks, and the streams that feed them.
#[derive(Default)]
pub(super) struct Lines {
    pub(super) sinks: HashMap<DiskId, Arc<dyn FrameSink>>,
    pub(super) streams: HashMap<DiskId, LiveStream>,
}

/// A stream that is being received.
pub(super) struct LiveStream {
    /// Stops it.
    pub(super) stop: CancellationToken,
    /// Resolves (with an error) when it has ended and its frames are with the sink.
    pub(super) done: oneshot::Receiver<()>,
}

/// What a stream needs to go on; dropping the last part says that it is done.
pub(super) type BegunStream = (CancellationToken, Arc<dyn FrameSink>, oneshot::Sender<()>);

impl Context {
    pub(super) fn session(&self) -> MutexGuard<'_, CoordinatorSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A data stream begins; `None` if its line of history was replaced.
    pub(super) fn begin_stream(&self, start: DataStreamStart) -> Result<Option<BegunStream>, Refusal> {
        // Both locks, in this order as everywhere: a fence in between would miss the stream.
        let mut session = self.session();
        if session.stream(start)? != Verdict::Append {
            return Ok(None);
        }
        let mut lines = self.lines();
        let Some(sink) = lines.sinks.get(&start.disk).map(Arc::clone) else { return Ok(None) };
        let (finished, done) = oneshot::channel();
        let stop = CancellationToken::new();
        lines.streams.insert(start.disk, LiveStream { stop: stop.clone(), done });
        Ok(Some((stop, sink, finished)))
    }

    /// Hands a batch to the pool, within the agent's byte budget. `None` if the pool is gone.
    pub(super) async fn submit(
        &self,
        frames: Vec<BytesMut>,
        bytes: usize,
    ) -> Option<(oneshot::Receiver<Verified>, OwnedSemaphorePermit)> {
        let permits = u32::try_from(bytes.min(self.hall.agent_budget_bytes)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(permits).await.ok()?;
        Some((self.hall.pool.submit(frames).await?, permit))
    }

    /// What the peer is told about a port's failure.
    pub(super) fn port_refusal(&self, error: PortError) -> Refusal {
        let refusal = enrolment::told(error);
        tracing::warn!(machine = %self.machine, %refusal, "session cannot go on");
        refusal
    }

    /// Queues a message for the agent. An agent that does not read is not waited for: its session ends.
    pub(super) fn say(&self, message: CoordinatorMessage) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.control.try_send(message) {
            let text = format!("more than {CONTROL_MAX} control messages were not read");
            self.ending.end(Refusal::new(RefusalCode::LIMIT, text));
        }
    }

    fn gauge(self: &Arc<Self>, hello: &Hello, connected_at: Timestamp) -> Gauge {
        let (context, agent_version) = (Arc::clone(self), hello.agent_version.clone());
        Arc::new(move || {
            let stats = context.connection.stats();
            LinkFigures {
                machine: context.machine,
                peer: context.connection.remote_address(),
                agent_version: agent_version.clone(),
                connected_at,
                rtt_us: u64::try_from(stats.path.rtt.as_micros()).unwrap_or(u64::MAX),
                lost_packets: stats.path.lost_packets,
                sent_packets: stats.path.sent_packets,
                congestion_window_bytes: stats.path.cwnd,
                sent_bytes: stats.udp_tx.bytes,
                received_bytes: stats.udp_rx.bytes,
                mtu_bytes: stats.path.current_mtu,
                black_holes: stats.path.black_holes_detected,
                frame_bytes: context.frame_bytes.load(Ordering::Relaxed),
            }
        })
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("machine", &self.machine)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Runs an admitted connection to its end.
pub(super) async fn run(
    hall: Arc<Hall>,
    connection: Connection,
    machine: MachineId,
    serial: CertificateSerial,
) {
    let number = hall.next_number.fetch_add(1, Ordering::Relaxed);
    let (control, outgoing) = mpsc::channel(CONTROL_MAX);
    let budget = Arc::new(Semaphore::new(hall.agent_budget_bytes));
    let context = Arc::new(Context {
        hall,
        machine,
        serial,
        number,
        connection,
        ending: Ending::default(),
        control,
        acknowledge: Notify::new(),
        frame_bytes: AtomicU64::new(0),
        session: Mutex::new(CoordinatorSession::new(machine)),
        lines: Mutex::default(),
        budget,
    });
    let mut tasks = JoinSet::new();
    let seat = match open(&context, &mut tasks, outgoing).await {
        Ok((seat, requests, orders)) => {
            work(&context, &mut tasks, requests, orders).await;
            Some(seat)
        }
        Err(refusal) => {
            context.ending.end(refusal);
            None
        }
    };
    close(&context, tasks, seat.is_some()).await;
    drop(seat);
}

type Opened = (tokio::sync::OwnedMutexGuard<()>, mpsc::Receiver<Request>, mpsc::Receiver<Order>);

/// From the control stream to the welcome.
async fn open(
    context: &Arc<Context>,
    tasks: &mut JoinSet<Result<(), Refusal>>,
    outgoing: mpsc::Receiver<CoordinatorMessage>,
) -> Result<Opened, Refusal> {
    let (requests, mut asked) = mpsc::channel(REQUESTS_MAX);
    let first = async {
        let (send, receive) = context.connection.accept_bi().await.map_err(lost)?;
        let _closed = send.set_priority(CONTROL_PRIORITY);
        tasks.spawn(control::write(Arc::clone(context), send, outgoing));
        tasks.spawn(control::read(Arc::clone(context), receive, requests));
        if let Some(request) = asked.recv().await {
            return Ok(request);
        }
        // The reader has ended; it knows why.
        match tasks.join_next().await {
            Some(Ok(Err(refusal))) => Err(refusal),
            _ => Err(Refusal::new(RefusalCode::PROTOCOL, "no hello")),
        }
    };
    let request = tokio::time::timeout(HELLO_MAX, first).await;
    let request = request.map_err(|_| Refusal::new(RefusalCode::PROTOCOL, "no hello in time"))??;
    let Request::Prepare(hello) = request else {
        return Err(Refusal::new(RefusalCode::PROTOCOL, "the first message must be a hello"));
    };
    let hall = &context.hall;
    let seat = hall.seats.take(context.machine, context.number, &context.ending).await?;
    let connected_at = hall.clock.wall();
    let gauge = context.gauge(&hello, connected_at);
    hall.ports.directory.record_hello(context.machine, hello).await.map_err(|e| context.port_refusal(e))?;
    let assignment = context.settled_assignment(tasks).await.inspect_err(|refusal| {
        hall.ports.directory.record_disconnected(context.machine, refusal.to_string());
    })?;
    let welcome = context.session().welcome(assignment, connected_at, env!("CARGO_PKG_VERSION"));
    let (orders, ordered) = mpsc::channel(ORDERS_MAX);
    let connection = context.connection.clone();
    let packets = move || connection.stats().udp_rx.datagrams;
    let ear = Arc::new(Ear::new(packets, Arc::clone(&hall.clock), hall.silence_max));
    hall.links.insert(context.machine, Live { number: context.number, orders, gauge, ear });
    // Whoever was revoked since the handshake did not find us in the table: look again now that we are there.
    let admitted = hall.ports.directory.admit(context.machine, context.serial).await;
    if let Err(error) = admitted {
        hall.links.remove(context.machine, context.number);
        return Err(context.port_refusal(error));
    }
    context.say(welcome);
    tracing::info!(machine = %context.machine, peer = %context.connection.remote_address(), "agent connected");
    Ok((seat, asked, ordered))
}

/// Works until somebody asks for the end.
async fn work(
    context: &Arc<Context>,
    tasks: &mut JoinSet<Result<(), Refusal>>,
    mut requests: mpsc::Receiver<Request>,
    mut orders: mpsc::Receiver<Order>,
) {
    let mut listen = tokio::time::interval(LISTEN_EVERY);
    listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while context.ending.reason().is_none() {
        let done = tokio::select! {
            () = context.ending.asked() => Ok(()),
            _ = listen.tick() => {
                context.hall.links.listen(context.machine);
                Ok(())
            }
            error = context.connection.closed() => Err(lost(error)),
            order = orders.recv() => obey(context, tasks, order).await,
            Some(request) = requests.recv() => control::answer(context, tasks, request).await,
            stream = context.connection.accept_uni() => match stream {
                Ok(stream) => {
                    tasks.spawn(super::receive::receive(Arc::clone(context), stream));
                    Ok(())
                }
                Err(error) => Err(lost(error)),
            },
            Some(done) = tasks.join_next() => done.unwrap_or_else(|error| Err(refuse(RefusalCode::BUSY, &error))),
        };
        if let Err(refusal) = done {
            context.ending.end(refusal);
        }
    }
}

async fn obey(
    context: &Arc<Context>,
    tasks: &mut JoinSet<Result<(), Refusal>>,
    order: Option<Order>,
) -> Result<(), Refusal> {
    match order {
        Some(Order::Push(Push::MakePoint { request })) => {
            context.say(CoordinatorMessage::MakePoint { request })
        }
        Some(Order::Push(Push::SendAgain { disk, ranges })) => {
            context.say(CoordinatorMessage::SendAgain { disk, ranges });
        }
        Some(Order::Push(Push::MakeApplicationPoint { request, strict })) => {
            context.say(CoordinatorMessage::MakeApplicationPoint { request, strict });
        }
        Some(Order::Push(Push::Source(order))) => context.say(CoordinatorMessage::Source(order)),
        Some(Order::Push(Push::Audit(order))) => context.say(CoordinatorMessage::Audit(order)),
        Some(Order::Push(Push::GroupCut(order))) => context.say(CoordinatorMessage::GroupCut(order)),
        Some(Order::Reassign(done)) => {
            context.reassign(tasks).await?;
            let _gone = done.send(());
        }
        Some(Order::Close(refusal)) => return Err(refusal),
        None => return Err(Refusal::new(RefusalCode::REVOKED, "the session was ended by the operator")),
    }
    Ok(())
}

/// Closes the connection, then waits for all that is still under way.
async fn close(context: &Context, mut tasks: JoinSet<Result<(), Refusal>>, was_open: bool) {
    let reason = context.ending.reason().unwrap_or_else(closing);
    context.ending.end(reason.clone());
    context.connection.close(reason.code.0.into(), reason.text.as_bytes());
    for stream in context.lines().streams.values() {
        stream.stop.cancel();
    }
    while tasks.join_next().await.is_some() {}
    let hall = &context.hall;
    if reason.code == RefusalCode::SUPERSEDED {
        hall.links.hand_over(context.machine, context.number);
    } else {
        hall.links.remove(context.machine, context.number);
    }
    hall.seats.leave(context.machine, context.number);
    if was_open {
        hall.ports.directory.record_disconnected(context.machine, reason.to_string());
    }
    tracing::info!(machine = %context.machine, %reason, "agent disconnected");
}

/// The end of a connection, seen from our side.
pub(super) fn lost(error: quinn::ConnectionError) -> Refusal {
    match error {
        quinn::ConnectionError::ApplicationClosed(close) if close.error_code.into_inner() == 0 => closing(),
        error => Refusal::new(RefusalCode::CLOSING, format!("the connection was lost: {error}")),
    }
}

pub(super) fn closing() -> Refusal {
    Refusal::new(RefusalCode::CLOSING, "closed in order")
}

/// A refusal with the text of an error.
pub(super) fn refuse(code: RefusalCode, error: &dyn fmt::Display) -> Refusal {
    Refusal::new(code, error.to_string())
}
