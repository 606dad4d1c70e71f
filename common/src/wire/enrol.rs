//! Messages of enrolment and of renewal.

use serde::{Deserialize, Serialize};

use super::refusal::Refusal;
use crate::ids::MachineId;

/// The agent's request on an enrolment connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The one-time token's secret (32 bytes).
    pub secret: [u8; 32],
    /// Certificate signing request, DER. Only its public key is used.
    pub request_der: Vec<u8>,
    /// Host name, for the operator's list.
    pub host_name: String,
}

/// The coordinator's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnrolReply {
    /// Enrolled.
    Enrolled {
        /// The machine's identity from now on.
        machine: MachineId,
        /// Its certificate, DER.
        certificate_der: Vec<u8>,
        /// The coordinator's CA certificate, DER; the agent has pinned its fingerprint.
        authority_der: Vec<u8>,
    },
    /// Refused; the token is used up only by success.
    Refused(Refusal),
}

/// A renewal of the session's own certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Certificate signing request, DER. Only its public key is used.
    pub request_der: Vec<u8>,
}

/// The renewed certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewReply {
    /// The new certificate, DER.
    pub certificate_der: Vec<u8>,
}
