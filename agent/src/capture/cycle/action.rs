//! What the cycle asks for and what it is told.

use std::{fmt, time::Duration};

use holdfast_common::{
    clock::Timestamp,
    frame::{Consistency, CutMember, CutMethod, CutMore, CutRecord},
    ids::{DiskId, Interval, MachineId, PointId, Sequence},
    units::BlockCount,
    wire::{Capture, GroupAnswer, TrustLoss},
};

use crate::{group::HeldTurn, hooks::HookState};

/// What the executor is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Find the disk and start tracking it. Answered by [`Event::Opened`].
    Open(Box<Capture>),
    /// Forget the disk, and what was read of it. No answer.
    Close {
        /// The disk.
        disk: DiskId,
    },
    /// Take the marks into the set of blocks to read. Answered by [`Event::Taken`].
    Take {
        /// The disk.
        disk: DiskId,
        /// The interval they are taken for.
        interval: Interval,
    },
    /// Read and send one batch of what was taken. Answered by [`Event::Copied`].
    Copy {
        /// The disk.
        disk: DiskId,
    },
    /// Go on with the scan by one slice. Answered by [`Event::Scanned`].
    Scan {
        /// The disk.
        disk: DiskId,
    },
    /// Read and hash the next range of an audit. Answered by [`Event::Audited`].
    Audit {
        /// The disk.
        disk: DiskId,
    },
    /// Find out what to freeze. Answered by [`Event::HoldPlanned`].
    PlanHold,
    /// Write out what is dirty in the file systems of the plan. Answered by [`Event::Synced`].
    Sync,
    /// Hold, take, read the residue into memory, release. Answered by [`Event::CutTried`].
    Cut {
        /// The members.
        disks: Vec<DiskId>,
        /// Longest time that writes may be held.
        bound: Duration,
        /// The group cut that the hold is for.
        group: Option<Box<HeldTurn>>,
        /// Whether the cut is void if hooks are frozen, and then are not all thawed in order.
        strict: bool,
    },
    /// Send a part of the residue. Answered by [`Event::ResidueSent`].
    SendResidue {
        /// The disk.
        disk: DiskId,
    },
    /// Send the cut frame. Answered by [`Event::CutSent`].
    SendCut {
        /// The disk.
        disk: DiskId,
        /// What it says.
        record: Box<CutRecord>,
    },
    /// The cut of this interval is durable. No answer.
    Acknowledge {
        /// The disk.
        disk: DiskId,
        /// The interval.
        interval: Interval,
    },
    /// Tell the coordinator that marks may be lost. No answer.
    TellTrustLost(TrustLoss),
    /// Tell the coordinator that a cut is void. No answer.
    Void {
        /// The operator's request that it was for.
        request: Option<u64>,
        /// Why, and what to do.
        reason: String,
    },
    /// Begin to freeze the hooks. Answered by [`Event::Hooks`].
    FreezeHooks,
    /// Look how far they are. Answered by [`Event::Hooks`].
    AskHooks,
    /// Let the hooks go, without a cut. No answer.
    ThawHooks,
    /// Tell the coordinator how far this machine is in a group cut. No answer.
    TellGroup(GroupAnswer),
    /// Nothing until then, or until something arrives. No answer.
    Wait {
        /// Monotonic time.
        until: Duration,
    },
}

