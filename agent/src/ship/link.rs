//! The link: connects, runs one session after the other, and ends in order.
//!
//! Owns the connection, its control stream and the tasks around it. What is said is decided by [`super::session`].
//! Invariant: when a connection's run returns, all its tasks have ended and capture was told.
//! Limits: [`CONTROL_MAX`] control messages wait; pauses between attempts are bounded by the settings.

use std::{io, sync::Arc, time::Duration};

use holdfast_common::{
    codec::CodecError,
    ids::{DiskId, Generation},
    tls::{self, COORDINATOR_NAME, MachineKey},
    wire::{
        ALPN_SESSION, ALPN_WRITE_BACK, AgentMessage, ControlBuffer, ControlError, CoordinatorMessage,
        Inventory, Refusal, RefusalCode, envelope,
    },
};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use thiserror::Error;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use super::{
    InventorySource, ShipParts, ShipSettings,
    backoff::Backoff,
    endpoint,
    port::Inbound,
    renewal::Renewal,
    session::{self, Action},
    shared::Shared,
    streams,
};
use crate::{identity::Identity, source::SourceEvent, write_back};

/// Most control messages that wait to be sent.
const CONTROL_MAX: usize = 256;

/// Most streams that wait to be opened.
const OPENS_MAX: usize = 64;

/// Priority of the control stream; data streams have 0.
const CONTROL_PRIORITY: i32 = 10;

/// Shortest pause after a refusal that will not go away by itself.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);

/// A session that lasted this long was a good one: the next attempt comes soon.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// How often it is looked whether the machine has changed.
const INVENTORY_LOOK: Duration = Duration::from_secs(10);

/// Time between two looks whether a group cut is over, and the longest wait for that.
const OCCUPIED_LOOK: Duration = Duration::from_millis(100);
const OCCUPIED_MAX: Duration = Duration::from_mins(1);

/// Longest time to wait for acknowledgements when the agent ends.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Pause of a source that is fenced before it asks again.
const FENCED_PAUSE: Duration = Duration::from_secs(1);

/// How often the drain looks whether everything was acknowledged.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Why a connection was not made, or ended.
#[derive(Debug, Error)]
enum LinkError {
    #[error("the coordinator's address {address} cannot be found")]
    Address {
        address: String,
        #[source]
        source: io::Error,
    },
    #[error("the connection cannot be prepared")]
    Prepare(#[source] io::Error),
    #[error("{}", endpoint::describe(.0))]
    Lost(ConnectionError),
    #[error("{0}")]
    Refused(Refusal),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("the control stream cannot be read")]
    Codec(#[from] CodecError),
    #[error("the control stream has ended")]
    ControlEnded,
}

impl From<ControlError> for LinkError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Version { theirs } => Self::Refused(session::version(theirs)),
            ControlError::Codec(error) => Self::Codec(error),
        }
    }
}

impl LinkError {
    /// The refusal that it stands for, whoever refused.
    fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal.clone()),
            Self::Lost(error) => endpoint::refusal(error),
            _ => None,
        }
    }
}

