//! Control messages of a session.

use serde::{Deserialize, Serialize};

use super::{
    inventory::{DiskIdentity, Inventory},
    refusal::Refusal,
};
use crate::{
    clock::Timestamp,
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    units::{BlockCount, BlockIndex, BlockRange},
};

/// What the agent says on the control stream. The first message is always `Hello`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Opens the session.
    Hello(Box<Hello>),
    /// State of an assigned disk; sent when it changes, and every few seconds.
    DiskReport(DiskReport),
    /// Tracking of a disk may have missed something. The coordinator raises the disk's generation and answers with a
    /// new `Assign`.
    TrustLost(TrustLoss),
    /// Digests of source ranges to compare with the replica.
    ScanQuestion(ScanQuestion),
    /// A cut could not be made; nothing is lost, the changes go into the next one.
    CutVoided(CutVoided),
    /// A certificate request that renews the agent's certificate (DER of the CSR).
    Renew(super::RenewRequest),
    /// Inventory changed during the session.
    Inventory(Box<Inventory>),
    /// The agent will close the connection in order.
    Closing,
    /// What the machine says about a group cut.
    GroupCut(super::GroupAnswer),
    /// What the machine answers as the source of a failover.
    Source(super::SourceAnswer),
    /// What a range of the source holds.
    Audited(super::AuditAnswer),
}

/// What the coordinator says on the control stream. The first message is `Welcome` or `Refused`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CoordinatorMessage {
    /// Accepts the session and says what to protect and where to resume.
    Welcome(Box<Welcome>),
    /// Replaces the assignment of the machine: disks added, removed, changed, or told to scan again. For a disk whose
    /// generation did not change the session goes on undisturbed.
    Assign(Assignment),
    /// All frames of this disk up to and including `sequence` are durable. Cumulative.
    Acknowledge {
        /// The disk.
        disk: DiskId,
        /// Last durable frame.
        sequence: Sequence,
    },
    /// Answer to a scan question.
    ScanAnswer(ScanAnswer),
    /// Make a recovery point now. The cut record carries `request` back.
    MakePoint {
        /// Number to carry back.
        request: u64,
    },
    /// These ranges of the replica are damaged or in doubt: send them again (as if they had just been written).
    SendAgain {
        /// The disk.
        disk: DiskId,
        /// Ranges to read and send.
        ranges: Vec<BlockRange>,
    },
    /// A renewed certificate.
    Renewed(super::RenewReply),
    /// Refused; the connection is closed with the same code.
    Refused(Refusal),
    /// What a group cut wants of the machine.
    GroupCut(Box<super::GroupOrder>),
    /// Make an app-consistent recovery point now: freeze hooks first. The cut record carries `request` back.
    MakeApplicationPoint {
        /// Number to carry back.
        request: u64,
        /// Whether the cut is void if a hook fails; else the point is kept as a crash-consistent one.
        strict: bool,
    },
    /// What a failover wants of the machine as its source.
    Source(super::SourceOrder),
    /// Read and hash a range of the source.
    Audit(super::AuditOrder),
}

/// The agent's opening.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`super::PROTOCOL_VERSION`] of the agent.
    pub protocol_version: u32,
    /// Program version, for people.
    pub agent_version: String,
    /// The machine as it is now.
    pub inventory: Inventory,
    /// What the agent still holds of each disk it knows (empty after a restart of the agent).
    pub disks: Vec<DiskStart>,
}

/// What the agent can offer for a disk at the start of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStart {
    /// The disk.
    pub disk: DiskId,
    /// Generation the agent works in.
    pub generation: Generation,
    /// Last frame known to be durable.
    pub acknowledged: Sequence,
}

/// The coordinator's acceptance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// [`super::PROTOCOL_VERSION`] of the coordinator.
    pub protocol_version: u32,
    /// Program version, for people.
    pub coordinator_version: String,
    /// The machine that the certificate stands for.
    pub machine: MachineId,
    /// The coordinator's wall clock, so that the agent can tell how far its own is off.
    pub now: Timestamp,
    /// What to protect.
    pub assignment: Assignment,
}

/// What a machine protects, as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Settings of the machine.
    pub settings: MachineSettings,
    /// All protected disks; a disk that is missing is protected no more.
    pub disks: Vec<super::Capture>,
}

