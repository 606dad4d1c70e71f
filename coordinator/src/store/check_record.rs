//! How far a log was checked, across restarts.
//!
//! Owns the record and its file. Does not know what is checked when. Invariant: the file never keeps the log from working:
//! without it everything is checked once more. What it says is never ahead of what was done.
//! Format: `checks.json`, one JSON object with the fields of [`CheckRecord`], replaced as a whole; unknown fields are ignored,
//! missing ones have their defaults. History of `version`: 1, first.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};

use holdfast_common::{clock::Timestamp, durable, ids::Sequence};

use crate::json_record;

/// Version of the record.
const VERSION: u32 = 1;

/// How far a log was checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckRecord {
    version: u32,
    /// A cut: what any cut up to here needs was read once since it was written, and is good or was noted as damaged.
    pub verified_to: u64,
    /// The pass over the whole log that is under way.
    pub pass: Option<ScrubPass>,
    /// The last pass that came to its end.
    pub last: Option<ScrubPass>,
    /// When the log was first seen, in microseconds since 1970: its first pass counts from there.
    pub since_us: i64,
}

/// A pass over the whole log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ScrubPass {
    /// When it began, in microseconds since 1970.
    pub started_us: i64,
    /// When it ended; zero while it is under way.
    pub ended_us: i64,
    /// Frames up to here were read.
    pub position: u64,
    /// The pass ends with this frame.
    pub up_to: u64,
    /// Bytes read and found good.
    pub good_bytes: u64,
    /// Frames that were found damaged.
    pub bad_frames: u64,
    /// Whether an operator asked for it; then it is done at the rate of verification.
    pub asked: bool,
}

impl CheckRecord {
    /// Reads the record of a log that ends at `last`; what lies behind was replaced by other frames since.
    #[must_use]
    pub fn load(path: &Path, last: Sequence, now: Timestamp) -> Self {
        let fresh = Self { version: VERSION, since_us: now.0, ..Self::default() };
        let read = json_record::read(path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the record of checks cannot be read; all is checked again");
            None
        });
        let mut record: Self = read.unwrap_or(fresh);
        record.verified_to = record.verified_to.min(last.0);
        record.pass = record.pass.filter(|pass| pass.position <= pass.up_to && pass.up_to <= last.0);
        record
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The file cannot be written; the old one stays.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Self { version: VERSION, ..*self }).map_err(io::Error::other)?;
        durable::replace(path, &bytes, durable::MODE_PRIVATE)
    }

    /// Begins a pass over a log that ends at `last`.
    pub fn begin_pass(&mut self, last: Sequence, now: Timestamp, asked: bool) {
        self.pass = Some(ScrubPass { started_us: now.0, up_to: last.0, asked, ..ScrubPass::default() });
    }

    /// Part of the pass is done; ends it if that was the last.
    pub fn advance_pass(&mut self, position: Sequence, good_bytes: u64, bad_frames: u64, now: Timestamp) {
        let Some(pass) = &mut self.pass else { return };
        pass.position = pass.position.max(position.0);
        pass.good_bytes += good_bytes;
        pass.bad_frames += bad_frames;
        if pass.position >= pass.up_to {
            self.last = Some(ScrubPass { ended_us: now.0, ..*pass });
            self.pass = None;
        }
    }

    /// When the next pass is due, if one is made every `period_us`.
    #[must_use]
    pub fn due_us(&self, period_us: i64) -> i64 {
        self.last.map_or(self.since_us, |last| last.started_us).saturating_add(period_us)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::{clock::Timestamp, ids::Sequence};

    use super::CheckRecord;

    #[test]
    fn a_pass_goes_on_after_a_restart_and_ends_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks.json");
        let mut record = CheckRecord::load(&path, Sequence(100), Timestamp(5));
        assert_eq!(record.due_us(10), 15);
        record.verified_to = 90;
        record.begin_pass(Sequence(100), Timestamp(20), true);
        record.advance_pass(Sequence(60), 1000, 2, Timestamp(30));
        record.store(&path).unwrap();
        let mut record = CheckRecord::load(&path, Sequence(100), Timestamp(40));
        assert_eq!((record.verified_to, record.pass.unwrap().position), (90, 60));
        record.advance_pass(Sequence(100), 500, 0, Timestamp(50));
        let last = record.last.unwrap();
        assert_eq!((last.good_bytes, last.bad_frames, last.ended_us), (1500, 2, 50));
        assert!(record.pass.is_none());
        // The next one is due a period after this one began.
        assert_eq!(record.due_us(10), 30);
    }

    #[test]
    fn a_shorter_log_takes_back_what_lay_behind_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checks.json");
        let mut record = CheckRecord { verified_to: 90, ..CheckRecord::default() };
        record.begin_pass(Sequence(100), Timestamp(0), false);
        record.store(&path).unwrap();
        let record = CheckRecord::load(&path, Sequence(50), Timestamp(0));
        assert_eq!((record.verified_to, record.pass), (50, None));
        std::fs::write(&path, b"{").unwrap();
        assert_eq!(CheckRecord::load(&path, Sequence(50), Timestamp(7)).verified_to, 0);
    }
}
