//! Requests about a machine between its two sites: change the point, commit, cancel, clean a test up, resume.
//!
//! Owns the handlers: which job a machine's verb is about, and when it may be done. The stages are the registry's, the
//! jobs the engine's.

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use holdfast_common::ids::{JobId, MachineId};

use super::{
    ApiError, ApiState, Who, forecast,
    port::{JobRefusal, WayBackVerb},
    shapes::{ChangePointRequest, JobShape, LifecycleShape},
    status, views,
};
use crate::registry::lifecycle::{Lifecycle, LifecycleEvent, LifecycleRefusal, Stage};

fn lifecycle(state: &ApiState, machine: MachineId) -> Lifecycle {
    state.registry.machine(machine).map(|status| status.lifecycle).unwrap_or_default()
}

fn shape(state: &ApiState, machine: MachineId) -> Json<LifecycleShape> {
    Json(state.registry.machine(machine).map(|status| status::lifecycle(&status)).unwrap_or_default())
}

fn refused(lifecycle: &Lifecycle, verb: &'static str) -> ApiError {
    let (stage, advice) = (lifecycle.stage.name(), lifecycle.stage.advice());
    ApiError::from(crate::registry::RegistryError::from(LifecycleRefusal { stage, verb, advice }))
}

/// Refuses what the machine's stage does not allow before a job is begun for it.
pub(super) fn check_free(state: &ApiState, machine: MachineId, is_test: bool) -> Result<(), ApiError> {
    let nobody = JobId::from_bytes([0; 16]);
    let event =
        if is_test { LifecycleEvent::BeginTest(nobody) } else { LifecycleEvent::BeginFailover(nobody) };
    let checked = lifecycle(state, machine).after(event);
    checked.map(drop).map_err(|refusal| ApiError::from(crate::registry::RegistryError::from(refusal)))
}

/// Refuses to take back what was committed by the back door of its job, or of its plan's.
pub(super) fn check_cancel(state: &ApiState, job: JobId) -> Result<(), ApiError> {
    let plan = state.jobs.plan_jobs(None).into_iter().find(|plan| plan.id == job);
    let children = plan.map(|plan| plan.children).unwrap_or_default();
    let is_meant = |failover: JobId| failover == job || children.iter().any(|(_, child)| *child == failover);
    let committed = state.registry.machines().into_iter().find(|machine| {
        let stage = machine.lifecycle.stage;
        stage.is_target_for_good() && stage.failover().is_some_and(is_meant)
    });
    match committed {
        None => Ok(()),
        Some(machine) => Err(ApiError::conflict(
            format!(
                "the failover of machine {} is committed: what its job holds is the machine",
                machine.record.name
            ),
            "`holdfast resume MACHINE` gives up what the target wrote and goes back to the source",
        )),
    }
}

/// Another point instead of the one that the machine failed over to; also after the commit, while retention holds it.
pub(super) async fn change_point(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(request): Json<ChangePointRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let selection = forecast::selection(&request.point)?;
    let now = lifecycle(&state, machine);
    let (Stage::FailedOver { job, .. } | Stage::Committed { job, .. }) = now.stage else {
        return Err(refused(&now, "change of point"));
    };
    // Refused here, it costs nothing; the job would stop at it.
    let name = views::machine_name(&state, machine);
    let chosen = forecast::choose(&state, &[&given], selection).await?;
    if let Some(Err(refusal)) = chosen.choices.get(&machine) {
        return Err(ApiError::conflict(
            format!("machine {name} stays at its point: {refusal}"),
            "`holdfast points` lists the points",
        ));
    }
    state.registry.record_act(&peer.name(), "change point", &name, selection.to_string()).await?;
    match state.jobs.change_point(peer.name(), job, selection).await {
        Err(JobRefusal::Unknown(_)) => Err(lost(job)),
        changed => Ok(Json(changed?)),
    }
}

/// Keeps the failover: cancel is not possible any more. Deletes nothing.
pub(super) async fn commit(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<LifecycleShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    state.registry.advance(&peer.name(), machine, LifecycleEvent::Commit).await?;
    Ok(shape(&state, machine))
}

