//! Which incarnation of tracking each disk's generation is built on.
//!
//! Owns one small file in the state folder. If tracking is of another incarnation than the one in which the generation's
//! scan began, changes in between are unknown. A lost or damaged file costs a resync, never a wrong replica.
//! Format: JSON, `{"version":1,"disks":{"<disk>":{"generation":1,"incarnation":2}}}`.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use holdfast_common::{
    durable,
    ids::{DiskId, Generation},
};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Basis {
    generation: Generation,
    incarnation: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    disks: BTreeMap<DiskId, Basis>,
}

/// The record.
#[derive(Debug)]
pub(super) struct Incarnations {
    path: PathBuf,
    disks: BTreeMap<DiskId, Basis>,
}

impl Incarnations {
    /// Reads the record of a state folder; one that cannot be used counts as empty.
    pub(super) fn load(path: PathBuf) -> Self {
        let disks = match fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Stored>(&text) {
                Ok(stored) if stored.version == VERSION => stored.disks,
                _ => {
                    tracing::warn!(path = %path.display(), "not usable; all disks will be compared with their replicas");
                    BTreeMap::new()
                }
            },
            Err(_) => BTreeMap::new(),
        };
        Self { path, disks }
    }

    /// Whether a generation is built on this incarnation.
    pub(super) fn matches(&self, disk: DiskId, generation: Generation, incarnation: u64) -> bool {
        self.disks.get(&disk) == Some(&Basis { generation, incarnation })
    }

    /// Whether this agent has ever begun to track the disk, and not forgotten it.
    pub(super) fn knows(&self, disk: DiskId) -> bool {
        self.disks.contains_key(&disk)
    }

    /// The scan of a generation begins in this incarnation.
    pub(super) fn begin(&mut self, disk: DiskId, generation: Generation, incarnation: u64) -> io::Result<()> {
        self.disks.insert(disk, Basis { generation, incarnation });
        self.store()
    }

    /// The disks that are protected; others are forgotten.
    pub(super) fn keep(&mut self, disks: &[DiskId]) -> io::Result<()> {
        let before = self.disks.len();
        self.disks.retain(|disk, _| disks.contains(disk));
        if self.disks.len() == before { Ok(()) } else { self.store() }
    }

    fn store(&self) -> io::Result<()> {
        let stored = Stored { version: VERSION, disks: self.disks.clone() };
        durable::replace(&self.path, &serde_json::to_vec(&stored)?, durable::MODE_PRIVATE)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::ids::{DiskId, Generation};

    use super::Incarnations;

    #[test]
    fn outlives_the_process_and_forgets_what_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("incarnations.json");
        let disk = DiskId::from_bytes([7; 16]);
        let mut record = Incarnations::load(path.clone());
        assert!(!record.matches(disk, Generation(1), 5));
        record.begin(disk, Generation(1), 5).unwrap();
        let mut record = Incarnations::load(path.clone());
        assert!(record.matches(disk, Generation(1), 5));
        assert!(!record.matches(disk, Generation(2), 5) && !record.matches(disk, Generation(1), 6));
        record.keep(&[]).unwrap();
        assert!(!Incarnations::load(path.clone()).matches(disk, Generation(1), 5));
        std::fs::write(&path, b"{\"version\":1,").unwrap();
        assert!(!Incarnations::load(path).matches(disk, Generation(1), 5));
    }
}
