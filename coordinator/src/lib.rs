//! Holdfast's coordinator, in the order of the data path: ingest, journal, store, index, points, failover, compute.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is small; production code converts with care"
    )
)]

// What must be remembered besides the data, behind one trait.
pub mod catalog;
// Machines, disks and policies.
pub mod registry;
// The coordinator's own certificate authority.
pub mod authority;
// Taking frames in.
pub mod ingest;
// One segment file of a disk's log.
pub mod journal;

// The disks' logs.
pub mod store;
// Which frame holds which block.
pub mod index;
// Recovery points and views of them.
pub mod points;
// Machines that are cut at the same instant.
pub mod groups;
// The whole path on one machine, as a demonstration.
pub mod quickstart;
// Views as devices and images.
pub mod compute;
// The way back from a target.
pub mod reverse;
// Whether machines will boot, told before it matters.
pub mod readiness;
// Test failovers that prove that a machine boots.
pub mod drills;
// Jobs that turn points into something usable.
pub mod failover;
// The operator's interface.
pub mod api;
// Small records in JSON files.
mod json_record;
// Times as operators write them.
pub mod duration;
// Sizes as people read them.
pub mod size;
// Settings.
pub mod config;
// The running program.
pub mod app;
