//! Messages on a stream: each behind its length.
//!
//! Owns the framing of control messages. Does not know which messages there are, nor where bytes come from.
//! Invariant: a length is checked before anything is kept for it.
//! Limit: [`MESSAGE_BYTES_MAX`] per message.
//! Format: 4 bytes of length, little endian, then as many bytes of message (see [`crate::codec`]).

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

use crate::codec::{self, CodecError, MESSAGE_BYTES_MAX};

/// Size of the length.
const LENGTH_BYTES: usize = 4;

/// A message with its length in front.
///
/// # Errors
/// It is too large.
pub fn seal<T: Serialize>(message: &T) -> Result<Bytes, CodecError> {
    let body = codec::encode(message)?;
    let length = u32::try_from(body.len()).map_err(|_| CodecError::TooLarge { bytes: body.len() })?;
    let mut bytes = BytesMut::with_capacity(LENGTH_BYTES + body.len());
    bytes.put_u32_le(length);
    bytes.put_slice(&body);
    Ok(bytes.freeze())
}

/// Collects a stream's bytes and gives out its messages.
#[derive(Debug, Default)]
pub struct MessageBuffer {
    bytes: BytesMut,
}

impl MessageBuffer {
    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The length is over the limit, or the bytes are not a message. The stream cannot be read on.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not name the type to decode")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        self.take()?.map(|body| codec::decode(&body)).transpose()
    }

    /// The bytes of the next whole message, without their length; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The length is over the limit. The stream cannot be read on.
    pub fn take(&mut self) -> Result<Option<BytesMut>, CodecError> {
        let Some(length) = self.bytes.get(..LENGTH_BYTES) else { return Ok(None) };
        let length = length.iter().rev().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
        if length > MESSAGE_BYTES_MAX {
            return Err(CodecError::TooLarge { bytes: length });
        }
        if self.bytes.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.bytes.advance(LENGTH_BYTES);
        Ok(Some(self.bytes.split_to(length)))
    }

    /// What was read beyond the messages given out: the beginning of something else.
    #[must_use]
    pub fn into_rest(self) -> BytesMut {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::{CodecError, MessageBuffer, seal};
    use crate::{
        ids::{DiskId, Generation},
        wire::DataStreamStart,
    };

    fn start() -> DataStreamStart {
        DataStreamStart { disk: DiskId::from_bytes([9; 16]), generation: Generation(7) }
    }

    #[test]
    fn golden_bytes_of_a_stream_start() {
        let bytes = seal(&start()).unwrap();
        let mut expected = vec![18, 0, 0, 0, 16];
        expected.extend_from_slice(&[9; 16]);
        expected.push(7);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let bytes = [seal(&start()).unwrap(), seal(&start()).unwrap()].concat();
        let mut buffer = MessageBuffer::default();
        let mut seen = 0;
        for byte in &bytes {
            buffer.push(&[*byte]);
            while let Some(message) = buffer.next::<DataStreamStart>().unwrap() {
                assert_eq!(message, start());
                seen += 1;
            }
        }
        buffer.push(b"rest");
        assert_eq!((seen, &*buffer.into_rest()), (2, &b"rest"[..]));
    }

    #[test]
    fn an_oversized_length_is_refused_at_once() {
        let mut buffer = MessageBuffer::default();
        buffer.push(&u32::MAX.to_le_bytes());
        assert!(matches!(buffer.next::<DataStreamStart>(), Err(CodecError::TooLarge { .. })));
    }
}
