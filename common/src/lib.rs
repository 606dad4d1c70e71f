//! What Holdfast's agent and coordinator share by contract, in reading order.

// Blocks and ranges of blocks.
pub mod units;
// Identities and the numbers that order a disk's history.
pub mod ids;
// Injected time.
pub mod clock;
// Injected randomness and the minting of ids.
pub mod entropy;
// Bounded encoding of messages and records.
pub mod codec;
// Frames: sealed, sent, stored and verified as one.
pub mod frame;
// Control messages of the protocol.
pub mod wire;
// Enrolment tokens.
pub mod token;
// TLS: what both ends must agree on.
pub mod tls;
// Crash-safe file operations.
pub mod durable;
// Processes that are found by what they were started for.
pub mod marked;
// Errors with their causes, as people read them.
pub mod causes;
// Logs.
pub mod telemetry;
