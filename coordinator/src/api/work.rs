//! Requests about jobs.
//!
//! Owns the handlers; the engine is behind [`JobControl`](super::port::JobControl).

use std::path::{Component, Path, PathBuf};

use axum::{
    Json,
    extract::{ConnectInfo, Path as UrlPath, State},
    http::StatusCode,
};
use holdfast_common::ids::JobId;

use super::{
    ApiError, ApiState, Peer, Who,
    shapes::{FailoverRequest, JobShape, TargetShape},
    views,
};
use crate::{catalog::record::Role, points::selection::Selection};

/// Fewest digits of a job's id that are taken as its beginning or end.
const PART_DIGITS_MIN: usize = 4;

pub(super) async fn failover(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(given): UrlPath<String>,
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
        if !may_write(&peer, &state.image_folders, folder) {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "role",
                format!("{} may not have images written into {}", peer.name(), folder.display()),
                "ask an admin, or choose a folder below one that the coordinator's setting `image_folders` names",
            ));
        }
        if !["raw", "qcow2"].contains(&format.as_str()) {
            let message = format!("`{format}` is no image format");
            return Err(ApiError::invalid(message, "use raw or qcow2"));
        }
    }
    let detail = format!("{selection}, {}", target_text(&request.target));
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), "failover", name, detail).await?;
    Ok(Json(state.jobs.failover(peer.name(), machine, selection, request.target).await?))
}

/// Whether somebody may have files written into a folder of the coordinator's host, whose processes might take them for
/// something else.
fn may_write(peer: &Peer, allowed: &[PathBuf], folder: &Path) -> bool {
    let plain = !folder.components().any(|part| part == Component::ParentDir);
    peer.may(Role::Admin) || (plain && allowed.iter().any(|allowed| folder.starts_with(allowed)))
}

fn target_text(target: &TargetShape) -> String {
    match target {
        TargetShape::Attach => "attach".to_owned(),
        TargetShape::Image { folder, format } => format!("{format} images into {}", folder.display()),
    }
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<JobShape>>, ApiError> {
    Ok(Json(state.jobs.list().await?))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    UrlPath(given): UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    Ok(Json(state.jobs.show(job).await?))
}

pub(super) async fn cancel(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(given): UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    state.registry.record_act(&peer.name(), "job cancel", job, "").await?;
    Ok(Json(state.jobs.cancel(peer.name(), job).await?))
}

pub(super) async fn retry(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(given): UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    state.registry.record_act(&peer.name(), "job retry", job, "").await?;
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
            StatusCode::NOT_FOUND,
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

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Peer, Role, may_write};

    #[test]
    fn operators_write_only_where_they_may() {
        let allowed = [PathBuf::from("/srv/images")];
        let peer = |role| Peer::Operator { name: "anna".to_owned(), role };
        let may = |role, folder| may_write(&peer(role), &allowed, Path::new(folder));
        assert!(may(Role::Operator, "/srv/images/web-1"));
        for folder in ["/etc/cron.d", "/srv/images-2", "/srv/images/../../etc"] {
            assert!(!may(Role::Operator, folder), "{folder}");
        }
        assert!(may(Role::Admin, "/etc/cron.d"));
        assert!(may_write(&Peer::Local { user: Some(0) }, &[], Path::new("/srv")));
    }
}
