//! Which frame holds which block: derived from the heads of durable frames.
//!
//! Owns the memory table of the open interval, the immutable runs of closed intervals, their ladder, and looking up.
//! Does not know the network, jobs, or a block's bytes. Invariants: everything here can be deleted and is rebuilt from the
//! journal; what is looked up at a cut is exactly the frames up to that cut, newest first; runs never change.
//! Limits: an extent takes about 5.5 bytes in a run if it is one block anywhere (`page`), and lies in its tile and in about one run
//! for each class of sizes above it (`ladder`), so that 24 bytes per extent are enough for 20,000 cuts; in memory it takes
//! [`entry::ENTRY_BYTES`], at most 24 with room to grow, for [`disk_index::SPILL_ENTRIES`] extents per disk, and
//! within [`room::ROOM_BYTES`] for all disks together beyond that, and for runs that have no file yet.
//! Merges hold up neither taking frames in nor looking up.

// One extent of the index, and its 16 bytes.
pub mod entry;
// From frames' heads to extents.
mod batch;
// How many threads share work.
mod threads;
// Sorting them.
mod sort;
// The extents of the interval that is not cut yet.
pub mod memtable;
// The bytes of a run file.
pub mod run_format;
// The entries in it.
pub mod page;
// Writing a run.
pub mod run_writer;
// A run's file in memory: mapped or read.
mod map;
// Memory for what has no file yet.
pub mod room;
// Runs that are used before they are synced.
pub mod unsynced;
// A run's file opened for looking up.
mod run_file;
// A run: a file's, or one in memory.
pub mod run;
// Newest wins.
pub mod merge;
// Which frames can be seen at a cut.
mod visible;
// Which runs there are, and which ones make a cut.
pub mod ladder;
// From a range of blocks to where their bytes are.
pub mod lookup;
// What is remembered besides extents: cuts, scans, losses.
pub mod records;
// The index of one disk.
pub mod disk_index;
// The thread that follows the logs.
pub mod follower;

pub use disk_index::{DiskIndex, IndexProgress, Retired};
pub use follower::Follower;
pub use lookup::{BlockMap, CutMap, IndexError, Piece, PieceSource};
pub use records::{CutHead, ScanHead};

#[cfg(test)]
mod tests;
