//! Frames of one log that are known to be damaged, across restarts.
//!
//! Owns the list and its file. Does not know what the frames hold, nor who needs them.
//! Invariant: the file never keeps the log from working: without it damage is found again when it is read.
//! Limit: [`BAD_FRAMES_MAX`] frames; further ones still give errors when they are read, but are not listed.
//! Format: `damaged.json`, a list of sequences, replaced as a whole.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{durable, ids::Sequence};

use crate::json_record;

/// Most frames that are listed.
pub const BAD_FRAMES_MAX: usize = 1 << 16;

/// Frames of one log that are known to be damaged.
#[derive(Debug)]
pub struct BadFrames {
    path: PathBuf,
    frames: Mutex<BTreeSet<u64>>,
}

impl BadFrames {
    /// Reads the list; one that cannot be read is begun anew, and named in `remarks`.
    pub(super) fn load(path: PathBuf, remarks: &mut Vec<String>) -> Self {
        let frames = json_record::read(&path).unwrap_or_else(|error| {
            tracing::warn!(path = %path.display(), %error, "the list of damaged frames cannot be read; it is begun anew");
            remarks.push(format!("{} cannot be read: {error}; damaged frames are found again when they are read", path.display()));
            None
        });
        Self { path, frames: Mutex::new(frames.unwrap_or_default()) }
    }

    /// The log ends at `last`; what lay behind was replaced by other frames since.
    pub(super) fn end_at(&self, last: Sequence) {
        self.frames().retain(|frame| *frame <= last.0);
    }

    /// These frames cannot be read. Known ones cost nothing.
    pub fn note(&self, sequences: impl IntoIterator<Item = Sequence>) {
        let mut frames = self.frames();
        let before = frames.len();
        for sequence in sequences {
            if frames.len() >= BAD_FRAMES_MAX {
                break;
            }
            frames.insert(sequence.0);
        }
        if frames.len() != before {
            self.store(&frames);
        }
    }

    /// This frame is good again, or nobody needs it any more.
    pub fn forget(&self, sequence: Sequence) {
        let mut frames = self.frames();
        if frames.remove(&sequence.0) {
            self.store(&frames);
        }
    }

    /// The frames, ascending.
    #[must_use]
    pub fn list(&self) -> Vec<Sequence> {
        self.frames().iter().copied().map(Sequence).collect()
    }

    fn store(&self, frames: &BTreeSet<u64>) {
        let stored = serde_json::to_vec(frames)
            .map_err(io::Error::other)
            .and_then(|bytes| durable::replace(&self.path, &bytes, durable::MODE_PRIVATE));
        if let Err(error) = stored {
            tracing::warn!(path = %self.path.display(), %error, "the list of damaged frames cannot be written");
        }
    }

    fn frames(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::ids::Sequence;

    use super::BadFrames;

    #[test]
    fn the_list_outlives_the_process_and_ends_with_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("damaged.json");
        let load = |last| {
            let mut remarks = Vec::new();
            let bad = BadFrames::load(path.clone(), &mut remarks);
            bad.end_at(Sequence(last));
            (bad, remarks)
        };
        let (bad, _) = load(0);
        bad.note([Sequence(7), Sequence(3), Sequence(9)]);
        bad.forget(Sequence(3));
        assert_eq!(bad.list(), [Sequence(7), Sequence(9)]);
        assert_eq!(load(9).0.list(), [Sequence(7), Sequence(9)]);
        assert_eq!(load(8).0.list(), [Sequence(7)]);
        std::fs::write(&path, b"no list").unwrap();
        let (bad, remarks) = load(9);
        assert!(bad.list().is_empty() && remarks[0].contains("damaged.json"), "{remarks:?}");
    }
}
