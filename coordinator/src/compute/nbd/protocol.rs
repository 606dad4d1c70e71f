//! Constants and byte layouts of the NBD protocol, as far as this server speaks it.
//!
//! Owns the numbers; knows no connection. All integers are big endian. Names and layouts follow doc/proto.md of the
//! NetworkBlockDevice project, sections "Values" and "Message types"; layouts stand at the functions that read or write them.

/// First eight bytes of the server's greeting, "NBDMAGIC".
pub const MAGIC_GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and start of each option, "IHAVEOPT".
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Start of each reply to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Start of each request.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Start of each simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Start of each chunk of a structured reply.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Handshake flag: the fixed newstyle negotiation (both directions).
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zero bytes after `NBD_OPT_EXPORT_NAME` (both directions).
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options.
pub mod option {
    /// Start transmission with this export; no error reply exists.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Go over to TLS.
    pub const STARTTLS: u32 = 5;
    /// Tell about an export.
    pub const INFO: u32 = 6;
    /// Tell about an export and start transmission.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts for block status.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// An export's name.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// A metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known here.
    pub const ERR_UNSUPPORTED: u32 = (1 << 31) + 1;
    /// The option's data is malformed.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
}

/// Kinds of information about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest request.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod export_flag {
    /// The other flags are valid.
    pub const HAS_FLAGS: u16 = 1;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// Flush is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// Writes may ask to be durable before they are answered.
    pub const SEND_FUA: u16 = 1 << 3;
    /// Ranges can be given up.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// Zeroes can be written without sending them.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// Reads may ask not to be split.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see the same bytes.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// What a read-only export has; all connections agree at all times.
    pub const OF_READ_ONLY: u16 = HAS_FLAGS | READ_ONLY | SEND_DF | CAN_MULTI_CONN;
    /// What a writable export has. A flush on one connection covers what was answered on all, so several may be used.
    pub const OF_WRITABLE: u16 =
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_DF | CAN_MULTI_CONN;
}

/// Commands.
pub mod command {
    /// Read a range.
    pub const READ: u16 = 0;
    /// Write a range; the request is followed by its bytes.
    pub const WRITE: u16 = 1;
    /// End the connection, without a reply.
    pub const DISCONNECT: u16 = 2;
    /// Make written data durable.
    pub const FLUSH: u16 = 3;
    /// Discard a range.
    pub const TRIM: u16 = 4;
    /// Write zeroes to a range.
    pub const WRITE_ZEROES: u16 = 6;
    /// Which parts are holes.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Make it durable before answering.
    pub const FUA: u16 = 1 << 0;
    /// Keep the space of zeroes.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Do not split the answer to a read.
    pub const DONT_FRAGMENT: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQUEST_ONE: u16 = 1 << 3;
}

/// Types of chunks of a structured reply.
pub mod chunk {
    /// Nothing; only to end a reply.
    pub const NONE: u16 = 0;
    /// Bytes at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// The request failed at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1;
}

/// Error numbers in replies.
pub mod error {
    /// Writing to a read-only export.
    pub const PERMISSION: u32 = 1;
    /// Bytes cannot be read.
    pub const IO: u32 = 5;
    /// The request makes no sense.
    pub const INVALID: u32 = 22;
    /// There is no space left to write to.
    pub const NO_SPACE: u32 = 28;
    /// The answer would not fit unsplit.
    pub const OVERFLOW: u32 = 75;
}

/// The only metadata context: which ranges are allocated.
pub const CONTEXT_ALLOCATION: &str = "base:allocation";
/// Number under which [`CONTEXT_ALLOCATION`] goes in replies; any would do.
pub const CONTEXT_ALLOCATION_ID: u32 = 1;
/// Extent flags of a hole: not allocated (1) and reads as zeroes (2).
pub const EXTENT_HOLE: u32 = 3;

/// Smallest request, in bytes: any range may be read.
pub const REQUEST_BYTES_MIN: u32 = 1;
/// Request size that serves best, in bytes.
pub const REQUEST_BYTES_PREFERRED: u32 = 64 << 10;
/// Largest read or write, in bytes; the size every client may assume.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Largest string the protocol allows, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
