//! What ingest needs from the rest of the coordinator: traits that the wiring implements.
//!
//! Owns the contracts only. Knows no catalog, no store, no index.
//! Invariant: whatever is said here to be durable when a future resolves has survived a crash from then on.
//! Limit: at most [`SCAN_QUESTIONS_MAX`](holdfast_common::wire::limits::SCAN_QUESTIONS_MAX) comparisons of a disk and
//! one `append` of a disk are under way at a time.
//!
//! All futures are driven to their end: a closed connection never drops one half-way.

use std::{fmt, pin::Pin, sync::Arc};

use holdfast_common::{
    clock::Timestamp,
    frame::Frame,
    ids::{DiskId, MachineId, Sequence},
    token::TokenHash,
    wire::{
        Assignment, AuditAnswer, CutVoided, DiskReport, GroupAnswer, Hello, Inventory, Refusal, ScanAnswer,
        ScanQuestion, SourceAnswer, TrustLoss, WriteBackReply, WriteBackRequest,
    },
};
use thiserror::Error;
use tokio::sync::watch;

/// What the traits' methods return.
pub type PortFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, PortError>> + Send + 'a>>;

/// Everything ingest asks of others.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Machines, certificates, assignments.
    pub directory: Arc<dyn Directory>,
    /// The disks' logs.
    pub store: Arc<dyn FrameStore>,
    /// Comparison with the replica.
    pub replica: Arc<dyn ReplicaComparer>,
    /// The way back to fenced sources.
    pub write_back: Arc<dyn WriteBackDesk>,
}

/// What fenced sources ask while their disks are written back.
pub trait WriteBackDesk: fmt::Debug + Send + Sync + 'static {
    /// Answers a question of a machine whose certificate was admitted. One for work waits some seconds at most.
    fn answer(&self, machine: MachineId, request: WriteBackRequest) -> WriteBackFuture<'_>;
}

/// What a [`WriteBackDesk`] answers.
pub type WriteBackFuture<'a> = Pin<Box<dyn Future<Output = WriteBackReply> + Send + 'a>>;

/// Who may connect, and what they are to protect.
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// Whether a token may be redeemed now. `Some` is the machine that it re-enrols, `None` asks for a new machine.
    ///
    /// # Errors
    /// Refused with `TOKEN` if it is unknown, used or expired; the text says which.
    fn check_token(&self, token: TokenHash) -> PortFuture<'_, Option<MachineId>>;

    /// Uses the token up and records machine and certificate, all or nothing, durably.
    ///
    /// # Errors
    /// Refused with `TOKEN` if the token was redeemed or has expired since it was checked.
    fn enrol(&self, enrolment: Enrolment) -> PortFuture<'_, ()>;

    /// Whether this certificate may open a session: machine known and not removed, serial known and not revoked.
    ///
    /// # Errors
    /// Refused with `REVOKED` or `UNAUTHORIZED`.
    fn admit(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()>;

    /// Whether this certificate may open a connection for the way back: as for [`admit`](Self::admit), but that the machine
    /// may be fenced.
    ///
    /// # Errors
    /// Refused with `REVOKED` or `UNAUTHORIZED`.
    fn admit_fenced(&self, machine: MachineId, serial: CertificateSerial) -> PortFuture<'_, ()>;

    /// Records a renewed certificate durably, before it is handed out.
    ///
    /// # Errors
    /// Refused if the machine was revoked meanwhile.
    fn record_certificate(&self, machine: MachineId, certificate: CertificateRecord) -> PortFuture<'_, ()>;

    /// A session was opened.
    ///
    /// # Errors
    /// The catalog fails; the session is refused as busy.
    fn record_hello(&self, machine: MachineId, hello: Box<Hello>) -> PortFuture<'_, ()>;

    /// The inventory changed during a session.
    ///
    /// # Errors
    /// The catalog fails; logged, the session goes on.
    fn record_inventory(&self, machine: MachineId, inventory: Box<Inventory>) -> PortFuture<'_, ()>;

    /// What the machine is to protect. `durable`, `interval`, `scanned_to` and `scan_complete` of each disk must
    /// reflect every frame that is durable at the time of the call; ingest has settled the disks' logs before.
    ///
    /// # Errors
    /// The session is refused as busy.
    fn assignment(&self, machine: MachineId) -> PortFuture<'_, Assignment>;

    /// Raises a disk's generation because tracking was lost; ingest then asks for the assignment again. A loss that
    /// names an older generation than the disk's was already handled: nothing is to be done.
    ///
    /// # Errors
    /// Refused with `UNAUTHORIZED` if the disk is not the machine's.
    fn raise_generation(&self, machine: MachineId, loss: TrustLoss) -> PortFuture<'_, ()>;

    /// A disk's state on the source; called every few seconds per disk, must not write to the catalog each time.
    fn record_report(&self, machine: MachineId, report: DiskReport);

    /// A cut could not be made.
    ///
    /// # Errors
    /// The catalog fails; logged, the session goes on.
    fn record_void(&self, machine: MachineId, voided: CutVoided) -> PortFuture<'_, ()>;

    /// What a machine says about a group cut. Must not wait: machines hold writes meanwhile.
    fn group_answer(&self, machine: MachineId, answer: GroupAnswer);

    /// What a machine answers as the source of a failover.
    fn source_answer(&self, machine: MachineId, answer: SourceAnswer);

    /// What a range of a machine's disk holds, for an audit.
    fn audit_answer(&self, machine: MachineId, answer: AuditAnswer);

    /// A session ended; the text is for people.
    fn record_disconnected(&self, machine: MachineId, reason: String);
}

