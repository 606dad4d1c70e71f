//! A full comparison of a disk with its replica while it is protected: digests of what the source holds, asked for range by
//! range.
//!
//! Owns the messages only. The agent reads and hashes, and says in which interval it did; what the replica had at the cuts
//! around that interval is for the coordinator to compare (`points::audit` there has the reasoning).
//! Limits: [`SCAN_DIGESTS_MAX`](super::limits::SCAN_DIGESTS_MAX) digests per order,
//! [`AUDIT_BLOCKS_MAX`](super::limits::AUDIT_BLOCKS_MAX) blocks, [`AUDIT_ORDERS_MAX`](super::limits::AUDIT_ORDERS_MAX)
//! unanswered orders of one disk.

use serde::{Deserialize, Serialize};

use crate::{
    ids::{DiskId, Generation, Interval},
    units::{BlockCount, BlockIndex, BlockRange},
};

/// A range to read and hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditOrder {
    /// Number to carry back.
    pub order: u64,
    /// The disk.
    pub disk: DiskId,
    /// The line of history that it is for.
    pub generation: Generation,
    /// First block.
    pub start: BlockIndex,
    /// Number of blocks.
    pub count: BlockCount,
    /// Blocks that each digest covers; the last one covers fewer where the range ends.
    pub digest_blocks: u64,
}

/// What the source holds there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// Number of the order.
    pub order: u64,
    /// The disk.
    pub disk: DiskId,
    /// The line of history that is written.
    pub generation: Generation,
    /// What was read; or why nothing was, for people.
    pub result: Result<AuditDigests, String>,
}

/// Digests of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditDigests {
    /// The interval that was open while it was read: behind the instant of the cut before it, in front of that of its own.
    pub interval: Interval,
    /// BLAKE3 of the plain bytes, a last partial block padded with zeroes.
    pub digests: Vec<[u8; 32]>,
}

impl AuditOrder {
    /// The range.
    #[must_use]
    pub const fn range(&self) -> BlockRange {
        BlockRange { start: self.start, count: self.count }
    }

    /// The parts that a digest each covers.
    #[must_use]
    pub fn parts(&self) -> Vec<BlockRange> {
        self.range().pieces(self.digest_blocks).collect()
    }
}
