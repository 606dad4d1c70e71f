//! Requests about retention.
//!
//! Owns the translation of a plan into its shape. Asking for a plan changes nothing.

use axum::{
    Json,
    extract::{Path, Query, State},
};
use serde::Deserialize;

use super::{
    ApiError, ApiState,
    shapes::{PlannedPointShape, RetentionPlanShape},
    views,
};
use crate::{
    catalog::record::consistency_text,
    points::{
        known::KnownPoint,
        retention::{RetentionRule, Verdict},
    },
    registry::{RegistryError, retention_rule},
};

#[derive(Debug, Deserialize)]
pub(super) struct PlanQuery {
    /// Another rule than the machine's own.
    retention: Option<String>,
}

pub(super) async fn plan(
    State(state): State<ApiState>,
    Path(given): Path<String>,
    Query(query): Query<PlanQuery>,
) -> Result<Json<RetentionPlanShape>, ApiError> {
    let id = state.registry.resolve(&given)?;
    let machine = state
        .registry
        .machine(id)
        .ok_or_else(|| ApiError::conflict("the machine has just been removed", "list the machines again"))?;
    let rule = match &query.retention {
        Some(text) => text.parse::<RetentionRule>(),
        None => retention_rule(&machine.policy),
    };
    let rule = rule.map_err(|error| RegistryError::Setting(error.to_string()))?;
    let damage = state.damage.clone();
    let planned = state.points.plan(id, &rule, &move |disk, cut| damage.hits(disk, cut)).await?;
    let points: Vec<PlannedPointShape> =
        planned.iter().map(|(point, verdict)| shape(point, *verdict)).collect();
    let count = |kept| points.iter().filter(|point| point.kept == kept).count() as u64;
    let bytes = |kept| points.iter().filter(|point| point.kept == kept).map(|point| point.stored_bytes).sum();
    Ok(Json(RetentionPlanShape {
        machine: id.to_string(),
        name: machine.record.name,
        retention: rule.to_string(),
        own_rule: query.retention.is_none(),
        at: views::time(state.clock.wall()),
        kept_points: count(true),
        kept_bytes: bytes(true),
        removed_points: count(false),
        removed_bytes: bytes(false),
        points,
    }))
}

fn shape(point: &KnownPoint, verdict: Verdict) -> PlannedPointShape {
    let (reason, every_seconds, instead) = match verdict {
        Verdict::Dense => ("dense", None, None),
        Verdict::Chosen { every_seconds } => ("chosen", Some(every_seconds), None),
        Verdict::Newest => ("newest", None, None),
        Verdict::Held => ("held", None, None),
        Verdict::Thinned { every_seconds, by } => ("thinned", Some(every_seconds), Some(by.to_string())),
        Verdict::Expired => ("expired", None, None),
        Verdict::Void => ("void", None, None),
    };
    PlannedPointShape {
        id: point.id.to_string(),
        at: views::time(point.cut_at),
        at_us: point.cut_at.0,
        consistency: consistency_text(point.consistency).to_owned(),
        kept: !verdict.removes(),
        reason: reason.to_owned(),
        every_seconds,
        instead,
        stored_bytes: point.stored_bytes,
    }
}
