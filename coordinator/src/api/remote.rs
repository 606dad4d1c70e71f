//! The interface over the network: HTTPS.
//!
//! Owns accepting connections, TLS, and the limits of what a peer may hold up. Does not know requests: the router does,
//! which learns from here only that somebody is at some address.
//! Invariant: a peer that does nothing, or everything slowly, holds a seat for a bounded time, and one address never all
//! seats.
//! Limit: [`Limits`], [`HEADER_BYTES_MAX`], [`HEADERS_MAX`].

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    extract::ConnectInfo,
    http::{Request, StatusCode},
    response::{IntoResponse as _, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{caller::Peer, gate::network};

/// Largest head of a request.
pub const HEADER_BYTES_MAX: usize = 16 << 10;
/// Most headers of a request.
pub const HEADERS_MAX: usize = 64;
/// Pause after the system refused to accept (no file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What peers may hold up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most connections at a time.
    pub connections_max: usize,
    /// Most connections of one address at a time.
    pub per_address_max: usize,
    /// Longest time for TLS to be agreed on.
    pub handshake_max: Duration,
    /// Longest time for the head of a request to arrive, counted from the answer to the last one.
    pub header_max: Duration,
    /// Longest time from the head of a request to the beginning of its answer (longer than the longest wait for a point).
    pub request_max: Duration,
    /// Longest life of a connection; a peer that takes its answer slowly ends here.
    pub connection_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            per_address_max: 16,
            handshake_max: Duration::from_secs(10),
            header_max: Duration::from_secs(10),
            request_max: Duration::from_mins(11),
            connection_max: Duration::from_mins(15),
        }
    }
}

/// Who sits where.
#[derive(Debug)]
struct Seats {
    limits: Limits,
    taken: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection's seat; given back on drop.
#[derive(Debug)]
struct Seat {
    seats: Arc<Seats>,
    address: IpAddr,
}

impl Seats {
    fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = taken.get(&address).copied().unwrap_or(0);
        let all = taken.values().sum::<usize>();
        if mine >= self.limits.per_address_max || all >= self.limits.connections_max {
            return None;
        }
        taken.insert(address, mine + 1);
        Some(Seat { seats: Arc::clone(self), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.address) {
            Some(mine) if *mine > 1 => *mine -= 1,
            _ => _ = taken.remove(&self.address),
        }
    }
}

/// Serves until `closing`, then lets running requests end. Whoever cannot wait that long drops it.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    router: Router,
    limits: Limits,
    closing: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let seats = Seats::new(limits);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = closing.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no operator's connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(seat) = seats.take(address.ip()) else {
            tracing::debug!(%address, "too many connections of operators; one more is closed");
            continue;
        };
        let (acceptor, router, closing) = (acceptor.clone(), router.clone(), closing.clone());
        connections.spawn(async move {
            connection(stream, address, acceptor, router, limits, closing).await;
            drop(seat);
        });
    }
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    closing: CancellationToken,
) {
    let _hint = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(limits.handshake_max, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "an operator's connection has no TLS"),
        Err(_elapsed) => return tracing::debug!(%address, "an operator's connection took too long for TLS"),
    };
    let service = service_fn(move |request: Request<Incoming>| {
        answer(router.clone(), address, limits.request_max, request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_max)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::time::timeout(limits.connection_max, async {
        tokio::select! {
            ended = &mut serving => return ended,
            () = closing.cancelled() => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    });
    if let Ok(Err(error)) = ended.await {
        tracing::debug!(%address, %error, "an operator's connection broke");
    }
}

async fn answer(
    router: Router,
    address: SocketAddr,
    request_max: Duration,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    request.extensions_mut().insert(ConnectInfo(Peer::Remote { address }));
    match tokio::time::timeout(request_max, router.oneshot(request)).await {
        Ok(response) => response,
        Err(_elapsed) => Ok(StatusCode::REQUEST_TIMEOUT.into_response()),
    }
}

#[cfg(test)]
mod tests;
