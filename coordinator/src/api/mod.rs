//! The operator's interface: HTTP with JSON, over a unix socket and, if wanted, over TLS.
//!
//! Owns routes, request and answer shapes ([`shapes`]) and the translation of errors. Does not know files, sessions or
//! SQL: it asks registry, points and jobs. Invariant: every change carries who asked for it into the audit.
//! Limit: [`BODY_BYTES_MAX`] per request. Paths begin with the version, `/v1`; within a version fields are only added.

mod caller;
mod checks;
mod compare;
mod console;
pub mod compare_shapes;
pub mod drills;
mod error;
mod forecast;
mod gate;
pub mod group_shapes;
mod groups;
pub mod machine_shapes;
mod machines;
mod operators;
mod plan_runs;
pub mod plan_shapes;
mod plans;
mod points;
pub mod readiness;
mod retention;
pub mod port;
pub mod remote;
pub mod shapes;
mod status;
mod verbs;
mod views;
mod work;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Router, middleware,
    routing::{get, post},
};
use holdfast_common::clock::{Clock, Timestamp};

pub use caller::Peer;
pub(crate) use caller::Who;
pub use error::ApiError;
use gate::Gate;
use port::{JobControl, PlanHost, PointDiff, SourceAudits, StoreChecks, StoreFigures};
pub(crate) use views::time as time_text;

use crate::{
    authority::Authority,
    catalog::Catalog,
    compute::machines::Machines,
    drills::DrillBook,
    groups::{book::GroupBook, driver::GroupCuts},
    ingest::links::LiveLinks,
    points::{catalog::PointCatalog, damage::DamageLedger},
    registry::Registry,
};

/// Largest request.
pub const BODY_BYTES_MAX: usize = 256 << 10;

/// What the interface works on.
#[derive(Clone, Debug)]
pub struct ApiState {
    /// Machines, disks, policies.
    pub registry: Arc<Registry>,
    /// Recovery points.
    pub points: Arc<PointCatalog>,
    /// For voided cuts and the audit.
    pub catalog: Arc<dyn Catalog>,
    /// For tokens.
    pub authority: Arc<Authority>,
    /// The live sessions.
    pub links: LiveLinks,
    /// The jobs.
    pub jobs: Arc<dyn JobControl>,
    /// Differences of points.
    pub diff: Arc<dyn PointDiff>,
    /// The store's figures.
    pub store: Arc<dyn StoreFigures>,
    /// The checks of stored data.
    pub checks: Arc<dyn StoreChecks>,
    /// Comparisons with sources.
    pub audits: Arc<dyn SourceAudits>,
    /// Whether machines will boot.
    pub readiness: Arc<dyn readiness::Looks>,
    /// What drills have shown.
    pub drills: Arc<dyn DrillBook>,
    /// Machines that run here.
    pub machines: Arc<dyn Machines>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What is damaged.
    pub damage: Arc<DamageLedger>,
    /// When the coordinator was started.
    pub started_at: Timestamp,
    /// Where agents connect to, for people.
    pub listen: String,
    /// Where operators connect to over the network, for people; nothing if they cannot.
    pub api_listen: Option<String>,
    /// Folders below which operators who are no admins may have images written.
    pub image_folders: Vec<PathBuf>,
    /// Folders of programs that plans of operators who are no admins may have run.
    pub script_folders: Vec<PathBuf>,
    /// This host, as plans need it.
    pub plan_host: Arc<dyn PlanHost>,
    /// Counts failed logins.
    pub logins: Logins,
    /// Replication groups.
    pub groups: Arc<GroupBook>,
    /// Their cuts.
    pub group_cuts: GroupCuts,
}

/// The count of failed logins.
#[derive(Clone, Debug, Default)]
pub struct Logins(Arc<Mutex<Gate>>);

