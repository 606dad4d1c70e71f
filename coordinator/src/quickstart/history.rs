//! A writer whose history can be checked: the write-order oracle.
//!
//! Owns a schedule of numbered operations over one or several files or devices, the writer that carries it out one
//! operation after the other, and the check that some state holds exactly a prefix of it. Does not know replication.
//! Invariant: the operation of a number depends only on the seed, so a check needs no record of what was written.
//!
//! Each target is an array of slots of [`SLOT_BYTES`]. An operation writes its number (with a digest) into one slot, or
//! punches a hole there. A state is a prefix if there is a number `k` such that every slot of every target holds what
//! the newest of the operations `1..=k` on it left, and nothing of a later one.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::FallocateFlags;
use thiserror::Error;

/// Size of one slot: a block, so that no write is torn by the file system.
pub const SLOT_BYTES: usize = 4096;

/// One write in this many operations is followed by fsync.
const SYNC_EVERY: u64 = 16;
/// One operation in this many punches a hole.
const DISCARD_EVERY: u64 = 8;

/// What is written where, in which order.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// Determines every operation.
    pub seed: u64,
    /// Files or block devices, one per disk.
    pub targets: Vec<PathBuf>,
    /// Slots in each target.
    pub slots: u64,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Operation {
    target: usize,
    slot: u64,
    discard: bool,
    sync: bool,
}

/// What a checked state holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// All operations up to this number are in, and none after it.
    pub operations: u64,
}

/// Why a state is no prefix.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// A target cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// The file or device.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A slot holds bytes that no operation wrote.
    #[error("slot {slot} of {path} holds bytes that nobody wrote")]
    Foreign {
        /// The file or device.
        path: PathBuf,
        /// The slot.
        slot: u64,
    },
    /// A slot holds another operation than the prefix demands.
    #[error(
        "not a prefix: operation {newest} is in, so slot {slot} of {path} must hold operation {expected}, \
         but holds {found} (0: a hole)"
    )]
    NotAPrefix {
        /// The newest operation found anywhere.
        newest: u64,
        /// The file or device.
        path: PathBuf,
        /// The slot.
        slot: u64,
        /// The operation that the slot must hold; 0 for a hole.
        expected: u64,
        /// The operation that it holds; 0 for a hole.
        found: u64,
    },
}

