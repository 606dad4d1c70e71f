//! What is done with a recovery plan: failover in its three kinds, the way back, forecasts, commit, cancel, cleanup.
//!
//! Owns the handlers: which machines with which points make a run, and which runs a verb is about. The run itself is a job.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{ConnectInfo, Path as UrlPath, Query, State},
};
use holdfast_common::ids::{JobId, MachineId};
use serde::Deserialize;

use super::{
    ApiError, ApiState, Peer, Who,
    forecast::{self, MACHINES_MAX},
    plan_shapes::{PlanEndedShape, PlanRunRequest, PlanStageShape, PlanStagesShape, PlanTurnShape},
    plans::{refused, stored, target, understood},
    port::{PlanJob, PlanMember, PlanRun},
    shapes::{ForecastShape, JobShape, ModeShape, TargetShape},
    status, verbs, views, work,
};
use crate::{
    failover::plan::{
        course::{Course, Direction, Turn},
        file::PlanFile,
    },
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

/// A failover of the plan's machines.
pub(super) async fn run(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
    Json(request): Json<PlanRunRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let (file, machines) = ready(&state, &name).await?;
    let (course, stop_source) = match request.mode {
        ModeShape::Test => (Course::Test, false),
        ModeShape::Failover => (Course::Unplanned, request.stop_source),
        ModeShape::Planned => (Course::Planned, true),
    };
    if let Some(target) = &request.target {
        work::check_target(&state, &peer, target)?;
    }
    let target = request.target.unwrap_or_else(|| target(&file.target));
    let selection = match (&request.point, course) {
        (_, Course::Planned) => Selection::Latest,
        (Some(point), _) => forecast::selection(point)?,
        (None, _) => file.selection,
    };
    let members = members(&state, &machines, selection, course, |name| work::below(&target, name)).await?;
    let detail = format!("{selection}, {}, {} machines", work::target_text(&target), members.len());
    let agents = agents(&state, &file)?;
    let run = PlanRun { file, course, stop_source, selection, target, members, agents };
    begin(&state, &peer, run, detail).await
}

/// Protects the plan's machines at their targets.
pub(super) async fn reprotect(
    state: State<ApiState>,
    peer: Who,
    name: UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    lead_back(state, peer, name, Course::Reprotect).await
}

/// Brings the plan's machines back to their sources.
pub(super) async fn failback(
    state: State<ApiState>,
    peer: Who,
    name: UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    lead_back(state, peer, name, Course::Failback).await
}

async fn lead_back(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
    course: Course,
) -> Result<Json<JobShape>, ApiError> {
    let (file, machines) = ready(&state, &name).await?;
    // No point is chosen on the way back, and nothing is made of one.
    let (selection, target) = (Selection::Latest, TargetShape::Attach);
    let member = |(name, machine)| PlanMember { machine, name, selection, target: target.clone() };
    let members: Vec<PlanMember> = machines.into_iter().map(member).collect();
    let detail = format!("{} machines", members.len());
    let agents = agents(&state, &file)?;
    let run = PlanRun { file, course, stop_source: false, selection, target, members, agents };
    begin(&state, &peer, run, detail).await
}

/// What the names of agents stand for now.
fn agents(state: &ApiState, file: &PlanFile) -> Result<BTreeMap<String, MachineId>, ApiError> {
    let resolved = |(name, _): (&str, usize)| Ok((name.to_owned(), state.registry.resolve(name)?));
    file.agents().map(resolved).collect()
}

async fn begin(
    state: &ApiState,
    peer: &Peer,
    run: PlanRun,
    detail: String,
) -> Result<Json<JobShape>, ApiError> {
    check_no_other(state, &run.file.name, run.course)?;
    let act = format!("plan {}", run.course.name().replace('-', " "));
    state.registry.record_act(&peer.name(), &act, &run.file.name, detail).await?;
    Ok(Json(state.jobs.run_plan(peer.name(), run).await?))
}

/// Two runs of a plan do not go side by side. What an earlier one has moved, the next one leaves alone.
fn check_no_other(state: &ApiState, name: &str, course: Course) -> Result<(), ApiError> {
    let other = state.jobs.plan_jobs(Some(name)).into_iter().find(|job| !job.is_settled);
    match other {
        Some(job) if course != Course::Test => Err(ApiError::conflict(
            format!("job {} runs the plan {name} already", job.id),
            format!("`holdfast job show {0}` shows it; continue, retry or cancel it first", job.id),
        )),
        _ => Ok(()),
    }
}

/// What a run would do with a machine now.
fn turn(state: &ApiState, course: Course, machine: MachineId) -> Turn {
    match state.registry.machine(machine) {
        Some(status) => course.turn(&status.lifecycle, JobId::from_bytes([0; 16])),
        None => Turn::Cannot("it is not known any more".to_owned()),
    }
}

/// The machines with their points. What a group has in common is chosen here, once; the rest chooses when its turn comes.
async fn members(
    state: &ApiState,
    machines: &[(String, MachineId)],
    selection: Selection,
    course: Course,
    target: impl Fn(&str) -> TargetShape,
) -> Result<Vec<PlanMember>, ApiError> {
    let mut members = Vec::new();
    let is_common = matches!(selection, Selection::LatestMultiVm | Selection::LatestMultiVmAppConsistent);
    // Who is left alone gets no point, and holds up nobody who does.
    let moves = |machine: MachineId| !matches!(turn(state, course, machine), Turn::Stays(_));
    let named = machines.iter().filter(|(_, machine)| moves(*machine));
    let named: Vec<&str> = named.map(|(name, _)| name.as_str()).collect();
    if is_common && named.len() > MACHINES_MAX {
        let message = format!("a point in common is chosen for {MACHINES_MAX} machines at most");
        return Err(ApiError::invalid(message, "choose another --point"));
    }
    let chosen = match is_common && !named.is_empty() {
        true => Some(forecast::choose(state, &named, selection).await?),
        false => None,
    };
    for (name, machine) in machines {
        let choice = chosen.as_ref().and_then(|chosen| chosen.choices.get(machine));
        let selection = match choice {
            Some(Ok(choice)) => Selection::Point(choice.point),
            // An unplanned failover goes on without it, and says why.
            Some(Err(refusal)) if course != Course::Unplanned => {
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

/// What each machine would get and lose; of those that would be left alone, why.
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
    let turn_of = |(name, machine)| (name, machine, turn(&state, Course::Unplanned, machine));
    let turns: Vec<(String, MachineId, Turn)> = machines.into_iter().map(turn_of).collect();
    let go = turns.iter().filter(|(_, _, turn)| *turn == Turn::Goes);
    let named: Vec<&str> = go.map(|(name, _, _)| name.as_str()).collect();
    let mut shapes = match named.is_empty() {
        true => Vec::new(),
        false => forecast::of_machines(&state, &named, selection).await?,
    };
    for (_, machine, turn) in turns {
        let (left_alone, refusal) = match turn {
            Turn::Goes => continue,
            Turn::Stays(why) => (Some(why), None),
            Turn::Cannot(why) => (None, Some(why)),
        };
        shapes.push(ForecastShape {
            machine: machine.to_string(),
            name: views::machine_name(&state, machine),
            selection: selection.to_string(),
            left_alone,
            refusal,
            ..ForecastShape::default()
        });
    }
    Ok(Json(shapes))
}

#[derive(Debug, Deserialize)]
pub(super) struct CourseQuery {
    course: String,
}

/// What a run would do with each machine, by where it stands now.
pub(super) async fn turns(
    State(state): State<ApiState>,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<CourseQuery>,
) -> Result<Json<Vec<PlanTurnShape>>, ApiError> {
    let course = Course::ALL.into_iter().find(|course| course.name() == query.course);
    let names: Vec<&str> = Course::ALL.iter().map(|course| course.name()).collect();
    let course = course.ok_or_else(|| {
        let message = format!("`{}` is nothing that is done with a plan", query.course);
        ApiError::invalid(message, format!("it is one of {}", names.join(", ")))
    })?;
    let (file, machines) = ready(&state, &name).await?;
    let machine_of: BTreeMap<&str, MachineId> =
        machines.iter().map(|(name, machine)| (name.as_str(), *machine)).collect();
    let mut shapes = Vec::new();
    for group in &file.groups {
        for (name, machine) in group.machines.iter().filter_map(|(name, _)| machine_of.get_key_value(&**name))
        {
            let (turn, reason) = match turn(&state, course, *machine) {
                Turn::Goes => ("goes", String::new()),
                Turn::Stays(why) => ("stays", why),
                Turn::Cannot(why) => ("cannot", why),
            };
            let stage = state.registry.machine(*machine).map(|status| status.lifecycle.stage.name());
            shapes.push(PlanTurnShape {
                group: group.name.clone(),
                name: (*name).to_owned(),
                stage: stage.unwrap_or_default().to_owned(),
                turn: turn.to_owned(),
                reason,
            });
        }
    }
    Ok(Json(shapes))
}

/// The runs of a plan that a verb is about, newest first.
fn runs(state: &ApiState, name: &str, tests: bool) -> Result<Vec<PlanJob>, ApiError> {
    let jobs = state.jobs.plan_jobs(Some(name));
    let jobs: Vec<PlanJob> =
        jobs.into_iter().filter(|job| !job.is_over && (job.course == Course::Test) == tests).collect();
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

/// Takes the plan's failovers back: their machines go back to their sources. A way back that is under way is what is taken back
/// first: its machines go on at their targets.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanEndedShape>, ApiError> {
    let mut runs = runs(&state, &name, false)?;
    if runs.iter().any(|run| run.course.direction() == Direction::ToSource) {
        runs.retain(|run| run.course.direction() == Direction::ToSource);
    }
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
