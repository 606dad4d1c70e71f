//! Requests about recovery plans: apply, validate, list, show, remove.
//!
//! Owns the handlers, and who may have which programs run; `plan_runs` has what is done with a plan. A plan is kept as its
//! text, and understood anew whenever it is used: what was right when it was applied may be wrong by now, and is then named.

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use axum::{
    Json,
    extract::{ConnectInfo, Path as UrlPath, State},
    http::StatusCode,
};
use holdfast_common::ids::MachineId;

use super::{
    ApiError, ApiState, Peer, Who,
    plan_shapes::{PlanCheckShape, PlanGroupShape, PlanRequest, PlanShape, PlanStageShape},
    shapes::TargetShape,
    status, views, work,
};
use crate::{
    catalog::{
        Change,
        record::{PlanRecord, Role},
    },
    failover::plan::{
        Action, OnError, What, When,
        check::{Surroundings, check},
        file::{FileAction, FileGroup, FileTarget, PlanFile},
        read::{Mistake, read},
    },
};

/// Most plans.
const PLANS_MAX: usize = 1_000;

/// What a plan is checked against: the registry, this host, and who may have which programs run.
struct Here<'s> {
    state: &'s ApiState,
    /// Machines with protected disks.
    protected: BTreeSet<MachineId>,
    /// Who applies it; nobody if it was applied before.
    peer: Option<&'s Peer>,
}

impl Surroundings for Here<'_> {
    fn machine(&self, name: &str) -> Result<MachineId, String> {
        let machine = self.state.registry.resolve(name).map_err(|error| error.to_string())?;
        if self.protected.contains(&machine) {
            return Ok(machine);
        }
        Err(format!(
            "machine {name} has no protected disk; `holdfast protect {name} --disk PATH` protects it"
        ))
    }

    fn agent(&self, name: &str) -> Result<MachineId, String> {
        self.state.registry.resolve(name).map_err(|error| error.to_string())
    }

    fn program(&self, path: &Path) -> Result<(), String> {
        let may = self.peer.is_none_or(|peer| may_run(peer, &self.state.script_folders, path));
        if !may {
            return Err(format!(
                "{} may not be run by a plan of an operator: it is below none of the coordinator's `script_folders`; ask an admin",
                path.display()
            ));
        }
        self.state.plan_host.program(path)
    }

    fn network(&self, name: &str) -> Result<(), String> {
        self.state.plan_host.network(name)
    }
}

/// Whether somebody may have this program run on the coordinator's host.
fn may_run(peer: &Peer, allowed: &[PathBuf], path: &Path) -> bool {
    let plain = !path.components().any(|part| part == Component::ParentDir);
    peer.may(Role::Admin) || (plain && allowed.iter().any(|allowed| path.starts_with(allowed)))
}

/// A plan and what its machines are, with every mistake.
pub(super) fn understood(
    state: &ApiState,
    peer: Option<&Peer>,
    text: &str,
) -> (PlanFile, Vec<(String, MachineId)>, Vec<Mistake>) {
    let (file, mut mistakes) = read(text);
    let disks = state.registry.disks().into_iter().map(|disk| disk.record);
    let protected = disks.filter(|disk| disk.unprotected_at.is_none()).map(|disk| disk.machine).collect();
    let (more, known) = check(&file, &Here { state, protected, peer });
    mistakes.extend(more);
    mistakes.sort();
    mistakes.dedup();
    let machines = file
        .machines()
        .filter_map(|name| known.get(name).map(|machine| (name.to_owned(), *machine)))
        .collect();
    (file, machines, mistakes)
}

/// The stored plan of a name.
pub(super) async fn stored(state: &ApiState, name: &str) -> Result<PlanRecord, ApiError> {
    let plans = state.catalog.plans().await?;
    plans.into_iter().find(|plan| plan.name == name).ok_or_else(|| {
        let name: String = name.chars().take(80).collect();
        ApiError::new(
            StatusCode::NOT_FOUND,
            "plan-unknown",
            format!("there is no plan `{name}`"),
            "`holdfast plan list` lists them, `holdfast plan apply FILE` makes one",
        )
    })
}

/// Says what is wrong with a plan.
pub(super) fn refused(mistakes: &[Mistake], advice: &str) -> ApiError {
    let lines: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let text = format!("the plan has {} mistake(s):\n{}", mistakes.len(), lines.join("\n"));
    ApiError::new(StatusCode::BAD_REQUEST, "plan-wrong", text, advice)
}

pub(super) async fn validate(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<PlanRequest>,
) -> Json<PlanCheckShape> {
    let (file, machines, mistakes) = understood(&state, Some(&peer), &request.text);
    let (groups, machines) = (file.groups.len(), machines.len());
    Json(PlanCheckShape { name: file.name, groups, machines, mistakes })
}

