//! The fixed newstyle negotiation of one connection, without IO.
//!
//! Owns the decoding of options and the answers to them. Knows exports only by their descriptions; knows no socket and no
//! clock (the deadline is the shell's).
//! Invariant: every option but `ABORT` and `EXPORT_NAME` gets exactly one final reply; input never makes it panic or
//! allocate more than `OPTION_BYTES_MAX`.
//! Limits: `OPTIONS_MAX` options of at most `OPTION_BYTES_MAX` bytes.
//!
//! ```text
//!   ClientFlags --flags--> Options --GO / EXPORT_NAME--> transmission
//!                          |  ^  |
//!                          +--+  +--ABORT, limit, malformed--> closed
//! ```

use thiserror::Error;

use super::protocol::{self, export_flag, info, option, reply};

/// What a client may learn about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportDescription {
    /// Its canonical name.
    pub name: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// A text for people.
    pub text: String,
    /// Whether it can be written to.
    pub writable: bool,
}

impl ExportDescription {
    const fn flags(&self) -> u16 {
        if self.writable { export_flag::OF_WRITABLE } else { export_flag::OF_READ_ONLY }
    }
}

/// The exports of a server, as a negotiation sees them.
pub trait ExportList {
    /// The export of this name; the empty name means the default export.
    fn find(&self, name: &str) -> Option<ExportDescription>;
    /// All names, in order.
    fn names(&self) -> Vec<String>;
}

/// What was agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The export's canonical name.
    pub export: String,
    /// Whether reads and block status are answered in chunks.
    pub structured_replies: bool,
    /// Whether the client may ask for block status.
    pub allocation_context: bool,
}

/// What follows the input that was consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// More input is needed.
    Continue,
    /// Send what was written and start transmission; input not consumed belongs to it.
    Transmit(Agreement),
    /// Send what was written and close.
    Close,
}

/// The client does not follow the protocol; the connection is closed without more words.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum HandshakeError {
    /// Unknown client flags.
    #[error("client sent unknown flags {0:#x}")]
    Flags(u32),
    /// An option does not start with its magic number.
    #[error("option does not start with the magic number")]
    Magic,
    /// An option is over the limit.
    #[error("option of {0} bytes is over the limit of {OPTION_BYTES_MAX}")]
    OptionLength(u32),
    /// Too many options.
    #[error("more than {OPTIONS_MAX} options")]
    OptionCount,
    /// `EXPORT_NAME` of an export that is not there: the protocol has no other answer.
    #[error("no such export")]
    ExportUnknown,
}

/// The server's side of a negotiation.
#[derive(Debug, Default)]
pub struct Handshake {
    flags_seen: bool,
    no_zeroes: bool,
    structured_replies: bool,
    /// Canonical name of the export for which the context was chosen.
    allocation_context: Option<String>,
    options: u32,
}

