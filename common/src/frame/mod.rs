//! The frame: the unit that is compressed, hashed, sent, stored and verified.
//!
//! Owns the fixed layout of frames, their sealing and their opening. Does not know sockets, files or sessions:
//! the same bytes travel on the wire and lie in the journal.
//! Invariant: a [`Frame`] value has passed its digest; there is no way to make one that has not.
//! Limits: [`FRAME_PLAIN_BYTES_MAX`], [`FRAME_STORED_BYTES_MAX`], [`FRAME_EXTENTS_MAX`].
//! Format: the header in [`header`], the table in [`extent`]; a frame is header, table, stored bytes, in that
//! order and without padding.

pub mod header;
pub mod extent;
pub mod cut;
pub mod seal;
pub mod open;

pub use cut::{
    ApplicationFreeze, Consistency, CutMember, CutMethod, CutMore, CutRecord, GroupMark, ScanRecord,
    WITNESS_BLOCKS_MAX, WITNESS_DIGEST_BYTES, Witness, WitnessBlock, witness_digest,
};
pub use extent::{Extent, ExtentKind};
pub use header::{Compression, FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind};
pub use open::{Frame, PlainReader, check_in_place};
pub use seal::{FrameIdentity, FrameSealer};

/// The largest number of plain (uncompressed) bytes in one frame.
pub const FRAME_PLAIN_BYTES_MAX: usize = 1 << 20;

/// Plain bytes per frame that the planner aims at: at 64 KiB compression and hashing are near their best, and a
/// random 4 KiB read at failover has little to decompress in vain.
pub const FRAME_PLAIN_BYTES_TARGET: usize = 64 << 10;

/// The largest number of stored bytes in one frame. What does not shrink is stored raw, so stored bytes never
/// exceed plain bytes.
pub const FRAME_STORED_BYTES_MAX: usize = FRAME_PLAIN_BYTES_MAX;

/// The largest number of extents in one frame.
pub const FRAME_EXTENTS_MAX: usize = 4096;

#[cfg(test)]
mod tests;
