//! Holdfast's coordinator, in the order of the data path: ingest, journal, store, index, points, failover, compute.

/// Recovery points and views of them.
pub mod points;
