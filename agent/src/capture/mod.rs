//! Capture: learning which blocks changed, and making cuts.
//!
//! Owns the [`ChangeSource`] contract that every mechanism keeps. Does not know batching or the network.
//! Invariant: a block that changed is either marked here, remembered as unacknowledged, or durable at the
//! coordinator; it leaves one place only after it has entered the next.
//! Everything here blocks and runs on the capture thread, never on the async threads.

// eBPF programs mark changed blocks inside the kernel.
pub mod tracked;
pub mod freeze;
// A set of blocks.
pub mod block_set;
// Changes of a plain image file, found by comparing.
pub mod image_file;
// How many bytes may be read now.
pub mod rate;
// How far a comparison of source and replica has got.
pub mod scan;
// Whether a disk was at rest.
pub mod quiet;
// Which blocks are hashed at a cut, and how many.
pub mod witness;
// The pure engine of intervals and cuts.
pub mod cycle;

pub use block_set::BlockSet;

use holdfast_common::{
    ids::Interval,
    units::{BlockCount, BlockRange},
};
use thiserror::Error;

/// Where a mechanism stands: which incarnation of tracking, how often it was taken from, and whether it can be
/// trusted to have seen every change since the cursor's incarnation began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeCursor {
    /// Identity of this incarnation of tracking (boot and load); another one means that changes in between are
    /// unknown.
    pub incarnation: u64,
    /// Number of takes so far.
    pub number: u64,
    /// `Ok` if trusted, else why not, for people.
    pub trust: Result<(), String>,
}

/// What one take found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Blocks added to the caller's set.
    pub blocks: BlockCount,
    /// Blocks of requests that were still in flight after the marks were taken. They were marked again, so the next
    /// take returns them; zero means that what was taken can be read in its final state.
    pub in_flight: BlockCount,
}

/// Counters of the disk's writes, from the kernel's own statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteCounters {
    /// Sectors of 512 bytes in completed mutating requests (writes and discards). Requests are not counted: a flush without
    /// data counts as one, and changes nothing.
    pub sectors: u64,
    /// Requests in flight now, reads included.
    pub in_flight: u64,
}

/// A mechanism that knows which blocks of one disk changed.
///
/// A mechanism keeps two maps beside its marks, one for odd and one for even intervals: `take` moves marks into the map
/// of its interval, and `acknowledged` empties it. So at most two intervals are open at a time, and after the death of
/// the process the marks of both can be given back.
pub trait ChangeSource: Send {
    /// Where the mechanism stands.
    fn cursor(&self) -> ChangeCursor;

    /// Moves all marks into the map of `interval` and calls `found` with each run of marked blocks, ascending and
    /// without overlap.
    ///
    /// # Errors
    /// Marks may have been lost; the caller reports the loss of trust and scans.
    fn take(&mut self, interval: Interval, found: &mut dyn FnMut(BlockRange)) -> Result<Taken, CaptureError>;

    /// Marks these blocks again, as if they had just been written.
    fn mark(&mut self, range: BlockRange);

    /// The cut of `interval` is durable: what was taken for it need not be remembered any more.
    fn acknowledged(&mut self, interval: Interval);

    /// Blocks marked now (an estimate under load).
    fn marked(&self) -> BlockCount;

    /// The kernel's counters for this disk.
    ///
    /// # Errors
    /// The disk is gone.
    fn counters(&mut self) -> Result<WriteCounters, CaptureError>;

    /// Compares what tracking counted with what the kernel counted. Meaningful while the disk is quiet; under load it
    /// only reports what is certain.
    ///
    /// # Errors
    /// [`CaptureError::Untrusted`] if they differ.
    fn guard(&mut self) -> Result<(), CaptureError>;
}

/// Why capture cannot go on.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// Changes may have been missed: a new generation and a scan are needed.
    #[error("tracking of {device} may have missed changes: {reason}")]
    Untrusted {
        /// Device node.
        device: String,
        /// What was noticed.
        reason: String,
    },
    /// The disk is gone.
    #[error("disk {device} has disappeared")]
    Missing {
        /// Device node.
        device: String,
    },
    /// The mechanism cannot work here.
    #[error("{operation} of {device} failed: {advice}")]
    Failed {
        /// Device node.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What to do about it.
        advice: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
