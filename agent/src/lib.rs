//! Holdfast's agent, in the order of the data path: capture, batch, ship.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        reason = "test data is small; production code converts with care"
    )
)]

// Key, certificate and coordinator of this machine.
pub mod identity;
// From a token to an identity.
pub mod enrol;
// What the machine is, and which device is which disk.
pub mod inventory;
// Learning which blocks changed, and making cuts.
pub mod capture;
// Programs that make applications consistent before a cut.
pub mod hooks;
// This machine's part in cuts of replication groups.
pub mod group;
// From changed blocks to sealed frames.
pub mod batch;
// The capture thread: does what the cycle asks for.
pub mod engine;
// Bringing frames to the coordinator.
pub mod ship;
// This machine as the source of failovers.
pub mod source;
// Programs that recovery plans have run here.
pub mod actions;
// A fenced source whose disks are written back.
pub mod write_back;
// Settings.
pub mod config;
// The agent as a running program.
pub mod app;
// Ending tracking that nobody goes on with.
pub mod forget;
