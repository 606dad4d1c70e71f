//! Listening, negotiating, and the set of exports, which may change at any time.
//!
//! Owns sockets until negotiation is done; then `worker.rs` has them. Knows neither jobs nor where blocks come from.
//! Invariant: when `ExportHandle::remove` returns, no thread reads that export's view any more.
//! Limits: `Settings::connections_max` connections, `Settings::handshake_deadline` for negotiating; for the rest see
//! `handshake.rs` and `worker.rs`. TLS is not spoken: unix sockets guard by file mode, TCP is for private networks.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    net::SocketAddr,
    ops::Range,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use socket2::Socket;
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::{
    handshake::{Agreement, ExportDescription, ExportList, Handshake, Next},
    worker::{Connection, Exported},
};
use crate::{
    compute::branch::{Branch, WriteError},
    points::view::{BlockView, ViewError},
};

/// Told of every range that could not be read for a client.
pub trait DamageSink: fmt::Debug + Send + Sync {
    /// The client got an error for these bytes of the export.
    fn cannot_read(&self, export: &str, bytes: Range<u64>, error: &ViewError);

    /// The client got an error for a change to the export.
    fn cannot_write(&self, export: &str, error: &WriteError) {
        tracing::error!(
            export,
            error = error as &dyn std::error::Error,
            "client got an error for what it wrote"
        );
    }
}

/// A sink that writes to the log.
#[derive(Debug, Default)]
pub struct LogDamage;

impl DamageSink for LogDamage {
    fn cannot_read(&self, export: &str, bytes: Range<u64>, error: &ViewError) {
        tracing::error!(export, start = bytes.start, end = bytes.end, %error, "client got an IO error");
    }
}

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections at a time; further ones wait unanswered. Each costs up to 1 MiB per thread that it needed.
    pub connections_max: usize,
    /// Requests of one connection that are served at a time, each on its own thread.
    pub threads_per_connection_max: usize,
    /// Time for negotiation; then the connection is closed.
    pub handshake_deadline: Duration,
    /// Mode of unix sockets.
    pub socket_mode: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections_max: 64,
            threads_per_connection_max: 8,
            handshake_deadline: Duration::from_secs(10),
            socket_mode: 0o660,
        }
    }
}

/// A server: a set of exports, on any number of listening sockets.
#[derive(Clone, Debug)]
pub struct NbdServer {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    alarm: Arc<dyn DamageSink>,
    places: Arc<Semaphore>,
    exports: Mutex<BTreeMap<String, Export>>,
    connections_numbered: AtomicU64,
}

struct Export {
    text: String,
    view: Arc<dyn BlockView>,
    /// The same, if it can be written to.
    branch: Option<Arc<Branch>>,
    connections: HashMap<u64, std::sync::Weak<Connection>>,
    over: mpsc::Sender<()>,
}

/// An export cannot be added.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Another export has that name.
    #[error("an export of the name `{0}` is there already")]
    Taken(String),
    /// The name cannot be sent.
    #[error("an export's name is 1 to 4096 bytes without zero bytes")]
    Name,
}

