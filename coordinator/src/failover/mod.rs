//! Failover: turns a recovery point into something usable, as jobs that survive a restart at any step.
//!
//! Drives points and compute through `port` and `crate::compute::port`; knows neither NBD nor image formats, neither
//! SQL nor agents.

// What jobs need of the catalog and of points.
pub mod port;
// What a job is.
pub mod job;
// What is persisted of it.
pub mod log;
// Its states.
pub mod machine;
// What a step is.
pub mod step;
// Runs jobs.
pub mod runner;
// One job from event to event.
mod driver;
// The steps of each kind of job.
pub mod plans;
// What one job asks of those that it began.
pub mod children;
// Recovery plans: the file, the order, and what is frozen of it into a job.
pub mod plan;

#[cfg(test)]
mod doubles;
#[cfg(test)]
mod tests;