/// What the executor reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// Answer to [`Action::Open`].
    Opened {
        /// The disk.
        disk: DiskId,
        /// Whether tracking runs, unbroken since the generation's scan began.
        result: Result<(), Trouble>,
    },
    /// Answer to [`Action::Take`].
    Taken {
        /// The disk.
        disk: DiskId,
        /// Blocks that wait to be read now.
        result: Result<BlockCount, Trouble>,
    },
    /// Answer to [`Action::Copy`].
    Copied {
        /// The disk.
        disk: DiskId,
        /// What is left.
        result: Result<Copied, Trouble>,
    },
    /// Answer to [`Action::Scan`].
    Scanned {
        /// The disk.
        disk: DiskId,
        /// What became of it.
        result: Result<Scanned, Trouble>,
    },
    /// Answer to [`Action::Audit`].
    Audited {
        /// The disk.
        disk: DiskId,
        /// What became of it.
        result: Audited,
    },
    /// Answer to [`Action::PlanHold`]: whether there is anything to freeze.
    HoldPlanned(Result<bool, String>),
    /// Answer to [`Action::Sync`]: how long it took.
    Synced(Result<Duration, String>),
    /// Answer to [`Action::FreezeHooks`] and [`Action::AskHooks`].
    Hooks(HookState),
    /// Answer to [`Action::Cut`]. Hooks that were frozen are thawed.
    CutTried(Box<Result<CutMade, CutFailure>>),
    /// Answer to [`Action::SendResidue`].
    ResidueSent {
        /// Frames left.
        left: usize,
        /// Whether there was no room.
        blocked: bool,
    },
    /// Answer to [`Action::SendCut`].
    CutSent {
        /// The disk.
        disk: DiskId,
        /// Position of the cut frame.
        sequence: Sequence,
    },
}

/// What a copy left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Blocks that still wait to be read.
    pub left: BlockCount,
    /// Whether there was no room to send more.
    pub blocked: bool,
}

/// What became of a slice of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scanned {
    /// It went on.
    Progress {
        /// Blocks that wait to be read now.
        pending: BlockCount,
    },
    /// It waits for answers or for its rate limit, at most until then.
    Idle {
        /// Monotonic time.
        until: Duration,
    },
    /// There was no room to send.
    Blocked,
    /// The whole disk has been compared, and that is recorded.
    Complete,
}

/// What became of a range of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audited {
    /// It was answered.
    Done,
    /// It waits for its rate limit, at most until then.
    Later {
        /// Monotonic time.
        until: Duration,
    },
    /// There was no memory to read into.
    Blocked,
}

/// Why a disk cannot be captured now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Marks may be lost: a new generation and a scan are needed.
    Distrust(String),
    /// The disk is not there.
    Gone,
    /// The disk has another size than its replica.
    Resized(u64),
    /// Something failed; the text says what and what to do.
    Failed(String),
}

/// A cut that was made: the residue is in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutMade {
    /// The recovery point.
    pub point: PointId,
    /// The instant, by the wall clock.
    pub at: Timestamp,
    /// How long writes were held.
    pub held: Duration,
    /// How the instant was made.
    pub method: CutMethod,
    /// Remarks.
    pub notes: Vec<String>,
    /// The mark of a group cut, and how applications were made consistent.
    pub more: CutMore,
}

/// Why a cut was not made. In every case nothing is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutFailure {
    /// A disk that cannot be frozen was written to; trying again may help.
    NotQuiet(String),
    /// More was left than memory was set aside for; trying again will help, since more is set aside now.
    TooMuch(String),
    /// Void; the text says why and what to do.
    Void(String),
    /// A disk failed.
    Disk(DiskId, Trouble),
}

impl fmt::Display for CutFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotQuiet(reason) | Self::TooMuch(reason) | Self::Void(reason) => f.write_str(reason),
            Self::Disk(disk, trouble) => write!(f, "disk {disk}: {trouble:?}"),
        }
    }
}

impl CutMade {
    /// The record of this cut.
    #[must_use]
    pub fn record(&self, machine: MachineId, members: &[CutMember], request: Option<u64>) -> CutRecord {
        CutRecord {
            point: self.point,
            machine,
            at: self.at,
            hold_us: u64::try_from(self.held.as_micros()).unwrap_or(u64::MAX),
            method: self.method,
            consistency: match self.more.application {
                Some(_) => Consistency::App,
                None => Consistency::Crash,
            },
            members: members.to_vec(),
            notes: self.notes.clone(),
            request,
            more: self.more.clone(),
        }
    }
}
