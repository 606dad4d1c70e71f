//! Enrolment: from a token to an identity.
//!
//! Owns the one exchange with the coordinator. Does not know sessions.
//! Invariant: nothing secret is sent before the coordinator has proved that it holds the CA in the token; nothing is stored
//! before everything was received and checked.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use holdfast_common::{
    clock::Clock,
    codec::{CodecError, MESSAGE_BYTES_MAX},
    entropy::Entropy,
    tls::{self, COORDINATOR_NAME, MachineKey, TlsError},
    token::{EnrolToken, Fingerprint},
    wire::{EnrolReply, EnrolRequest, MessageBuffer, Refusal, RefusalCode, envelope},
};
use quinn::{Connection, ConnectionError};
use thiserror::Error;

use crate::{
    identity::{Identity, IdentityError, IdentityStore},
    ship::endpoint::{self, LinkSettings},
};

/// Longest time for the whole exchange.
const EXCHANGE_MAX: Duration = Duration::from_secs(20);

/// Why a machine could not be enrolled. The token stays valid unless the coordinator says that it is not.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The coordinator's address is unknown.
    #[error(
        "the coordinator's address {address} cannot be found: give host and port, for example recovery.example.org:7843"
    )]
    Address {
        /// What was given.
        address: String,
        /// The resolver's answer.
        #[source]
        source: io::Error,
    },
    /// No socket, or no TLS.
    #[error("the connection cannot be prepared")]
    Prepare(#[source] io::Error),
    /// The coordinator is another than the token's.
    #[error(
        "{address} is not the coordinator that made this token (it could not prove that it holds the CA {authority}): check the address, or make a token there"
    )]
    WrongCoordinator {
        /// Whom we reached.
        address: String,
        /// Whom we wanted.
        authority: Fingerprint,
    },
    /// No connection.
    #[error("no connection to {address}: {reason}")]
    Connect {
        /// Whom we wanted to reach.
        address: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The coordinator took too long.
    #[error(
        "{address} did not answer in time: is the coordinator running, and does the network let UDP through?"
    )]
    Timeout {
        /// Whom we wanted to reach.
        address: String,
    },
    /// The coordinator refused.
    #[error("the coordinator refused: {0}")]
    Refused(Refusal),
    /// The answer makes no sense.
    #[error("the coordinator's answer cannot be used: {0}")]
    Answer(String),
    /// TLS refuses.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The identity cannot be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Enrols this machine and stores its identity.
///
/// # Errors
/// See [`EnrolError`]; nothing was stored then.
pub async fn enrol(
    coordinator: &str,
    token: &EnrolToken,
    host_name: &str,
    store: &IdentityStore,
    clock: Arc<dyn Clock>,
    entropy: &dyn Entropy,
) -> Result<Identity, EnrolError> {
    let key = MachineKey::generate(entropy)?;
    let request = EnrolRequest {
        secret: token.secret,
        request_der: key.request_der()?,
        host_name: host_name.to_owned(),
    };
    let exchange = exchange(coordinator, token, &request, clock);
    let reply = tokio::time::timeout(EXCHANGE_MAX, exchange)
        .await
        .map_err(|_| EnrolError::Timeout { address: coordinator.to_owned() })??;
    let (machine, certificate, authority) = match reply {
        EnrolReply::Enrolled { machine, certificate_der, authority_der } => {
            (machine, certificate_der, authority_der)
        }
        EnrolReply::Refused(refusal) => return Err(EnrolError::Refused(refusal)),
    };
    if Fingerprint::of(&authority) != token.authority {
        return Err(EnrolError::Answer("its CA is not the one in the token".to_owned()));
    }
    let identity = Identity::new(machine, coordinator.to_owned(), &key, certificate, authority)?;
    store.store(&identity)?;
    Ok(identity)
}

async fn exchange(
    coordinator: &str,
    token: &EnrolToken,
    request: &EnrolRequest,
    clock: Arc<dyn Clock>,
) -> Result<EnrolReply, EnrolError> {
    let address = resolve(coordinator).await?;
    let settings = LinkSettings::default();
    let tls = tls::enrol_client(clock, token.authority)?;
    let config = endpoint::client(tls, &settings).map_err(EnrolError::Prepare)?;
    let endpoint = endpoint::open(address, &settings).map_err(EnrolError::Prepare)?;
    let connecting = endpoint
        .connect_with(config, address, COORDINATOR_NAME)
        .map_err(|error| EnrolError::Prepare(io::Error::other(error)))?;
    let lost = |error: ConnectionError| connect_error(coordinator, token.authority, &error);
    let connection = connecting.await.map_err(lost)?;
    let reply = ask(&connection, request).await.map_err(|error| match error {
        Asked::Lost(error) => lost(error),
        Asked::Answer(reason) => EnrolError::Answer(reason),
    })?;
    connection.close(RefusalCode::CLOSING.0.into(), b"enrolled");
    endpoint.wait_idle().await;
    Ok(reply)
}

async fn resolve(coordinator: &str) -> Result<SocketAddr, EnrolError> {
    let error = |source| EnrolError::Address { address: coordinator.to_owned(), source };
    let mut found = tokio::net::lookup_host(coordinator).await.map_err(error)?;
    found.next().ok_or_else(|| error(io::ErrorKind::NotFound.into()))
}

enum Asked {
    Lost(ConnectionError),
    Answer(String),
}

async fn ask(connection: &Connection, request: &EnrolRequest) -> Result<EnrolReply, Asked> {
    let answer = |error: CodecError| Asked::Answer(error.to_string());
    // A stream fails because its connection did; the connection knows why.
    let lost = || Asked::Lost(connection.close_reason().unwrap_or(ConnectionError::Reset));
    let (mut send, mut receive) = connection.open_bi().await.map_err(Asked::Lost)?;
    send.write_all(&envelope::seal(request).map_err(answer)?).await.map_err(|_| lost())?;
    send.finish().map_err(|_| lost())?;
    let bytes = receive.read_to_end(MESSAGE_BYTES_MAX + 4).await.map_err(|_| lost())?;
    let mut buffer = MessageBuffer::default();
    buffer.push(&bytes);
    buffer.next().map_err(answer)?.ok_or_else(|| Asked::Answer("it is cut short".to_owned()))
}

fn connect_error(coordinator: &str, authority: Fingerprint, error: &ConnectionError) -> EnrolError {
    let address = coordinator.to_owned();
    // Alert 48, unknown CA, is ours: the verifier found no CA with the fingerprint.
    if let ConnectionError::TransportError(error) = error
        && u64::from(error.code) == 0x100 + 48
    {
        return EnrolError::WrongCoordinator { address, authority };
    }
    match endpoint::refusal(error) {
        Some(refusal) => EnrolError::Refused(refusal),
        None => EnrolError::Connect { address, reason: endpoint::describe(error) },
    }
}
