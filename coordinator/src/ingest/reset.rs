//! Telling agents at once that this coordinator is not the one that they were connected to.
//!
//! Owns connection ids and the key of stateless resets (RFC 9000 section 10.3). A coordinator that was killed and runs again
//! knows no connection, and without a key that outlives it, agents would send into the void until their idle timeout.
//! Does not know what connections are for. Invariant: ids are random, and say nothing about each other.
//! Limit: the transport answers at most one unknown packet in 20 ms.

use std::sync::Arc;

use holdfast_common::entropy::Entropy;
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, crypto};

/// Bytes of a connection id: enough that nobody guesses one.
const ID_BYTES: usize = 8;

/// Settings of an endpoint whose resets are believed by the peers of its predecessors with the same key.
pub(super) fn endpoint_config(key: [u8; 32], entropy: Arc<dyn Entropy>) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey(key)));
    config.cid_generator(move || Box::new(RandomIds(Arc::clone(&entropy))));
    config
}

/// Signs connection ids; whoever knows the signature may end the connection.
struct ResetKey([u8; 32]);

impl crypto::HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        blake3::Hasher::new_keyed(&self.0).update(data).finalize_xof().fill(signature_out);
    }

    fn signature_len(&self) -> usize {
        blake3::OUT_LEN
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), crypto::CryptoError> {
        // Comparing hashes takes the same time wherever they differ.
        let given = blake3::Hash::from_slice(signature).map_err(|_| crypto::CryptoError)?;
        if blake3::keyed_hash(&self.0, data) == given { Ok(()) } else { Err(crypto::CryptoError) }
    }
}

/// Random ids. The transport's own generator marks its ids with a key of the process, and drops what an earlier one made.
struct RandomIds(Arc<dyn Entropy>);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        self.0.fill(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
