//! Requests and replies of the transmission phase, without IO.
//!
//! Owns the decoding of requests, the check of each against its export, and the layouts of replies. Knows no socket and
//! no view. Invariant: a request that `check` lets pass lies inside the export and within the limits.
//! Limits: reads and writes of `REQUEST_BYTES_MAX` bytes; a write with a larger payload ends the connection.

use thiserror::Error;

use super::protocol::{
    CONTEXT_ALLOCATION_ID, MAGIC_REQUEST, MAGIC_SIMPLE_REPLY, MAGIC_STRUCTURED_REPLY, REQUEST_BYTES_MAX,
    chunk, command, command_flag, error,
};

/// Bytes of a request's header.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of a simple reply's header.
pub const SIMPLE_HEADER_BYTES: usize = 16;
/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// A request, decoded but not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Flags of the command.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// The client's number for it, given back in replies.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the range and answer with its bytes.
    Read,
    /// Answer with the extents of the range.
    BlockStatus,
    /// Write the bytes that came with the request.
    Write,
    /// Write zeroes to the range.
    Zero,
    /// Make durable what was written.
    Flush,
    /// Answer with success.
    Succeed,
    /// Answer with this error number and text.
    Refuse(u32, &'static str),
    /// Finish what is in flight and close, without an answer.
    Disconnect,
}

/// The client does not follow the protocol; the connection is closed, since what follows cannot be understood.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TransmissionError {
    /// A request does not start with its magic number.
    #[error("request does not start with the magic number")]
    Magic,
    /// A write carries more than any server would take.
    #[error("write of {0} bytes is over the limit of {REQUEST_BYTES_MAX}")]
    PayloadTooLong(u32),
}

/// Decodes a header: magic (4), flags (2), command (2), cookie (8), offset (8), length (4).
///
/// # Errors
/// The magic number is wrong.
pub fn decode(header: &[u8; REQUEST_HEADER_BYTES]) -> Result<Request, TransmissionError> {
    let [m0, m1, m2, m3, f0, f1, c0, c1, rest @ ..] = *header;
    if u32::from_be_bytes([m0, m1, m2, m3]) != MAGIC_REQUEST {
        return Err(TransmissionError::Magic);
    }
    let [k0, k1, k2, k3, k4, k5, k6, k7, rest @ ..] = rest;
    let [o0, o1, o2, o3, o4, o5, o6, o7, length @ ..] = rest;
    Ok(Request {
        flags: u16::from_be_bytes([f0, f1]),
        command: u16::from_be_bytes([c0, c1]),
        cookie: u64::from_be_bytes([k0, k1, k2, k3, k4, k5, k6, k7]),
        offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
        length: u32::from_be_bytes(length),
    })
}

/// Bytes that follow the request's header on the wire and have to be taken off it.
///
/// # Errors
/// They are too many.
pub fn payload_bytes(request: Request) -> Result<usize, TransmissionError> {
    if request.command != command::WRITE {
        return Ok(0);
    }
    if request.length > REQUEST_BYTES_MAX {
        return Err(TransmissionError::PayloadTooLong(request.length));
    }
    Ok(request.length as usize)
}

/// What was agreed on for an export, and what it is.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Its size.
    pub size_bytes: u64,
    /// Whether it can be written to.
    pub writable: bool,
    /// Whether replies may come in chunks.
    pub structured: bool,
    /// Whether block status may be asked for.
    pub allocation_context: bool,
}

/// Decides what to do with a request for an export.
#[must_use]
pub fn check(request: Request, terms: Terms) -> Action {
    let Terms { size_bytes, writable, structured, allocation_context } = terms;
    let known = match request.command {
        command::READ => command_flag::DONT_FRAGMENT,
        command::BLOCK_STATUS => command_flag::REQUEST_ONE,
        command::DISCONNECT => return Action::Disconnect,
        command::FLUSH if writable => return Action::Flush,
        // Nothing is ever dirty here.
        command::FLUSH => return Action::Succeed,
        command::WRITE | command::TRIM if writable => 0,
        command::WRITE_ZEROES if writable => command_flag::NO_HOLE,
        command::WRITE | command::TRIM | command::WRITE_ZEROES => {
            return Action::Refuse(error::PERMISSION, "the export is read-only");
        }
        _ => return Action::Refuse(error::INVALID, "unknown command"),
    };
    // Who offers durable writes has to understand the flag everywhere; a read has nothing to make durable.
    let known = if writable { known | command_flag::FUA } else { known };
    let end = request.offset.checked_add(u64::from(request.length));
    if request.flags & !known != 0 {
        Action::Refuse(error::INVALID, "unknown flags")
    } else if request.length == 0 {
        Action::Refuse(error::INVALID, "a range of no bytes")
    } else if end.is_none_or(|end| end > size_bytes) {
        Action::Refuse(error::INVALID, "the range is beyond the end of the export")
    } else if request.command == command::BLOCK_STATUS {
        if allocation_context {
            Action::BlockStatus
        } else {
            Action::Refuse(error::INVALID, "no metadata context was agreed on")
        }
    } else if matches!(request.command, command::TRIM | command::WRITE_ZEROES) {
        Action::Zero
    } else if request.length > REQUEST_BYTES_MAX {
        Action::Refuse(error::INVALID, "the range is longer than 32 MiB")
    } else if request.command == command::WRITE {
        Action::Write
    } else if request.flags & command_flag::DONT_FRAGMENT != 0 && request.length > UNSPLIT_BYTES_MAX {
        Action::Refuse(error::OVERFLOW, "an unsplit answer is at most 1 MiB")
    } else if request.flags & command_flag::DONT_FRAGMENT != 0 && !structured {
        Action::Refuse(error::INVALID, "unsplit answers need structured replies")
    } else {
        Action::Read
    }
}

