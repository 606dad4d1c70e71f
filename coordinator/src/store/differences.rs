//! Ranges of one disk whose stored bytes are known not to be the source's, across restarts.
//!
//! Owns the list and its file. Does not know who found them, nor who needs them. Invariant: what is in the list is in the file,
//! or the failure to write it was logged; that there is more than can be kept is kept, so that nothing is passed over.
//! Limit: [`DIFFERENCES_MAX`] ranges; if there are more, the whole disk is compared anew.
//! Format: `differs.json`, one JSON object with the fields of [`Record`], replaced as a whole; unknown fields are ignored,
//! missing ones have their defaults. History of `version`: 1, first.

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{
    clock::Timestamp,
    durable,
    ids::Sequence,
    units::{BlockIndex, BlockRange},
};
use serde::{Deserialize, Serialize};

use crate::json_record;

/// Version of the record.
const VERSION: u32 = 1;

/// Most ranges that are kept.
pub const DIFFERENCES_MAX: usize = 4096;

/// Some blocks that the source had otherwise at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// The cut at which it was proven: the versions of these blocks that are in the log up to it are wrong there.
    pub cut: u64,
    /// First block.
    pub start: u64,
    /// Number of blocks.
    pub count: u64,
}

/// What was found since all was last known to be equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Alarm {
    /// Blocks.
    pub blocks: u64,
    /// When the first of them was found, in microseconds since 1970.
    pub first_us: i64,
    /// When the last of them was.
    pub last_us: i64,
}

/// What stands in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    version: u32,
    differences: Vec<Difference>,
    alarm: Option<Alarm>,
    overflowed: bool,
}

/// The differences of one log.
#[derive(Debug)]
pub struct Differences {
    path: PathBuf,
    record: Mutex<Record>,
}

impl Difference {
    /// The blocks.
    #[must_use]
    pub const fn range(&self) -> BlockRange {
        BlockRange::new(self.start, self.count)
    }

    /// The cut.
    #[must_use]
    pub const fn at(&self) -> Sequence {
        Sequence(self.cut)
    }
}