/// Runs until the handle is shut down.
pub(super) async fn run(shared: Arc<Shared>, settings: ShipSettings, parts: ShipParts, identity: Identity) {
    let (clock, entropy) = (Arc::clone(&parts.clock), Arc::clone(&parts.entropy));
    let mut renewal = Renewal::new(identity, parts.store.clone(), clock, entropy);
    let mut backoff = Backoff::new(settings.reconnect_min, settings.reconnect_max);
    while !shared.closing.is_cancelled() {
        let began = shared.clock.monotonic();
        let ended = connection(&shared, &settings, &parts, &mut renewal).await;
        let disconnected = shared.session().disconnected();
        renewal.disconnected();
        shared.set_control(None);
        shared.set_connection(None);
        shared.changed();
        if let Some(Action::Deliver(event)) = disconnected {
            shared.deliver(event).await;
        }
        let Err(error) = ended else { return };
        if shared.clock.monotonic().saturating_sub(began) >= GOOD_SESSION {
            backoff.reset();
        }
        let mut pause = backoff.pause(parts.entropy.as_ref());
        let refusal = error.refusal();
        let code = refusal.as_ref().map(|refusal| refusal.code);
        if let Some(refusal) = refusal.filter(|refusal| refusal.code == RefusalCode::FENCED) {
            shared.tell_source(SourceEvent::Fenced(refusal.text.clone()));
            shared.deliver(Inbound::Fenced(refusal.text)).await;
            // A failover that is cancelled finds its source replicating again within seconds.
            backoff.reset();
            pause = FENCED_PAUSE.min(settings.reconnect_max);
            if stand_by(&shared, &settings, &parts, renewal.identity()).await {
                pause = Duration::ZERO;
            }
        }
        if matches!(code, Some(RefusalCode::REVOKED | RefusalCode::UNAUTHORIZED | RefusalCode::VERSION)) {
            pause = pause.max(REFUSED_PAUSE.min(settings.reconnect_max));
        }
        tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "link to the coordinator is down");
        tokio::select! {
            () = shared.closing.cancelled() => {}
            () = sleep(pause) => {}
        }
    }
}

/// One connection, from its first packet to its last. `Ok` means that the agent ends.
async fn connection(
    shared: &Arc<Shared>,
    settings: &ShipSettings,
    parts: &ShipParts,
    renewal: &mut Renewal,
) -> Result<(), LinkError> {
    let connecting = connect(shared, settings, renewal.identity(), ALPN_SESSION);
    let (endpoint, connection) = tokio::select! {
        () = shared.closing.cancelled() => return Ok(()),
        connected = connecting => connected?,
    };
    shared.set_connection(Some(connection.clone()));
    let ended = serve(shared, settings, parts, renewal, &connection).await;
    let refusal = match &ended {
        Ok(()) => Refusal::new(RefusalCode::CLOSING, "the agent ends"),
        Err(error) => {
            error.refusal().unwrap_or_else(|| Refusal::new(RefusalCode::PROTOCOL, error.to_string()))
        }
    };
    connection.close(refusal.code.0.into(), refusal.text.as_bytes());
    // The peer needs the close packet to reach it; a peer that is gone is not waited for.
    let _gone = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
    ended
}

/// Stands by while the machine is fenced, for its disks to be written back. Returns when the source is let in again, or when
/// standing by is of no use (any more); a session is tried again then.
async fn stand_by(shared: &Shared, settings: &ShipSettings, parts: &ShipParts, identity: &Identity) -> bool {
    let standing = async {
        let (endpoint, connection) = connect(shared, settings, identity, ALPN_WRITE_BACK).await?;
        let inventory = Arc::clone(&parts.inventory);
        let begins = || {
            shared.tell_source(SourceEvent::WriteBack);
            shared.let_go();
        };
        let (entropy, tracked) = (parts.entropy.as_ref(), parts.tracked.clone());
        let standing = write_back::stand_by(connection.clone(), inventory, tracked, entropy, begins);
        let ended = standing.await;
        connection.close(RefusalCode::CLOSING.0.into(), b"the source stands by no more");
        let _gone = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        Ok::<_, LinkError>(ended)
    };
    let ended = tokio::select! {
        () = shared.closing.cancelled() => return false,
        ended = standing => ended,
    };
    match ended {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the source stands by no more");
        }
        // A coordinator of before there was a way back.
        Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "the source cannot stand by"),
    }
    false
}

