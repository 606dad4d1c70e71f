//! Ship: bringing sealed frames to the coordinator, once, in order, acknowledged.
//!
//! Owns the connection and what is on its way. Does not know capture or devices.
//! Invariant: a frame is forgotten only after the coordinator has acknowledged it as durable.

pub mod port;
pub mod window;
pub mod session;