impl Handshake {
    /// The greeting that the server sends first: magic (8), option magic (8), handshake flags (2).
    #[must_use]
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        let (magic, rest) = bytes.split_at_mut(8);
        let (option_magic, flags) = rest.split_at_mut(8);
        magic.copy_from_slice(&protocol::MAGIC_GREETING.to_be_bytes());
        option_magic.copy_from_slice(&protocol::MAGIC_OPTION.to_be_bytes());
        flags.copy_from_slice(&(protocol::FLAG_FIXED_NEWSTYLE | protocol::FLAG_NO_ZEROES).to_be_bytes());
        bytes
    }

    /// Takes one message from the front of `input` if it is there whole: returns the bytes consumed (0: more input is
    /// needed) and what follows. Answers are appended to `output`.
    ///
    /// # Errors
    /// The connection is to be closed.
    pub fn step(
        &mut self,
        input: &[u8],
        exports: &dyn ExportList,
        output: &mut Vec<u8>,
    ) -> Result<(usize, Next), HandshakeError> {
        let mut reader = Reader(input);
        if !self.flags_seen {
            let Some(flags) = reader.u32() else { return Ok((0, Next::Continue)) };
            self.client_flags(flags)?;
            return Ok((4, Next::Continue));
        }
        // Option: magic (8), option (4), length of data (4), data.
        let Some(magic) = reader.u64() else { return Ok((0, Next::Continue)) };
        if magic != protocol::MAGIC_OPTION {
            return Err(HandshakeError::Magic);
        }
        let (Some(option), Some(length)) = (reader.u32(), reader.u32()) else {
            return Ok((0, Next::Continue));
        };
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes > OPTION_BYTES_MAX {
            return Err(HandshakeError::OptionLength(length));
        }
        let Some(data) = reader.take(bytes) else { return Ok((0, Next::Continue)) };
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err(HandshakeError::OptionCount);
        }
        let next = self.option(option, data, exports, output)?;
        Ok((OPTION_HEADER_BYTES + bytes, next))
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), HandshakeError> {
        let known = u32::from(protocol::FLAG_FIXED_NEWSTYLE | protocol::FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return Err(HandshakeError::Flags(flags));
        }
        self.no_zeroes = flags & u32::from(protocol::FLAG_NO_ZEROES) != 0;
        self.flags_seen = true;
        Ok(())
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        exports: &dyn ExportList,
        output: &mut Vec<u8>,
    ) -> Result<Next, HandshakeError> {
        match option {
            option::EXPORT_NAME => return self.export_name(data, exports, output),
            option::ABORT => {
                push_reply(output, option, reply::ACK, &[]);
                return Ok(Next::Close);
            }
            option::LIST if data.is_empty() => {
                for name in exports.names() {
                    push_reply(output, option, reply::SERVER, &string_with_length(&name));
                }
                push_reply(output, option, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured_replies = true;
                push_reply(output, option, reply::ACK, &[]);
            }
            option::LIST | option::STRUCTURED_REPLY => {
                push_error(output, option, reply::ERR_INVALID, "this option takes no data");
            }
            option::INFO | option::GO => return Ok(self.info(option, data, exports, output)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(option, data, exports, output);
            }
            option::STARTTLS => {
                let text = "this server speaks no TLS; it is meant for unix sockets and private networks";
                push_error(output, option, reply::ERR_UNSUPPORTED, text);
            }
            _ => push_error(output, option, reply::ERR_UNSUPPORTED, "unknown option"),
        }
        Ok(Next::Continue)
    }

    /// Data: the name. Answer: size (8), transmission flags (2), 124 zeroes unless both sides agreed to leave them out.
    fn export_name(
        &self,
        data: &[u8],
        exports: &dyn ExportList,
        output: &mut Vec<u8>,
    ) -> Result<Next, HandshakeError> {
        let name = valid_name(data).ok_or(HandshakeError::ExportUnknown)?;
        let export = exports.find(name).ok_or(HandshakeError::ExportUnknown)?;
        output.extend_from_slice(&export.size_bytes.to_be_bytes());
        output.extend_from_slice(&export.flags().to_be_bytes());
        if !self.no_zeroes {
            output.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Transmit(self.agreement(export.name)))
    }

    /// Data: length of name (4), name, number of wanted kinds (2), each kind (2).
    fn info(&self, option: u32, data: &[u8], exports: &dyn ExportList, output: &mut Vec<u8>) -> Next {
        let Some((name, wanted)) = parse_info(data) else {
            push_error(output, option, reply::ERR_INVALID, "malformed request for information");
            return Next::Continue;
        };
        let Some(export) = exports.find(name) else {
            push_error(output, option, reply::ERR_UNKNOWN, "no such export");
            return Next::Continue;
        };
        push_info(output, option, &export, &wanted);
        push_reply(output, option, reply::ACK, &[]);
        if option == option::GO { Next::Transmit(self.agreement(export.name)) } else { Next::Continue }
    }

    /// Data: length of name (4), name, number of queries (4), each query: length (4), text.
    fn meta_context(&mut self, option: u32, data: &[u8], exports: &dyn ExportList, output: &mut Vec<u8>) {
        let setting = option == option::SET_META_CONTEXT;
        if setting {
            // Each choice replaces the one before, also when it fails.
            self.allocation_context = None;
        }
        let Some((name, queries)) = parse_meta_context(data) else {
            push_error(output, option, reply::ERR_INVALID, "malformed query of metadata contexts");
            return;
        };
        let Some(export) = exports.find(name) else {
            push_error(output, option, reply::ERR_UNKNOWN, "no such export");
            return;
        };
        if setting && !self.structured_replies {
            push_error(output, option, reply::ERR_INVALID, "structured replies must be agreed on first");
            return;
        }
        let listing_all = !setting && queries.is_empty();
        let matches =
            |query: &&str| *query == protocol::CONTEXT_ALLOCATION || (!setting && *query == "base:");
        let found = listing_all || queries.iter().any(matches);
        if setting {
            self.allocation_context = found.then_some(export.name);
        }
        if found {
            // Reply: context id (4; zero when only listing), name.
            let id = if setting { protocol::CONTEXT_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend_from_slice(protocol::CONTEXT_ALLOCATION.as_bytes());
            push_reply(output, option, reply::META_CONTEXT, &context);
        }
        push_reply(output, option, reply::ACK, &[]);
    }

    fn agreement(&self, export: String) -> Agreement {
        let allocation_context = self.allocation_context.as_ref() == Some(&export);
        Agreement { export, structured_replies: self.structured_replies, allocation_context }
    }
}

fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u16()?;
    let wanted = (0..count).map(|_| reader.u16()).collect::<Option<Vec<_>>>()?;
    reader.0.is_empty().then_some((name, wanted))
}

