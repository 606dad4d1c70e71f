//! Errors of the interface: a code for programs, a message and an advice for people.
//!
//! Owns the translation of the other modules' errors. Invariant: nothing internal (paths of other machines, SQL) is
//! lost: what the operator cannot act on is logged here, once.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use holdfast_common::causes::in_one_line;

use super::{
    port::{DiffRefusal, JobRefusal},
    shapes::ErrorShape,
};
use crate::{catalog::CatalogError, registry::RegistryError};

/// An error on its way to the operator.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    shape: ErrorShape,
}

impl ApiError {
    pub(super) fn new(
        status: StatusCode,
        code: &str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let (code, message, advice) = (code.to_owned(), message.into(), advice.into());
        Self { status, shape: ErrorShape { code, message, advice } }
    }

    pub(super) fn invalid(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message, advice)
    }

    pub(super) fn conflict(message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", message, advice)
    }

    pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let text = in_one_line(error);
        tracing::error!(error = text, "a request failed");
        let advice = "look at the coordinator's log and at its disk space; the request can be repeated";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", text, advice)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.shape)).into_response()
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let text = error.to_string();
        // The registry's texts say what to do; the part behind the semicolon is the advice.
        let (message, advice) = match text.split_once("; ") {
            Some((message, advice)) => (message.to_owned(), advice.to_owned()),
            None => (text, String::new()),
        };
        let (status, code) = match &error {
            RegistryError::MachineUnknown { .. } => (StatusCode::NOT_FOUND, "machine-unknown"),
            RegistryError::MachineAmbiguous { .. } => (StatusCode::CONFLICT, "machine-ambiguous"),
            RegistryError::MachineRevoked { .. } => (StatusCode::CONFLICT, "machine-revoked"),
            RegistryError::NeverConnected { .. } => (StatusCode::CONFLICT, "never-connected"),
            RegistryError::DiskUnknown { .. } => (StatusCode::NOT_FOUND, "disk-unknown"),
            RegistryError::DiskUnsuitable { .. } => (StatusCode::BAD_REQUEST, "disk-unsuitable"),
            RegistryError::NotProtected { .. } => (StatusCode::NOT_FOUND, "not-protected"),
            RegistryError::OperatorExists { .. } => (StatusCode::CONFLICT, "operator-exists"),
            RegistryError::OperatorUnknown { .. } => (StatusCode::NOT_FOUND, "operator-unknown"),
            RegistryError::Lifecycle(_) => (StatusCode::CONFLICT, "not-now"),
            RegistryError::Setting(_) => (StatusCode::BAD_REQUEST, "invalid"),
            RegistryError::Catalog(_) | RegistryError::Store(_) => return Self::failed(&error),
        };
        Self::new(status, code, message, advice)
    }
}

impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        Self::failed(&error)
    }
}

impl From<JobRefusal> for ApiError {
    fn from(refusal: JobRefusal) -> Self {
        match refusal {
            JobRefusal::Unknown(job) => Self::new(
                StatusCode::NOT_FOUND,
                "job-unknown",
                format!("there is no job {job}"),
                "`holdfast jobs` lists them",
            ),
            JobRefusal::NotNow(text) => Self::conflict(text, "`holdfast job show` says where the job stands"),
            JobRefusal::Failed(error) => Self::failed(error.as_ref()),
        }
    }
}

impl From<DiffRefusal> for ApiError {
    fn from(refusal: DiffRefusal) -> Self {
        match refusal {
            DiffRefusal::Unknown(text) => {
                Self::new(StatusCode::NOT_FOUND, "point-unknown", text, "`holdfast points` lists the points")
            }
            DiffRefusal::Failed(error) => Self::failed(&error),
        }
    }
}

/// For paths that do not exist.
pub(super) async fn no_such_path() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "path-unknown",
        "this coordinator has no such request",
        "use a `holdfast` of the coordinator's version",
    )
}
