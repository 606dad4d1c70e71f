//! What is done with a recovery plan: failover in its three kinds, forecast, commit, cancel, cleanup.
//!
//! Owns the handlers: which machines with which points make a run, and which runs a verb is about. The run itself is a job.

use axum::{
    Json,
    extract::{ConnectInfo, Path as UrlPath, Query, State},
};
use holdfast_common::ids::MachineId;
use serde::Deserialize;

use super::{
    ApiError, ApiState, Who,
    forecast::{self, MACHINES_MAX},
    plan_shapes::{PlanEndedShape, PlanRunRequest, PlanStageShape, PlanStagesShape},
    plans::{refused, stored, target, understood},
    port::{FailoverMode, PlanJob, PlanMember, PlanRun},
    shapes::{ForecastShape, JobShape},
    status, verbs, work,
};
use crate::{
    failover::plan::file::PlanFile,
    points::selection::Selection,
    registry::lifecycle::{LifecycleEvent, Stage},
};

#[derive(Debug, Deserialize)]
pub(super) struct PointQuery {
    point: Option<String>,
}

/// A stored plan that can be run.
async fn ready(state: &ApiState, name: &str) -> Result<(PlanFile, Vec<(String, MachineId)>), ApiError> {
    let plan = stored(state, name).await?;
    let (file, machines, mistakes) = understood(state, None, &plan.text);
    if mistakes.is_empty() {
        return Ok((file, machines));
    }
    Err(refused(&mistakes, "correct its file, then `holdfast plan apply FILE`; nothing was begun"))
}

pub(super) async fn run(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<PlanRunRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let (file, machines) = ready(&state, &name).await?;
    let mode = work::mode(request.mode, request.stop_source);
    if let Some(target) = &request.target {
        work::check_target(&state, &peer, target)?;
    }
    let target = request.target.unwrap_or_else(|| target(&file.target));
    let selection = match (&request.point, mode) {
        (_, FailoverMode::Planned) => Selection::Latest,
        (Some(point), _) => forecast::selection(point)?,
        (None, _) => file.selection,
    };
    check_no_other(&state, &name, mode)?;
    let members = members(&state, &machines, selection, mode, |name| work::below(&target, name)).await?;
    let detail = format!("{selection}, {}, {} machines", work::target_text(&target), members.len());
    let act = format!("plan {}", work::act(mode));
    state.registry.record_act(&peer.name(), &act, &name, detail).await?;
    let run = PlanRun { file, mode, selection, target, members };
    Ok(Json(state.jobs.run_plan(peer.name(), run).await?))
}

/// Two runs of a plan do not go side by side. What an earlier one has failed over, the next one leaves alone.
fn check_no_other(state: &ApiState, name: &str, mode: FailoverMode) -> Result<(), ApiError> {
    let other = state.jobs.plan_jobs(Some(name)).into_iter().find(|job| !job.is_settled);
    match other {
        Some(job) if mode != FailoverMode::Test => Err(ApiError::conflict(
            format!("job {} runs the plan {name} already", job.id),
            format!("`holdfast job show {0}` shows it; continue, retry or cancel it first", job.id),
        )),
        _ => Ok(()),
    }
}

/// The machines with their points. What a group has in common is chosen here, once; the rest chooses when its turn comes.
async fn members(
    state: &ApiState,
    machines: &[(String, MachineId)],
    selection: Selection,
    mode: FailoverMode,
    target: impl Fn(&str) -> super::shapes::TargetShape,
) -> Result<Vec<PlanMember>, ApiError> {
    let mut members = Vec::new();
    let is_common = matches!(selection, Selection::LatestMultiVm | Selection::LatestMultiVmAppConsistent);
    let named: Vec<&str> = machines.iter().map(|(name, _)| name.as_str()).collect();
    if is_common && named.len() > MACHINES_MAX {
        let message = format!("a point in common is chosen for {MACHINES_MAX} machines at most");
        return Err(ApiError::invalid(message, "choose another --point"));
    }
    let chosen = if is_common { Some(forecast::choose(state, &named, selection).await?) } else { None };
    for (name, machine) in machines {
        let choice = chosen.as_ref().and_then(|chosen| chosen.choices.get(machine));
        let selection = match choice {
            Some(Ok(choice)) => Selection::Point(choice.point),
            // An unplanned failover goes on without it, and says why.
            Some(Err(refusal)) if !matches!(mode, FailoverMode::Unplanned { .. }) => {
                return Err(ApiError::conflict(
                    format!("nothing was begun: for machine {name}, {refusal}"),
                    "`--dry-run` shows what each machine would get; choose another point",
                ));
            }
            _ => selection,
        };
        let (machine, name, target) = (*machine, name.clone(), target(name));
        members.push(PlanMember { machine, name, selection, target });
    }
    Ok(members)
}

