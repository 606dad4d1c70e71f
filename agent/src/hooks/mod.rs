//! Freeze hooks: programs that make applications consistent before a cut, and let them go afterwards.
//!
//! Owns the convention, the keeper process and the agent's link to it. Does not know file systems or cuts.
//!
//! Every executable in a folder (`freeze-hook.d`) is called with `freeze`, in the order of the names; after the cut
//! with `thaw`, in reverse, whoever was called with `freeze`. Exit code 0 means done. That is the convention of the QEMU
//! guest agent. Hooks may touch file systems: `freeze` is over before any is frozen, `thaw` begins when all are thawed.
//!
//! The hooks are run by a process of their own, the [`keeper`]. It thaws when it is told to, when the agent is gone, and when its
//! bound is over. If it is killed itself, the agent starts another that only thaws; if both are, the next start of the agent does
//! ([`link::thaw_abandoned`]), by the marker that the keeper leaves in the state folder.
//! Invariant: [`ApplicationFreeze`](holdfast_common::frame::ApplicationFreeze) is given only if every hook was frozen, stayed so
//! until the thaw was asked for, and was thawed.
//! Limits: [`HOOKS_MAX`], [`OUTPUT_BYTES_MAX`] of each hook's output, a time limit per call, a bound from the first freeze on.

pub mod keeper;
pub mod link;
mod message;
mod program;

use std::{ffi::OsString, path::PathBuf, time::Duration};

pub use link::{HookLink, HookState};
pub(crate) use program::call;
pub(crate) use program::wait;
pub use program::{HOOKS_MAX, OUTPUT_BYTES_MAX};

/// How hooks are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookSettings {
    /// Folder of the hooks.
    pub folder: PathBuf,
    /// Longest time of one call.
    pub call_max: Duration,
    /// Longest time from the first `freeze` on, after which the keeper thaws by itself.
    pub bound: Duration,
    /// File that says that hooks may be frozen.
    pub marker: PathBuf,
    /// Program of the keeper.
    pub program: PathBuf,
    /// Arguments before the keeper's own.
    pub arguments: Vec<OsString>,
}

impl HookSettings {
    /// Hooks of this folder, run by this program itself; the marker lies in the state folder.
    #[must_use]
    pub fn new(folder: PathBuf, state: &std::path::Path) -> Self {
        Self {
            folder,
            call_max: Duration::from_secs(30),
            bound: Duration::from_mins(2),
            marker: state.join("hooks-frozen"),
            program: PathBuf::from("/proc/self/exe"),
            arguments: vec![OsString::from("hook-keeper")],
        }
    }
}

#[cfg(test)]
mod tests;
