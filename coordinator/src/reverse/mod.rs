//! The way back: what the machine at its target writes goes into its disks' logs, and from there to its source.
//!
//! Owns the coordinator as the writer of a log ([`follow`], [`log_writer`]) and what is told to the sources whose disks are written
//! back ([`desk`]). Knows neither jobs nor NBD nor connections. While a machine is protected the other way its log has the
//! coordinator for its only writer, under a generation of its own; the invariants of a log are the agent's:
//! the newest frame wins, and a point exists where all disks have its cut.
//!
//! ```text
//!   branches --follow--> logs --points--> desk --questions--> the source's agent --> its disks
//! ```

// Frames into a disk's log.
pub mod log_writer;
// A target's disks into their logs, point by point.
pub mod follow;
// What sources are told that are written back.
pub mod desk;

use holdfast_common::units::BlockRange;

use crate::points::view::{BlockView, ViewError};

/// Whole blocks of a disk; what stands behind its end is zero.
fn read_blocks(view: &dyn BlockView, range: BlockRange) -> Result<Vec<u8>, ViewError> {
    let mut bytes = vec![0; usize::try_from(range.bytes()).unwrap_or(0)];
    let offset = range.start.byte_offset();
    let on_disk = view.size_bytes().saturating_sub(offset).min(range.bytes());
    view.read(offset, bytes.get_mut(..usize::try_from(on_disk).unwrap_or(0)).unwrap_or_default())?;
    Ok(bytes)
}
