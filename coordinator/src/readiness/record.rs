//! What is kept of a machine's last look.
//!
//! Owns the record and its file. Without the file the machine is looked at again.
//! Format: `readiness/MACHINE.json` in the data folder, one JSON object with the fields of [`ReadinessRecord`], replaced as a
//! whole; unknown fields are ignored, missing ones have their defaults. History of `version`: 1, first.

use std::{fs, io, path::Path};

use holdfast_common::{clock::Timestamp, durable};
use serde::{Deserialize, Serialize};

use super::Report;
use crate::json_record;

/// Version of the record.
const VERSION: u32 = 1;

/// A look and what it found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadinessRecord {
    version: u32,
    /// When, in microseconds since 1970.
    pub at_us: i64,
    /// The point that was looked at; empty if none.
    pub point: String,
    /// Of what it was made: another inventory or other settings ask for another look.
    pub basis: String,
    /// What was found.
    pub report: Report,
}

impl ReadinessRecord {
    /// A record of now.
    #[must_use]
    pub const fn new(at: Timestamp, point: String, basis: String, report: Report) -> Self {
        Self { version: VERSION, at_us: at.0, point, basis, report }
    }

    /// Reads a record; none if there is none that this program can read.
    #[must_use]
    pub fn load(path: &Path) -> Option<Self> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a record of readiness cannot be read; the machine is looked at again");
                return None;
            }
        };
        Self::parse(&bytes).ok()
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// It is no such record, or a newer version wrote it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        json_record::parse(bytes, VERSION, |record: &Self| record.version)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The file cannot be written; the old one stays.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        durable::replace(path, &bytes, durable::MODE_PRIVATE)
    }
}