impl Logins {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All routes. Reading needs a viewer, changing an operator ([`caller`]); what an admin alone may do is [`for_admins`].
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/machines", get(machines::list))
        .route("/v1/machines/{machine}", get(machines::show))
        .route("/v1/machines/{machine}/protect", post(machines::protect))
        .route("/v1/machines/{machine}/unprotect", post(machines::unprotect))
        .route("/v1/machines/{machine}/console", get(console::show))
        .route("/v1/machines/{machine}/drill", get(drills::list).post(drills::begin))
        .route("/v1/machines/{machine}/screenshot", post(drills::screenshot))
        .route("/v1/machines/{machine}/readiness", get(readiness::show).post(readiness::look))
        .route("/v1/machines/{machine}/points", get(points::list).post(points::create))
        .route("/v1/machines/{machine}/retention", get(retention::plan))
        .route("/v1/machines/{machine}/points/diff", get(points::diff))
        .route("/v1/machines/{machine}/failover", post(work::failover))
        .route("/v1/machines/{machine}/change-point", post(verbs::change_point))
        .route("/v1/machines/{machine}/commit", post(verbs::commit))
        .route("/v1/machines/{machine}/cancel", post(verbs::cancel))
        .route("/v1/machines/{machine}/cleanup", post(verbs::cleanup))
        .route("/v1/machines/{machine}/resume", post(verbs::resume))
        .route("/v1/machines/{machine}/reprotect", post(verbs::reprotect))
        .route("/v1/machines/{machine}/failback", post(verbs::failback))
        .route("/v1/status", get(status::status))
        .route("/v1/jobs", get(work::list))
        .route("/v1/jobs/{job}", get(work::show))
        .route("/v1/jobs/{job}/cancel", post(work::cancel))
        .route("/v1/jobs/{job}/retry", post(work::retry))
        .route("/v1/jobs/{job}/continue", post(work::go_on))
        .route("/v1/scrub", get(checks::show).post(checks::start))
        .route("/v1/compare", get(compare::show))
        .route("/v1/machines/{machine}/compare", post(compare::start))
        .route("/v1/machines/{machine}/compare/cancel", post(compare::cancel))
        .route("/v1/audit", get(status::audit))
        .route("/v1/groups", get(groups::list).post(groups::create))
        .route("/v1/groups/{group}", get(groups::show).post(groups::change))
        .route("/v1/groups/{group}/delete", post(groups::delete))
        .route("/v1/groups/{group}/points", get(groups::points).post(groups::create_point))
        .route("/v1/machines/{machine}/thresholds", get(machines::thresholds).post(machines::set_thresholds))
        .route("/v1/points", get(forecast::overview))
        .route("/v1/forecast", get(forecast::forecast))
        .route("/v1/failover", post(work::failover_set))
        .route("/v1/who", get(operators::who))
        .merge(of_plans())
        .merge(for_admins(&state))
        .fallback(error::no_such_path)
        .layer(middleware::from_fn_with_state(state.clone(), caller::admit))
        .with_state(state)
}

/// Recovery plans.
fn of_plans() -> Router<ApiState> {
    Router::new()
        .route("/v1/plans", get(plans::list).post(plans::apply))
        .route("/v1/validate-plan", post(plans::validate))
        .route("/v1/plans/{plan}", get(plans::show))
        .route("/v1/plans/{plan}/remove", post(plans::remove))
        .route("/v1/plans/{plan}/failover", post(plan_runs::run))
        .route("/v1/plans/{plan}/forecast", get(plan_runs::forecast))
        .route("/v1/plans/{plan}/turns", get(plan_runs::turns))
        .route("/v1/plans/{plan}/reprotect", post(plan_runs::reprotect))
        .route("/v1/plans/{plan}/failback", post(plan_runs::failback))
        .route("/v1/plans/{plan}/commit", post(plan_runs::commit))
        .route("/v1/plans/{plan}/cancel", post(plan_runs::cancel))
        .route("/v1/plans/{plan}/cleanup", post(plan_runs::cleanup))
}

/// What decides who may do what, and what cannot be undone.
fn for_admins(state: &ApiState) -> Router<ApiState> {
    Router::new()
        .route("/v1/tokens", post(machines::create_token))
        .route("/v1/machines/{machine}/revoke", post(machines::revoke))
        .route("/v1/operators", get(operators::list).post(operators::create))
        .route("/v1/operators/{name}/revoke", post(operators::revoke))
        .route_layer(middleware::from_fn_with_state(state.clone(), caller::admins_only))
}
