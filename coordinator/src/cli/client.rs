//! Talks to the coordinator: HTTP over its unix socket.
//!
//! Owns connecting, sending and reading. Limit: [`ANSWER_BYTES_MAX`] per answer.

use std::{io::ErrorKind, path::PathBuf};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use holdfast_coordinator::api::shapes::ErrorShape;

use crate::output::Failure;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// A coordinator.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket }
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
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| self.broken(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "holdfast")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Failure::usage(format!("the request is malformed: {error}"), ""))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| Failure::failed(format!("the answer broke off: {error}"), "try again"))?
            .to_bytes();
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| {
                let advice = "use a `holdfast` of the coordinator's version";
                Failure::failed(format!("the coordinator's answer is not understood: {error}"), advice)
            });
        }
        Err(refusal(status, &bytes))
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound => Failure::unreachable(
                format!("no coordinator is running here: {socket} does not exist"),
                "start one with `holdfast-coordinator serve`; if its data is elsewhere, say where with \
                 --coordinator DIR or HOLDFAST_COORDINATOR",
            ),
            ErrorKind::ConnectionRefused => Failure::unreachable(
                format!("the coordinator of {socket} is not running"),
                "start it with `holdfast-coordinator serve`; its log says why it ended",
            ),
            ErrorKind::PermissionDenied => Failure::unreachable(
                format!("no permission to use {socket}"),
                "run holdfast as the user that runs the coordinator (usually root)",
            ),
            _ => Failure::unreachable(format!("{socket} cannot be reached: {error}"), "check the path"),
        }
    }

    fn broken(&self, error: &hyper::Error) -> Failure {
        let message = format!("the connection to {} broke: {error}", self.socket.display());
        Failure::unreachable(message, "the coordinator may be restarting; try again")
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
