//! Who asks, and whether it may.
//!
//! Owns the proof of who somebody is, and the role that each request needs. Does not know what requests do.
//! On the unix socket it is the kernel that says who asks: whoever may open it (its mode is 0600) may do everything. On the
//! network an operator proves it with a token in each request, so that a revoked one ends at once.
//! Invariant: no handler runs, and no body is read, before it is known who asks and that the role suffices. Reading needs
//! a viewer, changing an operator; what needs an admin is set apart in [`super::router`].
//! Limit: [`BODY_BYTES_MAX`] and [`BODY_TIME_MAX`] per body; failures are bounded by [`super::gate`].

use std::{net::SocketAddr, time::Duration};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
    serve::IncomingStream,
};
use holdfast_common::token::OperatorToken;
use tokio::net::{UnixListener, unix::UCred};

use super::{ApiError, ApiState, BODY_BYTES_MAX, gate::Verdict};
use crate::catalog::record::Role;

/// Longest time for the body of a request to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);

/// Who speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this host.
    Local {
        /// Its user, if the kernel says so.
        user: Option<u32>,
    },
    /// Somebody on the network who has not proved who it is.
    Remote {
        /// Where it is.
        address: SocketAddr,
    },
    /// An operator.
    Operator {
        /// Its name.
        name: String,
        /// What it may do.
        role: Role,
    },
}

/// Who speaks, as handlers get it.
pub(crate) type Who = ConnectInfo<Peer>;

impl Peer {
    /// The text for the audit.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Local { user: None } => "operator (unknown user)".to_owned(),
            Self::Local { user: Some(user) } => format!("operator (uid {user})"),
            Self::Remote { address } => format!("unknown ({})", address.ip()),
            Self::Operator { name, .. } => format!("operator {name}"),
        }
    }

    /// What it may do; nothing before it has proved who it is.
    #[must_use]
    pub const fn role(&self) -> Option<Role> {
        match self {
            Self::Local { .. } => Some(Role::Admin),
            Self::Remote { .. } => None,
            Self::Operator { role, .. } => Some(*role),
        }
    }

    /// Whether it may do what needs this role.
    #[must_use]
    pub fn may(&self, needed: Role) -> bool {
        self.role().is_some_and(|role| role >= needed)
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self::Local { user: stream.io().peer_cred().ok().as_ref().map(UCred::uid) }
    }
}

/// Lets a request in, or answers it itself. Stands before everything.
pub(super) async fn admit(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    match admitted(&state, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

async fn admitted(state: &ApiState, mut request: Request) -> Result<Request, ApiError> {
    let peer = request.extensions().get::<Who>().map(|ConnectInfo(peer)| peer.clone());
    let peer = match peer.ok_or_else(login_needed)? {
        Peer::Remote { address } => identify(state, address, request.headers()).await?,
        known => known,
    };
    let needed =
        if [Method::GET, Method::HEAD].contains(request.method()) { Role::Viewer } else { Role::Operator };
    require(state, &peer, needed, &act(&request)).await?;
    request.extensions_mut().insert(ConnectInfo(peer));
    let (parts, body) = request.into_parts();
    let read = tokio::time::timeout(BODY_TIME_MAX, axum::body::to_bytes(body, BODY_BYTES_MAX)).await;
    let body = read.map_err(|_| body_refused(StatusCode::REQUEST_TIMEOUT, "did not arrive in time"))?;
    let body = body.map_err(|error| {
        let is_large = std::error::Error::source(&error)
            .is_some_and(|source| source.is::<http_body_util::LengthLimitError>());
        if is_large {
            body_refused(StatusCode::PAYLOAD_TOO_LARGE, &format!("has more than {BODY_BYTES_MAX} bytes"))
        } else {
            body_refused(StatusCode::BAD_REQUEST, "broke off")
        }
    })?;
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Lets only admins through.
pub(super) async fn admins_only(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Who>().map(|ConnectInfo(peer)| peer.clone());
    let Some(peer) = peer else { return login_needed().into_response() };
    match require(&state, &peer, Role::Admin, &act(&request)).await {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// Refuses, and writes down, what needs another role.
///
/// # Errors
/// The role does not suffice.
pub(super) async fn require(state: &ApiState, peer: &Peer, needed: Role, act: &str) -> Result<(), ApiError> {
    if peer.may(needed) {
        return Ok(());
    }
    let role = peer.role().map_or("none", Role::text);
    let note = state.logins.gate().note(state.clock.monotonic());
    if let Some(unwritten) = note {
        let detail = format!("needs role {}, has {role}{}", needed.text(), and_more(unwritten));
        state.registry.record_act(&peer.name(), "refused", act, detail).await?;
    }
    Err(ApiError::new(
        StatusCode::FORBIDDEN,
        "role",
        format!("this needs the role {}; yours is {role}", needed.text()),
        "ask an admin to do it, or for a token of that role (`holdfast operator create NAME --role ...`)",
    ))
}

async fn identify(state: &ApiState, address: SocketAddr, headers: &HeaderMap) -> Result<Peer, ApiError> {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(given) = given.and_then(|value| value.strip_prefix("Bearer ")) else {
        return Err(failed_login(state, address, login_needed(), "no token").await);
    };
    let denied = match given.parse::<OperatorToken>() {
        Err(error) => error.to_string(),
        Ok(token) => match state.registry.authenticate(token.hash()) {
            Ok(operator) => return Ok(Peer::Operator { name: operator.name, role: operator.role }),
            Err(denied) => denied.to_string(),
        },
    };
    let error = ApiError::new(
        StatusCode::UNAUTHORIZED,
        "login",
        denied.clone(),
        "ask an admin of this coordinator for a new token (`holdfast operator create`), then `holdfast login`",
    );
    Err(failed_login(state, address, error, &denied).await)
}

/// The answer to a failed login: `error`, or that there were too many.
async fn failed_login(state: &ApiState, address: SocketAddr, error: ApiError, why: &str) -> ApiError {
    let now = state.clock.monotonic();
    let verdict = state.logins.gate().failed(address.ip(), now);
    match verdict {
        Verdict::Tell { note } => {
            tracing::warn!(%address, why, "a login failed");
            if let Some(unwritten) = note {
                let (who, detail) =
                    (Peer::Remote { address }.name(), format!("{why}{}", and_more(unwritten)));
                if let Err(error) = state.registry.record_act(&who, "login failed", "", detail).await {
                    return error.into();
                }
            }
            error
        }
        Verdict::TooMany { retry_after } => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many",
            "too many logins from your address have failed",
            format!("try again in {} s, with a token that is valid", retry_after.as_secs().max(1)),
        ),
    }
}

fn and_more(unwritten: u64) -> String {
    if unwritten == 0 { String::new() } else { format!(" (and {unwritten} more that were not written down)") }
}

/// What a request is, for the audit.
fn act(request: &Request) -> String {
    let path: String = request.uri().path().chars().take(200).collect();
    format!("{} {path}", request.method())
}

fn login_needed() -> ApiError {
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "login",
        "this coordinator does not know who you are",
        "log in with `holdfast login HOST:PORT --token TOKEN`; an admin makes the token with `holdfast operator create`",
    )
}

fn body_refused(status: StatusCode, what: &str) -> ApiError {
    ApiError::new(
        status,
        "body",
        format!("the body of the request {what}"),
        "use a `holdfast` of the coordinator's version",
    )
}