pub(super) async fn apply(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<PlanRequest>,
) -> Result<Json<PlanShape>, ApiError> {
    let (file, _, mistakes) = understood(&state, Some(&peer), &request.text);
    if !mistakes.is_empty() {
        return Err(refused(&mistakes, "correct the file and apply it again; nothing was changed"));
    }
    work::check_target(&state, &peer, &target(&file.target))?;
    let known = state.catalog.plans().await?;
    if known.len() >= PLANS_MAX && known.iter().all(|plan| plan.name != file.name) {
        let advice = "remove one with `holdfast plan remove NAME`";
        return Err(ApiError::conflict(format!("there are {PLANS_MAX} plans already"), advice));
    }
    let record = PlanRecord {
        name: file.name.clone(),
        text: request.text,
        changed_at: state.clock.wall(),
        changed_by: peer.name(),
    };
    let detail = format!("{} groups, {} machines", file.groups.len(), file.machines().count());
    state.registry.record_act(&peer.name(), "plan apply", &record.name, detail).await?;
    state.catalog.apply(vec![Change::PutPlan(record.clone())]).await?;
    copied(state.plan_host.keep(record.name.clone(), record.text.clone()).await)?;
    Ok(Json(shape(&state, &record)))
}

pub(super) async fn list(State(state): State<ApiState>) -> Result<Json<Vec<PlanShape>>, ApiError> {
    Ok(Json(state.catalog.plans().await?.iter().map(|plan| shape(&state, plan)).collect()))
}

pub(super) async fn show(
    State(state): State<ApiState>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanShape>, ApiError> {
    let plan = stored(&state, &name).await?;
    Ok(Json(shape(&state, &plan)))
}

pub(super) async fn remove(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<PlanShape>, ApiError> {
    let plan = stored(&state, &name).await?;
    let shape = shape(&state, &plan);
    state.registry.record_act(&peer.name(), "plan remove", &name, "").await?;
    state.catalog.apply(vec![Change::RemovePlan(name.clone())]).await?;
    copied(state.plan_host.forget(name).await)?;
    Ok(Json(shape))
}

/// The plan itself is in the catalog; what failed is its copy beside it.
fn copied(done: Result<(), String>) -> Result<(), ApiError> {
    done.map_err(|error| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            format!("the plan was changed, but its copy for a rebuild of the catalog was not: {error}"),
            "remove the cause and repeat the request",
        )
    })
}

/// What a plan makes of points.
pub(super) fn target(target: &FileTarget) -> TargetShape {
    match target {
        FileTarget::Attach => TargetShape::Attach,
        FileTarget::Writable => TargetShape::Branch,
        FileTarget::Machine { stream } => TargetShape::Machine { stream: *stream },
        FileTarget::Image { folder, format } => {
            TargetShape::Image { folder: folder.clone(), format: format.clone(), update: false }
        }
    }
}

fn shape(state: &ApiState, plan: &PlanRecord) -> PlanShape {
    let (file, machines, mistakes) = understood(state, None, &plan.text);
    let name_of = |group: &usize| file.groups.get(*group).map(|group| group.name.clone());
    let group = |group: &FileGroup| {
        let actions = |when: When| group.actions(when).iter().map(label).collect();
        PlanGroupShape {
            name: group.name.clone(),
            needs: group.needs.iter().filter_map(name_of).collect(),
            machines: group.machines.iter().map(|(name, _)| name.clone()).collect(),
            before: actions(When::Before),
            after: actions(When::After),
            time_limit_ms: group.time_limit_ms,
            on_error: if group.on_error == OnError::Stop { "stop" } else { "continue" }.to_owned(),
        }
    };
    let waves = file.waves().unwrap_or_default();
    let jobs = state.jobs.plan_jobs(Some(&plan.name));
    let stage = |(name, machine): (String, MachineId)| {
        let lifecycle = status::lifecycle(&state.registry.machine(machine)?);
        Some(PlanStageShape { name, lifecycle })
    };
    PlanShape {
        name: plan.name.clone(),
        description: file.description.clone(),
        point: file.selection.to_string(),
        target: Some(target(&file.target)),
        groups: file.groups.iter().map(group).collect(),
        order: waves.iter().map(|wave| wave.iter().filter_map(name_of).collect()).collect(),
        mistakes,
        stages: machines.into_iter().filter_map(stage).collect(),
        changed_at: views::time(plan.changed_at),
        changed_by: plan.changed_by.clone(),
        jobs: jobs.iter().filter(|job| !job.is_over).map(|job| job.id.to_string()).collect(),
        text: plan.text.clone(),
    }
}

fn label(action: &FileAction) -> String {
    let Action { name, what, .. } = &action.action;
    let what = match what {
        What::Script { .. } => format!("script: {name}"),
        What::Manual { .. } => format!("by hand: {name}"),
    };
    let only = action.direction.map(|only| format!(" (only {})", only.name()));
    format!("{what}{}", only.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Peer, Role, may_run};

    /// Who may have programs run as the coordinator's user could become an admin.
    #[test]
    fn operators_have_only_those_programs_run_that_an_admin_has_laid_out() {
        let allowed = [PathBuf::from("/etc/holdfast/scripts")];
        let peer = |role| Peer::Operator { name: "anna".to_owned(), role };
        let may = |role, path| may_run(&peer(role), &allowed, Path::new(path));
        assert!(may(Role::Operator, "/etc/holdfast/scripts/dns"));
        for path in ["/bin/sh", "/etc/holdfast/scripts-2/x", "/etc/holdfast/scripts/../../../bin/sh"] {
            assert!(!may(Role::Operator, path), "{path}");
        }
        assert!(may(Role::Admin, "/bin/sh"));
        assert!(may_run(&Peer::Local { user: Some(0) }, &[], Path::new("/bin/sh")));
    }
}