impl NbdServer {
    /// A server without exports and sockets.
    #[must_use]
    pub fn new(settings: Settings, alarm: Arc<dyn DamageSink>) -> Self {
        let places = Arc::new(Semaphore::new(settings.connections_max));
        let (exports, connections_numbered) = (Mutex::default(), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { settings, alarm, places, exports, connections_numbered }) }
    }

    /// Serves a view under a name until the handle is removed or dropped. `text` is for people.
    ///
    /// # Errors
    /// The name is taken or not fit.
    pub fn export(
        &self,
        name: &str,
        text: &str,
        view: Arc<dyn BlockView>,
    ) -> Result<ExportHandle, ExportError> {
        self.add(name, text, view, None)
    }

    /// Like [`export`](Self::export), for clients that write.
    ///
    /// # Errors
    /// The name is taken or not fit.
    pub fn export_writable(
        &self,
        name: &str,
        text: &str,
        branch: Arc<Branch>,
    ) -> Result<ExportHandle, ExportError> {
        self.add(name, text, Arc::clone(&branch) as Arc<dyn BlockView>, Some(branch))
    }

    fn add(
        &self,
        name: &str,
        text: &str,
        view: Arc<dyn BlockView>,
        branch: Option<Arc<Branch>>,
    ) -> Result<ExportHandle, ExportError> {
        if name.is_empty() || name.len() > super::protocol::STRING_BYTES_MAX || name.contains('\0') {
            return Err(ExportError::Name);
        }
        let mut exports = self.inner.exports();
        if exports.contains_key(name) {
            return Err(ExportError::Taken(name.into()));
        }
        let (over, when_over) = mpsc::channel(1);
        let connections = HashMap::new();
        exports.insert(name.into(), Export { text: text.into(), view, branch, connections, over });
        Ok(ExportHandle { inner: Arc::clone(&self.inner), name: name.into(), when_over: Some(when_over) })
    }

    /// Listens on a unix socket; a stale one in its place is removed. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made (a path may have at most 107 bytes).
    pub fn listen_unix(&self, path: &Path) -> io::Result<Listening> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let mode = std::fs::Permissions::from_mode(self.inner.settings.socket_mode);
        std::fs::set_permissions(path, mode)?;
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            loop {
                let Some(place) = inner.place().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let into_socket = |stream: tokio::net::UnixStream| {
                            Ok(Socket::from(OwnedFd::from(stream.into_std()?)))
                        };
                        tokio::spawn(Arc::clone(&inner).connection(stream, into_socket, place));
                    }
                    Err(error) => pause_after(&error).await,
                }
            }
        });
        Ok(Listening { task, path: Some(path.into()), address: None })
    }

    /// Listens on a TCP port. No TLS: only for private networks.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn listen_tcp(&self, address: SocketAddr) -> io::Result<Listening> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let inner = Arc::clone(&self.inner);
        let task = tokio::spawn(async move {
            loop {
                let Some(place) = inner.place().await else { return };
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let into_socket = |stream: tokio::net::TcpStream| {
                            stream.set_nodelay(true)?;
                            Ok(Socket::from(OwnedFd::from(stream.into_std()?)))
                        };
                        tokio::spawn(Arc::clone(&inner).connection(stream, into_socket, place));
                    }
                    Err(error) => pause_after(&error).await,
                }
            }
        });
        Ok(Listening { task, path: None, address: Some(address) })
    }
}

