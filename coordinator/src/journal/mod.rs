//! One segment file of a disk's log: its bytes, its single writer, its readers, and its recovery.
//!
//! Owns the format of a segment and what may be done to the file. Does not know file names, other segments, or what a
//! disk means. Invariants: bytes that were synced are never written again; only [`recovery`] cuts a file, and only
//! behind everything that was ever acknowledged; readers never write.
//! Limits: a segment has at most [`format::SEGMENT_BYTES_MAX`] bytes. Format: see `format.rs`.

// The bytes of a segment.
pub mod format;
// What is known of a segment's frames without their payload.
pub mod tables;
// Positioned reading, from files and from memory.
pub mod source;
// Walking over a segment that has no usable footer.
pub mod walk;
// A segment opened for reading.
pub mod segment;
// Appending to a segment.
pub mod writer;
// A new segment of what is still needed of others.
pub mod rewrite;
// From a segment as a crash left it to one that can be appended to.
pub mod recovery;

#[cfg(test)]
mod tests;
