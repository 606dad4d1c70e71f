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
    ApiError, ApiState, Peer, Who, forecast,
    port::FailoverMode,
    shapes::{FailoverRequest, JobShape, ModeShape, SetFailoverRequest, TargetShape},
    verbs, views,
};
use crate::{
    catalog::record::Role,
    points::selection::{Choice, Selection},
};

/// Fewest digits of a job's id that are taken as its beginning or end.
const PART_DIGITS_MIN: usize = 4;

pub(super) async fn failover(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(given): UrlPath<String>,
    Json(request): Json<FailoverRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let selection = forecast::selection(&request.point)?;
    check_target(&state, &peer, &request.target)?;
    let mode = mode(request.mode, request.stop_source);
    verbs::check_free(&state, machine, mode == FailoverMode::Test)?;
    let detail = format!("{selection}, {}", target_text(&request.target));
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), act(mode), name, detail).await?;
    Ok(Json(state.jobs.failover(peer.name(), machine, selection, request.target, mode).await?))
}

/// Fails several machines over: all of them or, if a point cannot be chosen for one, none.
pub(super) async fn failover_set(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<SetFailoverRequest>,
) -> Result<Json<Vec<JobShape>>, ApiError> {
    let selection = forecast::selection(&request.point)?;
    check_target(&state, &peer, &request.target)?;
    let named: Vec<&str> = request.machines.iter().map(String::as_str).collect();
    let mode = mode(request.mode, request.stop_source);
    let chosen = forecast::choose(&state, &named, selection).await?;
    for machine in &chosen.machines {
        verbs::check_free(&state, *machine, mode == FailoverMode::Test)?;
    }
    let mut wanted = Vec::new();
    for machine in &chosen.machines {
        let name = views::machine_name(&state, *machine);
        match chosen.choices.get(machine) {
            // What a group has in common was chosen here, once; the rest chooses again when it runs, for the newest then.
            Some(Ok(choice)) => wanted.push((*machine, name, fixed(selection, choice))),
            Some(Err(refusal)) => return Err(none_begun(&name, &refusal.to_string())),
            None => return Err(none_begun(&name, "it is gone")),
        }
    }
    let mut jobs: Vec<JobShape> = Vec::new();
    let is_set = wanted.len() > 1;
    for (machine, name, selection) in wanted {
        let target = if is_set { below(&request.target, &name) } else { request.target.clone() };
        let detail = format!("{selection}, {}", target_text(&target));
        state.registry.record_act(&peer.name(), act(mode), &name, detail).await?;
        let begun = state.jobs.failover(peer.name(), machine, selection, target, mode).await;
        jobs.push(begun.map_err(|refusal| some_begun(&name, &refusal.to_string(), &jobs))?);
    }
    Ok(Json(jobs))
}

pub(super) const fn mode(mode: ModeShape, stop_source: bool) -> FailoverMode {
    match mode {
        ModeShape::Test => FailoverMode::Test,
        ModeShape::Failover => FailoverMode::Unplanned { stop_source },
        ModeShape::Planned => FailoverMode::Planned,
    }
}

/// As the audit names it.
pub(super) const fn act(mode: FailoverMode) -> &'static str {
    match mode {
        FailoverMode::Test => "test failover",
        FailoverMode::Unplanned { .. } => "failover",
        FailoverMode::Planned => "planned failover",
    }
}

/// The selection that a job of one machine gets.
const fn fixed(selection: Selection, choice: &Choice) -> Selection {
    match selection {
        Selection::LatestMultiVm | Selection::LatestMultiVmAppConsistent => Selection::Point(choice.point),
        own => own,
    }
}

/// The target of one machine of several.
pub(super) fn below(target: &TargetShape, name: &str) -> TargetShape {
    match target {
        TargetShape::Attach | TargetShape::Branch | TargetShape::Machine { .. } => target.clone(),
        TargetShape::Image { folder, format, update } => {
            let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
            let name: String = name.chars().map(plain).collect();
            let name = if name.trim_matches('.').is_empty() { "machine".to_owned() } else { name };
            TargetShape::Image { folder: folder.join(name), format: format.clone(), update: *update }
        }
    }
}

fn none_begun(name: &str, why: &str) -> ApiError {
    ApiError::conflict(
        format!("no failover was begun: for machine {name}, {why}"),
        "`--dry-run` shows what each machine would get; leave the machine out, or choose another point",
    )
}

fn some_begun(name: &str, why: &str, begun: &[JobShape]) -> ApiError {
    let begun: Vec<&str> = begun.iter().map(|job| job.machine_name.as_str()).collect();
    ApiError::conflict(
        format!("the failover of machine {name} was not begun: {why}; begun: {}", begun.join(", ")),
        "`holdfast jobs` lists what was begun; fail over the others again",
    )
}

/// Whether the target makes sense and this operator may have it.
pub(super) fn check_target(state: &ApiState, peer: &Peer, target: &TargetShape) -> Result<(), ApiError> {
    let TargetShape::Image { folder, format, .. } = target else { return Ok(()) };
    if !folder.is_absolute() {
        return Err(ApiError::invalid(
            format!("the folder {} is not absolute", folder.display()),
            "images are written on the coordinator's host: give a full path there",
        ));
    }
    if !may_write(peer, &state.image_folders, folder) {
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
    Ok(())
}

/// Whether somebody may have files written into a folder of the coordinator's host, whose processes might take them for
/// something else.
fn may_write(peer: &Peer, allowed: &[PathBuf], folder: &Path) -> bool {
    let plain = !folder.components().any(|part| part == Component::ParentDir);
    peer.may(Role::Admin) || (plain && allowed.iter().any(|allowed| folder.starts_with(allowed)))
}

pub(super) fn target_text(target: &TargetShape) -> String {
    match target {
        TargetShape::Attach => "attach".to_owned(),
        TargetShape::Branch => "attach, writable".to_owned(),
        TargetShape::Machine { .. } => "machine".to_owned(),
        TargetShape::Image { folder, format, update } => {
            let how = if *update { "onto what is in" } else { "into" };
            format!("{format} images {how} {}", folder.display())
        }
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
    verbs::check_cancel(&state, job)?;
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

pub(super) async fn go_on(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(given): UrlPath<String>,
) -> Result<Json<JobShape>, ApiError> {
    let job = resolve(&state, &given).await?;
    state.registry.record_act(&peer.name(), "job continue", job, "").await?;
    Ok(Json(state.jobs.go_on(peer.name(), job).await?))
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
