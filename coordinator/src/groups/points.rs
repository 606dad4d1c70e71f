//! Group points, out of the members' points.
//!
//! Owns the rule. Pure: points in, group points out. Invariant: a group point is whole only if every machine that its mark
//! names has a usable point with the mark of that very group cut; nothing else is asked, so that the points of a rebuilt
//! catalog give the same group points.

use std::collections::BTreeMap;

use holdfast_common::{
    clock::Timestamp,
    frame::Consistency,
    ids::{GroupCutId, GroupId, MachineId, PointId},
};

use crate::catalog::record::{PointRecord, PointState};

/// A point of a whole group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPoint {
    /// The group cut, which is the point's id.
    pub cut: GroupCutId,
    /// The group.
    pub group: GroupId,
    /// Its name at the cut.
    pub name: String,
    /// The earliest of the members' cuts, by their wall clocks; for people.
    pub at: Timestamp,
    /// When the last member's point became durable here.
    pub durable_at: Timestamp,
    /// App-consistent only if every member is.
    pub consistency: Consistency,
    /// Whether every member is processed.
    pub processed: bool,
    /// Upper bound of how far apart the beginnings of the holds lie.
    pub spread_us: u64,
    /// The members, in order of their ids.
    pub members: Vec<GroupPointMember>,
}

/// A machine's part of a group point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPointMember {
    /// The machine.
    pub machine: MachineId,
    /// Its own point.
    pub point: PointId,
    /// How long its writes were held in all.
    pub hold_us: u64,
    /// It had held for at least this long when the mark was made, by the coordinator's clock.
    pub since_held_us: u64,
    /// It held for this long until the mark came, by its own clock.
    pub waited_us: u64,
}

/// The group points that these points make, newest first; and how many group cuts are there in part only.
#[must_use]
pub fn assemble<'a>(points: impl IntoIterator<Item = &'a PointRecord>) -> (Vec<GroupPoint>, usize) {
    let mut cuts: BTreeMap<GroupCutId, BTreeMap<MachineId, &PointRecord>> = BTreeMap::new();
    for point in points {
        if let Some(mark) = point.more.group.as_ref().filter(|_| point.state != PointState::Void) {
            cuts.entry(mark.cut).or_default().insert(point.machine, point);
        }
    }
    let found = cuts.len();
    let mut whole: Vec<GroupPoint> = cuts.into_iter().filter_map(|(cut, parts)| whole(cut, &parts)).collect();
    whole.sort_by_key(|point| std::cmp::Reverse((point.durable_at, point.cut)));
    let partial = found - whole.len();
    (whole, partial)
}

/// The group point of this cut, if all its parts are there.
fn whole(cut: GroupCutId, parts: &BTreeMap<MachineId, &PointRecord>) -> Option<GroupPoint> {
    let first = parts.values().next()?.more.group.as_ref()?;
    let all_there = first.members.iter().all(|member| parts.contains_key(member));
    let of_one_mind = parts.values().all(|point| {
        point
            .more
            .group
            .as_ref()
            .is_some_and(|mark| mark.group == first.group && mark.members == first.members)
    });
    if !all_there || !of_one_mind || first.members.len() != parts.len() {
        return None;
    }
    let members = parts.values().filter_map(|point| {
        let mark = point.more.group.as_ref()?;
        Some(GroupPointMember {
            machine: point.machine,
            point: point.id,
            hold_us: point.hold_us,
            since_held_us: mark.since_held_us,
            waited_us: mark.waited_us,
        })
    });
    let app = parts.values().all(|point| point.consistency == Consistency::App);
    Some(GroupPoint {
        cut,
        group: first.group,
        name: first.name.clone(),
        at: parts.values().map(|point| point.cut_at).min()?,
        durable_at: parts.values().map(|point| point.durable_at).max()?,
        consistency: if app { Consistency::App } else { Consistency::Crash },
        processed: parts.values().all(|point| point.state == PointState::Processed),
        spread_us: first.spread_us,
        members: members.collect(),
    })
}

#[cfg(test)]
mod tests;