impl Schedule {
    fn operation(&self, number: u64) -> Operation {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.seed.to_le_bytes()).update(&number.to_le_bytes());
        let mut random = hasher.finalize_xof();
        let mut next = || {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            u64::from_le_bytes(bytes)
        };
        let targets = self.targets.len().max(1) as u64;
        Operation {
            target: usize::try_from(next() % targets).unwrap_or(0),
            slot: next() % self.slots.max(1),
            discard: next() % DISCARD_EVERY == 0,
            sync: next() % SYNC_EVERY == 0,
        }
    }

    fn content(&self, number: u64) -> [u8; SLOT_BYTES] {
        let mut content = [0; SLOT_BYTES];
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"holdfast history").update(&self.seed.to_le_bytes()).update(&number.to_le_bytes());
        // Half random, half zero: compresses as real data does.
        hasher.finalize_xof().fill(&mut content[8..SLOT_BYTES / 2]);
        content[..8].copy_from_slice(&number.to_le_bytes());
        content
    }

    /// Creates the target files (block devices are left as they are), all holes.
    ///
    /// # Errors
    /// A file cannot be created or sized.
    pub fn create(&self) -> io::Result<()> {
        for path in &self.targets {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
            if file.metadata()?.is_file() {
                file.set_len(self.slots * SLOT_BYTES as u64)?;
            }
        }
        Ok(())
    }

    /// A writer that begins after operation `done`.
    ///
    /// # Errors
    /// A target cannot be opened.
    pub fn writer(&self, done: u64) -> io::Result<HistoryWriter> {
        let files = self.targets.iter().map(|path| OpenOptions::new().write(true).open(path));
        Ok(HistoryWriter { files: files.collect::<io::Result<_>>()?, schedule: self.clone(), done })
    }

    /// Checks that the targets, found at other paths (in the order of the schedule), hold exactly a prefix.
    ///
    /// # Errors
    /// What was found instead.
    pub fn check(&self, targets: &[PathBuf]) -> Result<Prefix, HistoryError> {
        let mut found = HashMap::new();
        for (target, path) in targets.iter().enumerate() {
            let file = File::open(path).map_err(|source| io_error(path, source))?;
            for slot in 0..self.slots {
                let number = self.read_slot(&file, path, slot)?;
                if number > 0 {
                    found.insert((target, slot), number);
                }
            }
        }
        let newest = found.values().copied().max().unwrap_or(0);
        let mut expected = HashMap::new();
        for number in 1..=newest {
            self.apply(number, &mut expected);
        }
        // Operations after the newest visible one may be in too, as long as they are discards.
        let mut operations = newest;
        let mut difference = first_difference(&expected, &found);
        while difference.is_some() && self.operation(operations + 1).discard {
            operations += 1;
            self.apply(operations, &mut expected);
            difference = first_difference(&expected, &found);
        }
        match difference {
            None => Ok(Prefix { operations }),
            Some((target, slot)) => Err(HistoryError::NotAPrefix {
                newest,
                path: targets.get(target).cloned().unwrap_or_default(),
                slot,
                expected: expected.get(&(target, slot)).copied().unwrap_or(0),
                found: found.get(&(target, slot)).copied().unwrap_or(0),
            }),
        }
    }

    fn apply(&self, number: u64, state: &mut HashMap<(usize, u64), u64>) {
        let operation = self.operation(number);
        if operation.discard {
            state.remove(&(operation.target, operation.slot));
        } else {
            state.insert((operation.target, operation.slot), number);
        }
    }

    fn read_slot(&self, file: &File, path: &Path, slot: u64) -> Result<u64, HistoryError> {
        let mut content = [0; SLOT_BYTES];
        file.read_exact_at(&mut content, slot * SLOT_BYTES as u64)
            .map_err(|source| io_error(path, source))?;
        let number = u64::from_le_bytes(content[..8].try_into().unwrap_or_default());
        let valid =
            if number == 0 { content.iter().all(|byte| *byte == 0) } else { content == self.content(number) };
        if valid { Ok(number) } else { Err(HistoryError::Foreign { path: path.to_owned(), slot }) }
    }
}

fn io_error(path: &Path, source: io::Error) -> HistoryError {
    HistoryError::Io { path: path.to_owned(), source }
}

fn first_difference(
    expected: &HashMap<(usize, u64), u64>,
    found: &HashMap<(usize, u64), u64>,
) -> Option<(usize, u64)> {
    let mut slots: Vec<_> = expected.keys().chain(found.keys()).copied().collect();
    slots.sort_unstable();
    slots.into_iter().find(|slot| expected.get(slot) != found.get(slot))
}

/// Carries a schedule out, strictly one operation after the other.
#[derive(Debug)]
pub struct HistoryWriter {
    schedule: Schedule,
    files: Vec<File>,
    done: u64,
}

impl HistoryWriter {
    /// Carries out the next operation and returns its number. When it returns, the operation has happened: a cut made
    /// later holds it.
    ///
    /// # Errors
    /// The operation failed; the history must not be continued.
    pub fn step(&mut self) -> io::Result<u64> {
        let number = self.done + 1;
        let operation = self.schedule.operation(number);
        let file = self.files.get(operation.target).ok_or(io::ErrorKind::NotFound)?;
        let offset = operation.slot * SLOT_BYTES as u64;
        if operation.discard {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(file, flags, offset, SLOT_BYTES as u64)?;
        } else {
            file.write_all_at(&self.schedule.content(number), offset)?;
        }
        if operation.sync {
            holdfast_common::durable::sync_data(file)?;
        }
        self.done = number;
        Ok(number)
    }

    /// Number of the last operation that happened.
    #[must_use]
    pub const fn done(&self) -> u64 {
        self.done
    }
}

#[cfg(test)]
mod tests;
