//! Renewal of the certificate over a session.
//!
//! Owns the key that waits for its certificate, and when to ask. Does not know connections.
//! Invariant: the stored identity is replaced only by a certificate that fits the new key and this machine.

use std::{sync::Arc, time::Duration};

use holdfast_common::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    tls::MachineKey,
    wire::RenewRequest,
};

use crate::identity::{Identity, IdentityError, IdentityStore};

/// How long an unanswered request is waited for.
const ANSWER_MAX: Duration = Duration::from_mins(10);

/// The identity in use, and its renewal.
pub(super) struct Renewal {
    identity: Identity,
    store: IdentityStore,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    asked: Option<(MachineKey, Timestamp)>,
}

impl Renewal {
    pub(super) fn new(
        identity: Identity,
        store: IdentityStore,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Self {
        Self { identity, store, clock, entropy, asked: None }
    }

    /// The identity for the next connection.
    pub(super) const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The request to send now, if it is time.
    pub(super) fn request(&mut self) -> Result<Option<RenewRequest>, IdentityError> {
        let now = self.clock.wall();
        let waiting = self.asked.as_ref().is_some_and(|(_, at)| now.since(*at) < ANSWER_MAX);
        if waiting || now < self.identity.renew_at()? {
            return Ok(None);
        }
        let key = MachineKey::generate(self.entropy.as_ref())?;
        let request = RenewRequest { request_der: key.request_der()? };
        self.asked = Some((key, now));
        Ok(Some(request))
    }

    /// A connection ended: an answer will not come any more.
    pub(super) fn disconnected(&mut self) {
        self.asked = None;
    }

    /// The coordinator answered. Writes a file of a few kilobytes; once in weeks.
    pub(super) fn renewed(&mut self, certificate: Vec<u8>) -> Result<(), IdentityError> {
        let Some((key, _)) = self.asked.take() else {
            return Err(IdentityError::Certificate("nothing was asked for"));
        };
        let identity = self.identity.renewed(&key, certificate)?;
        self.store.store(&identity)?;
        self.identity = identity;
        Ok(())
    }
}
