//! One open disk of the engine.

use std::collections::VecDeque;

use holdfast_common::{
    frame::FrameIdentity,
    ids::{DiskId, Generation, Interval, Sequence},
    units::{BlockCount, BlockIndex},
    wire::{AuditOrder, Capture, ScanAnswer},
};

use super::host::{HostDisk, Mechanism};
use crate::{
    batch::ReadFrame,
    capture::{BlockSet, ChangeSource, scan::ScanProgress},
};

/// An open disk: its changes, its blocks, and what waits.
pub(super) struct Disk {
    id: DiskId,
    generation: Generation,
    pub(super) source: Box<dyn ChangeSource>,
    pub(super) host: DiskParts,
    /// Blocks that were taken and not read.
    pub(super) pending: BlockSet,
    /// Where the next batch starts.
    pub(super) cursor: BlockIndex,
    pub(super) scan: Option<ScanProgress>,
    /// Interval of the frames that are sent now.
    pub(super) interval: Interval,
    /// Read while writes were held, and not sent yet.
    pub(super) residue: VecDeque<ReadFrame>,
    sequence: Sequence,
    /// Last sequence and plain bytes of batches that are not acknowledged.
    unacknowledged: VecDeque<(Sequence, u64)>,
    /// Ranges to hash for an audit.
    pub(super) audits: VecDeque<AuditOrder>,
    /// Sectors written when it was last reported.
    pub(super) sectors_reported: Option<u64>,
}

/// The parts of a disk that reading needs.
pub(super) struct DiskParts {
    pub(super) reader: Box<dyn crate::batch::ReadBlocks>,
    pub(super) path: String,
    pub(super) mechanism: Mechanism,
    pub(super) holes: Option<std::sync::Arc<crate::batch::DiskFile>>,
}

impl Disk {
    pub(super) fn new(opened: HostDisk, capture: &Capture) -> Self {
        let size = opened.size;
        let scan = || ScanProgress::new(size, capture.scanned_to, capture.replica_empty);
        Self {
            id: capture.disk,
            generation: capture.generation,
            source: opened.source,
            host: DiskParts {
                reader: opened.reader,
                path: opened.path,
                mechanism: opened.mechanism,
                holes: opened.holes,
            },
            pending: BlockSet::new(size),
            cursor: BlockIndex(0),
            scan: (!capture.scan_complete).then(scan),
            interval: capture.interval,
            residue: VecDeque::new(),
            sequence: capture.durable,
            unacknowledged: VecDeque::new(),
            audits: VecDeque::new(),
            sectors_reported: None,
        }
    }

    pub(super) const fn size(&self) -> BlockCount {
        self.pending.size()
    }

    pub(super) const fn generation(&self) -> Generation {
        self.generation
    }

    pub(super) const fn id(&self) -> DiskId {
        self.id
    }

    /// Identity of the next frame.
    pub(super) const fn number(&mut self) -> FrameIdentity {
        self.sequence = self.sequence.next();
        FrameIdentity {
            disk: self.id,
            generation: self.generation,
            sequence: self.sequence,
            interval: self.interval,
        }
    }

    /// Frames up to the last numbered one were submitted; these plain bytes wait for an acknowledgement.
    pub(super) fn submitted(&mut self, plain_bytes: u64) {
        if plain_bytes > 0 {
            self.unacknowledged.push_back((self.sequence, plain_bytes));
        }
    }

    pub(super) fn acknowledged(&mut self, sequence: Sequence) {
        while self.unacknowledged.pop_front_if(|(last, _)| *last <= sequence).is_some() {}
    }

    /// Plain bytes that were captured and are not acknowledged.
    pub(super) fn unacknowledged_bytes(&self) -> u64 {
        self.unacknowledged.iter().map(|(_, bytes)| bytes).sum()
    }

    /// An answer of the coordinator: what differs is to be read and sent.
    pub(super) fn scan_answered(&mut self, answer: &ScanAnswer) {
        let Some(scan) = &mut self.scan else { return };
        for range in scan.answered(answer) {
            self.pending.insert(range);
        }
    }
}