/// What each machine would get and lose.
pub(super) async fn forecast(
    State(state): State<ApiState>,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<PointQuery>,
) -> Result<Json<Vec<ForecastShape>>, ApiError> {
    let (file, machines) = ready(&state, &name).await?;
    let selection = match &query.point {
        Some(point) => forecast::selection(point)?,
        None => file.selection,
    };
    let named: Vec<&str> = machines.iter().map(|(name, _)| name.as_str()).collect();
    Ok(Json(forecast::of_machines(&state, &named, selection).await?))
}

/// The runs of a plan that a verb is about, newest first.
fn runs(state: &ApiState, name: &str, tests: bool) -> Result<Vec<PlanJob>, ApiError> {
    let jobs = state.jobs.plan_jobs(Some(name));
    let jobs: Vec<PlanJob> = jobs.into_iter().filter(|job| !job.is_over && job.is_test == tests).collect();
    if jobs.is_empty() {
        let what = if tests { "test failover" } else { "failover" };
        let advice = "`holdfast plan show` and `holdfast jobs` list what there is";
        return Err(ApiError::conflict(format!("no {what} of the plan {name} stands"), advice));
    }
    Ok(jobs)
}

/// Keeps what the plan has failed over.
pub(super) async fn commit(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanStagesShape>, ApiError> {
    let mut machines = Vec::new();
    for (machine, child) in runs(&state, &name, false)?.into_iter().flat_map(|job| job.children) {
        let Some(status) = state.registry.machine(machine) else { continue };
        if !matches!(status.lifecycle.stage, Stage::FailedOver { job, .. } if job == child) {
            continue;
        }
        state.registry.advance(&peer.name(), machine, LifecycleEvent::Commit).await?;
        if let Some(status) = state.registry.machine(machine) {
            let lifecycle = status::lifecycle(&status);
            machines.push(PlanStageShape { name: status.record.name, lifecycle });
        }
    }
    if machines.is_empty() {
        return Err(ApiError::conflict(
            format!("no machine of the plan {name} is failed over and not committed"),
            "`holdfast status` shows where each stands",
        ));
    }
    Ok(Json(PlanStagesShape { name, machines }))
}

/// Takes the plan's failovers back: their machines go back to their sources.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanEndedShape>, ApiError> {
    let runs = runs(&state, &name, false)?;
    for run in &runs {
        verbs::check_cancel(&state, run.id)?;
    }
    end(&state, &peer.name(), name, "plan cancel", &runs).await
}

/// Removes what the plan's tests have made.
pub(super) async fn cleanup(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanEndedShape>, ApiError> {
    let runs = runs(&state, &name, true)?;
    end(&state, &peer.name(), name, "plan test failover cleanup", &runs).await
}

async fn end(
    state: &ApiState,
    who: &str,
    name: String,
    act: &str,
    runs: &[PlanJob],
) -> Result<Json<PlanEndedShape>, ApiError> {
    let mut jobs = Vec::new();
    for run in runs {
        state.registry.record_act(who, act, &name, run.id).await?;
        jobs.push(verbs::ended(state, who, run.id).await?);
    }
    Ok(Json(PlanEndedShape { name, jobs: jobs.into_iter().flatten().collect() }))
}