/// Settings of a machine that the agent needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSettings {
    /// Time between cuts, in milliseconds.
    pub cut_interval_ms: u64,
    /// Longest time that writes may be held for a cut, in milliseconds.
    pub hold_ms_max: u64,
    /// Upper bound of what is sent, in bytes per second; zero means none.
    pub send_bytes_per_second_max: u64,
    /// Upper bound of what a scan reads, in bytes per second; zero means none.
    pub scan_bytes_per_second_max: u64,
}

/// One disk to capture, and where to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// The disk.
    pub disk: DiskId,
    /// How to find it on the source.
    pub identity: DiskIdentity,
    /// Device node when it was protected; a hint where the identity is empty.
    pub path: String,
    /// Size in bytes that the replica has; a source of another size is reported, not cut off.
    pub size_bytes: u64,
    /// Line of history to write.
    pub generation: Generation,
    /// Last frame that is durable here; the agent goes on with the next number.
    pub durable: Sequence,
    /// Interval that the next frame belongs to.
    pub interval: Interval,
    /// First block that the scan has not compared in this generation.
    pub scanned_to: BlockIndex,
    /// Whether the scan of this generation is complete. If not, the agent scans from `scanned_to`, and makes no cut
    /// before it is done.
    pub scan_complete: bool,
    /// Whether the replica holds nothing yet, so that digests need not be asked for.
    pub replica_empty: bool,
}

/// First bytes on a disk's data stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataStreamStart {
    /// The disk whose frames follow.
    pub disk: DiskId,
    /// The generation they are of.
    pub generation: Generation,
}

/// State of a disk on the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The disk.
    pub disk: DiskId,
    /// Whether it can be captured.
    pub health: DiskHealth,
    /// Mechanism in use ("tracked", "scan").
    pub capture: String,
    /// Device node.
    pub path: String,
    /// Blocks marked as changed and not yet captured.
    pub marked: BlockCount,
    /// Bytes captured and not yet acknowledged.
    pub unacknowledged_bytes: u64,
    /// First block that a scan has not compared; the disk's size in blocks if no scan is running.
    pub scanned_to: BlockIndex,
    /// Write requests counted by tracking since the last report; for the churn shown to operators.
    pub written_bytes: u64,
    /// Wall clock of the agent.
    pub at: Timestamp,
}

/// Whether a disk can be captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskHealth {
    /// All is well.
    Protected,
    /// Source and replica are being compared.
    Scanning,
    /// The disk cannot be found.
    Missing,
    /// The disk's size is not the replica's.
    Resized {
        /// Size now, in bytes.
        size_bytes: u64,
    },
    /// It cannot be captured; the text says why and what to do.
    Failed(String),
}

/// Tracking of a disk may have missed something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustLoss {
    /// The disk.
    pub disk: DiskId,
    /// The generation in which trust was lost.
    pub generation: Generation,
    /// Why, for people ("the machine was rebooted").
    pub reason: String,
}

/// Digests of source ranges. Digest `i` covers [`super::limits::SCAN_CHUNK_BLOCKS`] blocks from
/// `start + i * SCAN_CHUNK_BLOCKS` (the last one fewer, at the end of the disk): BLAKE3 of the plain bytes, the last
/// partial block padded with zeroes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanQuestion {
    /// Number to carry back.
    pub question: u64,
    /// The disk.
    pub disk: DiskId,
    /// Its generation.
    pub generation: Generation,
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks that the digests cover together.
    pub count: BlockCount,
    /// The digests; at most [`super::limits::SCAN_DIGESTS_MAX`].
    pub digests: Vec<[u8; 32]>,
}

/// Which of the asked ranges differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanAnswer {
    /// Number of the question.
    pub question: u64,
    /// The disk.
    pub disk: DiskId,
    /// One entry per digest: whether source and replica differ there.
    pub differs: Vec<bool>,
}

/// A cut that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutVoided {
    /// The operator's request that it was for, if any.
    pub request: Option<u64>,
    /// When it was tried (agent's wall clock).
    pub at: Timestamp,
    /// Why, for people, and what to do ("file system /var could not be frozen within 2 s: ...").
    pub reason: String,
}
