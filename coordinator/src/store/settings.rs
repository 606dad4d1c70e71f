//! Settings of the store: plain data, each with unit, default and cost.

use std::time::Duration;

/// How the store works.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Bytes at which a segment is sealed. Larger means fewer files; smaller means finer reclaim, and less to verify after a
    /// crash (the newest segment of each disk is read whole).
    pub segment_bytes: u64,
    /// Most bytes in one group commit. Larger hides the cost of the sync, smaller shortens it.
    pub group_bytes_max: usize,
    /// How long a group waits for more frames when none is queued. Zero commits at once; what arrives during a
    /// commit forms the next group anyway, so waiting pays only on devices with very dear syncs.
    pub group_wait: Duration,
    /// Bytes that may wait in one disk's queue; then `append` waits.
    pub disk_queue_bytes: usize,
    /// Bytes that may wait in all queues together.
    pub store_queue_bytes: usize,
    /// Free bytes of the file system below which nothing is taken, so that sealing, index and catalog still can be
    /// written.
    pub reserve_bytes: u64,
    /// Sealed segments that are kept open per disk. Each costs a file handle and 8 bytes per frame.
    pub open_segments_max: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            group_bytes_max: crate::journal::writer::GROUP_BYTES_MAX,
            group_wait: Duration::ZERO,
            disk_queue_bytes: 16 << 20,
            store_queue_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            open_segments_max: 64,
        }
    }
}
