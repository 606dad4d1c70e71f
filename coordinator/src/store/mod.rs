//! The disks' logs: folders, sets of segments, `append -> durable`, reads by sequence.
//!
//! Owns all paths under the store's folder, the writer threads, and the figures of disk space. Does not know sessions,
//! points, or what blocks mean. Invariants: a frame counts as durable only after fdatasync of its bytes; one process
//! writes to a store; a log that failed takes nothing until it was opened anew.
//! Limits: each in [`settings::StoreSettings`].

// Settings with their defaults.
pub mod settings;
// All names and paths.
pub mod layout;
// What is recorded of a disk.
pub mod manifest;
// Why the store cannot do something.
pub mod error;
// The segments of one log, for readers.
pub mod segments;
// One disk's log.
pub mod log;
// The queue and thread that append.
pub mod append;
// Frames that are known to be damaged.
pub mod bad_frames;
// Ranges that are known to differ from the source.
pub mod differences;
// What of a log is kept, and what may be missing.
pub mod kept;
// Segments lose what nobody needs.
pub mod reclaim;
// How fast frames are taken when little space is left.
pub mod pressure;
// Some frames of a log.
pub mod frame_set;
// Whether stored frames still are what was written.
pub mod check;
// How far a log was checked.
pub mod check_record;
pub mod audit_record;
// All logs of a coordinator.
pub mod disks;

// The store as ingest needs it.
mod port;

pub use append::LogSink;
pub use audit_record::{AuditRecord, AuditedPass};
pub use bad_frames::BadFrames;
pub use check::{CheckOrder, Checked};
pub use check_record::{CheckRecord, ScrubPass};
pub use differences::{Alarm, Difference, Differences};
pub use disks::{DiskRecovery, Store};
pub use error::StoreError;
pub use frame_set::FrameSet;
pub use kept::{Kept, NeededCuts};
pub use log::{DiskLog, DiskUsage, HeadBatch, LogTail};
pub use manifest::DiskManifest;
pub use reclaim::DiskSpace;
pub use settings::StoreSettings;

#[cfg(test)]
mod tests;
