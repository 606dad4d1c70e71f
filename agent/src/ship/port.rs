//! The seam between capture and ship: values both ways, no calls back.
//!
//! Owns the types only. Capture pushes sealed frames (a blocking push that waits while the byte budget is used up) and
//! messages; ship hands over what the coordinator said. Limits: the byte budget of the outgoing queue, and
//! [`INBOUND_MAX`] undelivered events.

use bytes::Bytes;
use holdfast_common::{
    frame::FrameIdentity,
    ids::{DiskId, Sequence},
    units::BlockRange,
    wire::{Assignment, AuditOrder, GroupOrder, ScanAnswer, Welcome},
};

/// Most events waiting for capture; the link stops reading control messages beyond that.
pub const INBOUND_MAX: usize = 1024;

/// A sealed frame on its way out.
#[derive(Clone, Debug)]
pub struct OutgoingFrame {
    /// Where it stands.
    pub identity: FrameIdentity,
    /// The whole frame.
    pub bytes: Bytes,
}

/// What becomes of a cut whose applications could not be made consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// It is kept as a crash-consistent one, with the reason.
    Lenient,
    /// It is void.
    Strict,
}

/// What the link tells capture.
#[derive(Clone, Debug)]
pub enum Inbound {
    /// A session was accepted. For every disk whose generation is the one capture works in, ship resends on its own
    /// what the coordinator lacks. For a disk that capture does not know yet it starts at `durable.next()`.
    Connected(Box<Welcome>),
    /// The assignment changed during the session.
    Assigned(Assignment),
    /// All frames of the disk up to this one are durable.
    Acknowledged {
        /// The disk.
        disk: DiskId,
        /// Last durable frame.
        sequence: Sequence,
    },
    /// The coordinator lacks frames that ship no longer holds (its store lost acknowledged data): the disk needs a
    /// new generation and a scan.
    HistoryLost {
        /// The disk.
        disk: DiskId,
        /// What was noticed, for people.
        reason: String,
    },
    /// Answer to a scan question. Questions asked before a disconnect are not answered; ask again.
    ScanAnswer(ScanAnswer),
    /// The operator wants a point now.
    MakePoint {
        /// Number that the cut record carries back.
        request: u64,
        /// Whether applications are to be made consistent first, and if so, whether the cut is void when that fails.
        application: Option<Strictness>,
    },
    /// Mark these ranges again.
    SendAgain {
        /// The disk.
        disk: DiskId,
        /// The ranges.
        ranges: Vec<BlockRange>,
    },
    /// Read and hash a range. Orders that were given before a disconnect are not answered.
    Audit(AuditOrder),
    /// What a group cut wants of this machine. Marks and cancels go into the box of `group::Marks` as well.
    GroupCut(Box<GroupOrder>),
    /// The coordinator refuses this source because the machine runs elsewhere; the text is for people. Ship goes on
    /// asking: after a cancel the next [`Connected`](Self::Connected) comes.
    Fenced(String),
    /// The disks of this fenced source are about to be written back: they are let go of, tracking stays on. The next
    /// [`Connected`](Self::Connected) says anew what is captured.
    LetGo,
    /// The link is down; ship reconnects by itself. Capture goes on until its budget is full.
    Disconnected,
}
