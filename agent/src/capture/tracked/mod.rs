//! Tracked capture: eBPF programs mark every changed block in a bitmap inside the kernel.
//!
//! Owns everything from the bytes of the programs to the [`ChangeSource`](super::ChangeSource) over them. Does not know
//! batching or the network. Needs a kernel from 5.17 on with type information (BTF), `CAP_BPF` and `CAP_PERFMON`; no
//! compiler, no module, nothing to install.
//! Invariant and argument: `docs/tracking.md`. Limits: disks up to 256 TiB; one bit per 4 KiB block in each of three maps.

mod btf;
mod assembler;
mod program_types;
mod program;
mod program_request;
mod program_bio;
mod kernel;
mod maps;
mod slots;
mod bitmap;
mod guard;
mod target;
mod pins;
mod metadata;
mod attached;
mod statistics;
mod source;

/// Reads bytes as a pinned record and as the kernel's types; what comes out is dropped. For fuzzing.
#[doc(hidden)]
pub fn decode_as_any_record(bytes: &[u8]) {
    metadata::decode_any(bytes);
    btf::decode_any(bytes);
}

#[doc(hidden)]
pub use program::Faults;
pub use source::{Attachment, TrackedOptions, TrackedSource};
pub use statistics::{ProgramStatistics, StatisticsSwitch};
