//! What agent and coordinator say to each other, besides frames.
//!
//! Owns the control messages, their limits and the protocol's version. Does not know quinn, sessions or disks' files.
//! Invariant: messages are bincode (see [`crate::codec`]), each behind a 4-byte little-endian length; enum variants
//! and fields are only ever appended, together with a new protocol version; golden bytes hold us to it.
//!
//! One QUIC connection per agent (ALPN [`ALPN_SESSION`], mutual TLS). The agent opens one bidirectional control stream:
//! [`AgentMessage`] one way, [`CoordinatorMessage`] the other. For each assigned disk it opens one unidirectional
//! stream: a [`DataStreamStart`] (length-prefixed like a control message), then frames back to back.
//! A fenced source has a connection of its own for the way back ([`write_back`]).
//! Enrolment is a connection of its own (ALPN [`ALPN_ENROL`], no client certificate) with one exchange on one stream.

pub mod limits;
pub mod audit;
pub mod refusal;
pub mod source;
pub mod write_back;
pub mod inventory;
pub mod control;
pub mod enrol;
pub mod envelope;
pub mod group;
pub mod opening;

pub use audit::{AuditAnswer, AuditDigests, AuditOrder};
pub use control::{
    AgentMessage, Assignment, Capture, CoordinatorMessage, CutVoided, DataStreamStart, DiskHealth,
    DiskReport, DiskStart, Hello, MachineSettings, ScanAnswer, ScanQuestion, TrustLoss, Welcome,
};
pub use enrol::{EnrolReply, EnrolRequest, RenewReply, RenewRequest};
pub use envelope::MessageBuffer;
pub use group::{AnswerStep, Applications, GroupAnswer, GroupArm, GroupOrder, MarkOrder, OrderStep};
pub use inventory::{
    DiskIdentity, DiskInventory, FileSystemInventory, Firmware, Inventory, NetworkCard, PartitionInventory,
    PartitionTable, Platform,
};
pub use opening::{ControlBuffer, ControlError};
pub use refusal::{Refusal, RefusalCode};
pub use source::{SourceAnswer, SourceOrder, SourceRun, SourceStep};
pub use write_back::{BlockDigest, WriteBackReply, WriteBackRequest, WrittenBack};

/// ALPN of an agent's session.
pub const ALPN_SESSION: &[u8] = b"holdfast/1";

/// ALPN of a fenced source whose disks are written back; another version of its messages has another number.
pub const ALPN_WRITE_BACK: &[u8] = b"holdfast-write-back/1";

/// ALPN of an enrolment.
pub const ALPN_ENROL: &[u8] = b"holdfast-enrol/1";

/// Version of the control messages; both ends must have the same, and read it before anything else ([`opening`]).
/// History: 5, programs of recovery plans; 4, witnessed cuts and audits; 3, sources that stop; 2, group cuts; 1, first.
pub const PROTOCOL_VERSION: u32 = 5;

#[cfg(test)]
mod tests;
