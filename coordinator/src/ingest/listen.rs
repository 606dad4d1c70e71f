//! The endpoint: one UDP port for sessions and enrolments.
//!
//! Owns the socket, the transport's settings, and the tasks of all connections. Does not know what is said on them.
//! Limits: [`IngestSettings`] names them; a handshake takes at most the idle timeout.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use holdfast_common::{
    clock::Clock,
    entropy::Entropy,
    ids::MachineId,
    wire::{ALPN_ENROL, ALPN_WRITE_BACK, Refusal, RefusalCode},
};
use quinn::{
    Connection, Endpoint, Incoming, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{HandshakeData, QuicServerConfig},
};
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, oneshot},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admit,
    connection::{self, Hall},
    enrolment::{self, Enrolments},
    links::LiveLinks,
    port::{CertificateSerial, Ports},
    reset,
    seats::Seats,
    verify::VerifyPool,
    write_back,
};
use crate::authority::{Authority, AuthorityError};

/// Streams for disks' data per connection: one per disk, and some that end while their successors begin.
const DATA_STREAMS_MAX: u32 = 512;

/// Bytes of one stream that the agent may send ahead: bandwidth times delay of one disk's stream.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Time that an answer to a packet that keeps a connection alive may take beyond two of them.
const SILENCE_SLACK: Duration = Duration::from_secs(2);

/// What the key of stateless resets is derived for.
const RESET_KEY: &str = "holdfast 2026-11-22 stateless resets of the agents' endpoint";

/// Settings of ingest.
#[derive(Clone, Copy, Debug)]
pub struct IngestSettings {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Most connections at a time, enrolments included; more are refused.
    pub connections_max: usize,
    /// Most enrolments at a time.
    pub enrolments_max: usize,
    /// Bytes that one agent may have sent ahead of what was read: memory that an agent can pin.
    pub receive_window_bytes: u32,
    /// Bytes of one agent's frames between its streams and the sinks.
    pub agent_budget_bytes: usize,
    /// Threads that verify frames.
    pub verify_threads: usize,
    /// Time between packets that keep an idle connection alive.
    pub keep_alive: Duration,
    /// Silence after which a connection is lost.
    pub idle_timeout: Duration,
    /// Socket buffers asked of the kernel, in bytes; it may give less (net.core.rmem_max, wmem_max).
    pub socket_buffer_bytes: usize,
}

impl IngestSettings {
    /// The defaults for this address.
    #[must_use]
    pub fn new(listen: SocketAddr) -> Self {
        Self {
            listen,
            connections_max: 1024,
            enrolments_max: 16,
            receive_window_bytes: 64 << 20,
            agent_budget_bytes: 16 << 20,
            verify_threads: std::thread::available_parallelism().map_or(1, |threads| threads.get().min(8)),
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            socket_buffer_bytes: 4 << 20,
        }
    }
}

