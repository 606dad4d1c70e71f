//! NBD: views as network block devices, read-only, and branches of views, writable.
//!
//! Owns the protocol ("The NBD protocol", doc/proto.md of the NetworkBlockDevice project) and its server. Does not know
//! jobs or where blocks come from.

// Constants and layouts of the protocol.
pub mod protocol;
// Negotiation, without IO.
pub mod handshake;
// Requests and replies, without IO.
pub mod transmission;
// Reading a range in pieces: data, holes, and what is damaged.
mod pieces;
// Chunks of a reply, sent together.
mod reply;
// One connection's requests, on threads.
mod worker;
// Listening and the set of exports.
pub mod server;
// A minimal client that proves that an export serves.
mod probe;
// A client that reads what another program exports.
pub mod client;
// `Attach` over all this: one socket per job.
pub mod attach;
