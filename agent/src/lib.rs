//! Holdfast's agent, in the order of the data path: capture, batch, ship.

/// Learning which blocks changed, and making cuts.
pub mod capture;
/// Bringing frames to the coordinator.
pub mod ship;
