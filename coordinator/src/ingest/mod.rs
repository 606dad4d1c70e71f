//! Ingest: taking frames in, verified, in order, and acknowledging them once they are durable.
//!
//! Owns the endpoint, sessions, admission and enrolment. Does not know index, points or failover; what it needs of the
//! others is in [`port`].
//! Invariant: no frame is acknowledged before its sink says that it is durable.

pub mod port;
pub mod admit;
pub mod session;
pub mod cutter;
pub mod verify;
pub mod links;
pub mod listen;
mod ear;
mod ending;
mod reset;
mod seats;
mod enrolment;
mod connection;
mod control;
mod receive;
mod prepare;
mod write_back;

pub use listen::{Ingest, IngestError, IngestSettings};
