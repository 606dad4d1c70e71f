//! Which points together are a group's, kept in memory: so that a group's newest point is found without looking through
//! those that its machines have made by themselves.
//!
//! Owns the order of group cuts and which of them are whole. Pure. Does not know groups' rules or members of today: a mark
//! says who took part. Invariant: a cut is whole here exactly if [`crate::groups::points::assemble`] makes a group point of
//! its parts.
//! Limit: about 200 bytes per point that is a part of a group's; a cut's parts share the list of its members.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{GroupCutId, GroupId, MachineId, PointId},
};

use crate::catalog::record::{PointRecord, PointState};

/// The marks of all points.
#[derive(Debug, Default)]
pub(super) struct Marks {
    groups: HashMap<GroupId, Group>,
    places: HashMap<PointId, (GroupId, GroupCutId, MachineId)>,
}

#[derive(Debug, Default)]
struct Group {
    cuts: HashMap<GroupCutId, Cut>,
    /// Whole cuts, oldest first.
    whole: BTreeSet<(Timestamp, GroupCutId)>,
    /// Those of them that are app-consistent.
    application: BTreeSet<(Timestamp, GroupCutId)>,
}

/// The parts of one cut.
#[derive(Debug, Default)]
struct Cut {
    parts: BTreeMap<MachineId, Part>,
    /// When it became whole, and whether it is app-consistent; `None` while it is not whole.
    listed: Option<(Timestamp, bool)>,
}

#[derive(Debug)]
struct Part {
    point: PointId,
    durable_at: Timestamp,
    application: bool,
    /// Who takes part, by this part's mark.
    members: Arc<[MachineId]>,
}

impl Marks {
    /// A point was made, or read from the catalog.
    pub(super) fn insert(&mut self, point: &PointRecord) {
        let usable = point.state != PointState::Void;
        let Some(mark) = point.more.group.as_ref().filter(|_| usable) else { return };
        self.places.insert(point.id, (mark.group, mark.cut, point.machine));
        let group = self.groups.entry(mark.group).or_default();
        group.change(mark.cut, |parts| {
            let known = parts.values().map(|part| &part.members).find(|known| ***known == *mark.members);
            let part = Part {
                point: point.id,
                durable_at: point.durable_at,
                application: point.consistency == Consistency::App,
                members: known.cloned().unwrap_or_else(|| mark.members.as_slice().into()),
            };
            parts.insert(point.machine, part);
        });
    }

    /// A point is void, or gone.
    pub(super) fn remove(&mut self, point: PointId) {
        let Some((of, cut, machine)) = self.places.remove(&point) else { return };
        let Some(group) = self.groups.get_mut(&of) else { return };
        group.change(cut, |parts| {
            parts.remove(&machine);
        });
        if group.cuts.is_empty() {
            self.groups.remove(&of);
        }
    }

    /// The parts of a group's whole cuts, newest first; only of app-consistent ones if `application`.
    pub(super) fn newest(&self, group: GroupId, application: bool) -> impl Iterator<Item = Vec<PointId>> {
        let group = self.groups.get(&group);
        group.into_iter().flat_map(move |group| {
            let cuts = if application { &group.application } else { &group.whole };
            let parts = |cut| group.cuts.get(cut).into_iter().flat_map(|cut| cut.parts.values());
            cuts.iter().rev().map(move |(_, cut)| parts(cut).map(|part| part.point).collect())
        })
    }

    /// How many cuts of a group are there in part only.
    pub(super) fn incomplete(&self, group: GroupId) -> usize {
        self.groups.get(&group).map_or(0, |group| group.cuts.len() - group.whole.len())
    }
}

impl Group {
    fn change(&mut self, id: GroupCutId, change: impl FnOnce(&mut BTreeMap<MachineId, Part>)) {
        let cut = self.cuts.entry(id).or_default();
        change(&mut cut.parts);
        if let Some((at, _)) = cut.listed.take() {
            self.whole.remove(&(at, id));
            self.application.remove(&(at, id));
        }
        cut.listed = whole(&cut.parts);
        match cut.listed {
            Some((at, application)) => {
                self.whole.insert((at, id));
                if application {
                    self.application.insert((at, id));
                }
            }
            None if cut.parts.is_empty() => _ = self.cuts.remove(&id),
            None => {}
        }
    }
}

/// When the last part became durable, and whether all are app-consistent, if all are there and their marks say the same.
fn whole(parts: &BTreeMap<MachineId, Part>) -> Option<(Timestamp, bool)> {
    let members = &parts.values().next()?.members;
    let all_there = members.len() == parts.len() && members.iter().all(|member| parts.contains_key(member));
    if !all_there || parts.values().any(|part| part.members != *members) {
        return None;
    }
    let at = parts.values().map(|part| part.durable_at).max()?;
    Some((at, parts.values().all(|part| part.application)))
}

#[cfg(test)]
mod tests;