impl Differences {
    /// Reads the list; one that cannot be read is begun anew, and named in `remarks`.
    pub(super) fn load(path: PathBuf, remarks: &mut Vec<String>) -> Self {
        let record = json_record::read(&path).unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "the list of ranges that differ from the source cannot be read");
            let advice = "ranges that were known to differ from the source are not known any more; run `holdfast compare start`";
            remarks.push(format!("{} cannot be read: {error}; {advice}", path.display()));
            None
        });
        Self { path, record: Mutex::new(record.unwrap_or_default()) }
    }

    /// The log ends at `last`; what lay behind was replaced by other frames since.
    pub(super) fn end_at(&self, last: Sequence) {
        self.record().differences.retain(|difference| difference.cut <= last.0);
    }

    /// The source had these blocks otherwise at the cut. What is known costs nothing. Gives how many of the blocks are new.
    pub fn note(&self, cut: Sequence, ranges: &[BlockRange], now: Timestamp) -> u64 {
        let mut record = self.record();
        let mut new = 0;
        for range in ranges {
            for block in range.start.0..range.end().0 {
                let known = record
                    .differences
                    .iter()
                    .any(|known| known.cut <= cut.0 && known.range().contains(BlockIndex(block)));
                if known {
                    continue;
                }
                new += 1;
                let ends_here =
                    |last: &&mut Difference| last.cut == cut.0 && last.start + last.count == block;
                if let Some(last) = record.differences.last_mut().filter(ends_here) {
                    last.count += 1;
                } else if record.differences.len() < DIFFERENCES_MAX {
                    record.differences.push(Difference { cut: cut.0, start: block, count: 1 });
                } else {
                    record.overflowed = true;
                }
            }
        }
        if new > 0 {
            let alarm = record.alarm.get_or_insert(Alarm { blocks: 0, first_us: now.0, last_us: now.0 });
            alarm.blocks += new;
            alarm.last_us = now.0;
            self.store(&mut record);
        }
        new
    }

    /// Whether there were more than can be kept: then the disk must be compared anew.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.record().overflowed
    }

    /// The disk is being compared anew.
    pub fn compared_anew(&self) {
        let mut record = self.record();
        record.overflowed = false;
        self.store(&mut record);
    }

    /// No cut needs these blocks' wrong versions any more.
    pub fn forget(&self, cut: Sequence) {
        let mut record = self.record();
        let before = record.differences.len();
        record.differences.retain(|difference| difference.cut != cut.0);
        if record.differences.len() != before {
            self.store(&mut record);
        }
    }

    /// All of the disk was compared, and what was found before a time is accounted for.
    pub fn all_compared(&self, since: Timestamp) {
        let mut record = self.record();
        if record.alarm.is_some_and(|alarm| alarm.last_us < since.0) {
            record.alarm = None;
            self.store(&mut record);
        }
    }

    /// The ranges, in the order of their cuts.
    #[must_use]
    pub fn list(&self) -> Vec<Difference> {
        let mut list = self.record().differences.clone();
        list.sort_unstable();
        list
    }

    /// What was found since all was last known to be equal.
    #[must_use]
    pub fn alarm(&self) -> Option<Alarm> {
        self.record().alarm
    }

    fn store(&self, record: &mut Record) {
        record.version = VERSION;
        let stored = serde_json::to_vec(record)
            .map_err(io::Error::other)
            .and_then(|bytes| durable::replace(&self.path, &bytes, durable::MODE_PRIVATE));
        if let Err(error) = stored {
            tracing::error!(path = %self.path.display(), %error, "the list of ranges that differ from the source cannot be written");
        }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::{clock::Timestamp, ids::Sequence, units::BlockRange};

    use super::{Alarm, DIFFERENCES_MAX, Difference, Differences};

    fn load(folder: &tempfile::TempDir, last: u64) -> Differences {
        let mut remarks = Vec::new();
        let differences = Differences::load(folder.path().join("differs.json"), &mut remarks);
        assert!(remarks.is_empty(), "{remarks:?}");
        differences.end_at(Sequence(last));
        differences
    }

    #[test]
    fn what_is_known_is_not_noted_twice_and_outlives_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let differences = load(&folder, 0);
        let ranges = [BlockRange::new(4, 2), BlockRange::new(9, 1)];
        assert_eq!(differences.note(Sequence(7), &ranges, Timestamp(100)), 3);
        assert_eq!(differences.note(Sequence(8), &[BlockRange::new(4, 3)], Timestamp(200)), 1);
        let differences = load(&folder, 9);
        let expected = [(7, 4, 2), (7, 9, 1), (8, 6, 1)];
        assert_eq!(differences.list(), expected.map(|(cut, start, count)| Difference { cut, start, count }));
        assert_eq!(differences.alarm(), Some(Alarm { blocks: 4, first_us: 100, last_us: 200 }));
        assert_eq!(load(&folder, 7).list().len(), 2, "behind the log's end nothing is known");
        differences.forget(Sequence(7));
        assert_eq!(load(&folder, 9).list().len(), 1);
    }

    #[test]
    fn the_alarm_ends_when_all_was_compared_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let differences = load(&folder, 0);
        differences.note(Sequence(7), &[BlockRange::new(4, 2)], Timestamp(100));
        differences.all_compared(Timestamp(100));
        assert!(differences.alarm().is_some(), "found while it was compared");
        differences.all_compared(Timestamp(101));
        assert!(load(&folder, 9).alarm().is_none());
    }

    #[test]
    fn more_than_can_be_kept_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let differences = load(&folder, 0);
        let scattered: Vec<BlockRange> =
            (0..DIFFERENCES_MAX as u64).map(|block| BlockRange::new(block * 2, 1)).collect();
        assert_eq!(differences.note(Sequence(1), &scattered, Timestamp(1)), DIFFERENCES_MAX as u64);
        assert!(!differences.overflowed());
        assert_eq!(differences.note(Sequence(1), &[BlockRange::new(1, 1)], Timestamp(1)), 1);
        assert!(load(&folder, 1).overflowed());
        differences.compared_anew();
        assert!(!load(&folder, 1).overflowed());
    }
}
