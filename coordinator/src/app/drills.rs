//! Drills by themselves: when a machine's policy wants one.
//!
//! Owns the rhythm. A drill is a job like one that an operator begins, with an audit entry of its own. Invariant: one drill at a
//! time, since each takes a guest's memory and processors. What a drill has come to counts from its end, whichever way it ended,
//! so that one that fails does not follow itself.

use std::time::Duration;

use holdfast_common::clock::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{ApiState, shapes::JobShape, time_text},
    points::selection::Selection,
    registry::MachineStatus,
};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(5);
/// Who begins them, for jobs and the audit.
const WHO: &str = "schedule";

/// Begins drills until told to end.
pub(super) async fn run(state: ApiState, closing: CancellationToken) {
    loop {
        tokio::select! {
            () = closing.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        if let Some(machine) = next(&state).await {
            begin(&state, &machine).await;
        }
    }
}

/// The machine whose drill is due, if none is under way.
async fn next(state: &ApiState) -> Option<MachineStatus> {
    let machines = state.registry.machines();
    if machines.iter().all(|machine| machine.policy.drill.every_ms == 0) {
        return None;
    }
    let jobs = state.jobs.list().await.ok()?;
    if jobs.iter().any(|job| job.kind == "drill" && !job.settled) {
        return None;
    }
    let now = state.clock.wall();
    machines.into_iter().find(|machine| {
        let every = Duration::from_millis(machine.policy.drill.every_ms);
        let (id, lifecycle) = (machine.record.id, &machine.lifecycle);
        let is_free = !lifecycle.is_fenced() && lifecycle.tests.is_empty();
        let is_recent = |at: Timestamp| now.since(at) < every;
        let recorded = state.drills.list(id).first().is_some_and(|drill| is_recent(drill.at));
        // One that was cancelled left no record.
        let since =
            time_text(Timestamp(now.0.saturating_sub(i64::try_from(every.as_micros()).unwrap_or(i64::MAX))));
        let (id_text, is_drill) = (id.to_string(), |job: &&JobShape| job.kind == "drill");
        let begun = jobs.iter().filter(is_drill).any(|job| job.machine == id_text && job.created_at > since);
        !every.is_zero() && is_free && !recorded && !begun && state.points.newest(id).is_some()
    })
}

async fn begin(state: &ApiState, machine: &MachineStatus) {
    let (id, name) = (machine.record.id, machine.record.name.clone());
    let selection = Selection::LatestProcessed;
    if let Err(error) = state.registry.record_act(WHO, "drill", &name, selection.to_string()).await {
        tracing::error!(machine = %id, %error, "a drill was not begun");
        return;
    }
    match state.jobs.drill(WHO.to_owned(), id, selection, machine.policy.drill.drill.clone()).await {
        Ok(job) => tracing::info!(machine = %id, job = job.id, "a drill begins"),
        Err(error) => tracing::error!(machine = %id, %error, "a drill was not begun"),
    }
}
