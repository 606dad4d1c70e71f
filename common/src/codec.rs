//! Encoding of control messages and small records: bincode with a limit on every decode.
//!
//! The only module that names bincode. Knows no message. Invariant: decoding consumes exactly what was given,
//! and never allocates more than its input's length bounds.
//! Limit: [`MESSAGE_BYTES_MAX`] per message. Rules for the types (no recursion, no maps keyed by a peer's
//! strings, enum variants only ever appended) are kept at the types.

use bincode::config;
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The largest encoded control message or record.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Why a message could not be encoded or decoded.
#[derive(Debug, Error)]
pub enum CodecError {
    /// The encoded form is larger than the limit.
    #[error("message of {bytes} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLarge {
        /// Size found.
        bytes: usize,
    },
    /// Bytes were left over after the message.
    #[error("message has {extra} bytes too many")]
    Trailing {
        /// Number of bytes left over.
        extra: usize,
    },
    /// The bytes are not a message of this type.
    #[error("message cannot be decoded")]
    Malformed(#[source] bincode::error::DecodeError),
    /// The value has no encoding.
    #[error("message cannot be encoded")]
    Unencodable(#[source] bincode::error::EncodeError),
}

/// Encodes a value (bincode standard configuration: little endian, variable-length integers).
///
/// # Errors
/// [`CodecError::TooLarge`] if the result is over the limit; nothing is truncated.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, config::standard()).map_err(CodecError::Unencodable)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes a value from exactly these bytes.
///
/// # Errors
/// The bytes are too many, too few, or not a `T`. The peer or the file is at fault; the caller refuses it.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = decode_prefix(bytes)?;
    if used != bytes.len() {
        return Err(CodecError::Trailing { extra: bytes.len() - used });
    }
    Ok(value)
}

/// Decodes a value from the beginning of these bytes, for records that something was appended to. Returns how many of
/// them it took.
///
/// # Errors
/// The bytes are too many, too few, or do not begin with a `T`.
pub fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), CodecError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(CodecError::TooLarge { bytes: bytes.len() });
    }
    let limited = config::standard().with_limit::<MESSAGE_BYTES_MAX>();
    bincode::serde::decode_from_slice(bytes, limited).map_err(CodecError::Malformed)
}