/// Longest read whose answer comes in one chunk on demand (the protocol asks for at least 64 KiB).
pub const UNSPLIT_BYTES_MAX: u32 = 1 << 20;

/// Header of a simple reply: magic (4), error (4), cookie (8). Data follows a read that did not fail.
#[must_use]
pub fn simple_header(cookie: u64, error: u32) -> [u8; SIMPLE_HEADER_BYTES] {
    let [c0, c1, c2, c3, c4, c5, c6, c7] = cookie.to_be_bytes();
    let [m0, m1, m2, m3] = MAGIC_SIMPLE_REPLY.to_be_bytes();
    let [e0, e1, e2, e3] = error.to_be_bytes();
    [m0, m1, m2, m3, e0, e1, e2, e3, c0, c1, c2, c3, c4, c5, c6, c7]
}

/// Appends a chunk's header: magic (4), flags (2), type (2), cookie (8), length of data (4).
fn push_chunk(output: &mut Vec<u8>, cookie: u64, kind: u16, done: bool, bytes: u32) {
    output.extend_from_slice(&MAGIC_STRUCTURED_REPLY.to_be_bytes());
    output.extend_from_slice(&(if done { chunk::FLAG_DONE } else { 0 }).to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    output.extend_from_slice(&cookie.to_be_bytes());
    output.extend_from_slice(&bytes.to_be_bytes());
}

/// Appends the start of a chunk of data: header, offset (8). The bytes themselves follow, sent from where they are.
pub fn push_data(output: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, bytes: u32) {
    push_chunk(output, cookie, chunk::OFFSET_DATA, done, bytes + 8);
    output.extend_from_slice(&offset.to_be_bytes());
}

/// Appends a hole: header, offset (8), bytes (4).
pub fn push_hole(output: &mut Vec<u8>, cookie: u64, done: bool, offset: u64, bytes: u32) {
    push_chunk(output, cookie, chunk::OFFSET_HOLE, done, 12);
    output.extend_from_slice(&offset.to_be_bytes());
    output.extend_from_slice(&bytes.to_be_bytes());
}

/// Appends the end of a reply without content.
pub fn push_done(output: &mut Vec<u8>, cookie: u64) {
    push_chunk(output, cookie, chunk::NONE, true, 0);
}

/// Appends an error: header, error (4), length of text (2), text, and for a position its offset (8).
pub fn push_error(output: &mut Vec<u8>, cookie: u64, done: bool, error: u32, text: &str, at: Option<u64>) {
    let text = text.get(..TEXT_BYTES_MAX).unwrap_or(text);
    let text_bytes = u16::try_from(text.len()).unwrap_or(0);
    let kind = if at.is_some() { chunk::ERROR_OFFSET } else { chunk::ERROR };
    let bytes = 6 + u32::from(text_bytes) + if at.is_some() { 8 } else { 0 };
    push_chunk(output, cookie, kind, done, bytes);
    output.extend_from_slice(&error.to_be_bytes());
    output.extend_from_slice(&text_bytes.to_be_bytes());
    output.extend_from_slice(text.get(..usize::from(text_bytes)).unwrap_or("").as_bytes());
    if let Some(offset) = at {
        output.extend_from_slice(&offset.to_be_bytes());
    }
}

/// Longest text in an error chunk (the protocol allows strings of 4096).
const TEXT_BYTES_MAX: usize = 1024;

/// Appends block status: header, context (4), then each extent: bytes (4), flags (4).
pub fn push_block_status(output: &mut Vec<u8>, cookie: u64, extents: &[(u32, u32)]) {
    let bytes = u32::try_from(extents.len()).unwrap_or(0) * 8 + 4;
    push_chunk(output, cookie, chunk::BLOCK_STATUS, true, bytes);
    output.extend_from_slice(&CONTEXT_ALLOCATION_ID.to_be_bytes());
    for (bytes, flags) in extents {
        output.extend_from_slice(&bytes.to_be_bytes());
        output.extend_from_slice(&flags.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
