//! One file per kind of job and per theme of steps.

// Failover of one machine: its plans, and the table that finds the steps of all jobs.
pub mod failover;
// Whether it can be done, and from when on the target is the machine.
mod switch;
// Steps that want something of the source.
mod source;
// Steps about the point.
mod point;
// Steps that make the point usable: devices, images.
mod devices;
// Steps that prove that a machine boots, and take it back.
mod drill;
// Steps that run a machine of it.
mod machine;
// Steps of a recovery plan.
mod plan;
// The one of them that has machines failed over.
mod plan_machines;
// Steps that protect a machine at its target.
mod reprotect;
// Steps that bring it back to its source.
mod failback;