async fn connect(
    shared: &Shared,
    settings: &ShipSettings,
    identity: &Identity,
    alpn: &[u8],
) -> Result<(Endpoint, Connection), LinkError> {
    let key = MachineKey::from_pkcs8(&identity.key)?;
    let clock = Arc::clone(&shared.clock);
    let tls = tls::session_client(clock, &identity.authority, &identity.certificate, &key, alpn)?;
    let config = endpoint::client(tls, &settings.link).map_err(LinkError::Prepare)?;
    let unknown = |source| LinkError::Address { address: identity.coordinator.clone(), source };
    let addresses: Vec<_> = tokio::net::lookup_host(&identity.coordinator).await.map_err(unknown)?.collect();
    let mut last = unknown(io::ErrorKind::NotFound.into());
    for address in addresses {
        let endpoint = endpoint::open(address, &settings.link).map_err(LinkError::Prepare)?;
        let connecting = endpoint.connect_with(config.clone(), address, COORDINATOR_NAME);
        let connecting = connecting.map_err(|error| LinkError::Prepare(io::Error::other(error)))?;
        match connecting.await {
            Ok(connection) => return Ok((endpoint, connection)),
            Err(error) => last = LinkError::Lost(error),
        }
    }
    Err(last)
}

/// What the control reader asks of the connection's loop.
enum Ask {
    Open(DiskId, Generation),
    Renewed(Vec<u8>),
}

async fn serve(
    shared: &Arc<Shared>,
    settings: &ShipSettings,
    parts: &ShipParts,
    renewal: &mut Renewal,
    connection: &Connection,
) -> Result<(), LinkError> {
    let lost = || LinkError::Lost(connection.close_reason().unwrap_or(ConnectionError::Reset));
    let source = Arc::clone(&parts.inventory);
    let inventory = tokio::task::spawn_blocking(move || source()).await;
    let inventory = inventory.map_err(|error| LinkError::Prepare(io::Error::other(error)))?;
    let (send, receive) = connection.open_bi().await.map_err(LinkError::Lost)?;
    send.set_priority(CONTROL_PRIORITY).map_err(|_| lost())?;
    let (control, outgoing) = mpsc::channel(CONTROL_MAX);
    let (ask, mut asked) = mpsc::channel(OPENS_MAX);
    let told = inventory.clone();
    let hello = shared.session().connected(inventory, env!("CARGO_PKG_VERSION"));
    if let Action::Send(hello) = hello {
        // The queue is new and empty.
        let _fits = control.try_send(hello);
    }
    shared.set_control(Some(control.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(write_control(connection.clone(), send, outgoing));
    tasks.spawn(read_control(Arc::clone(shared), connection.clone(), receive, control.clone(), ask));
    tasks.spawn(tell_changes(Arc::clone(shared), Arc::clone(&parts.inventory), told, control.clone()));
    let mut renewals = interval_at(Instant::now() + settings.renewal_check, settings.renewal_check);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let result = loop {
        tokio::select! {
            () = shared.closing.cancelled() => break drain(shared, &control).await,
            error = connection.closed() => break Err(LinkError::Lost(error)),
            Some(done) = tasks.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(error) => break Err(LinkError::Prepare(io::Error::other(error))),
            },
            Some(ask) = asked.recv() => match ask {
                Ask::Open(disk, generation) => {
                    let stream = streams::send_disk(Arc::clone(shared), connection.clone(), disk, generation);
                    tasks.spawn(async move { stream.await; Ok(()) });
                }
                Ask::Renewed(certificate) => finish_renewal(renewal, certificate),
            },
            _ = renewals.tick() => begin_renewal(shared, renewal, &control).await,
        }
    };
    tasks.shutdown().await;
    result
}

/// Tells the coordinator when the machine has changed (a disk was added, resized or removed), so that operators can
/// protect what is there now. Ends with the connection.
async fn tell_changes(
    shared: Arc<Shared>,
    source: InventorySource,
    mut told: Inventory,
    control: mpsc::Sender<AgentMessage>,
) -> Result<(), LinkError> {
    loop {
        sleep(INVENTORY_LOOK).await;
        // Reading the machine takes long where it has many disks: not while others hold for this one.
        let free = async {
            while shared.is_occupied() {
                sleep(OCCUPIED_LOOK).await;
            }
        };
        let _read_all_the_same_in_the_end = timeout(OCCUPIED_MAX, free).await;
        if !shared.session().is_open() {
            continue;
        }
        let source = Arc::clone(&source);
        let inventory = tokio::task::spawn_blocking(move || source()).await;
        let inventory = inventory.map_err(|error| LinkError::Prepare(io::Error::other(error)))?;
        if inventory != told {
            told.clone_from(&inventory);
            let _ended = control.send(AgentMessage::Inventory(Box::new(inventory))).await;
        }
    }
}

/// Waits until everything held is acknowledged, says goodbye.
async fn drain(shared: &Shared, control: &mpsc::Sender<AgentMessage>) -> Result<(), LinkError> {
    let empty = async {
        while shared.session().window().held_bytes() > 0 {
            sleep(DRAIN_LOOK).await;
        }
    };
    if timeout(DRAIN_MAX, empty).await.is_err() {
        let bytes = shared.session().window().held_bytes();
        tracing::warn!(bytes, "ending with unacknowledged frames; they will be captured again");
    }
    let _ended = control.try_send(AgentMessage::Closing);
    // Gives the goodbye a moment to leave before the close overtakes it; nothing depends on it.
    sleep(DRAIN_LOOK).await;
    Ok(())
}

async fn begin_renewal(shared: &Shared, renewal: &mut Renewal, control: &mpsc::Sender<AgentMessage>) {
    if !shared.session().is_open() {
        return;
    }
    match renewal.request() {
        Ok(None) => {}
        Ok(Some(request)) => _ = control.send(AgentMessage::Renew(request)).await,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "certificate cannot be renewed")
        }
    }
}

