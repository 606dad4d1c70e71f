//! Requests about comparisons of whole disks with their sources.
//!
//! Owns the handlers; the comparisons are behind [`SourceAudits`](super::port::SourceAudits).

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use holdfast_common::ids::MachineId;

use super::{
    ApiError, ApiState, Who,
    compare_shapes::{CompareShape, ComparedShape},
    port::{AuditFigures, AuditStart, AuditedFigures},
    views,
};
use crate::registry::DiskState;

pub(super) async fn show(State(state): State<ApiState>) -> Json<Vec<CompareShape>> {
    let machines = state.registry.machines().into_iter().map(|machine| machine.record.id);
    Json(machines.flat_map(|machine| shapes(&state, machine)).collect())
}

pub(super) async fn start(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<Vec<CompareShape>>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    state.registry.record_act(&peer.name(), "compare", given.clone(), "begin").await?;
    match state.audits.start(machine) {
        AuditStart::Begun => Ok(Json(shapes(&state, machine))),
        AuditStart::Running => Err(ApiError::conflict(
            format!("{given} is being compared with its source already"),
            "`holdfast compare status` shows how far it is",
        )),
        AuditStart::NothingProtected => Err(ApiError::conflict(
            format!("{given} has no protected disk"),
            "protect one first: `holdfast protect`",
        )),
        AuditStart::Failed(text) => {
            Err(ApiError::conflict(text, "see that the data directory can be written to, and try again"))
        }
    }
}

pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<Vec<CompareShape>>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    state.registry.record_act(&peer.name(), "compare", given.clone(), "cancel").await?;
    if state.audits.cancel(machine) {
        return Ok(Json(shapes(&state, machine)));
    }
    Err(ApiError::conflict(
        format!("{given} is not being compared with its source"),
        "`holdfast compare status` shows what is",
    ))
}

fn shapes(state: &ApiState, machine: MachineId) -> Vec<CompareShape> {
    let name = state.registry.machine(machine).map(|machine| machine.record.name).unwrap_or_default();
    let disks = state.registry.disks().into_iter().filter(|disk| disk.record.machine == machine);
    let shapes = disks.filter_map(|disk| {
        let figures = state.audits.figures(disk.record.id)?;
        let is_of_interest = disk.is_protected() || figures.pass.is_some() || figures.last.is_some();
        is_of_interest.then(|| shape(machine, &name, &disk, figures))
    });
    shapes.collect()
}

fn shape(machine: MachineId, name: &str, disk: &DiskState, figures: AuditFigures) -> CompareShape {
    let state = match (&figures.pass, &figures.waiting) {
        (None, _) => "idle",
        (Some(_), Some(_)) => "waiting",
        (Some(_), None) => "running",
    };
    let left = figures.pass.map(|pass| figures.size_bytes.saturating_sub(pass.compared_bytes));
    let rate = figures.bytes_per_second.filter(|rate| *rate > 0 && figures.pass.is_some());
    CompareShape {
        machine: machine.to_string(),
        machine_name: name.to_owned(),
        disk: disk.record.id.to_string(),
        path: disk.record.path.clone(),
        size_bytes: figures.size_bytes,
        state: state.to_owned(),
        waiting: figures.waiting.filter(|_| figures.pass.is_some()),
        bytes_per_second: rate,
        left_ms: left.zip(rate).map(|(left, rate)| left.saturating_mul(1000) / rate),
        pass: figures.pass.map(pass),
        last: figures.last.map(pass),
    }
}

fn pass(figures: AuditedFigures) -> ComparedShape {
    ComparedShape {
        started_at: views::time(figures.started_at),
        ended_at: figures.ended_at.map(views::time),
        cancelled: figures.cancelled,
        compared_bytes: figures.compared_bytes,
        sent_anew_bytes: figures.sent_anew_bytes,
        differed_bytes: figures.differed_bytes,
        unreadable_bytes: figures.unreadable_bytes,
    }
}
