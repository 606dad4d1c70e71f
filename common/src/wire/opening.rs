//! The messages of a control stream, the first of which tells the protocol's version.
//!
//! Owns the look at the version before anything else is decoded: a peer of another version may have appended fields that
//! we cannot read, and must hear that, not that it breaks the protocol. Does not know what messages mean.
//! Invariant: of a peer of another version nothing but the version is ever decoded.
//! Limit: that of [`MessageBuffer`].
//! Format: `AgentMessage::Hello` and `CoordinatorMessage::Welcome` are variant 0 of their enums, and the version is their
//! first field: one byte 0, then the version as a variable-length integer. No version changes that.

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{MessageBuffer, PROTOCOL_VERSION};
use crate::codec::{self, CodecError};

/// Number of the opening variants.
const OPENING: u32 = 0;

/// Why a control stream cannot be read on.
#[derive(Debug, Error)]
pub enum ControlError {
    /// The peer speaks another version.
    #[error("the peer speaks version {theirs} of the protocol, this program {PROTOCOL_VERSION}")]
    Version {
        /// The peer's.
        theirs: u32,
    },
    /// What it sent is no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Collects a control stream's bytes and gives out its messages.
#[derive(Debug, Default)]
pub struct ControlBuffer {
    buffer: MessageBuffer,
    opened: bool,
}

impl ControlBuffer {
    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.push(bytes);
    }

    /// The next whole message; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The peer opens with another version, or sends what is no message. The stream cannot be read on.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not name the type to decode")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        let Some(body) = self.buffer.take()? else { return Ok(None) };
        if !std::mem::replace(&mut self.opened, true)
            && let Some(theirs) = version(&body)
            && theirs != PROTOCOL_VERSION
        {
            return Err(ControlError::Version { theirs });
        }
        Ok(Some(codec::decode(&body)?))
    }
}

/// The version that an opening message tells; none if it is not an opening message.
fn version(body: &[u8]) -> Option<u32> {
    let ((variant, version), _used) = codec::decode_prefix::<(u32, u32)>(body).ok()?;
    (variant == OPENING).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::{ControlBuffer, ControlError, version};
    use crate::{
        codec,
        wire::{AgentMessage, PROTOCOL_VERSION, envelope},
    };

    /// A hello of another version, as it may be one day: with fields that we do not know, of any kind.
    fn opening(version: u32) -> (u32, u32, String, Vec<u64>) {
        (0, version, "9.0.0".to_owned(), vec![u64::MAX; 3])
    }

    fn read(message: &impl serde::Serialize) -> Result<Option<AgentMessage>, ControlError> {
        let mut buffer = ControlBuffer::default();
        buffer.push(&envelope::seal(message).unwrap());
        buffer.next()
    }

    #[test]
    fn golden_beginning_of_an_opening() {
        assert_eq!(version(&[0, 1, 0xff]), Some(1));
        assert_eq!(version(&[0, 251, 0x2c, 0x01, 9, 9]), Some(300));
        assert_eq!(version(&[7]), None);
        assert_eq!(version(&[1, 1]), None);
    }

    #[test]
    fn another_version_is_told_whatever_follows_it() {
        for other in [PROTOCOL_VERSION + 1, 300, u32::MAX] {
            let error = read(&opening(other)).unwrap_err();
            assert!(matches!(error, ControlError::Version { theirs } if theirs == other), "{error}");
        }
    }

    #[test]
    fn garbage_of_our_version_is_garbage() {
        assert!(matches!(read(&opening(PROTOCOL_VERSION)), Err(ControlError::Codec(_))));
    }

    #[test]
    fn only_the_first_message_tells_the_version() {
        let mut buffer = ControlBuffer::default();
        buffer.push(&envelope::seal(&AgentMessage::Closing).unwrap());
        buffer.push(&envelope::seal(&opening(99)).unwrap());
        assert_eq!(buffer.next::<AgentMessage>().unwrap(), Some(AgentMessage::Closing));
        assert!(matches!(buffer.next::<AgentMessage>(), Err(ControlError::Codec(_))));
        assert_eq!(codec::encode(&AgentMessage::Closing).unwrap(), [7]);
    }
}