fn finish_renewal(renewal: &mut Renewal, certificate: Vec<u8>) {
    match renewal.renewed(certificate) {
        Ok(()) => tracing::info!("certificate renewed"),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "renewed certificate is not used")
        }
    }
}

async fn write_control(
    connection: Connection,
    mut stream: SendStream,
    mut messages: mpsc::Receiver<AgentMessage>,
) -> Result<(), LinkError> {
    while let Some(message) = messages.recv().await {
        let bytes = envelope::seal(&message)?;
        if stream.write_chunk(bytes).await.is_err() {
            return Err(LinkError::Lost(connection.closed().await));
        }
    }
    Ok(())
}

async fn read_control(
    shared: Arc<Shared>,
    connection: Connection,
    mut stream: RecvStream,
    control: mpsc::Sender<AgentMessage>,
    ask: mpsc::Sender<Ask>,
) -> Result<(), LinkError> {
    let mut buffer = ControlBuffer::default();
    loop {
        while let Some(message) = buffer.next::<CoordinatorMessage>()? {
            let actions = shared.session().message(message).map_err(LinkError::Refused)?;
            shared.changed();
            for action in actions {
                act(&shared, &control, &ask, action).await;
            }
        }
        match stream.read_chunk(usize::MAX, true).await {
            Ok(Some(chunk)) => buffer.push(&chunk.bytes),
            Ok(None) => return Err(LinkError::ControlEnded),
            Err(_) => return Err(LinkError::Lost(connection.closed().await)),
        }
    }
}

/// Does what the session wants. Queues whose other end is gone belong to a connection that is ending.
async fn act(shared: &Shared, control: &mpsc::Sender<AgentMessage>, ask: &mpsc::Sender<Ask>, action: Action) {
    match action {
        Action::Send(message) => _ = control.send(message).await,
        Action::OpenStream(disk, generation) => _ = ask.send(Ask::Open(disk, generation)).await,
        Action::Source(order) => shared.tell_source(SourceEvent::Order(order)),
        Action::Deliver(event) => {
            if matches!(event, Inbound::Connected(_)) {
                shared.tell_source(SourceEvent::LetIn);
            }
            shared.deliver(event).await;
        }
        Action::Limit(limit) => shared.limit(limit),
        Action::Renewed(reply) => _ = ask.send(Ask::Renewed(reply.certificate_der)).await,
    }
}
