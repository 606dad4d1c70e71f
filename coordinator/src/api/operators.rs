//! Requests about operators: who may use the interface over the network.
//!
//! Owns the handlers; the rules are the registry's.

use std::time::Duration;

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
    http::StatusCode,
};

use super::{
    ApiError, ApiState, Who,
    shapes::{OperatorRequest, OperatorShape, OperatorTokenShape, WhoShape},
    views,
};
use crate::{
    catalog::record::{OperatorRecord, Role},
    registry::access::{NewOperator, OPERATOR_LIFE_DEFAULT},
};

pub(super) async fn create(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<OperatorRequest>,
) -> Result<(StatusCode, Json<OperatorTokenShape>), ApiError> {
    let role = Role::parse(&request.role).ok_or_else(|| {
        let given: String = request.role.chars().take(80).collect();
        ApiError::invalid(format!("`{given}` is no role"), "use viewer, operator or admin")
    })?;
    let token = state.authority.new_operator_token();
    let life = request.life_seconds.map_or(OPERATOR_LIFE_DEFAULT, Duration::from_secs);
    let new = NewOperator { name: request.name, role, hash: token.hash(), life };
    let record = state.registry.create_operator(&peer.name(), new).await?;
    let shape = OperatorTokenShape {
        operator: shape(&state, &record),
        token: token.to_text(),
        fingerprint: token.authority.to_string(),
        coordinator: state.api_listen.clone(),
    };
    Ok((StatusCode::CREATED, Json(shape)))
}

pub(super) async fn list(State(state): State<ApiState>) -> Json<Vec<OperatorShape>> {
    Json(state.registry.operators().iter().map(|operator| shape(&state, operator)).collect())
}

pub(super) async fn revoke(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(name): Path<String>,
) -> Result<Json<OperatorShape>, ApiError> {
    let record = state.registry.revoke_operator(&peer.name(), &name).await?;
    Ok(Json(shape(&state, &record)))
}

pub(super) async fn who(State(state): State<ApiState>, ConnectInfo(peer): Who) -> Json<WhoShape> {
    Json(WhoShape {
        name: peer.name(),
        role: peer.role().map(Role::text).unwrap_or_default().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        fingerprint: state.authority.fingerprint().to_string(),
    })
}

fn shape(state: &ApiState, operator: &OperatorRecord) -> OperatorShape {
    let standing = match operator.revoked_at {
        Some(_) => "revoked",
        None if operator.expires_at <= state.clock.wall() => "expired",
        None => "valid",
    };
    OperatorShape {
        name: operator.name.clone(),
        role: operator.role.text().to_owned(),
        state: standing.to_owned(),
        created_at: views::time(operator.created_at),
        expires_at: views::time(operator.expires_at),
        revoked_at: operator.revoked_at.map(views::time),
    }
}
