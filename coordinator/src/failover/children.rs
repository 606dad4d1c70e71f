//! Jobs that a job begins for its own: the machines of a recovery plan.
//!
//! Owns the contract and the ids. Invariant: a child's id follows from its parent, its machine and the round, so that a
//! parent that is interrupted anywhere finds every child that it has begun, and begins none twice. A parent holds what its
//! children hold, so it is over when they are.

use std::{fmt, future::pending};

use holdfast_common::ids::{JobId, MachineId};
use tokio::sync::watch;

use super::{
    job::{Job, JobSpec},
    machine::State,
    runner::{Command, JobError, JobView},
};
use crate::compute::port::BoxFuture;

/// The engine, as a job sees it.
pub trait ChildJobs: fmt::Debug + Send + Sync {
    /// Begins a job of this id; one that is known already is success. It is known when this returns, and does nothing
    /// before it is durable. Cancel safe: dropped, it has begun or it has not.
    fn begin(&self, id: JobId, spec: JobSpec, by: String) -> BoxFuture<'_, Result<(), JobError>>;

    /// A job, to be followed.
    fn watch(&self, id: JobId) -> Option<watch::Receiver<JobView>>;

    /// Asks something of it; durable when this returns.
    fn command(&self, id: JobId, command: Command, by: String) -> BoxFuture<'_, Result<(), JobError>>;
}

/// The id of a job's child for a machine. A round is a retry of the parent: who was cancelled alone begins anew in the next.
/// The time in it is the parent's, so that lists of jobs keep the family together.
#[must_use]
pub fn child_id(parent: JobId, machine: MachineId, round: u32) -> JobId {
    let mut hasher = blake3::Hasher::new_derive_key("holdfast 2026 id of a plan's job");
    hasher.update(&parent.into_bytes()).update(&machine.into_bytes()).update(&round.to_be_bytes());
    let digest = hasher.finalize();
    let mut id = parent.into_bytes();
    for (byte, drawn) in id.iter_mut().zip(digest.as_bytes()).skip(TIME_BYTES) {
        *byte = *drawn;
    }
    // Version 7 and the variant, as all ids of jobs.
    for (byte, kept, fixed) in [(6, 0x0f, 0x70), (8, 0x3f, 0x80)] {
        if let Some(byte) = id.get_mut(byte) {
            *byte = (*byte & kept) | fixed;
        }
    }
    JobId::from_bytes(id)
}

/// The newest job that was begun for a machine of a plan, and in which round.
pub fn newest(
    parent: &Job,
    machine: MachineId,
    watch: impl Fn(JobId) -> Option<watch::Receiver<JobView>>,
) -> Option<(u32, JobId, watch::Receiver<JobView>)> {
    (0..=parent.retries).rev().find_map(|round| {
        let id = child_id(parent.id, machine, round);
        watch(id).map(|watched| (round, id, watched))
    })
}

/// The job that stands for a machine of a plan now: the newest that was begun, unless that was cancelled before the parent's
/// last retry; then, as when none was begun, the id of the one to begin.
pub fn current(
    parent: &Job,
    machine: MachineId,
    watch: impl Fn(JobId) -> Option<watch::Receiver<JobView>>,
) -> (JobId, Option<watch::Receiver<JobView>>) {
    match newest(parent, machine, watch) {
        Some((round, id, watched))
            if round == parent.retries || watched.borrow().job.status.state != State::Cancelled =>
        {
            (id, Some(watched))
        }
        _ => (child_id(parent.id, machine, parent.retries), None),
    }
}

/// Waits until all jobs that a run of a plan has begun for its machines are over: then the run holds nothing. A job that runs no plan
/// is waited for without end, and so is everything once the engine ends. Cancel safe.
pub async fn all_over(parent: &Job, children: &dyn ChildJobs) {
    let members = parent.spec.plan().into_iter().flat_map(|plan| plan.members());
    let begun = members.filter_map(|(_, member)| newest(parent, member.machine, |id| children.watch(id)));
    let mut all: Vec<_> = begun.map(|(_, _, watched)| watched).collect();
    // An engine that ends knows no job any more: asked last, so that it knew those before.
    if parent.spec.plan().is_none() || children.watch(parent.id).is_none() {
        return pending().await;
    }
    let is_over = |view: &JobView| view.job.status.state.is_over();
    while !all.iter().all(|watched| is_over(&watched.borrow())) {
        for watched in &mut all {
            if watched.wait_for(is_over).await.is_err() {
                return pending().await;
            }
        }
    }
}

/// The bytes of an id that say when it was made.
const TIME_BYTES: usize = 6;

#[cfg(test)]
mod tests {
    use super::{JobId, MachineId, child_id};

    /// Ids stand in jobs' logs: how they are made must never change.
    #[test]
    fn ids_of_children_are_always_the_same() {
        let (parent, machine) = (JobId::from_bytes([1; 16]), MachineId::from_bytes([2; 16]));
        assert_eq!(child_id(parent, machine, 0), child_id(parent, machine, 0));
        assert_ne!(child_id(parent, machine, 0), child_id(parent, machine, 1));
        assert_eq!(child_id(parent, machine, 0).to_string(), "01010101-0101-7f04-9dc9-aa3448ad7fdd");
    }
}