fn parse_meta_context(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut reader = Reader(data);
    let name = reader.string()?;
    let count = reader.u32()?;
    // Each query takes at least four bytes, so the data's length bounds the loop.
    let queries = (0..count).map(|_| reader.string()).collect::<Option<Vec<_>>>()?;
    reader.0.is_empty().then_some((name, queries))
}

/// Each information: kind (2), then for `EXPORT` size (8) and flags (2), for `BLOCK_SIZE` three sizes (4 each), else text.
fn push_info(output: &mut Vec<u8>, option: u32, export: &ExportDescription, wanted: &[u16]) {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&export.size_bytes.to_be_bytes());
    data.extend_from_slice(&export.flags().to_be_bytes());
    push_reply(output, option, reply::INFO, &data);
    for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.text)] {
        if wanted.contains(&kind) {
            let mut data = kind.to_be_bytes().to_vec();
            data.extend_from_slice(text.as_bytes());
            push_reply(output, option, reply::INFO, &data);
        }
    }
    if wanted.contains(&info::BLOCK_SIZE) {
        let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
        for bytes in
            [protocol::REQUEST_BYTES_MIN, protocol::REQUEST_BYTES_PREFERRED, protocol::REQUEST_BYTES_MAX]
        {
            data.extend_from_slice(&bytes.to_be_bytes());
        }
        push_reply(output, option, reply::INFO, &data);
    }
}

/// Reply to an option: magic (8), option (4), type (4), length of data (4), data.
fn push_reply(output: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    output.extend_from_slice(&protocol::MAGIC_OPTION_REPLY.to_be_bytes());
    output.extend_from_slice(&option.to_be_bytes());
    output.extend_from_slice(&kind.to_be_bytes());
    // Everything this server sends here is far below 4 GiB.
    output.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    output.extend_from_slice(data);
}

fn push_error(output: &mut Vec<u8>, option: u32, kind: u32, text: &str) {
    push_reply(output, option, kind, text.as_bytes());
}

fn string_with_length(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn valid_name(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > protocol::STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// Takes integers and strings off the front of bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Length (4), then that many bytes of UTF-8.
    fn string(&mut self) -> Option<&'a str> {
        let count = usize::try_from(self.u32()?).ok()?;
        valid_name(self.take(count)?)
    }
}

/// Magic, option and length.
const OPTION_HEADER_BYTES: usize = 16;
/// Data of one option, at most.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// Options in one negotiation, at most.
pub const OPTIONS_MAX: u32 = 256;

#[cfg(test)]
mod tests;
