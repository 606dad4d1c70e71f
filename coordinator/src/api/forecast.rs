//! What each choice of a point would give and lose: before a failover, and at a glance.
//!
//! Owns the gathering and the wording of answers; the rules are [`selection`](crate::points::selection)'s. Changes nothing.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Query, State},
};
use holdfast_common::{
    clock::Timestamp,
    ids::{MachineId, PointId},
};
use serde::Deserialize;

use super::{
    ApiError, ApiState, groups,
    shapes::{ForecastShape, KindShape, NewerShape, OverviewShape},
    status::age,
    views,
};
use crate::{
    groups::{book::GroupStatus, points::GroupPoint},
    points::selection::{
        Choice, Refusal, Selection,
        passed::{PASSED_SHOWN, passed},
        set::{Candidates, choose_set, mates},
    },
};

/// Most machines in one request.
pub(super) const MACHINES_MAX: usize = 1_000;
/// Voided cuts of the source that are looked at for what is newer than a choice.
const VOIDED_LOOKED_AT: u32 = 100;
/// The choices of the overview.
const KINDS: [Selection; 5] = [
    Selection::Latest,
    Selection::LatestProcessed,
    Selection::LatestAppConsistent,
    Selection::LatestMultiVm,
    Selection::LatestMultiVmAppConsistent,
];

#[derive(Debug, Deserialize)]
pub(super) struct ForecastQuery {
    /// Names or ids, with commas between them.
    machines: String,
    point: String,
}

/// A choice for a set of machines, and what it was made of.
pub(super) struct Chosen {
    pub(super) candidates: Candidates,
    /// In the order in which the machines were named.
    pub(super) machines: Vec<MachineId>,
    pub(super) choices: BTreeMap<MachineId, Result<Choice, Refusal>>,
}

pub(super) async fn forecast(
    State(state): State<ApiState>,
    Query(query): Query<ForecastQuery>,
) -> Result<Json<Vec<ForecastShape>>, ApiError> {
    let named: Vec<&str> = query.machines.split(',').filter(|name| !name.is_empty()).collect();
    Ok(Json(of_machines(&state, &named, selection(&query.point)?).await?))
}

/// What each of these machines would get and lose.
pub(super) async fn of_machines(
    state: &ApiState,
    named: &[&str],
    selection: Selection,
) -> Result<Vec<ForecastShape>, ApiError> {
    let chosen = choose(state, named, selection).await?;
    let mut shapes = Vec::new();
    for machine in &chosen.machines {
        shapes.push(forecast_of(state, &chosen, *machine, selection).await?);
    }
    Ok(shapes)
}

pub(super) async fn overview(State(state): State<ApiState>) -> Result<Json<Vec<OverviewShape>>, ApiError> {
    let machines: Vec<MachineId> =
        state.registry.machines().into_iter().map(|machine| machine.record.id).collect();
    let candidates = gather(&state, &machines).await?;
    let mut shapes = Vec::new();
    for machine in machines {
        let kind = |selection: Selection| {
            let choice = choose_set(&[machine], &candidates, selection).remove(&machine);
            kind_shape(&state, machine, selection, choice)
        };
        shapes.push(OverviewShape {
            machine: machine.to_string(),
            group: None,
            name: views::machine_name(&state, machine),
            kinds: KINDS.map(kind).into(),
        });
    }
    for group in state.groups.all() {
        shapes.push(group_overview(&state, &group).await?);
    }
    Ok(Json(shapes))
}

/// A group's newest points: what its machines have in common, whoever of them is failed over with which others.
async fn group_overview(state: &ApiState, group: &GroupStatus) -> Result<OverviewShape, ApiError> {
    let now = state.clock.wall();
    let mut kinds = Vec::new();
    for (kind, application) in
        [(Selection::LatestMultiVm, false), (Selection::LatestMultiVmAppConsistent, true)]
    {
        let point = groups::newest(state, group, application).await?;
        let age = |point: &GroupPoint| u64::try_from(now.since(point.at).as_millis()).unwrap_or(u64::MAX);
        kinds.push(KindShape {
            kind: kind.to_string(),
            point: point.as_ref().map(|point| point.cut.to_string()),
            at: point.as_ref().map(|point| views::time(point.at)),
            age_ms: point.as_ref().map(age),
            refusal: point.is_none().then(|| match application {
                true => {
                    "no app-consistent group point yet; `holdfast group point create --app-consistent`".into()
                }
                false => "no group point yet; `holdfast group show` says why".into(),
            }),
        });
    }
    let name = group.record.name.clone();
    Ok(OverviewShape { machine: String::new(), group: Some(group.record.id.to_string()), name, kinds })
}

/// The selection of a text.
///
/// # Errors
/// It is none; the text says what there is.
pub(super) fn selection(text: &str) -> Result<Selection, ApiError> {
    text.parse().map_err(|error| ApiError::invalid(format!("{error}"), "`holdfast points` lists the points"))
}