/// Takes a failover back at whatever step it is: the source is the machine again.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<LifecycleShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let now = lifecycle(&state, machine);
    let (Stage::FailingOver { job } | Stage::FailedOver { job, .. }) = now.stage else {
        return Err(refused(&now, "cancel"));
    };
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), "cancel failover", &name, job).await?;
    end(&state, &peer.name(), job).await?;
    if lifecycle(&state, machine).stage.failover() == Some(job) {
        // The job is not known any more, or it was over before.
        for event in [LifecycleEvent::Unswitch(job), LifecycleEvent::AbandonFailover(job)] {
            state.registry.advance(&peer.name(), machine, event).await?;
        }
    }
    Ok(shape(&state, machine))
}

/// Removes what a test failover made.
pub(super) async fn cleanup(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<LifecycleShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let name = views::machine_name(&state, machine);
    let tests = lifecycle(&state, machine).tests;
    if tests.is_empty() {
        return Err(ApiError::conflict(
            format!("no test failover of machine {name} stands, so there is nothing to clean up"),
            "begin one with `holdfast test-failover`",
        ));
    }
    for job in tests {
        state.registry.record_act(&peer.name(), "test failover cleanup", &name, job).await?;
        end(&state, &peer.name(), job).await?;
        state.registry.advance(&peer.name(), machine, LifecycleEvent::EndTest(job)).await?;
    }
    Ok(shape(&state, machine))
}

/// The source is the machine again for good, and what the target wrote is given up. Its disks are compared with the
/// newest replica if the failover was committed.
pub(super) async fn resume(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<LifecycleShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let now = lifecycle(&state, machine);
    let checked = now.after(LifecycleEvent::Resume);
    if !now.is_fenced() || checked.is_err() {
        return Err(refused(&now, "resume"));
    }
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), "resume source", &name, now.stage.name()).await?;
    if let Some(job) = now.stage.failover() {
        // The target first: there are never two machines.
        end(&state, &peer.name(), job).await?;
    }
    // Before the source is let in: a log has one writer.
    state.jobs.release_target(machine).await;
    state.registry.advance(&peer.name(), machine, LifecycleEvent::Resume).await?;
    Ok(shape(&state, machine))
}

/// Protects a machine that runs at its target.
pub(super) async fn reprotect(
    state: State<ApiState>,
    peer: Who,
    given: Path<String>,
) -> Result<Json<JobShape>, ApiError> {
    way_back(state, peer, given, WayBackVerb::Reprotect).await
}

/// Brings a machine back to its source, with what it wrote at its target.
pub(super) async fn failback(
    state: State<ApiState>,
    peer: Who,
    given: Path<String>,
) -> Result<Json<JobShape>, ApiError> {
    way_back(state, peer, given, WayBackVerb::Failback).await
}

async fn way_back(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    verb: WayBackVerb,
) -> Result<Json<JobShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let now = lifecycle(&state, machine);
    let nobody = JobId::from_bytes([0; 16]);
    let (event, name) = match verb {
        WayBackVerb::Reprotect => (LifecycleEvent::BeginReprotect(nobody), "reprotect"),
        WayBackVerb::Failback => (LifecycleEvent::BeginFailback(nobody), "failback"),
    };
    let job = now.stage.failover().filter(|_| now.after(event).is_ok());
    let job = job.ok_or_else(|| refused(&now, name))?;
    state.registry.record_act(&peer.name(), name, &views::machine_name(&state, machine), job).await?;
    Ok(Json(state.jobs.way_back(peer.name(), machine, job, verb).await?))
}

/// Cancels a job and waits until everything is taken back. One that is over, or not known, is success.
async fn end(state: &ApiState, who: &str, job: JobId) -> Result<(), ApiError> {
    ended(state, who, job).await.map(drop)
}

/// The same; gives the job as it is then, if it is known.
pub(super) async fn ended(state: &ApiState, who: &str, job: JobId) -> Result<Option<JobShape>, ApiError> {
    match state.jobs.end(who.to_owned(), job).await {
        Ok(ended) if ended.state == "stuck" => Err(ApiError::conflict(
            format!(
                "job {job} could not be taken back: {}",
                ended.messages.last().map(|message| message.text.as_str()).unwrap_or_default()
            ),
            format!("remove the cause, then `holdfast job retry {job}`"),
        )),
        Ok(ended) => Ok(Some(ended)),
        Err(JobRefusal::Unknown(_)) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}

fn lost(job: JobId) -> ApiError {
    ApiError::conflict(
        format!("job {job} of the failover is not known any more"),
        "cancel with `holdfast cancel MACHINE` and fail over again",
    )
}
