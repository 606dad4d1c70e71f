//! Images: views written out as files, sparse, verified, and in pieces that survive a kill.
//!
//! Knows views only. Invariant: a file with the final name is complete and durable; everything else has a `.partial` name.

// Which clusters of a disk hold data.
mod map;
// Where each cluster goes, as raw bytes.
mod raw;
// Where each cluster goes, as qcow2: afresh, and into an image that is there.
mod qcow2;
// The file beside an image that says what it is and how far.
mod record;
// Which bundles of a view to read, and in which order.
mod plan;
// The file to write to, through the page cache or past it.
mod target;
// Moves them from a view into a file, on all cores.
mod copy;
// From the image of one point to that of another.
mod update;
// One image from begin to end.
mod materialize;
// `WriteImage` over all this.
pub mod writer;
