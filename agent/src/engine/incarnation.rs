//! Which incarnation of tracking each disk's generation is built on.
//!
//! Owns one small file in the state folder; clones share it. If tracking is of another incarnation than the one in which the
//! generation's scan began, changes in between are unknown. A disk that was written back is built on what it was brought to: it holds
//! the state at that frame but for what is marked. A lost or damaged file costs a resync, never a wrong replica.
//! Format: JSON, `{"version":2,"disks":{"<disk>":{"generation":1,"incarnation":2,"brought_to":3}}}`; `brought_to` is left out
//! where it is zero. Version 1 had none.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{
    durable,
    ids::{DiskId, Generation, Sequence},
};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 2;
/// No disk's: generations begin at one.
const NONE: Generation = Generation(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Basis {
    generation: Generation,
    incarnation: u64,
    /// Zero: what this agent has sent and the coordinator acknowledged is what the disk is built on.
    #[serde(default, skip_serializing_if = "is_zero")]
    brought_to: Sequence,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
const fn is_zero(sequence: &Sequence) -> bool {
    sequence.0 == 0
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    disks: BTreeMap<DiskId, Basis>,
}

/// The record.
#[derive(Clone, Debug)]
pub struct Incarnations {
    path: PathBuf,
    disks: Arc<Mutex<BTreeMap<DiskId, Basis>>>,
}

impl Incarnations {
    /// Reads the record of a state folder; one that cannot be used counts as empty.
    #[must_use]
    pub fn load(path: PathBuf) -> Self {
        let disks = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Stored>(&text) {
                Ok(stored) if (1..=VERSION).contains(&stored.version) => stored.disks,
                _ => {
                    tracing::warn!(path = %path.display(), "not usable; all disks will be compared with their replicas");
                    BTreeMap::new()
                }
            },
            Err(_) => BTreeMap::new(),
        };
        Self { path, disks: Arc::new(Mutex::new(disks)) }
    }

    /// Whether a generation whose log ends at `durable` is built on this incarnation.
    pub(super) fn matches(
        &self,
        disk: DiskId,
        generation: Generation,
        incarnation: u64,
        durable: Sequence,
    ) -> bool {
        self.disks().get(&disk).is_some_and(|basis| {
            (basis.generation, basis.incarnation) == (generation, incarnation)
                && (basis.brought_to.0 == 0 || basis.brought_to == durable)
        })
    }

    /// Whether this agent has ever begun to track the disk, and not forgotten it.
    pub(super) fn knows(&self, disk: DiskId) -> bool {
        self.disks().contains_key(&disk)
    }

    /// The disk is captured in this generation and incarnation from now on: its scan begins, or it goes on.
    pub(super) fn begin(&self, disk: DiskId, generation: Generation, incarnation: u64) -> io::Result<()> {
        self.put(disk, Basis { generation, incarnation, brought_to: Sequence(0) })
    }

    /// Marks of the disk are not worth anything any more.
    pub(crate) fn distrust(&self, disk: DiskId) -> io::Result<()> {
        let known = self.disks().get(&disk).copied();
        known.map_or(Ok(()), |basis| self.put(disk, Basis { generation: NONE, ..basis }))
    }

    /// The disk holds the state at this frame, but for what is marked in this incarnation. Durable when it returns.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn brought(
        &self,
        disk: DiskId,
        generation: Generation,
        incarnation: u64,
        sequence: Sequence,
    ) -> io::Result<()> {
        self.put(disk, Basis { generation, incarnation, brought_to: sequence })
    }

    /// What the disk is built on, if its marks have been complete since: the generation, and the frame that it was brought to, or
    /// zero.
    #[must_use]
    pub fn basis(&self, disk: DiskId, incarnation: u64) -> Option<(Generation, Sequence)> {
        let basis = self.disks().get(&disk).copied()?;
        (basis.incarnation == incarnation && basis.generation != NONE)
            .then_some((basis.generation, basis.brought_to))
    }

    /// The disks that are protected; others are forgotten.
    pub(super) fn keep(&self, kept: &[DiskId]) -> io::Result<()> {
        let mut disks = self.disks();
        let before = disks.len();
        disks.retain(|disk, _| kept.contains(disk));
        if disks.len() == before { Ok(()) } else { self.store(&disks) }
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<DiskId, Basis>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, disk: DiskId, basis: Basis) -> io::Result<()> {
        let mut disks = self.disks();
        let before = disks.insert(disk, basis);
        if before == Some(basis) {
            return Ok(());
        }
        self.store(&disks).inspect_err(|_| {
            // What is not durable is not so.
            match before {
                Some(before) => _ = disks.insert(disk, before),
                None => _ = disks.remove(&disk),
            }
        })
    }

    fn store(&self, disks: &BTreeMap<DiskId, Basis>) -> io::Result<()> {
        let stored = Stored { version: VERSION, disks: disks.clone() };
        durable::replace(&self.path, &serde_json::to_vec(&stored)?, durable::MODE_PRIVATE)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::ids::{DiskId, Generation, Sequence};

    use super::Incarnations;

    const DISK: DiskId = DiskId::from_bytes([7; 16]);

    #[test]
    fn outlives_the_process_and_forgets_what_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incarnations.json");
        let matches = |record: &Incarnations, generation, incarnation| {
            record.matches(DISK, Generation(generation), incarnation, Sequence(9))
        };
        let record = Incarnations::load(path.clone());
        assert!(!matches(&record, 1, 5));
        record.begin(DISK, Generation(1), 5).unwrap();
        let record = Incarnations::load(path.clone());
        assert!(matches(&record, 1, 5));
        assert!(!matches(&record, 2, 5) && !matches(&record, 1, 6));
        record.keep(&[]).unwrap();
        assert!(!matches(&Incarnations::load(path.clone()), 1, 5));
        std::fs::write(&path, b"{\"version\":1,").unwrap();
        assert!(!matches(&Incarnations::load(path), 1, 5));
    }

    #[test]
    fn what_was_brought_to_a_frame_goes_on_from_there_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incarnations.json");
        let record = Incarnations::load(path.clone());
        record.brought(DISK, Generation(3), 5, Sequence(40)).unwrap();
        let text = format!(
            r#"{{"version":2,"disks":{{"{DISK}":{{"generation":3,"incarnation":5,"brought_to":40}}}}}}"#
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let record = Incarnations::load(path);
        assert_eq!(record.basis(DISK, 5), Some((Generation(3), Sequence(40))));
        assert_eq!(record.basis(DISK, 6), None);
        let matches = |sequence| record.matches(DISK, Generation(3), 5, Sequence(sequence));
        assert!(matches(40) && !matches(39) && !matches(41));
        // Once it goes on, the log grows by what it sends.
        record.begin(DISK, Generation(3), 5).unwrap();
        assert!(matches(41));
        assert_eq!(record.basis(DISK, 5), Some((Generation(3), Sequence(0))));
        record.distrust(DISK).unwrap();
        assert!(!matches(41) && record.basis(DISK, 5).is_none() && record.knows(DISK));
    }

    #[test]
    fn the_first_version_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incarnations.json");
        let text = format!(r#"{{"version":1,"disks":{{"{DISK}":{{"generation":1,"incarnation":5}}}}}}"#);
        std::fs::write(&path, text).unwrap();
        assert!(Incarnations::load(path).matches(DISK, Generation(1), 5, Sequence(3)));
    }
}
