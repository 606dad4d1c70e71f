//! What the keeper says, one JSON document per line on its standard output.
//!
//! Owns the shapes. Both ends are the same program, so there is no version.

use serde::{Deserialize, Serialize};

/// A word of the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Word {
    /// Every hook was called with `freeze` and said that it is done.
    Frozen {
        /// Their names, in order.
        hooks: Vec<String>,
    },
    /// One was not; all that had been called are thawed again.
    Failed {
        /// Which, why, and what it printed.
        reason: String,
    },
    /// All are thawed; the last word.
    Thawed {
        /// What went wrong, if something did.
        failures: Vec<String>,
        /// Whether the keeper thawed by itself, because its bound was over.
        expired: bool,
        /// From before the first `freeze` until now, in microseconds.
        frozen_us: u64,
    },
}