/// The disks' logs.
pub trait FrameStore: fmt::Debug + Send + Sync + 'static {
    /// The log of a disk, opened (and recovered) if need be. The same disk gives the same sink while it is in use.
    ///
    /// # Errors
    /// Refused with `STORAGE`; the text says what is wrong with the log.
    fn open(&self, disk: DiskId) -> PortFuture<'_, Arc<dyn FrameSink>>;
}

/// One disk's log, as its only writer sees it.
pub trait FrameSink: fmt::Debug + Send + Sync + 'static {
    /// Appends frames, which follow each other and the last one appended. Resolves when they are accepted in order,
    /// not when they are durable; waits while the store is behind, which is what holds the agent back.
    ///
    /// # Errors
    /// Refused with `STORAGE` (full, failing) or `SEQUENCE`. Nothing behind the last durable frame is certain then;
    /// the log must be opened anew.
    fn append(&self, frames: Vec<Frame>) -> PortFuture<'_, ()>;

    /// Last durable frame, kept up to date. The sender is dropped when the log has failed.
    fn durable(&self) -> watch::Receiver<Sequence>;

    /// Waits until everything appended is durable and says up to where; no frame comes in meanwhile.
    ///
    /// # Errors
    /// Refused with `STORAGE`: the log has failed and must be opened anew.
    fn settle(&self) -> PortFuture<'_, Sequence>;
}

/// Comparison of source digests with the replica, for scans.
pub trait ReplicaComparer: fmt::Debug + Send + Sync + 'static {
    /// Which of the asked ranges differ from the newest state of the replica. The disk is the machine's (ingest has
    /// checked it), the digests cover the range exactly.
    ///
    /// # Errors
    /// Logged; ingest then answers that everything differs, so that nothing is missed.
    fn compare(&self, question: ScanQuestion) -> PortFuture<'_, ScanAnswer>;
}

/// Why a port could not do what was asked.
#[derive(Debug, Error)]
pub enum PortError {
    /// The peer is refused, and told so.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Something failed here; the peer is told to try again later.
    #[error("{operation} failed")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Serial number of a certificate: 16 random bytes, the first bit zero and the first byte not zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CertificateSerial(pub [u8; 16]);

impl fmt::Display for CertificateSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CertificateSerial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A certificate that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// Its serial number.
    pub serial: CertificateSerial,
    /// When it begins to be valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
}

/// One machine's enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The token that is used up.
    pub token: TokenHash,
    /// The machine: the one that `check_token` named, or newly minted.
    pub machine: MachineId,
    /// Host name as the agent gave it, cut to a sane length; for people only.
    pub host_name: String,
    /// The machine's certificate.
    pub certificate: CertificateRecord,
}
