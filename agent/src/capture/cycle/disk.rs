//! What the cycle remembers of one disk.
//!
//! ```text
//!   closed --open--> scanning --complete--> ready
//!     ^  ^              |                     |
//!     |  +-- gone, resized, failed to open ---+
//!     |                 |                     |
//!     |                 +---- marks lost -----+--> distrusted --new generation--> closed
//! ```

use std::{collections::VecDeque, time::Duration};

use holdfast_common::{
    ids::{DiskId, Interval, Sequence},
    wire::{Capture, DiskHealth, TrustLoss},
};

use super::action::{Action, Trouble};

/// How often a disk that is missing is looked for.
const MISSING_RETRY: Duration = Duration::from_secs(5);
/// How often a disk that failed is tried again.
const FAILED_RETRY: Duration = Duration::from_secs(15);

/// Where a disk stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not open; `health` says why, `None` while it was not tried yet.
    Closed { retry_at: Duration, health: Option<DiskHealth> },
    /// An open was asked for.
    Opening,
    /// Tracked, being compared.
    Scanning { idle_until: Duration },
    /// Tracked and compared.
    Ready,
    /// Marks may be lost; a new generation is waited for.
    Distrusted { reason: String },
}

/// A disk of the machine.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) capture: Capture,
    pub(super) standing: Standing,
    /// The interval that is open.
    pub(super) interval: Interval,
    /// Cuts that were sent and are not acknowledged.
    pub(super) unacknowledged: VecDeque<(Interval, Sequence)>,
    /// Blocks that were taken and are not read.
    pub(super) pending: u64,
    /// A read failed: when to try again, and what was said.
    failure: Option<(Duration, String)>,
}

impl Disk {
    pub(super) const fn new(capture: Capture, now: Duration) -> Self {
        Self {
            interval: capture.interval,
            capture,
            standing: Standing::Closed { retry_at: now, health: None },
            unacknowledged: VecDeque::new(),
            pending: 0,
            failure: None,
        }
    }

    pub(super) const fn id(&self) -> DiskId {
        self.capture.disk
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.standing, Standing::Scanning { .. } | Standing::Ready)
    }

    /// Whether reads are to be tried.
    pub(super) fn is_well(&self, now: Duration) -> bool {
        self.failure.as_ref().is_none_or(|(retry_at, _)| now >= *retry_at)
    }

    /// Whether the map of the open interval is free: the cut two intervals before it is acknowledged.
    pub(super) fn may_take(&self) -> bool {
        self.unacknowledged.iter().all(|(interval, _)| interval.0 + 2 > self.interval.0)
    }

    /// What to open, if it is time to.
    pub(super) fn opening(&mut self, now: Duration) -> Option<Capture> {
        match self.standing {
            Standing::Closed { retry_at, .. } if retry_at <= now => {
                self.standing = Standing::Opening;
                Some(self.capture.clone())
            }
            _ => None,
        }
    }

    pub(super) fn opened(&mut self) {
        self.standing = if self.capture.scan_complete {
            Standing::Ready
        } else {
            Standing::Scanning { idle_until: Duration::ZERO }
        };
    }

    /// The cut frame of the open interval was sent.
    pub(super) fn cut_sent(&mut self, sequence: Sequence) {
        self.unacknowledged.push_back((self.interval, sequence));
        self.interval = self.interval.next();
        self.capture.interval = self.interval;
    }

    /// Everything up to this frame is durable. Returns the intervals whose cuts are.
    pub(super) fn acknowledged(&mut self, sequence: Sequence) -> Vec<Interval> {
        let mut closed = Vec::new();
        while let Some((interval, _)) = self.unacknowledged.pop_front_if(|(_, cut)| *cut <= sequence) {
            closed.push(interval);
        }
        closed
    }

    /// Something is wrong. Returns what to do about it.
    pub(super) fn trouble(&mut self, trouble: Trouble, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        let standing = match trouble {
            Trouble::Distrust(reason) => {
                actions.push(Action::TellTrustLost(self.trust_loss(reason.clone())));
                Standing::Distrusted { reason }
            }
            Trouble::Gone => closed(now + MISSING_RETRY, DiskHealth::Missing),
            Trouble::Resized(size_bytes) => closed(now + FAILED_RETRY, DiskHealth::Resized { size_bytes }),
            Trouble::Failed(reason) if self.is_open() => {
                self.failure = Some((now + FAILED_RETRY, reason));
                return actions;
            }
            Trouble::Failed(reason) => closed(now + FAILED_RETRY, DiskHealth::Failed(reason)),
        };
        if self.is_open() {
            actions.push(Action::Close { disk: self.id() });
        }
        self.standing = standing;
        self.pending = 0;
        self.failure = None;
        actions
    }

    pub(super) const fn trust_loss(&self, reason: String) -> TrustLoss {
        TrustLoss { disk: self.capture.disk, generation: self.capture.generation, reason }
    }

    pub(super) fn retry_at(&self) -> Option<Duration> {
        match &self.standing {
            Standing::Closed { retry_at, .. } => Some(*retry_at),
            _ => self.failure.as_ref().map(|(retry_at, _)| *retry_at),
        }
    }

    pub(super) fn health(&self) -> DiskHealth {
        match &self.standing {
            Standing::Closed { health: Some(health), .. } => health.clone(),
            Standing::Distrusted { reason } => {
                DiskHealth::Failed(format!("{reason}; waiting for the coordinator to start a resync"))
            }
            _ if self.failure.is_some() => DiskHealth::Failed(
                self.failure.as_ref().map(|(_, reason)| reason.clone()).unwrap_or_default(),
            ),
            Standing::Ready => DiskHealth::Protected,
            Standing::Closed { .. } | Standing::Opening | Standing::Scanning { .. } => {
                if self.capture.scan_complete { DiskHealth::Protected } else { DiskHealth::Scanning }
            }
        }
    }

    /// Why this disk forbids a cut now, if it does.
    pub(super) fn obstacle(&self, now: Duration) -> Option<String> {
        let path = &self.capture.path;
        if let Some((_, reason)) = self.failure.as_ref().filter(|_| !self.is_well(now) || self.pending > 0) {
            return Some(reason.clone());
        }
        match &self.standing {
            Standing::Ready => None,
            Standing::Closed { health: Some(DiskHealth::Missing), .. } => Some(format!(
                "disk {path} is missing: reattach it, or unprotect it to make points without it"
            )),
            Standing::Closed { health: Some(DiskHealth::Resized { size_bytes }), .. } => Some(format!(
                "disk {path} has {size_bytes} bytes now and {} in its replica: unprotect and protect it again",
                self.capture.size_bytes
            )),
            Standing::Closed { health: Some(DiskHealth::Failed(reason)), .. } => Some(reason.clone()),
            Standing::Distrusted { reason } => {
                Some(format!("{reason}: the disk is being resynced; points follow"))
            }
            Standing::Closed { .. } | Standing::Opening | Standing::Scanning { .. } => Some(format!(
                "disk {path} is still being compared with its replica: wait until its scan is complete"
            )),
        }
    }

    /// A read went well again.
    pub(super) fn recovered(&mut self) {
        self.failure = None;
    }
}

const fn closed(retry_at: Duration, health: DiskHealth) -> Standing {
    Standing::Closed { retry_at, health: Some(health) }
}
