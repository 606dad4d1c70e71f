//! One file per kind of job, and the table that finds its steps.

// Failover of one machine.
pub mod failover;