/// Chooses for the named machines together.
///
/// # Errors
/// A name is unknown, or the catalog cannot be read. That nothing can be chosen for a machine is in the answer.
pub(super) async fn choose(
    state: &ApiState,
    named: &[&str],
    selection: Selection,
) -> Result<Chosen, ApiError> {
    if named.is_empty() || named.len() > MACHINES_MAX {
        let message = format!("a request names 1 to {MACHINES_MAX} machines");
        return Err(ApiError::invalid(message, "`holdfast machines` lists them"));
    }
    let mut machines = Vec::new();
    for name in named {
        let machine = state.registry.resolve(name)?;
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    let candidates = gather(state, &machines).await?;
    let choices = choose_set(&machines, &candidates, selection);
    Ok(Chosen { candidates, machines, choices })
}

/// The candidates of these machines and of all others of their groups.
async fn gather(state: &ApiState, machines: &[MachineId]) -> Result<Candidates, ApiError> {
    let mut all = Candidates::new();
    let mut waiting = machines.to_vec();
    while let Some(machine) = waiting.pop() {
        if all.contains_key(&machine) || state.registry.machine(machine).is_none() {
            continue;
        }
        let candidates = state.jobs.candidates(machine).await?;
        if machines.contains(&machine) {
            waiting.extend(mates(&candidates));
        }
        all.insert(machine, candidates);
    }
    Ok(all)
}

async fn forecast_of(
    state: &ApiState,
    chosen: &Chosen,
    machine: MachineId,
    selection: Selection,
) -> Result<ForecastShape, ApiError> {
    let mut shape = ForecastShape {
        machine: machine.to_string(),
        name: views::machine_name(state, machine),
        selection: selection.to_string(),
        ..ForecastShape::default()
    };
    match chosen.choices.get(&machine) {
        Some(Ok(choice)) => {
            let candidates = chosen.candidates.get(&machine).map(Vec::as_slice).unwrap_or_default();
            let (newer, count) = passed(candidates, choice, selection);
            let newer =
                newer.into_iter().map(|passed| newer_shape(Some(passed.point), passed.at, passed.why));
            shape.newer = newer.collect();
            shape.newer_count = count;
            shape.loses_ms = age_of(state, machine, choice.at);
            shape.point = point_shape(state, choice.point).await?;
            shape.pending = choice.pending;
            shape.remarks.clone_from(&choice.remarks);
            voided_since(state, machine, choice.at, &mut shape).await?;
        }
        Some(Err(refusal)) => {
            shape.refusal = Some(refusal.to_string());
            voided_since(state, machine, Timestamp(i64::MIN), &mut shape).await?;
        }
        None => {}
    }
    Ok(shape)
}

/// Adds the cuts that the source voided after an instant (by the same clock).
async fn voided_since(
    state: &ApiState,
    machine: MachineId,
    since: Timestamp,
    shape: &mut ForecastShape,
) -> Result<(), ApiError> {
    let voided = state.catalog.voided_cuts(machine, VOIDED_LOOKED_AT).await?;
    let voided: Vec<_> = voided.into_iter().filter(|cut| cut.at > since).collect();
    shape.newer_count += voided.len();
    let shown = voided.into_iter().take(PASSED_SHOWN).map(|cut| {
        let when = views::time(cut.at);
        newer_shape(None, cut.at, format!("void: {} (voided by the source at {when})", cut.reason))
    });
    shape.newer.extend(shown);
    shape.newer.sort_by(|one, other| other.at.cmp(&one.at));
    Ok(())
}

fn newer_shape(point: Option<PointId>, at: Timestamp, why: String) -> NewerShape {
    NewerShape { point: point.map(|point| point.to_string()), at: views::time(at), why }
}

async fn point_shape(
    state: &ApiState,
    point: PointId,
) -> Result<Option<super::shapes::PointShape>, ApiError> {
    Ok(state.points.get(point).await?.map(|record| views::point(state, &record)))
}

fn age_of(state: &ApiState, machine: MachineId, at: Timestamp) -> Option<u64> {
    let machine = state.registry.machine(machine)?;
    u64::try_from(age(state, &machine, at).as_millis()).ok()
}

fn kind_shape(
    state: &ApiState,
    machine: MachineId,
    selection: Selection,
    choice: Option<Result<Choice, Refusal>>,
) -> KindShape {
    let (choice, refusal) = match choice {
        Some(Ok(choice)) => (Some(choice), None),
        Some(Err(refusal)) => (None, Some(refusal.to_string())),
        None => (None, None),
    };
    KindShape {
        kind: selection.to_string(),
        point: choice.as_ref().map(|choice| choice.point.to_string()),
        at: choice.as_ref().map(|choice| views::time(choice.at)),
        age_ms: choice.and_then(|choice| age_of(state, machine, choice.at)),
        refusal,
    }
}
