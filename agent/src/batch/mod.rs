//! Batch: from changed blocks to sealed frames.
//!
//! Owns planning, device reads, zero detection, sealing and the ordered hand-over to ship. Does not know sessions or
//! retries. Invariant: frames leave in the order in which they were numbered, and they are numbered only after their
//! whole batch has been read, so a block's order in the log is the order in which it was read.
//! Limits: every byte waits in a buffer of a [`BufferPool`] or in a slot of the hand-over queue; both have a size.

// Buffers for direct reads, made once and used again.
pub mod buffer;
// From a set of blocks to bounded frames.
pub mod plan;
// Reads of a disk, several at a time.
pub mod read;
// Compression and hashing, order kept.
pub mod seal;
// The ordered, bounded way to ship.
pub mod queue;

pub use buffer::{BufferPool, FRAME_BLOCKS, FrameBuffer};
pub use plan::{BatchShape, FramePlan, plan_batch};
pub use queue::{FrameSink, HandOver, SinkClosed};
pub use read::{DiskFile, ReadBlocks, ReadError, ReadFrame, ReaderPool};
pub use seal::{Backlog, SealPool, SealSettings};
