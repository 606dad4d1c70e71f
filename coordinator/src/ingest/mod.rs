//! Ingest: taking frames in, verified, in order, and acknowledging them once they are durable.
//!
//! Owns the endpoint, sessions, admission and enrolment. Does not know index, points or failover; what it needs of the
//! others is in [`port`].
//! Invariant: no frame is acknowledged before its sink says that it is durable.

pub mod port;
pub mod session;
pub mod links;