/// Why ingest cannot start.
#[derive(Debug, Error)]
pub enum IngestError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on UDP {address}: is another coordinator running, and may this user open the port?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Threads or transport settings.
    #[error("ingest cannot start")]
    Start(#[source] io::Error),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The running endpoint.
#[derive(Debug)]
pub struct Ingest {
    endpoint: Endpoint,
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What the accept loop hands to each connection.
struct Door {
    hall: Arc<Hall>,
    enrolments: Enrolments,
    enrolling: Semaphore,
}

impl Ingest {
    /// Opens the port and serves it on the runtime. `links` is what the registry looks at and gives orders through.
    ///
    /// # Errors
    /// See [`IngestError`].
    pub fn start(
        settings: &IngestSettings,
        authority: Arc<Authority>,
        ports: Ports,
        links: LiveLinks,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        runtime: &Handle,
    ) -> Result<Self, IngestError> {
        let config = server_config(settings, &authority)?;
        let listen = |source| IngestError::Listen { address: settings.listen, source };
        let socket = open_socket(settings).map_err(listen)?;
        let _entered = runtime.enter();
        let own = reset::endpoint_config(authority.derived_key(RESET_KEY), Arc::clone(&entropy));
        let endpoint =
            Endpoint::new(own, Some(config), socket.into(), Arc::new(TokioRuntime)).map_err(listen)?;
        let enrolments = Enrolments {
            authority: Arc::clone(&authority),
            directory: Arc::clone(&ports.directory),
            clock: Arc::clone(&clock),
            entropy,
        };
        let hall = Arc::new(Hall {
            ports,
            authority,
            clock,
            links,
            seats: Seats::default(),
            pool: VerifyPool::start(settings.verify_threads).map_err(IngestError::Start)?,
            agent_budget_bytes: settings.agent_budget_bytes,
            // Our own packets make the peer answer; one of them may be lost.
            silence_max: settings.keep_alive * 2 + SILENCE_SLACK,
            next_number: AtomicU64::new(1),
        });
        let door = Arc::new(Door { hall, enrolments, enrolling: Semaphore::new(settings.enrolments_max) });
        let ingest = Self { endpoint, tasks: TaskTracker::new(), closing: CancellationToken::new() };
        let (endpoint, tasks) = (ingest.endpoint.clone(), ingest.tasks.clone());
        let accepting = accept(endpoint, tasks, door, settings.connections_max, ingest.closing.clone());
        ingest.tasks.spawn_on(accepting, runtime);
        Ok(ingest)
    }

    /// The address in use; its port was chosen by the system if the settings say 0.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Closes all connections and waits until every frame handed to a sink was taken.
    pub async fn shutdown(&self) {
        self.closing.cancel();
        self.endpoint.close(RefusalCode::CLOSING.0.into(), b"the coordinator shuts down");
        self.tasks.close();
        self.tasks.wait().await;
        self.endpoint.wait_idle().await;
    }
}

async fn accept(
    endpoint: Endpoint,
    tasks: TaskTracker,
    door: Arc<Door>,
    connections_max: usize,
    closing: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    loop {
        let incoming = tokio::select! {
            () = closing.cancelled() => return,
            incoming = endpoint.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(peer = %incoming.remote_address(), connections_max, "connection refused: too many");
            incoming.refuse();
            continue;
        };
        let door = Arc::clone(&door);
        tasks.spawn(async move {
            serve(door, incoming).await;
            drop(place);
        });
    }
}

async fn serve(door: Arc<Door>, incoming: Incoming) {
    let peer = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => {
            tracing::info!(%peer, %error, "handshake failed");
            return;
        }
    };
    if protocol(&connection).as_deref() == Some(ALPN_ENROL) {
        let Ok(_place) = door.enrolling.try_acquire() else {
            return refuse(&connection, &Refusal::new(RefusalCode::BUSY, "too many enrolments at a time"));
        };
        // The bound of the exchange holds even if the handshake's task is slow.
        let _bounded =
            tokio::time::timeout(enrolment::EXCHANGE_MAX * 2, door.enrolments.serve(connection)).await;
        return;
    }
    if protocol(&connection).as_deref() == Some(ALPN_WRITE_BACK) {
        return match identified(&door.hall, &connection).await {
            Ok((machine, ended)) => write_back::serve(&door.hall, &connection, machine, ended).await,
            Err(refusal) => refuse(&connection, &refusal),
        };
    }
    match admitted(&door.hall, &connection).await {
        Ok((machine, serial)) => connection::run(Arc::clone(&door.hall), connection, machine, serial).await,
        Err(refusal) => refuse(&connection, &refusal),
    }
}

/// Whose certificate it is, fenced or not, and what resolves once that is revoked.
async fn identified(
    hall: &Hall,
    connection: &Connection,
) -> Result<(MachineId, oneshot::Receiver<Refusal>), Refusal> {
    let (machine, serial) = certified(hall, connection)?;
    let ended = hall.links.stand_by(machine);
    hall.ports.directory.admit_fenced(machine, serial).await.map_err(enrolment::told)?;
    Ok((machine, ended))
}

async fn admitted(hall: &Hall, connection: &Connection) -> Result<(MachineId, CertificateSerial), Refusal> {
    let (machine, serial) = certified(hall, connection)?;
    hall.ports.directory.admit(machine, serial).await.map_err(enrolment::told)?;
    Ok((machine, serial))
}

fn certified(hall: &Hall, connection: &Connection) -> Result<(MachineId, CertificateSerial), Refusal> {
    let certificates =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    let certificate = certificates.as_ref().and_then(|chain| chain.first()).map(AsRef::as_ref);
    admit::identify(certificate, hall.clock.wall())
}

fn refuse(connection: &Connection, refusal: &Refusal) {
    tracing::warn!(peer = %connection.remote_address(), %refusal, "connection refused");
    connection.close(refusal.code.0.into(), refusal.text.as_bytes());
}

fn protocol(connection: &Connection) -> Option<Vec<u8>> {
    connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol
}

fn server_config(settings: &IngestSettings, authority: &Arc<Authority>) -> Result<ServerConfig, IngestError> {
    let start = |error: Box<dyn std::error::Error + Send + Sync>| IngestError::Start(io::Error::other(error));
    let crypto =
        QuicServerConfig::try_from(authority.server_config()?).map_err(|error| start(error.into()))?;
    let idle =
        settings.idle_timeout.try_into().map_err(|error: quinn::VarIntBoundsExceeded| start(error.into()))?;
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(settings.receive_window_bytes))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(DATA_STREAMS_MAX))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(Some(idle));
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

fn open_socket(settings: &IngestSettings) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(settings.listen), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel cuts what it does not allow; less is slower, not wrong.
    let _capped = socket.set_recv_buffer_size(settings.socket_buffer_bytes);
    let _capped = socket.set_send_buffer_size(settings.socket_buffer_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&settings.listen.into())?;
    Ok(socket)
}