/// The system is short of something (file handles, memory): trying again at once would only spin.
async fn pause_after(error: &io::Error) {
    tracing::warn!(%error, "NBD connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

impl Inner {
    fn exports(&self) -> MutexGuard<'_, BTreeMap<String, Export>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place among the connections, freed when the last thread of the connection has ended.
    async fn place(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        Arc::clone(&self.places).acquire_owned().await.ok()
    }

    async fn connection<S>(
        self: Arc<Self>,
        mut stream: S,
        into_socket: impl FnOnce(S) -> io::Result<Socket>,
        place: tokio::sync::OwnedSemaphorePermit,
    ) where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let deadline = self.settings.handshake_deadline;
        let agreed = match tokio::time::timeout(deadline, self.negotiate(&mut stream)).await {
            Ok(Ok(agreed)) => agreed,
            Ok(Err(error)) => return tracing::debug!(%error, "NBD negotiation failed"),
            Err(_) => return tracing::debug!("NBD negotiation took too long"),
        };
        let Some((agreement, input)) = agreed else { return };
        if let Err(error) = self.transmit(stream, into_socket, agreement, input, place) {
            tracing::warn!(%error, "NBD connection could not be taken into service");
        }
    }

    /// Runs the negotiation; gives what was agreed on and the input read too far, or nothing if the client left.
    async fn negotiate<S>(&self, stream: &mut S) -> io::Result<Option<(Agreement, Vec<u8>)>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        stream.write_all(&Handshake::greeting()).await?;
        let mut handshake = Handshake::default();
        let (mut input, mut output) = (Vec::with_capacity(512), Vec::new());
        loop {
            let (used, next) = handshake.step(&input, self, &mut output).map_err(io::Error::other)?;
            input.drain(..used);
            if !output.is_empty() {
                stream.write_all(&output).await?;
                output.clear();
            }
            match next {
                Next::Transmit(agreement) => return Ok(Some((agreement, input))),
                Next::Close => return Ok(None),
                // Bounded: a whole option is at most OPTION_BYTES_MAX and is taken off as soon as it is there.
                Next::Continue if used == 0 && stream.read_buf(&mut input).await? == 0 => return Ok(None),
                Next::Continue => {}
            }
        }
    }

    fn transmit<S>(
        &self,
        stream: S,
        into_socket: impl FnOnce(S) -> io::Result<Socket>,
        agreement: Agreement,
        input: Vec<u8>,
        place: tokio::sync::OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let socket = into_socket(stream)?;
        socket.set_nonblocking(false)?;
        let number = self.connections_numbered.fetch_add(1, Ordering::Relaxed);
        let connection = {
            let mut exports = self.exports();
            // Removed since it was agreed on: the client sees the connection close.
            let Some(export) = exports.get_mut(&agreement.export) else { return Ok(()) };
            export.connections.retain(|_, connection| connection.strong_count() > 0);
            let connection = Connection::new(
                socket,
                agreement,
                Exported {
                    view: Arc::clone(&export.view),
                    branch: export.branch.clone(),
                    alarm: Arc::clone(&self.alarm),
                },
                (self.settings.threads_per_connection_max, input),
                (export.over.clone(), place),
            );
            export.connections.insert(number, Arc::downgrade(&connection));
            connection
        };
        connection.start()
    }

    fn take(&self, name: &str) {
        let Some(export) = self.exports().remove(name) else { return };
        for connection in export.connections.values().filter_map(std::sync::Weak::upgrade) {
            connection.break_off();
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdServer").field("exports", &self.names()).finish_non_exhaustive()
    }
}

impl ExportList for Inner {
    fn find(&self, name: &str) -> Option<ExportDescription> {
        let exports = self.exports();
        let (name, export) = match name {
            // The only export is the default one.
            "" if exports.len() == 1 => exports.first_key_value()?,
            name => exports.get_key_value(name)?,
        };
        Some(ExportDescription {
            name: name.clone(),
            size_bytes: export.view.size_bytes(),
            text: export.text.clone(),
            writable: export.branch.is_some(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.exports().keys().cloned().collect()
    }
}

/// An export being served. Dropping it ends the export without waiting for its threads.
#[must_use = "dropping the handle ends the export"]
pub struct ExportHandle {
    inner: Arc<Inner>,
    name: String,
    when_over: Option<mpsc::Receiver<()>>,
}

impl ExportHandle {
    /// Clients that are connected.
    #[must_use]
    pub fn clients(&self) -> usize {
        let exports = self.inner.exports();
        let connections = exports.get(&self.name).map(|export| export.connections.values());
        connections.map_or(0, |all| all.filter(|connection| connection.strong_count() > 0).count())
    }

    /// Ends the export: new clients are refused, connections are broken off. When this returns, the view is free.
    /// Cancel safe: the export is ended all the same.
    pub async fn remove(mut self) {
        self.inner.take(&self.name);
        if let Some(mut when_over) = self.when_over.take() {
            // Nothing is ever sent; the channel closes with the last thread.
            let _closed = when_over.recv().await;
        }
    }
}

impl fmt::Debug for ExportHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExportHandle({})", self.name)
    }
}

impl Drop for ExportHandle {
    fn drop(&mut self) {
        if self.when_over.is_some() {
            self.inner.take(&self.name);
        }
    }
}

/// A listening socket. Dropping it ends listening and removes a unix socket's file; connections stay.
#[derive(Debug)]
#[must_use = "dropping it ends listening"]
pub struct Listening {
    task: JoinHandle<()>,
    path: Option<PathBuf>,
    address: Option<SocketAddr>,
}

impl Listening {
    /// The TCP address, with the port that was given.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(path) = &self.path {
            // It may be gone already.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
