//! Ends tracking that agents left in the kernel.
//!
//! Owns the choice of what is ended, and the answer. Does not know maps or pins. Tracking outlives its agent on purpose; what an
//! agent left that was uninstalled, or whose state folder is gone, nobody goes on with, and it costs memory and a little of
//! every request. Invariant: tracking that a running agent uses is never touched. A disk that is still protected is resynced
//! by its agent afterwards.

use anyhow::{Result, bail};
use holdfast_common::ids::DiskId;
use serde::Serialize;

use crate::capture::tracked::{TrackedOptions, TrackedSource};

/// What became of one disk's tracking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// The disk.
    pub disk: DiskId,
    /// Whether its tracking has ended.
    pub forgotten: bool,
    /// Why not, if not.
    pub reason: Option<String>,
}

/// Ends the tracking of these disks; of all that no running agent uses if `all` is set.
///
/// # Errors
/// Nothing was chosen, a disk that was named is not tracked, or bpffs cannot be read. Nothing is ended then.
pub fn forget(disks: &[DiskId], all: bool, options: &TrackedOptions) -> Result<Vec<Forgotten>> {
    let tracked = TrackedSource::pinned(options)?;
    let names: Vec<String> = tracked.iter().map(ToString::to_string).collect();
    let names = if names.is_empty() { "nothing".to_owned() } else { names.join(" ") };
    if disks.is_empty() && !all {
        bail!("say which: --disk ID (repeatable), or --all; tracked on this machine: {names}");
    }
    if let Some(unknown) = disks.iter().find(|disk| !tracked.contains(disk)) {
        bail!("disk {unknown} is not tracked on this machine; tracked: {names}");
    }
    let chosen = if all { &tracked } else { disks };
    Ok(chosen.iter().map(|disk| end(*disk, options)).collect())
}

fn end(disk: DiskId, options: &TrackedOptions) -> Forgotten {
    match TrackedSource::remove(disk, options) {
        Ok(_) => Forgotten { disk, forgotten: true, reason: None },
        Err(error) => {
            Forgotten { disk, forgotten: false, reason: Some(format!("{:#}", anyhow::Error::from(error))) }
        }
    }
}
