//! Peers that hold a connection up, over real TLS: each ends, and nobody else is kept waiting.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{Router, routing::get};
use holdfast_common::{
    clock::SystemClock,
    entropy::SystemEntropy,
    tls::{self, COORDINATOR_NAME},
    token::Fingerprint,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{HEADER_BYTES_MAX, HEADERS_MAX, Limits, Seats, serve};
use crate::authority::{Authority, MACHINE_LIFE_DEFAULT};

const GOOD: &[u8] = b"GET /hello HTTP/1.1\r\nhost: holdfast\r\nconnection: close\r\n\r\n";
/// Long for a test, short for whoever waits for it.
const SOON: Duration = Duration::from_millis(300);
/// By then everything must have ended.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    address: SocketAddr,
    authority: Fingerprint,
    /// A request that is never answered has come.
    asked: Arc<Notify>,
    closing: CancellationToken,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (clock, entropy) = (Arc::new(SystemClock::new()), Arc::new(SystemEntropy::new()));
        let authority =
            Arc::new(Authority::open(folder.path(), MACHINE_LIFE_DEFAULT, clock, entropy).unwrap());
        let tls = Arc::new(authority.operator_server_config().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Notify::new());
        let begun = Arc::clone(&asked);
        let forever = move || async move {
            begun.notify_one();
            std::future::pending::<&'static str>().await
        };
        let router = Router::new().route("/hello", get(|| async { "hello" })).route("/forever", get(forever));
        let closing = CancellationToken::new();
        tokio::spawn(serve(listener, tls, router, limits, closing.clone()));
        Self { address, authority: authority.fingerprint(), asked, closing, _folder: folder }
    }

    async fn connect_to(&self, authority: Fingerprint) -> std::io::Result<TlsStream<TcpStream>> {
        let config = tls::operator_client(Arc::new(SystemClock::new()), authority).unwrap();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(COORDINATOR_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        self.connect_to(self.authority).await.unwrap()
    }

    async fn is_well(&self) {
        let mut stream = self.connect().await;
        stream.write_all(GOOD).await.unwrap();
        assert!(until_end(&mut stream).await.ends_with("hello"));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// What comes until the server ends the connection, which it must.
async fn until_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    let _ended_or_reset = ended.expect("the server keeps the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_good_request_is_answered_and_another_ca_is_not_trusted() {
    let server = Server::start(Limits::default()).await;
    server.is_well().await;
    let error = server.connect_to(Fingerprint([7; 32])).await.unwrap_err();
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    server.is_well().await;
}

#[tokio::test]
async fn slow_peers_are_ended() {
    let server = Server::start(Limits { handshake_max: SOON, header_max: SOON, ..Limits::default() }).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut idle = server.connect().await;
    let mut halting = server.connect().await;
    halting.write_all(b"GET /hello HTTP/1.1\r\nhost: ho").await.unwrap();
    server.is_well().await;
    assert_eq!(until_end(&mut silent).await, "");
    until_end(&mut idle).await;
    assert!(!until_end(&mut halting).await.contains("200"));
}

#[tokio::test]
async fn requests_and_connections_end_in_time() {
    let server = Server::start(Limits { request_max: SOON, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    let request = String::from_utf8_lossy(GOOD).replace("hello", "forever");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(until_end(&mut stream).await.contains("408"));
    let server = Server::start(Limits { connection_max: SOON, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(!until_end(&mut stream).await.contains("200"));
}

#[tokio::test]
async fn large_heads_are_refused() {
    let server = Server::start(Limits::default()).await;
    let long = format!("GET /hello HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(2 * HEADER_BYTES_MAX));
    let many = format!("GET /hello HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX + 1));
    for head in [long, many] {
        let mut stream = server.connect().await;
        let _may_break = stream.write_all(head.as_bytes()).await;
        let answer = until_end(&mut stream).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    server.is_well().await;
}

#[tokio::test]
async fn who_speaks_no_tls_is_ended() {
    let server = Server::start(Limits::default()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(GOOD).await.unwrap();
    assert!(!until_end(&mut stream).await.contains("HTTP"));
    server.is_well().await;
}

#[tokio::test]
async fn one_address_cannot_take_all_seats() {
    let server = Server::start(Limits { per_address_max: 2, ..Limits::default() }).await;
    let first = server.connect().await;
    let _second = server.connect().await;
    assert!(server.connect_to(server.authority).await.is_err(), "a third is closed at once");
    drop(first);
    let freed = tokio::time::timeout(PATIENCE, async {
        while server.connect_to(server.authority).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    freed.await.expect("the seat is given back");
}

#[tokio::test]
async fn running_requests_end_before_the_server_does() {
    let server = Server::start(Limits { request_max: SOON, ..Limits::default() }).await;
    let mut stream = server.connect().await;
    let request = String::from_utf8_lossy(GOOD).replace("hello", "forever");
    stream.write_all(request.as_bytes()).await.unwrap();
    server.asked.notified().await;
    server.closing.cancel();
    assert!(until_end(&mut stream).await.contains("408"));
}

#[test]
fn seats_are_counted_and_given_back() {
    let limits = Limits { connections_max: 5, per_address_max: 2, ..Limits::default() };
    let seats = Seats::new(limits);
    let host = |number: u8| IpAddr::from([10, 0, 0, number]);
    let mine: Vec<_> = std::iter::from_fn(|| seats.take(host(1))).collect();
    let mut others = Vec::new();
    for number in 2..=9 {
        others.extend(std::iter::from_fn(|| seats.take(host(number))));
    }
    assert_eq!((mine.len(), others.len()), (2, 3));
    drop(mine);
    assert!(seats.take(host(1)).is_some());
    drop(others);
    assert!(seats.taken.lock().unwrap().is_empty());
}
