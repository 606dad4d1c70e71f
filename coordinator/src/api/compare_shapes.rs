//! Shapes of requests and answers about comparisons of disks with their sources.

use serde::{Deserialize, Serialize};

/// How far a disk was compared with its source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompareShape {
    /// The machine's id.
    pub machine: String,
    /// Its host name.
    pub machine_name: String,
    /// The disk's id.
    pub disk: String,
    /// Its device node when it was protected.
    pub path: String,
    /// Its size.
    pub size_bytes: u64,
    /// "running" while it is compared, "waiting" while that cannot go on, else "idle".
    pub state: String,
    /// What it waits for.
    pub waiting: Option<String>,
    /// Rate of the comparison under way.
    pub bytes_per_second: Option<u64>,
    /// How long it takes at this rate.
    pub left_ms: Option<u64>,
    /// The comparison under way.
    pub pass: Option<ComparedShape>,
    /// The last one that ended.
    pub last: Option<ComparedShape>,
}

/// A comparison of a whole disk with its source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ComparedShape {
    /// When it began.
    pub started_at: String,
    /// When it ended.
    pub ended_at: Option<String>,
    /// Whether it was cancelled.
    pub cancelled: bool,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Of them: written meanwhile, so that the source has sent them anew.
    pub sent_anew_bytes: u64,
    /// Of them: different. They are marked, and the source sends them again.
    pub differed_bytes: u64,
    /// Of them: not readable here, or known to be wrong before.
    pub unreadable_bytes: u64,
}
