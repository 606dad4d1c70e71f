//! Requests about readiness: whether a machine will boot at the target.
//!
//! Owns the handlers, their shape, and the contract of who looks.

use std::fmt;

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use holdfast_common::{clock::Timestamp, ids::MachineId};
use serde::{Deserialize, Serialize};

use super::{ApiError, ApiState, Who, views};
use crate::{
    compute::port::BoxFuture,
    readiness::{Report, record::ReadinessRecord},
};

/// Looks into replicas.
pub trait Looks: fmt::Debug + Send + Sync {
    /// What the last look has found; `None` if there was none.
    fn record(&self, machine: MachineId) -> Option<ReadinessRecord>;

    /// Looks now. An error says why that is not possible and what to do.
    fn look(&self, machine: MachineId) -> BoxFuture<'_, Result<ReadinessRecord, String>>;
}

/// Whether a machine will boot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReadinessShape {
    /// The machine.
    pub machine: String,
    /// Its name.
    pub machine_name: String,
    /// When it was looked at; nothing if it was not yet.
    pub at: Option<String>,
    /// The point that was looked at.
    pub point: String,
    /// What was found.
    #[serde(flatten)]
    pub report: Report,
}

fn shape(state: &ApiState, machine: MachineId, record: Option<ReadinessRecord>) -> ReadinessShape {
    let machine_name = state.registry.machine(machine).map(|machine| machine.record.name).unwrap_or_default();
    let machine = machine.to_string();
    match record {
        None => ReadinessShape { machine, machine_name, ..ReadinessShape::default() },
        Some(record) => ReadinessShape {
            machine,
            machine_name,
            at: Some(views::time(Timestamp(record.at_us))),
            point: record.point,
            report: record.report,
        },
    }
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<ReadinessShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let record = state.readiness.record(machine);
    Ok(Json(shape(&state, machine, record)))
}

pub(super) async fn look(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<ReadinessShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    state.registry.record_act(&peer.name(), "look at readiness", machine.to_string(), "").await?;
    let record = state.readiness.look(machine).await.map_err(|reason| {
        ApiError::conflict(
            format!("the machine cannot be looked at: {reason}"),
            "follow the text, and try again",
        )
    })?;
    Ok(Json(shape(&state, machine, Some(record))))
}
