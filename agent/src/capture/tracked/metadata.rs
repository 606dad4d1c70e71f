//! The pinned record that lets a new process trust what an earlier one attached, or say why not.
//!
//! Owns the record's layout and the comparison. Does not know maps or programs.
//! Invariant: the magic number is written last, so a record that was not finished is never trusted.
//!
//! Format, 64-bit words in the byte order of the machine:
//!
//! | word | meaning |
//! |---|---|
//! | 0 | magic number with the version of record and programs; zero while being made |
//! | 1 | hash of the kernel's boot id |
//! | 2 | incarnation |
//! | 3 | device number |
//! | 4 | size in sectors of 512 bytes |
//! | 5 | first sector on the whole disk (partitions) |
//! | 6 | the disk's sequence number (changes with its medium or backing file) |
//! | 7 | layout of the slots: 0 for bios, else rows, and bits of a row's columns in the upper half |
//! | 8 | takes so far |
//! | 9 | 1 if word 10 holds the baseline |
//! | 10 | baseline of the guard, in sectors |
//! | 11 | 1 if tracking was found to be incomplete |
//!
//! A reader refuses any other magic number. Version 1 is the first.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::{
    program::PROGRAM_VERSION,
    target::{Kind, Target},
};
use crate::capture::CaptureError;

/// Words in the record; those not named are zero.
pub(super) const WORDS: usize = 16;
const MAGIC: u64 = 0x4846_5452_4143_0000 | PROGRAM_VERSION;

/// Position of a field.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Field {
    Magic,
    Boot,
    Incarnation,
    Device,
    Sectors,
    StartSector,
    DiskSequence,
    Slots,
    Takes,
    HasBaseline,
    Baseline,
    IsUntrusted,
}

/// What identifies the device that programs were attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) boot: u64,
    pub(super) device: u64,
    pub(super) sectors: u64,
    pub(super) start_sector: u64,
    pub(super) disk_sequence: u64,
    pub(super) slots: u64,
}

impl Identity {
    pub(super) fn of(target: &Target) -> Result<Self, CaptureError> {
        Ok(Self {
            boot: boot(),
            device: target.device_number,
            sectors: target.window.sectors,
            start_sector: target.window.start_sector,
            disk_sequence: target.disk_sequence()?,
            slots: match target.kind {
                Kind::Bios => 0,
                Kind::Requests(shape) => u64::from(shape.column_bits) << 32 | u64::from(shape.rows),
            },
        })
    }

    /// Why what was attached to `self` does not hold for `now`; `None` if it does.
    pub(super) fn difference(&self, now: &Self) -> Option<String> {
        let changed = |what: &str, then: u64, now: u64| format!("{what} was {then} and is {now}");
        if self.boot != now.boot {
            return Some("the machine was restarted".into());
        }
        if self.device != now.device {
            return Some(changed("the device number", self.device, now.device));
        }
        if self.disk_sequence != now.disk_sequence {
            return Some(format!(
                "the medium or backing file was replaced or detached (sequence {} before, {} now)",
                self.disk_sequence, now.disk_sequence
            ));
        }
        if self.sectors != now.sectors {
            return Some(changed("the size in sectors", self.sectors, now.sectors));
        }
        if self.start_sector != now.start_sector {
            return Some(changed("the partition's first sector", self.start_sector, now.start_sector));
        }
        (self.slots != now.slots).then(|| "the layout of its hardware queues changed".into())
    }
}

/// The record, over the words of its map.
pub(super) struct Metadata<'a>(pub(super) &'a [AtomicU64]);

impl Metadata<'_> {
    /// Fills the record; trusted from here on.
    pub(super) fn write(&self, identity: &Identity, incarnation: u64) {
        self.set(Field::Boot, identity.boot);
        self.set(Field::Device, identity.device);
        self.set(Field::Sectors, identity.sectors);
        self.set(Field::StartSector, identity.start_sector);
        self.set(Field::DiskSequence, identity.disk_sequence);
        self.set(Field::Slots, identity.slots);
        self.set(Field::Incarnation, incarnation);
        self.set(Field::Magic, MAGIC);
    }

    /// What the record says.
    ///
    /// # Errors
    /// Why nothing in it can be used.
    pub(super) fn read(&self) -> Result<Identity, String> {
        match self.get(Field::Magic) {
            MAGIC => {}
            0 => return Err("an earlier start of tracking was not completed".into()),
            _ => return Err("it was attached by another version of the agent".into()),
        }
        if self.get(Field::IsUntrusted) != 0 {
            return Err("it had been found to be incomplete".into());
        }
        Ok(Identity {
            boot: self.get(Field::Boot),
            device: self.get(Field::Device),
            sectors: self.get(Field::Sectors),
            start_sector: self.get(Field::StartSector),
            disk_sequence: self.get(Field::DiskSequence),
            slots: self.get(Field::Slots),
        })
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.get(Field::Incarnation)
    }

    pub(super) fn takes(&self) -> u64 {
        self.get(Field::Takes)
    }

    pub(super) fn count_take(&self) {
        self.set(Field::Takes, self.takes().wrapping_add(1));
    }

    pub(super) fn baseline(&self) -> Option<u64> {
        (self.get(Field::HasBaseline) == 1).then(|| self.get(Field::Baseline))
    }

    pub(super) fn set_baseline(&self, baseline: u64) {
        self.set(Field::Baseline, baseline);
        self.set(Field::HasBaseline, 1);
    }

    pub(super) fn distrust(&self) {
        self.set(Field::IsUntrusted, 1);
    }

    fn get(&self, field: Field) -> u64 {
        self.0.get(field as usize).map_or(0, |word| word.load(SeqCst))
    }

    fn set(&self, field: Field, value: u64) {
        if let Some(word) = self.0.get(field as usize) {
            word.store(value, SeqCst);
        }
    }
}

/// Reads bytes as a record, and compares it with itself.
pub(super) fn decode_any(bytes: &[u8]) {
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<AtomicU64> = words.iter().map(|word| AtomicU64::new(u64::from_ne_bytes(*word))).collect();
    let record = Metadata(&words);
    if let Ok(identity) = record.read() {
        let _ = identity.difference(&Identity { boot: identity.boot, ..identity });
    }
    let _ = (record.incarnation(), record.takes(), record.baseline());
}

/// Hash of the kernel's boot id: another one after each start.
fn boot() -> u64 {
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hash = blake3::hash(&text);
    hash.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
