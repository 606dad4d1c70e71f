//! Requests about groups.
//!
//! Owns the handlers, and the waiting for a group point that was asked for. Limit: [`WAIT_MAX`] of waiting.

use std::{collections::BTreeSet, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
};
use holdfast_common::{clock::Timestamp, frame::Consistency, ids::MachineId};
use serde::Deserialize;

use super::{
    ApiError, ApiState, Who,
    group_shapes::{
        GroupMemberShape, GroupPointMemberShape, GroupPointRequest, GroupPointShape, GroupPointsShape,
        GroupRequest, GroupShape, GroupStatusShape, VoidedGroupCutShape,
    },
    views,
};
use crate::{
    catalog::{ROWS_MAX, record::VoidedGroupCutRecord},
    groups::{
        book::{GroupError, GroupRules, GroupStatus},
        cut::Outcome,
        points::{GroupPoint, assemble},
    },
    registry::health::{GroupFacts, group_findings, worst},
};

/// Voided group cuts shown with a group, and with its points.
const VOIDED_SHOWN: u32 = 20;
/// Longest wait for a group point.
const WAIT_MAX: Duration = Duration::from_mins(10);

#[derive(Debug, Deserialize)]
pub(super) struct ListQuery {
    limit: Option<usize>,
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<GroupShape>>, ApiError> {
    let mut shapes = Vec::new();
    for group in state.groups.all() {
        shapes.push(shape(&state, &group).await?);
    }
    Ok(Json(shapes))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<GroupShape>, ApiError> {
    let group = state.groups.resolve(&given)?;
    Ok(Json(shape(&state, &group).await?))
}

pub(super) async fn create(
    State(state): State<ApiState>,
    who: Who,
    Json(body): Json<GroupRequest>,
) -> Result<Json<GroupShape>, ApiError> {
    let machines = machines(&state, &body.add)?;
    let group = state.groups.create(&who.0.name(), &body.name, &machines, rules(&body)).await?;
    Ok(Json(shape(&state, &group).await?))
}

pub(super) async fn change(
    State(state): State<ApiState>,
    who: Who,
    Path(given): Path<String>,
    Json(body): Json<GroupRequest>,
) -> Result<Json<GroupShape>, ApiError> {
    let (joining, leaving) = (machines(&state, &body.add)?, machines(&state, &body.remove)?);
    let name = who.0.name();
    let mut group = state.groups.resolve(&given)?;
    if !leaving.is_empty() {
        group = state.groups.remove(&name, &given, &leaving).await?;
    }
    if !joining.is_empty() || rules(&body) != GroupRules::default() {
        group = state.groups.add(&name, &given, &joining, rules(&body)).await?;
    }
    Ok(Json(shape(&state, &group).await?))
}

pub(super) async fn delete(
    State(state): State<ApiState>,
    who: Who,
    Path(given): Path<String>,
) -> Result<Json<GroupShape>, ApiError> {
    let group = state.groups.resolve(&given)?;
    let shape = shape(&state, &group).await?;
    state.groups.delete(&who.0.name(), &given).await?;
    Ok(Json(shape))
}

pub(super) async fn points(
    State(state): State<ApiState>,
    Path(given): Path<String>,
    Query(query): Query<ListQuery>,
) -> Result<Json<GroupPointsShape>, ApiError> {
    let group = state.groups.resolve(&given)?;
    let (mut points, incomplete) = group_points(&state, &group).await?;
    points.truncate(query.limit.unwrap_or(usize::MAX));
    let voided = state.catalog.voided_group_cuts(group.record.id, VOIDED_SHOWN).await?;
    Ok(Json(GroupPointsShape {
        name: group.record.name,
        points: points.iter().map(|point| point_shape(&state, point)).collect(),
        incomplete,
        voided: voided.iter().map(|cut| voided_shape(&state, cut)).collect(),
    }))
}

/// Cuts the group now. Without a time to wait the answer is that the members have been cut; with one, the point.
pub(super) async fn create_point(
    State(state): State<ApiState>,
    who: Who,
    Path(given): Path<String>,
    Json(body): Json<GroupPointRequest>,
) -> Result<Json<Option<GroupPointShape>>, ApiError> {
    let group = state.groups.resolve(&given)?;
    if group.members.is_empty() {
        let advice = format!("add machines with `holdfast group add {} MACHINE`", group.record.name);
        return Err(ApiError::conflict("the group has no machines", advice));
    }
    let (name, kind) = (group.record.name.clone(), if body.application { "app-consistent" } else { "" });
    state.registry.record_act(&who.0.name(), "group point create", name, kind).await?;
    let mut changes = state.points.subscribe();
    let answered = state.group_cuts.ask(group.record.id, body.application).await;
    let answered = answered.map_err(|reason| ApiError::conflict(reason, "ask again"))?;
    let holds = match answered.outcome {
        Outcome::Marked(holds) => holds,
        Outcome::Void(void) => {
            let at = void.member.map(|machine| format!("machine {}: ", name_of(&state, machine)));
            let message = format!("the group cut is void: {}{}", at.unwrap_or_default(), void.reason);
            return Err(ApiError::conflict(message, "the machines' own points are not concerned; ask again"));
        }
    };
    let deadline = state.clock.monotonic() + Duration::from_millis(body.wait_ms).min(WAIT_MAX);
    loop {
        if holds.iter().all(|hold| state.points.is_known(hold.point)) {
            let mut parts = Vec::with_capacity(holds.len());
            for hold in &holds {
                parts.extend(state.points.get(hold.point).await?);
            }
            let (points, _) = assemble(&parts);
            let made = points.iter().find(|point| point.cut == answered.cut);
            return Ok(Json(made.map(|point| point_shape(&state, point))));
        }
        let left = deadline.saturating_sub(state.clock.monotonic());
        if left.is_zero() {
            return Ok(Json(None));
        }
        let _elapsed = tokio::time::timeout(left.min(Duration::from_secs(1)), changes.changed()).await;
    }
}

/// All whole group points of a group, newest first, from the points of all machines that are or were in it.
async fn group_points(state: &ApiState, group: &GroupStatus) -> Result<(Vec<GroupPoint>, usize), ApiError> {
    let mut records = Vec::new();
    let mut machines: BTreeSet<MachineId> = group.members.clone();
    let mut read: BTreeSet<MachineId> = BTreeSet::new();
    while let Some(machine) = machines.pop_first() {
        if !read.insert(machine) {
            continue;
        }
        for point in state.points.list(machine, ROWS_MAX).await? {
            if let Some(mark) = point.more.group.as_ref().filter(|mark| mark.group == group.record.id) {
                machines.extend(mark.members.iter().filter(|member| !read.contains(member)));
                records.push(point);
            }
        }
    }
    Ok(assemble(&records))
}

async fn shape(state: &ApiState, group: &GroupStatus) -> Result<GroupShape, ApiError> {
    let newest = newest(state, group, false).await?;
    let application = newest_or_older(state, group, newest.as_ref()).await?;
    let figures = state.group_cuts.figures(group.record.id);
    let voided = state.catalog.voided_group_cuts(group.record.id, VOIDED_SHOWN).await?;
    let status = status_of(state, group, newest.as_ref().map(|point| point.at), voided.first());
    let member = |machine: &MachineId| GroupMemberShape {
        machine: machine.to_string(),
        name: name_of(state, *machine),
        connected: state.links.figures(*machine).is_some(),
    };
    Ok(GroupShape {
        id: group.record.id.to_string(),
        name: group.record.name.clone(),
        interval_ms: group.record.interval_ms,
        wait_ms_max: group.record.wait_ms_max,
        application_interval_ms: group.record.application_interval_ms,
        lag: group.lag(),
        status,
        members: group.members.iter().map(member).collect(),
        newest: newest.as_ref().map(|point| point_shape(state, point)),
        newest_application: application.as_ref().map(|point| point_shape(state, point)),
        marked_cuts: figures.marked,
        voided_cuts: figures.voided,
        last_voided: voided.iter().map(|cut| voided_shape(state, cut)).collect(),
    })
}

/// How all groups are doing, by name.
pub(super) async fn statuses(state: &ApiState) -> Result<Vec<GroupStatusShape>, ApiError> {
    let mut statuses = Vec::new();
    for group in state.groups.all() {
        let newest = newest(state, &group, false).await?.map(|point| point.at);
        let voided = state.catalog.voided_group_cuts(group.record.id, 1).await?;
        statuses.push(status_of(state, &group, newest, voided.first()));
    }
    Ok(statuses)
}

/// The newest point of a group, or its newest app-consistent one, however many points its machines have made since.
pub(super) async fn newest(
    state: &ApiState,
    group: &GroupStatus,
    application: bool,
) -> Result<Option<GroupPoint>, ApiError> {
    let parts = state.points.group_parts(group.record.id, application, 1).await?;
    Ok(assemble(&parts).0.pop())
}

/// The newest app-consistent point of a group, whose newest of all is known.
async fn newest_or_older(
    state: &ApiState,
    group: &GroupStatus,
    newest_of_all: Option<&GroupPoint>,
) -> Result<Option<GroupPoint>, ApiError> {
    match newest_of_all {
        Some(point) if point.consistency == Consistency::App => Ok(Some(point.clone())),
        _ => newest(state, group, true).await,
    }
}

fn status_of(
    state: &ApiState,
    group: &GroupStatus,
    newest: Option<Timestamp>,
    void: Option<&VoidedGroupCutRecord>,
) -> GroupStatusShape {
    let now = state.clock.wall();
    let since = |at: Timestamp| Duration::from_micros(u64::try_from(now.0.saturating_sub(at.0)).unwrap_or(0));
    let away = group.members.iter().filter(|machine| !state.links.is_heard(**machine));
    let facts = GroupFacts {
        machines: group.members.len(),
        away: away.map(|machine| name_of(state, *machine)).collect(),
        point_age: newest.map(since),
        exists_for: since(group.record.created_at),
        interval: group.interval(),
        lag: group.lag(),
        void_because: void
            .filter(|void| newest.is_none_or(|at| void.at > at))
            .map(|void| void.reason.clone()),
    };
    let findings = group_findings(&facts);
    GroupStatusShape {
        id: group.record.id.to_string(),
        name: group.record.name.clone(),
        health: worst(&findings),
        findings,
        lag_ms: facts.point_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
    }
}

fn point_shape(state: &ApiState, point: &GroupPoint) -> GroupPointShape {
    let member = |member: &crate::groups::points::GroupPointMember| GroupPointMemberShape {
        machine: member.machine.to_string(),
        name: name_of(state, member.machine),
        point: member.point.to_string(),
        hold_us: member.hold_us,
        since_held_us: member.since_held_us,
        waited_us: member.waited_us,
    };
    GroupPointShape {
        id: point.cut.to_string(),
        at: views::time(point.at),
        at_us: point.at.0,
        durable_at: views::time(point.durable_at),
        consistency: crate::catalog::record::consistency_text(point.consistency).to_owned(),
        state: if point.processed { "processed" } else { "pending" }.to_owned(),
        spread_us: point.spread_us,
        hold_us_max: point.members.iter().map(|member| member.hold_us).max().unwrap_or(0),
        members: point.members.iter().map(member).collect(),
    }
}

fn voided_shape(state: &ApiState, cut: &VoidedGroupCutRecord) -> VoidedGroupCutShape {
    VoidedGroupCutShape {
        at: views::time(cut.at),
        machine: cut.machine.map(|machine| name_of(state, machine)),
        reason: cut.reason.clone(),
    }
}

fn name_of(state: &ApiState, machine: MachineId) -> String {
    state.registry.name(machine).unwrap_or_else(|| machine.to_string())
}

fn machines(state: &ApiState, given: &[String]) -> Result<Vec<MachineId>, ApiError> {
    given.iter().map(|given| Ok(state.registry.resolve(given)?)).collect()
}

const fn rules(body: &GroupRequest) -> GroupRules {
    GroupRules {
        interval_ms: body.interval_ms,
        wait_ms_max: body.wait_ms_max,
        application_interval_ms: body.application_interval_ms,
        lag: body.lag,
    }
}

impl From<GroupError> for ApiError {
    fn from(error: GroupError) -> Self {
        let text = error.to_string();
        let (message, advice) = match text.split_once("; ") {
            Some((message, advice)) => (message.to_owned(), advice.to_owned()),
            None => (text, String::new()),
        };
        let (status, code) = match &error {
            GroupError::Unknown(_) => (StatusCode::NOT_FOUND, "group-unknown"),
            GroupError::Name(_) => (StatusCode::CONFLICT, "group-name"),
            GroupError::Elsewhere { .. } => (StatusCode::CONFLICT, "in-another-group"),
            GroupError::NoMember { .. } => (StatusCode::NOT_FOUND, "not-in-group"),
            GroupError::Setting(_) => (StatusCode::BAD_REQUEST, "invalid"),
            GroupError::Catalog(_) => return Self::failed(&error),
        };
        Self::new(status, code, message, advice)
    }
}
