//! Limits of the protocol that both ends keep and check.

/// Most disks of one machine.
pub const DISKS_PER_MACHINE_MAX: usize = 256;

/// Blocks that one digest of a scan covers (256 KiB): large enough that digests cost 1/8192 of the data, small enough
/// that one changed block makes little travel.
pub const SCAN_CHUNK_BLOCKS: u64 = 64;

/// Most digests in one scan question (one question covers up to 64 MiB).
pub const SCAN_DIGESTS_MAX: usize = 256;

/// Scan questions of one disk that may be unanswered at a time.
pub const SCAN_QUESTIONS_MAX: usize = 4;

/// Most blocks of one order of an audit (4 MiB): what the agent reads at a time, so that no cut waits long for it.
pub const AUDIT_BLOCKS_MAX: u64 = 16 * SCAN_CHUNK_BLOCKS;

/// Orders of an audit of one disk that may be unanswered at a time.
pub const AUDIT_ORDERS_MAX: usize = 4;

/// Shortest interval of cuts, in milliseconds.
pub const CUT_INTERVAL_MS_MIN: u64 = 1_000;

/// Default interval of cuts, in milliseconds.
pub const CUT_INTERVAL_MS_DEFAULT: u64 = 10_000;

/// Default longest time that writes may be held for a cut, in milliseconds.
pub const HOLD_MS_MAX_DEFAULT: u64 = 2_000;

/// Most machines of one replication group.
pub const GROUP_MEMBERS_MAX: usize = 256;

/// Longest time that a held member may wait for the mark of a group cut, in milliseconds, whatever it is told.
pub const GROUP_WAIT_MS_MAX: u64 = 2_000;

/// Default of that time, in milliseconds.
pub const GROUP_WAIT_MS_DEFAULT: u64 = 500;
