//! How far a disk was compared with its source, across restarts.
//!
//! Owns the record and its file. Does not know who compares. Invariant: what it says is never ahead of what was done; without the
//! file nothing is known to have been compared.
//! Format: `audit.json`, one JSON object with the fields of [`AuditRecord`], replaced as a whole; unknown fields are ignored,
//! missing ones have their defaults. History of `version`: 1, first.

use std::{io, path::Path};

use holdfast_common::durable;
use serde::{Deserialize, Serialize};

use crate::json_record;

/// Version of the record.
const VERSION: u32 = 1;

/// How far a disk was compared with its source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditRecord {
    version: u32,
    /// The audit under way.
    pub pass: Option<AuditedPass>,
    /// The last one that ended, or was cancelled.
    pub last: Option<AuditedPass>,
}

/// An audit of a whole disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditedPass {
    /// When it began, in microseconds since 1970.
    pub started_us: i64,
    /// When it ended; zero while it is under way.
    pub ended_us: i64,
    /// Whether it was cancelled before its end.
    pub cancelled: bool,
    /// Blocks of the disk.
    pub size: u64,
    /// All blocks before this one were compared.
    pub position: u64,
    /// Of them: written meanwhile, and so sent anew. After a restart some may be counted again.
    pub sent_anew: u64,
    /// Of them: different.
    pub differed: u64,
    /// Of them: not to be read here, or known to be wrong before.
    pub unreadable: u64,
}

impl AuditRecord {
    /// Reads a record; one that cannot be read counts as none, and the log says so.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let read = json_record::read(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the record of comparisons with the source cannot be read");
            None
        });
        read.unwrap_or_default()
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The file cannot be written; the old one stays.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Self { version: VERSION, ..*self }).map_err(io::Error::other)?;
        durable::replace(path, &bytes, durable::MODE_PRIVATE)
    }

    /// The pass is over.
    pub fn end(&mut self, now_us: i64, cancelled: bool) {
        if let Some(pass) = self.pass.take() {
            self.last = Some(AuditedPass { ended_us: now_us, cancelled, ..pass });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AuditRecord, AuditedPass};

    #[test]
    fn a_pass_is_found_again_and_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.json");
        assert_eq!(AuditRecord::load(&path), AuditRecord::default());
        let pass =
            AuditedPass { started_us: 5, size: 100, position: 64, differed: 1, ..AuditedPass::default() };
        let mut record = AuditRecord { pass: Some(pass), ..AuditRecord::default() };
        record.store(&path).unwrap();
        record = AuditRecord::load(&path);
        assert_eq!(record.pass, Some(pass));
        record.end(9, true);
        record.end(10, false);
        assert_eq!(record.last, Some(AuditedPass { ended_us: 9, cancelled: true, ..pass }));
        std::fs::write(&path, b"{\"pass\":7}").unwrap();
        assert_eq!(AuditRecord::load(&path), AuditRecord::default());
    }
}
