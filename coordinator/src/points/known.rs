//! What is kept in memory of every point: enough for retention and for telling replayed cuts from new ones.
//!
//! Owns the entries and their order. Pure. Invariant: the entries are the points of the catalog, as of the last change.
//! Limit: about 190 bytes per point of one disk, and 24 for each further disk.

use std::collections::{BTreeMap, HashMap, HashSet};

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{DiskId, MachineId, PointId, Sequence},
};

use super::retention::{GroupPart, Subject};
use crate::{
    catalog::record::{PointRecord, PointState},
    store::NeededCuts,
};

/// What is kept of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPoint {
    /// The point.
    pub id: PointId,
    /// The instant of the cut (agent's wall clock).
    pub cut_at: Timestamp,
    /// When its last disk became durable.
    pub durable_at: Timestamp,
    /// What can be done with it.
    pub state: PointState,
    /// What it guarantees.
    pub consistency: Consistency,
    /// The group cut that it is a part of.
    pub group: Option<GroupPart>,
    /// Bytes of the intervals that it ends, as stored.
    pub stored_bytes: u64,
    /// Its disks' cut frames.
    pub disks: Box<[(DiskId, Sequence)]>,
}

/// All points.
#[derive(Debug, Default)]
pub(super) struct Known {
    machines: HashMap<MachineId, BTreeMap<(Timestamp, PointId), KnownPoint>>,
    places: HashMap<PointId, (MachineId, Timestamp)>,
    /// The newest usable cut of each disk.
    newest_cuts: HashMap<DiskId, Sequence>,
}

impl Known {
    pub(super) fn insert(&mut self, point: &PointRecord) {
        let known = KnownPoint {
            id: point.id,
            cut_at: point.cut_at,
            durable_at: point.durable_at,
            state: point.state,
            consistency: point.consistency,
            group: point.more.group.as_ref().map(|mark| GroupPart { group: mark.group, cut: mark.cut }),
            stored_bytes: point.disks.iter().map(|member| member.stored_bytes).sum(),
            disks: point.disks.iter().map(|member| (member.disk, member.sequence)).collect(),
        };
        if point.state != PointState::Void {
            for (disk, sequence) in &known.disks {
                let newest = self.newest_cuts.entry(*disk).or_default();
                *newest = (*newest).max(*sequence);
            }
        }
        self.places.insert(point.id, (point.machine, point.durable_at));
        self.machines.entry(point.machine).or_default().insert((point.durable_at, point.id), known);
    }

    pub(super) fn contains(&self, point: PointId) -> bool {
        self.places.contains_key(&point)
    }

    /// Whether a cut belongs to a point that retention has removed, or that was given up: a newer cut of its disk is a
    /// point's, and points are made in the order of their cuts.
    pub(super) fn is_past(&self, disk: DiskId, cut: Sequence) -> bool {
        self.newest_cuts.get(&disk).is_some_and(|newest| cut <= *newest)
    }

    pub(super) fn remove(&mut self, point: PointId) {
        let Some((machine, at)) = self.places.remove(&point) else { return };
        if let Some(points) = self.machines.get_mut(&machine) {
            points.remove(&(at, point));
        }
    }

    pub(super) fn set_state(&mut self, point: PointId, state: PointState) {
        let Some((machine, at)) = self.places.get(&point).copied() else { return };
        let Some(points) = self.machines.get_mut(&machine) else { return };
        let Some(known) = points.get_mut(&(at, point)) else { return };
        known.state = state;
        if state == PointState::Void {
            for (disk, _) in known.disks.clone() {
                let usable = points.values().rev().filter(|point| point.state != PointState::Void);
                match usable.filter_map(|point| point.cut_of(disk)).max() {
                    Some(newest) => self.newest_cuts.insert(disk, newest),
                    None => self.newest_cuts.remove(&disk),
                };
            }
        }
    }

    /// Points of a machine, oldest first.
    pub(super) fn of(&self, machine: MachineId) -> impl DoubleEndedIterator<Item = &KnownPoint> {
        self.machines.get(&machine).into_iter().flat_map(BTreeMap::values)
    }

    /// Usable points with a cut of the disk behind `durable`.
    pub(super) fn beyond(&self, disk: DiskId, durable: Sequence) -> Vec<PointId> {
        let points = self.machines.values().flat_map(BTreeMap::values);
        let lost = points.filter(|point| {
            point.state != PointState::Void && point.cut_of(disk).is_some_and(|cut| cut > durable)
        });
        lost.map(|point| point.id).collect()
    }

    /// The cuts of a disk that usable points, or leased ones, stand on.
    pub(super) fn needed(&self, disk: DiskId, leased: &HashSet<PointId>) -> NeededCuts {
        let points = self.machines.values().flat_map(BTreeMap::values);
        let needed = points.filter(|point| point.state != PointState::Void || leased.contains(&point.id));
        let mut cuts: Vec<Sequence> = needed.filter_map(|point| point.cut_of(disk)).collect();
        cuts.sort_unstable();
        cuts.dedup();
        NeededCuts { horizon: cuts.last().copied().unwrap_or_default(), cuts }
    }
}

impl KnownPoint {
    /// The point's cut of a disk.
    fn cut_of(&self, disk: DiskId) -> Option<Sequence> {
        self.disks.iter().find(|(member, _)| *member == disk).map(|(_, cut)| *cut)
    }

    /// What retention must know. `damaged` tells whether the state of a disk at a cut needs a damaged frame.
    pub(super) fn subject(&self, damaged: &dyn Fn(DiskId, Sequence) -> bool) -> Subject {
        Subject {
            id: self.id,
            durable_at: self.durable_at,
            usable: self.state != PointState::Void,
            processed: self.state == PointState::Processed,
            app: self.consistency == Consistency::App,
            group: self.group,
            intact: !self.disks.iter().any(|(disk, cut)| damaged(*disk, *cut)),
        }
    }
}
