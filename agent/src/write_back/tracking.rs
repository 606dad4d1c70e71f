//! What is marked of a disk that is written back.
//!
//! Owns the disk's tracking while capture does not ([`Tracking`]), and the record of what the disk is built on. Does not know
//! rounds. Invariants: a block that is neither marked nor told by [`Tracking::marked`] is as it was in the state that
//! [`Tracking::basis`] names; the record says that the disk holds a point only after it does, durably, and marks are
//! removed only after the record is durable. So whatever moment the agent dies at, what is marked is too much, never too little.
//! All methods block.

use std::{io, path::Path, sync::Arc, thread, time::Duration};

use holdfast_common::{
    entropy::Entropy,
    ids::{DiskId, Generation, Interval, Sequence},
    units::{BlockCount, BlockRange},
};

use crate::{
    capture::{
        BlockSet, CaptureError, ChangeSource as _,
        tracked::{Attachment, TrackedOptions, TrackedSource},
    },
    engine::Incarnations,
};

/// How long capture's thread may take to let a disk go.
const BUSY_LOOK: Duration = Duration::from_millis(50);
const BUSY_LOOKS_MAX: usize = 200;
/// The map for what was marked before a round, and that for what is marked in it.
const BEFORE: Interval = Interval(0);
const MEANWHILE: Interval = Interval(1);

/// How disks are tracked here.
#[derive(Clone)]
pub struct TrackedDisks {
    /// How tracking is set up.
    pub options: TrackedOptions,
    /// What each disk is built on.
    pub incarnations: Incarnations,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

impl std::fmt::Debug for TrackedDisks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackedDisks").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The tracking of one disk.
#[derive(Debug)]
pub(super) struct Tracking {
    disk: DiskId,
    source: TrackedSource,
    incarnations: Incarnations,
    basis: Option<(Generation, Sequence)>,
    marked: BlockSet,
}

impl Tracking {
    /// Goes on with what tracks the disk, or begins to track it. `None` if it cannot be tracked here.
    pub(super) fn open(disks: &TrackedDisks, disk: DiskId, device: &Path) -> Option<Self> {
        match Self::try_open(disks, disk, device) {
            Ok(tracking) => Some(tracking),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(%disk, error, "a disk is written back untracked: it will be compared as a whole");
                None
            }
        }
    }

    fn try_open(disks: &TrackedDisks, disk: DiskId, device: &Path) -> Result<Self, CaptureError> {
        let (mut source, mut attachment) = attach(disks, disk, device)?;
        if let Err(error @ CaptureError::Untrusted { .. }) = source.guard() {
            tracing::warn!(%disk, error = &error as &dyn std::error::Error, "tracking begins anew");
            drop(source);
            (source, attachment) = attach(disks, disk, device)?;
        }
        let basis = match &attachment {
            Attachment::Fresh { reason } => {
                tracing::info!(%disk, reason, "nothing is known of what was written to the disk");
                None
            }
            Attachment::Resumed { .. } => disks.incarnations.basis(disk, source.cursor().incarnation),
        };
        let (marked, incarnations) = (BlockSet::new(source.blocks()), disks.incarnations.clone());
        Ok(Self { disk, source, incarnations, basis, marked })
    }

    /// The generation, and the frame that the disk was brought to in it; frame zero stands for the end of what this agent has
    /// sent in it. The disk holds that state, but for what is marked. `None` if nothing is known.
    pub(super) const fn basis(&self) -> Option<(Generation, Sequence)> {
        self.basis
    }

    /// What was marked up to the last [`look`](Self::look).
    pub(super) const fn marked(&self) -> &BlockSet {
        &self.marked
    }

    /// Looks at what is marked now.
    pub(super) fn look(&mut self) {
        let marked = &mut self.marked;
        let taken = self.source.take(BEFORE, &mut |range| marked.insert(range));
        if let Err(error) = taken.and_then(|_| self.source.guard()) {
            self.distrust(&error);
        }
    }

    /// The disk holds the state at this frame, durably; `written` was written for that. Marks count from there on.
    pub(super) fn brought(&mut self, generation: Generation, sequence: Sequence, written: &BlockSet) {
        let mut others = BlockSet::new(self.source.blocks());
        let taken = self.source.take(MEANWHILE, &mut |range| others.insert(range));
        if let Err(error) = taken.and_then(|_| self.source.guard()) {
            self.distrust(&error);
            return;
        }
        written.runs().for_each(|range| others.remove(range));
        if others.count() > BlockCount(0) {
            let blocks = others.count().0;
            tracing::warn!(disk = %self.disk, blocks, "somebody else writes to a disk that is written back");
        }
        let incarnation = self.source.cursor().incarnation;
        if let Err(error) = self.incarnations.brought(self.disk, generation, incarnation, sequence) {
            tracing::warn!(disk = %self.disk, %error, "the state folder cannot be written; the disk will be compared");
            return;
        }
        others.runs().for_each(|range: BlockRange| self.source.mark(range));
        self.source.acknowledged(BEFORE);
        self.source.acknowledged(MEANWHILE);
        self.marked.clear();
        self.basis = Some((generation, sequence));
    }

    fn distrust(&mut self, error: &CaptureError) {
        self.basis = None;
        let error = error as &dyn std::error::Error;
        tracing::warn!(disk = %self.disk, error, "what is marked of a disk is not worth anything");
        if let Err(error) = self.incarnations.distrust(self.disk) {
            tracing::warn!(disk = %self.disk, %error, "the state folder cannot be written");
        }
    }
}

fn attach(
    disks: &TrackedDisks,
    disk: DiskId,
    device: &Path,
) -> Result<(TrackedSource, Attachment), CaptureError> {
    let mut looks = 0;
    loop {
        let opened = TrackedSource::open(disk, device, &disks.options, disks.entropy.as_ref());
        let is_busy = matches!(
            &opened,
            Err(CaptureError::Failed { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy
        );
        looks += 1;
        if !is_busy || looks > BUSY_LOOKS_MAX {
            return opened;
        }
        thread::sleep(BUSY_LOOK);
    }
}
