//! Talks to the coordinator: HTTP over its unix socket, or over TLS.
//!
//! Owns connecting, sending and reading. Invariant: a token is sent only to a coordinator that has proved to hold the CA
//! that the token names. Limit: [`ANSWER_BYTES_MAX`] per answer, [`CONNECT_MAX`] until it is connected.

use std::{io::ErrorKind, path::PathBuf, sync::Arc, time::Duration};

use holdfast_common::{
    clock::SystemClock,
    tls::{self, COORDINATOR_NAME},
    token::OperatorToken,
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use holdfast_coordinator::api::shapes::ErrorShape;

use crate::output::Failure;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest time until a coordinator on the network is connected, TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// Where a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// On this host.
    Socket(PathBuf),
    /// On the network.
    Remote {
        /// Host and port.
        address: String,
        /// Proves who asks, and names the CA to trust.
        token: OperatorToken,
    },
}

/// A coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    target: Target,
}

impl Client {
    pub(crate) const fn new(target: Target) -> Self {
        Self { target }
    }

    /// Whether the coordinator's files are this host's, as far as one can tell.
    pub(crate) const fn is_local(&self) -> bool {
        matches!(self.target, Target::Socket(_))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body)
            .map_err(|error| Failure::failed(format!("the request cannot be written: {error}"), ""))?;
        self.send(Method::POST, path, body.into()).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "holdfast")
            .header("content-type", "application/json");
        let bytes = match &self.target {
            Target::Socket(socket) => {
                let stream =
                    UnixStream::connect(socket).await.map_err(|error| unreachable(socket, &error))?;
                self.exchange(stream, request, body).await?
            }
            Target::Remote { address, token } => {
                let stream = tokio::time::timeout(CONNECT_MAX, connect(address, token)).await;
                let stream = stream.map_err(|_| not_connected(address, "it did not answer in time"))??;
                request = request.header("authorization", format!("Bearer {}", token.to_text()));
                self.exchange(stream, request, body).await?
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let advice = "use a `holdfast` of the coordinator's version";
            Failure::failed(format!("the coordinator's answer is not understood: {error}"), advice)
        })
    }

    /// Sends a request; gives the body of a good answer.
    async fn exchange<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        &self,
        stream: S,
        request: hyper::http::request::Builder,
        body: Bytes,
    ) -> Result<Bytes, Failure> {
        let broken = |error: hyper::Error| self.broken(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::usage(format!("the request is malformed: {error}"), ""))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Failure::failed(format!("the answer broke off: {error}"), "try again"))?
            .to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(refusal(status, &bytes)) }
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        let place = match &self.target {
            Target::Socket(socket) => socket.display().to_string(),
            Target::Remote { address, .. } => address.clone(),
        };
        let message = format!("the connection to {place} broke: {error}");
        Failure::unreachable(message, "the coordinator may be restarting; try again")
    }
}

/// Connects, and has the coordinator prove that it is the token's.
async fn connect(address: &str, token: &OperatorToken) -> Result<TlsStream<TcpStream>, Failure> {
    let prepared = |error: String| Failure::failed(format!("TLS cannot be prepared: {error}"), "");
    let config = tls::operator_client(Arc::new(SystemClock::new()), token.authority);
    let config = config.map_err(|error| prepared(error.to_string()))?;
    let name = ServerName::try_from(COORDINATOR_NAME).map_err(|error| prepared(error.to_string()))?;
    let stream =
        TcpStream::connect(address).await.map_err(|error| not_connected(address, &error.to_string()))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| {
        let authority = token.authority;
        let is_another = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
            .is_some_and(|inner| matches!(inner, rustls::Error::InvalidCertificate(_)));
        if is_another {
            Failure::unreachable(
                format!(
                    "{address} is not the coordinator that made this token: it could not prove that it holds the CA \
                     {authority} ({error}); the token was not sent"
                ),
                "check the address and this host's clock, or get a token of that coordinator",
            )
        } else {
            not_connected(address, &format!("no TLS: {error}"))
        }
    })
}

fn not_connected(address: &str, reason: &str) -> Failure {
    Failure::unreachable(
        format!("the coordinator at {address} cannot be reached: {reason}"),
        "check the address, that the coordinator runs with --api-listen, and that the network lets TCP through",
    )
}

fn unreachable(socket: &std::path::Path, error: &std::io::Error) -> Failure {
    let socket = socket.display();
    match error.kind() {
        ErrorKind::NotFound => Failure::unreachable(
            format!("no coordinator is running here: {socket} does not exist"),
            "start one with `holdfast-coordinator serve`; if its data is elsewhere, say where with --coordinator DIR or \
             HOLDFAST_COORDINATOR; if it is on another host, `holdfast login`",
        ),
        ErrorKind::ConnectionRefused => Failure::unreachable(
            format!("the coordinator of {socket} is not running"),
            "start it with `holdfast-coordinator serve`; its log says why it ended",
        ),
        ErrorKind::PermissionDenied => Failure::unreachable(
            format!("no permission to use {socket}"),
            "run holdfast as the user that runs the coordinator (usually root), or log in with a token",
        ),
        _ => Failure::unreachable(format!("{socket} cannot be reached: {error}"), "check the path"),
    }
}

fn refusal(status: StatusCode, bytes: &[u8]) -> Failure {
    match serde_json::from_slice::<ErrorShape>(bytes) {
        Ok(shape) => Failure::refused(shape),
        Err(_) => {
            let text = String::from_utf8_lossy(bytes).chars().take(500).collect::<String>();
            Failure::failed(format!("the coordinator answered {status}: {text}"), "")
        }
    }
}

/// A part of a path, with everything escaped that has a meaning in one.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("web-1.example"), "web-1.example");
        assert_eq!(escape("a/b ?ü"), "a%2Fb%20%3F%C3%BC");
    }
}
