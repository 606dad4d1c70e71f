//! The operator's interface: HTTP with JSON over a unix socket.
//!
//! Owns routes, request and answer shapes ([`shapes`]) and the translation of errors. Does not know files, sessions or
//! SQL: it asks registry, points and jobs. Invariant: every change carries who asked for it into the audit.
//! Limit: [`BODY_BYTES_MAX`] per request. Paths begin with the version, `/v1`; within a version fields are only added.

mod error;
mod machines;
mod points;
mod retention;
pub mod port;
pub mod shapes;
mod status;
mod views;
mod work;

use std::sync::Arc;

use axum::{
    Router,
    extract::{
        DefaultBodyLimit,
        connect_info::{ConnectInfo, Connected},
    },
    routing::{get, post},
    serve::IncomingStream,
};
use holdfast_common::clock::{Clock, Timestamp};
use tokio::net::{UnixListener, unix::UCred};

pub use error::ApiError;
use port::{JobControl, StoreFigures};
pub(crate) use views::time as time_text;

use crate::{
    authority::Authority,
    catalog::Catalog,
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
    /// The store's figures.
    pub store: Arc<dyn StoreFigures>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What is damaged.
    pub damage: Arc<DamageLedger>,
    /// When the coordinator was started.
    pub started_at: Timestamp,
    /// Where agents connect to, for people.
    pub listen: String,
}

/// Who speaks.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    user: Option<u32>,
}

impl Peer {
    /// The text for the audit.
    #[must_use]
    pub fn name(self) -> String {
        self.user
            .map_or_else(|| "operator (unknown user)".to_owned(), |user| format!("operator (uid {user})"))
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { user: stream.io().peer_cred().ok().as_ref().map(UCred::uid) }
    }
}

/// Who speaks, as handlers get it.
pub(crate) type Who = ConnectInfo<Peer>;

/// All routes.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/v1/tokens", post(machines::create_token))
        .route("/v1/machines", get(machines::list))
        .route("/v1/machines/{machine}", get(machines::show))
        .route("/v1/machines/{machine}/revoke", post(machines::revoke))
        .route("/v1/machines/{machine}/protect", post(machines::protect))
        .route("/v1/machines/{machine}/unprotect", post(machines::unprotect))
        .route("/v1/machines/{machine}/points", get(points::list).post(points::create))
        .route("/v1/machines/{machine}/retention", get(retention::plan))
        .route("/v1/machines/{machine}/failover", post(work::failover))
        .route("/v1/status", get(status::status))
        .route("/v1/jobs", get(work::list))
        .route("/v1/jobs/{job}", get(work::show))
        .route("/v1/jobs/{job}/cancel", post(work::cancel))
        .route("/v1/jobs/{job}/retry", post(work::retry))
        .route("/v1/audit", get(status::audit))
        .fallback(error::no_such_path)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(state)
}
