//! Requests about machines: tokens, lists, protection, revocation.
//!
//! Owns the handlers; the rules are the registry's.

use std::time::Duration;

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};

use holdfast_common::{causes::in_one_line, ids::MachineId};

use super::{
    ApiError, ApiState, Who,
    caller::require,
    shapes::{
        MachineDetailShape, MachineShape, ProtectRequest, ProtectShape, TokenRequest, TokenShape,
        UnprotectRequest, UnprotectShape,
    },
    status::machine_status,
    views,
};
use crate::{
    catalog::record::{PolicyRecord, Role},
    registry::{NewToken, Protect, thresholds::Thresholds},
};

/// Life of a token if the operator does not say.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_hours(1);

/// How long `protect` waits for the first session of a machine.
const FIRST_SESSION: Duration = Duration::from_secs(10);

pub(super) async fn create_token(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<TokenRequest>,
) -> Result<Json<TokenShape>, ApiError> {
    let machine = request.machine.as_deref().map(|given| state.registry.resolve(given)).transpose()?;
    let token = state.authority.new_token();
    let life = request.life_seconds.map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs);
    let new = NewToken { hash: token.hash(), label: request.label, machine, life };
    let record = state.registry.create_token(&peer.name(), new).await?;
    Ok(Json(TokenShape {
        token: token.to_text(),
        expires_at: views::time(record.expires_at),
        fingerprint: token.authority.to_string(),
        coordinator: state.listen.clone(),
    }))
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<MachineShape>>, ApiError> {
    let mut shapes = Vec::new();
    for machine in state.registry.machines() {
        let health = machine_status(&state, &machine).await?.health;
        shapes.push(views::machine(&state, &machine, health));
    }
    Ok(Json(shapes))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<MachineDetailShape>, ApiError> {
    let id = state.registry.resolve(&given)?;
    let machine = state
        .registry
        .machine(id)
        .ok_or_else(|| ApiError::conflict("the machine has just been removed", "list the machines again"))?;
    let status = machine_status(&state, &machine).await?;
    let inventory = machine.inventory.as_deref().map(serde_json::to_value).transpose();
    let inventory =
        inventory.map_err(|error| ApiError::invalid(in_one_line(&error), ""))?.unwrap_or_default();
    Ok(Json(MachineDetailShape {
        machine: views::machine(&state, &machine, status.health),
        policy: views::policy(&machine.policy),
        disks: status.disks,
        inventory,
        findings: status.findings,
    }))
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<MachineShape>, ApiError> {
    let id = state.registry.resolve(&given)?;
    state.registry.revoke(&peer.name(), id).await?;
    let machine = state
        .registry
        .machine(id)
        .ok_or_else(|| ApiError::conflict("the machine has just been removed", "list the machines again"))?;
    let health = machine_status(&state, &machine).await?.health;
    Ok(Json(views::machine(&state, &machine, health)))
}

pub(super) async fn protect(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(request): Json<ProtectRequest>,
) -> Result<Json<ProtectShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    if state.registry.machine(machine).is_some_and(|known| shortens(&known.policy, &request)) {
        require(&state, &peer, Role::Admin, "a shorter retention").await?;
    }
    let wanted = Protect {
        paths: request.disks,
        interval_ms: request.interval_ms,
        retention_seconds: request.retention_seconds,
        retention_tiers: request.retention_tiers,
        hold_ms_max: request.hold_ms_max,
        send_bytes_per_second_max: request.send_bytes_per_second_max,
        scan_bytes_per_second_max: request.scan_bytes_per_second_max,
        application_interval_ms: request.application_interval_ms,
        application_strict: request.application_strict,
        drill_every_ms: request.drill_every_ms,
        drill_probe: request.drill_probe,
        drill_limit_ms: request.drill_limit_ms,
    };
    wait_for_inventory(&state, machine, &wanted).await;
    let protected = state.registry.protect(&peer.name(), machine, wanted).await?;
    Ok(Json(ProtectShape {
        machine: machine.to_string(),
        disks: protected.disks.iter().map(views::disk).collect(),
        policy: views::policy(&protected.policy),
    }))
}

pub(super) async fn thresholds(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<Thresholds>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    Ok(Json(state.registry.machine(machine).map(|machine| machine.thresholds).unwrap_or_default()))
}

pub(super) async fn set_thresholds(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(thresholds): Json<Thresholds>,
) -> Result<Json<Thresholds>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    state.registry.set_thresholds(&peer.name(), machine, thresholds).await?;
    Ok(Json(thresholds))
}

/// Whether points that are kept now might not be kept with the request's rule.
fn shortens(policy: &PolicyRecord, request: &ProtectRequest) -> bool {
    let shorter = request.retention_seconds.is_some_and(|seconds| seconds < policy.retention_seconds);
    let tiers = request.retention_tiers.as_ref();
    shorter
        || tiers.is_some_and(|tiers| !policy.retention_tiers.is_empty() && *tiers != policy.retention_tiers)
}

/// An agent that was started a moment ago is about to tell its disks: waits for that, for a bounded time.
async fn wait_for_inventory(state: &ApiState, machine: MachineId, wanted: &Protect) {
    let deadline = state.clock.monotonic() + FIRST_SESSION;
    let unknown = || state.registry.machine(machine).is_some_and(|machine| machine.inventory.is_none());
    while !wanted.paths.is_empty() && unknown() && state.clock.monotonic() < deadline {
        tokio::time::sleep(FIRST_SESSION / 100).await;
    }
}

pub(super) async fn unprotect(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(request): Json<UnprotectRequest>,
) -> Result<Json<UnprotectShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let ended = state.registry.unprotect(&peer.name(), machine, &request.disks).await?;
    Ok(Json(UnprotectShape { machine: machine.to_string(), disks: ended.iter().map(views::disk).collect() }))
}
