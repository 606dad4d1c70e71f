//! Requests about recovery points.
//!
//! Owns the handlers, and the waiting for a point that was asked for. Limit: [`WAIT_MAX`] of waiting.

use std::time::Duration;

use axum::{
    Json,
    extract::{ConnectInfo, Path, Query, State},
};
use holdfast_common::ids::MachineId;
use serde::Deserialize;

use super::{
    ApiError, ApiState, Who,
    shapes::{
        ArrivingShape, DiffShape, PointRequest, PointRequestShape, PointShape, PointsShape, VoidedCutShape,
    },
    views,
};
use crate::{
    catalog::{
        VOIDED_CUTS_KEPT,
        record::{PointRecord, PointState, VoidedCutRecord},
    },
    ingest::links::Push,
    points::{request::next_request, selection::Selection},
};

/// Most points in one answer if the operator does not say.
const POINTS_DEFAULT: u32 = 10_000;
/// Ranges of each disk in one answer if the operator does not say, and the most that can be asked for.
const RANGES_DEFAULT: usize = 1000;
const RANGES_MAX: usize = 1_000_000;
/// Voided cuts shown.
const VOIDED_SHOWN: usize = 20;
/// Longest wait for a point.
const WAIT_MAX: Duration = Duration::from_mins(10);
/// Points looked through for the one that answers a request.
const RECENT: u32 = 50;

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<u32>,
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Path(given): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<PointsShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let records = state.points.list(machine, query.limit.unwrap_or(POINTS_DEFAULT)).await?;
    let voided = state.catalog.voided_cuts(machine, VOIDED_CUTS_KEPT).await?;
    let interval = state.registry.machine(machine).map(|machine| machine.policy.interval_ms);
    let gaps = views::gaps(&records, &voided, Duration::from_millis(interval.unwrap_or(u64::MAX)));
    let (void, complete): (Vec<_>, Vec<_>) =
        records.iter().partition(|point| point.state == PointState::Void);
    let drills = state.drills.list(machine);
    let drilled = |point: &PointRecord| {
        let mut shape = views::point(&state, point);
        if let Some(drill) = drills.iter().find(|drill| drill.ok && drill.point == Some(point.id)) {
            (shape.booted_at, shape.booted_rto_us) = (Some(views::time(drill.at)), Some(drill.rto_us));
        }
        shape
    };
    let shapes = |records: Vec<_>| records.into_iter().map(&drilled).collect();
    let arriving = state.points.arriving(machine).into_iter().map(|arriving| ArrivingShape {
        id: arriving.record.point.to_string(),
        at: views::time(arriving.record.at),
        missing_disks: arriving.missing.iter().map(|disk| views::disk_path(&state, *disk)).collect(),
    });
    Ok(Json(PointsShape {
        machine: machine.to_string(),
        name: views::machine_name(&state, machine),
        points: shapes(complete),
        void_points: shapes(void),
        arriving: arriving.collect(),
        voided_cuts: voided.into_iter().take(VOIDED_SHOWN).map(voided_cut).collect(),
        gaps: gaps.iter().map(views::gap).collect(),
    }))
}

#[derive(Debug, Deserialize)]
pub(super) struct DiffQuery {
    from: String,
    to: String,
    ranges: Option<usize>,
}

pub(super) async fn diff(
    State(state): State<ApiState>,
    Path(given): Path<String>,
    Query(query): Query<DiffQuery>,
) -> Result<Json<DiffShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let point = |text: &str| -> Result<Selection, ApiError> {
        text.parse()
            .map_err(|error| ApiError::invalid(format!("{error}"), "`holdfast points` lists the points"))
    };
    let (from, to) = (point(&query.from)?, point(&query.to)?);
    let ranges = query.ranges.unwrap_or(RANGES_DEFAULT);
    if ranges > RANGES_MAX {
        let message = format!("{ranges} ranges are too many for one answer");
        return Err(ApiError::invalid(message, format!("ask for at most {RANGES_MAX}")));
    }
    Ok(Json(state.diff.diff(machine, from, to, ranges).await?))
}

fn voided_cut(cut: VoidedCutRecord) -> VoidedCutShape {
    VoidedCutShape { at: views::time(cut.at), request: cut.request, reason: cut.reason }
}

pub(super) async fn create(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(body): Json<PointRequest>,
) -> Result<Json<PointRequestShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    if state.registry.protected_disks(machine).is_empty() {
        let message = "no disk of the machine is protected";
        return Err(ApiError::conflict(message, "protect one with `holdfast protect`"));
    }
    let mut changes = state.points.subscribe();
    let request = next_request(state.clock.as_ref());
    state
        .registry
        .record_act(&peer.name(), "point create", views::machine_name(&state, machine), request)
        .await?;
    let order = if body.application {
        Push::MakeApplicationPoint { request, strict: true }
    } else {
        Push::MakePoint { request }
    };
    state.links.push(machine, order).map_err(|error| {
        ApiError::conflict(
            error.to_string(),
            "start the machine and its agent, and look at `holdfast status`",
        )
    })?;
    let wait = Duration::from_millis(body.wait_ms).min(WAIT_MAX);
    let deadline = state.clock.monotonic() + wait;
    loop {
        if let Some(point) = answer(&state, machine, request).await? {
            return Ok(Json(PointRequestShape { request, point: Some(point) }));
        }
        let left = deadline.saturating_sub(state.clock.monotonic());
        if left.is_zero() || wait_for_change(&mut changes, left).await.is_err() {
            return Ok(Json(PointRequestShape { request, point: None }));
        }
    }
}

/// Waits for a change, but looks again after a second at the latest: voided cuts come on another way.
async fn wait_for_change(
    changes: &mut tokio::sync::watch::Receiver<u64>,
    left: Duration,
) -> Result<(), tokio::sync::watch::error::RecvError> {
    let step = left.min(Duration::from_secs(1));
    match tokio::time::timeout(step, changes.changed()).await {
        Ok(changed) => changed,
        Err(_elapsed) => Ok(()),
    }
}

/// The point that carries the request's number.
async fn answer(state: &ApiState, machine: MachineId, request: u64) -> Result<Option<PointShape>, ApiError> {
    let recent = state.points.list(machine, RECENT).await?;
    if let Some(point) = recent.iter().find(|point| point.request == Some(request)) {
        return Ok(Some(views::point(state, point)));
    }
    let voided = state.catalog.voided_cuts(machine, RECENT).await?;
    match voided.into_iter().find(|cut| cut.request == Some(request)) {
        None => Ok(None),
        Some(cut) => Err(ApiError::conflict(
            format!("the cut is void: {}", cut.reason),
            "ask again; nothing is lost, the changes go into the next point",
        )),
    }
}
