//! Puts a recovery point together from the cut frames of its disks.
//!
//! Owns the cuts that have arrived on some disks only. Pure: cuts in, outcomes out; knows no catalog and no clock.
//! Invariant: a point is complete once every member's cut frame of the same point id and generation was seen durable,
//! whatever the order; a point that one of its disks has gone past can never become complete and is given up.
//! Limit: [`PARTIALS_MAX`] unfinished cuts; the oldest is given up beyond that.

use std::collections::{BTreeMap, HashMap};

use holdfast_common::{
    frame::CutRecord,
    ids::{DiskId, Generation, MachineId, PointId, Sequence},
};

/// Most unfinished cuts. Reached only while the cuts of a long history are replayed disk by disk.
pub const PARTIALS_MAX: usize = 200_000;

/// A durable cut frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutSeen {
    /// The disk in whose log it stands.
    pub disk: DiskId,
    /// The frame's generation.
    pub generation: Generation,
    /// The frame's sequence.
    pub sequence: Sequence,
    /// Bytes of the frames since the disk's last cut, this one included.
    pub stored_bytes: u64,
    /// Its record.
    pub record: CutRecord,
}

/// A disk of a complete point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberSeen {
    /// Its generation.
    pub generation: Generation,
    /// Its cut frame.
    pub sequence: Sequence,
    /// Bytes since its last cut.
    pub stored_bytes: u64,
}

/// What came of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All members have arrived.
    Complete {
        /// The record (the same on all members).
        record: Box<CutRecord>,
        /// The members.
        members: BTreeMap<DiskId, MemberSeen>,
    },
    /// The cut will never be a point.
    GivenUp {
        /// The point it would have been.
        record: Box<CutRecord>,
        /// Why, for people.
        reason: String,
    },
}

/// A cut that has not arrived on all disks.
#[derive(Clone, Debug)]
pub struct Arriving {
    /// Its record.
    pub record: CutRecord,
    /// Disks that lack it.
    pub missing: Vec<DiskId>,
}

#[derive(Debug)]
struct Partial {
    number: u64,
    record: CutRecord,
    seen: BTreeMap<DiskId, MemberSeen>,
}

/// The unfinished cuts.
#[derive(Debug, Default)]
pub struct Assembler {
    partials: HashMap<PointId, Partial>,
    /// The same in order of arrival.
    order: BTreeMap<u64, PointId>,
    /// For each disk the unfinished cuts that lack it, in order of arrival.
    waiting: HashMap<DiskId, BTreeMap<u64, PointId>>,
    next_number: u64,
}

impl Assembler {
    /// Takes in a cut. The cuts of one disk come in the order of its log; disks may come in any order.
    pub fn observe(&mut self, cut: CutSeen) -> Vec<Outcome> {
        let CutSeen { disk, generation, sequence, stored_bytes, record } = cut;
        let member = record.members.iter().find(|member| member.disk == disk);
        if member.is_none_or(|member| member.generation != generation) {
            let reason = format!("disk {disk} carries a cut of which it is no member");
            return vec![Outcome::GivenUp { record: Box::new(record), reason }];
        }
        let point = record.point;
        let known = self.partials.get(&point).map(|partial| partial.number);
        let mut outcomes = self.give_up_passed(disk, known);
        if known.is_none() {
            self.insert(record);
        }
        let Some(partial) = self.partials.get_mut(&point) else { return outcomes };
        partial.seen.insert(disk, MemberSeen { generation, sequence, stored_bytes });
        let complete = partial.seen.len() == partial.record.members.len();
        let number = partial.number;
        if let Some(waiting) = self.waiting.get_mut(&disk) {
            waiting.remove(&number);
        }
        if complete {
            outcomes.extend(self.remove(point).map(|partial| Outcome::Complete {
                record: Box::new(partial.record),
                members: partial.seen,
            }));
        }
        outcomes.extend(self.shrink());
        outcomes
    }

    /// Cuts of a machine that have not arrived on all disks, oldest first.
    #[must_use]
    pub fn arriving(&self, machine: MachineId) -> Vec<Arriving> {
        let partials = self.order.values().filter_map(|point| self.partials.get(point));
        partials
            .filter(|partial| partial.record.machine == machine)
            .map(|partial| Arriving { record: partial.record.clone(), missing: partial.missing().collect() })
            .collect()
    }

    /// A disk's log is in order: what it lacks of cuts that came before this one will not come any more.
    fn give_up_passed(&mut self, disk: DiskId, current: Option<u64>) -> Vec<Outcome> {
        let before = current.unwrap_or(u64::MAX);
        let passed: Vec<PointId> = match self.waiting.get(&disk) {
            Some(waiting) => waiting.range(..before).map(|(_, point)| *point).collect(),
            None => Vec::new(),
        };
        let reason = format!("disk {disk} went on without it");
        passed
            .into_iter()
            .filter_map(|point| self.remove(point))
            .map(|partial| Outcome::GivenUp { record: Box::new(partial.record), reason: reason.clone() })
            .collect()
    }

    fn shrink(&mut self) -> Option<Outcome> {
        if self.partials.len() <= PARTIALS_MAX {
            return None;
        }
        let oldest = *self.order.values().next()?;
        let reason = format!("more than {PARTIALS_MAX} cuts wait for disks");
        self.remove(oldest).map(|partial| Outcome::GivenUp { record: Box::new(partial.record), reason })
    }

    fn insert(&mut self, record: CutRecord) {
        let number = self.next_number;
        self.next_number += 1;
        self.order.insert(number, record.point);
        for member in &record.members {
            self.waiting.entry(member.disk).or_default().insert(number, record.point);
        }
        self.partials.insert(record.point, Partial { number, record, seen: BTreeMap::new() });
    }

    fn remove(&mut self, point: PointId) -> Option<Partial> {
        let partial = self.partials.remove(&point)?;
        self.order.remove(&partial.number);
        for member in &partial.record.members {
            if let Some(waiting) = self.waiting.get_mut(&member.disk) {
                waiting.remove(&partial.number);
                if waiting.is_empty() {
                    self.waiting.remove(&member.disk);
                }
            }
        }
        Some(partial)
    }
}

impl Partial {
    fn missing(&self) -> impl Iterator<Item = DiskId> {
        self.record.members.iter().map(|member| member.disk).filter(|disk| !self.seen.contains_key(disk))
    }
}

#[cfg(test)]
mod tests;
