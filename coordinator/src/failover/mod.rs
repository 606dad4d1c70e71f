//! Failover: turns a recovery point into something usable, as jobs that survive a restart at any step.
//!
//! Drives points and compute through [`port`] and [`crate::compute::port`]; knows neither NBD nor image formats, neither
//! SQL nor agents.

/// What jobs need of the catalog and of points.
pub mod port;
