//! Requests about jobs.
//!
//! Owns the handlers; the engine is behind [`JobControl`](super::port::JobControl).

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use holdfast_common::ids::JobId;

use super::{
    ApiError, ApiState, Who,
    shapes::{FailoverRequest, JobShape, TargetShape},
};
use crate::points::selection::Selection;

/// Fewest digits of a job's id that are taken as its beginning or end.
const PART_DIGITS_MIN: usize = 4;

pub(super) async fn failover(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(request): Json<FailoverRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let selection: Selection = request
        .point
        .parse()
        .map_err(|error| ApiError::invalid(format!("{error}"), "`holdfast points` lists the points"))?;
    if let TargetShape::Image { folder, format } = &request.target {
        if !folder.is_absolute() {
            return Err(ApiError::invalid(
                format!("the folder {} is not absolute", folder.display()),
                "images are written on the coordinator's host: give a full path there",
            ));
        }
        if !["raw", "qcow2"].contains(&format.as_str()) {
            let message = format!("`{format}` is no image format");
            return Err(ApiError::invalid(message, "use raw or qcow2"));
        }
    }
    Ok(Json(state.jobs.failover(peer.name(), machine, selection, request.target).await?))
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<JobShape>>, ApiError> {
    Ok(Json(state.jobs.list().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    Ok(Json(state.jobs.show(job).await?))
}

pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    Ok(Json(state.jobs.cancel(peer.name(), job).await?))
}

pub(super) async fn retry(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    Ok(Json(state.jobs.retry(peer.name(), job).await?))
}

/// The job that an operator means: an id, or a part of one that fits no other. Ids begin with their time, so
/// it is their end that tells jobs of the same minute apart.
async fn resolve(state: &ApiState, given: &str) -> Result<JobId, ApiError> {
    if let Ok(job) = given.parse() {
        return Ok(job);
    }
    let unknown = || {
        let given: String = given.chars().take(80).collect();
        ApiError::new(
            axum::http::StatusCode::NOT_FOUND,
            "job-unknown",
            format!("there is no single job `{given}`"),
            "`holdfast jobs` lists them",
        )
    };
    if given.len() < PART_DIGITS_MIN {
        return Err(unknown());
    }
    let jobs = state.jobs.list().await?;
    let fits = |job: &&JobShape| job.id.starts_with(given) || job.id.ends_with(given);
    let mut found = jobs.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(job), None) => job.id.parse().map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}
