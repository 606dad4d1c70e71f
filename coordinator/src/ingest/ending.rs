//! The end of a connection: who wants it, and why.
//!
//! Owns the first reason given; later ones are consequences.

use std::sync::{Arc, OnceLock};

use holdfast_common::wire::Refusal;
use tokio_util::sync::CancellationToken;

/// Shared by all tasks of a connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Ending {
    reason: Arc<OnceLock<Refusal>>,
    token: CancellationToken,
}

impl Ending {
    /// Asks for the end. The first reason is kept.
    pub(super) fn end(&self, reason: Refusal) {
        let _earlier = self.reason.set(reason);
        self.token.cancel();
    }

    /// Resolves when somebody asked for the end. Cancel safe.
    pub(super) async fn asked(&self) {
        self.token.cancelled().await;
    }

    /// The reason, once there is one.
    pub(super) fn reason(&self) -> Option<Refusal> {
        self.reason.get().cloned()
    }
}
