//! Enrolment of a machine: one request, one reply.
//!
//! Owns the exchange and its order: check the token, sign, record everything at once, reply.
//! Invariant: a certificate leaves this process only after the catalog knows it; a token is used up only together with that.
//! Limits: one message each way, [`EXCHANGE_MAX`] for all of it.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::Clock,
    codec::MESSAGE_BYTES_MAX,
    entropy::Entropy,
    ids::MachineId,
    token::TokenHash,
    wire::{EnrolReply, EnrolRequest, MessageBuffer, Refusal, RefusalCode, envelope},
};
use quinn::Connection;

use super::{
    connection::refuse,
    port::{Directory, Enrolment, PortError},
};
use crate::authority::Authority;

/// Longest time for the whole exchange.
pub(super) const EXCHANGE_MAX: Duration = Duration::from_secs(15);

/// Longest host name that is kept, in characters.
const HOST_NAME_MAX: usize = 255;

/// What enrolment works with.
#[derive(Clone, Debug)]
pub(super) struct Enrolments {
    pub(super) authority: Arc<Authority>,
    pub(super) directory: Arc<dyn Directory>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) entropy: Arc<dyn Entropy>,
}

impl Enrolments {
    /// Serves an enrolment connection to its end.
    pub(super) async fn serve(&self, connection: Connection) {
        let peer = connection.remote_address();
        let ended = tokio::time::timeout(EXCHANGE_MAX, self.exchange(&connection)).await;
        let refusal = match ended {
            Ok(Ok(())) => Refusal::new(RefusalCode::CLOSING, "done"),
            Ok(Err(refusal)) => refusal,
            Err(_) => Refusal::new(RefusalCode::BUSY, "the enrolment took too long"),
        };
        if refusal.code != RefusalCode::CLOSING {
            tracing::warn!(%peer, %refusal, "enrolment failed");
        }
        connection.close(refusal.code.0.into(), refusal.text.as_bytes());
    }

    async fn exchange(&self, connection: &Connection) -> Result<(), Refusal> {
        let gone = |error: &dyn std::fmt::Display| refuse(RefusalCode::PROTOCOL, error);
        let (mut send, mut receive) = connection.accept_bi().await.map_err(|error| gone(&error))?;
        let bytes = receive.read_to_end(MESSAGE_BYTES_MAX).await.map_err(|error| gone(&error))?;
        let mut buffer = MessageBuffer::default();
        buffer.push(&bytes);
        let request: Option<EnrolRequest> = buffer.next().map_err(|error| gone(&error))?;
        let request = request.ok_or_else(|| gone(&"the request is cut short"))?;
        let reply = match self.enrol(request).await {
            Ok((machine, certificate_der)) => {
                tracing::info!(%machine, peer = %connection.remote_address(), "machine enrolled");
                let authority_der = self.authority.certificate_der().to_vec();
                EnrolReply::Enrolled { machine, certificate_der, authority_der }
            }
            Err(refusal) => {
                tracing::warn!(peer = %connection.remote_address(), %refusal, "enrolment refused");
                EnrolReply::Refused(refusal)
            }
        };
        let bytes = envelope::seal(&reply).map_err(|error| gone(&error))?;
        send.write_chunk(bytes).await.map_err(|error| gone(&error))?;
        send.finish().map_err(|error| gone(&error))?;
        // The agent closes once it has read the reply.
        let _closed = connection.closed().await;
        Ok(())
    }

    async fn enrol(&self, request: EnrolRequest) -> Result<(MachineId, Vec<u8>), Refusal> {
        let token = TokenHash::of(&request.secret);
        let known = self.directory.check_token(token).await.map_err(told)?;
        let machine = known.unwrap_or_else(|| MachineId(self.entropy.uuid(self.clock.wall())));
        let signed = self
            .authority
            .sign_machine(machine, &request.request_der)
            .map_err(|error| refuse(RefusalCode::PROTOCOL, &error))?;
        let host_name = request.host_name.chars().filter(|c| !c.is_control()).take(HOST_NAME_MAX).collect();
        let enrolment = Enrolment { token, machine, host_name, certificate: signed.record };
        self.directory.enrol(enrolment).await.map_err(told)?;
        Ok((machine, signed.der))
    }
}

/// What a peer is told about a failure; our own failures are logged here and not described to it.
pub(super) fn told(error: PortError) -> Refusal {
    match error {
        PortError::Refused(refusal) => refusal,
        PortError::Failed { operation, source } => {
            tracing::error!(error = source.as_ref() as &dyn std::error::Error, "{operation} failed");
            Refusal::new(
                RefusalCode::BUSY,
                format!("{operation} failed at the coordinator; its log says why"),
            )
        }
    }
}
