//! Which points have served their time.
//!
//! Owns the rule ([`rule`]) and its application as a plan: a value that can be printed and tested, and is then applied by
//! the catalog of points. Pure. Invariants: the newest complete point, the newest processed one, and points that something
//! depends on are never removed; every stretch of a tier's spacing keeps a usable point, if it had one; applying the plans
//! of many moments gives what the last one alone would give.
//!
//! Time is cut into stretches of a tier's spacing, counted from 1970, so that the choice in a stretch does not move with
//! the clock. Of a stretch the best point stays: intact before damaged, app-consistent before crash-consistent, then the
//! oldest. Of a machine in a group, the best part of a group point stays besides: intact before damaged, then the oldest, in
//! stretches that are counted by the group cut's own time. That is the same for all its machines, so under one rule they keep the
//! parts of the same group cuts, and a failover of the group to one instant goes on being possible. Since each spacing is a multiple of the finer one before, the best of a day is also the best of its hour, and is
//! still there when the coarser tier asks for it.

use std::collections::{HashMap, HashSet};

use holdfast_common::{
    clock::Timestamp,
    ids::{GroupCutId, GroupId, PointId},
};

// What an operator says.
pub mod rule;

pub use rule::{RetentionRule, RuleError};

/// What the plan must know of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The point.
    pub id: PointId,
    /// When it became durable here: its age counts from then, so that a source with a wrong clock loses nothing.
    pub durable_at: Timestamp,
    /// Whether it can be used (is not void).
    pub usable: bool,
    /// Whether it is in the index.
    pub processed: bool,
    /// Whether it is app-consistent.
    pub app: bool,
    /// Whether nothing of it is known to be damaged.
    pub intact: bool,
    /// The group cut that it is a part of.
    pub group: Option<GroupPart>,
}

/// A point as a part of a group cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPart {
    /// The group.
    pub group: GroupId,
    /// The group cut.
    pub cut: GroupCutId,
}

impl GroupPart {
    /// When the group cut was begun, by the coordinator's clock: it stands in the cut's id (UUID version 7).
    fn at(self) -> Timestamp {
        let (seconds, nanoseconds) = self.cut.0.get_timestamp().map_or((0, 0), |time| time.to_unix());
        Timestamp(i64::try_from(seconds).unwrap_or(0) * 1_000_000 + i64::from(nanoseconds / 1_000))
    }
}

/// What becomes of a point, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays: younger than the time in which every point is kept.
    Dense,
    /// It stays: the best of its stretch.
    Chosen {
        /// Length of the stretch.
        every_seconds: u64,
    },
    /// It stays: the newest complete or newest processed one.
    Newest,
    /// It stays: a job or a machine depends on it. It would go otherwise.
    Held,
    /// It goes: another one stands for its stretch.
    Thinned {
        /// Length of the stretch.
        every_seconds: u64,
        /// The one that stands for it.
        by: PointId,
    },
    /// It goes: older than anything that is kept.
    Expired,
    /// It goes: it cannot be used, and is not in the time in which every point is kept.
    Void,
}

impl Verdict {
    /// Whether the point goes.
    #[must_use]
    pub const fn removes(self) -> bool {
        matches!(self, Self::Thinned { .. } | Self::Expired | Self::Void)
    }
}

/// What retention would do with the points of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// All points, oldest first.
    pub verdicts: Vec<(PointId, Verdict)>,
}

impl RetentionPlan {
    /// The points to remove, oldest first.
    #[must_use]
    pub fn removed(&self) -> Vec<PointId> {
        self.verdicts.iter().filter(|(_, verdict)| verdict.removes()).map(|(id, _)| *id).collect()
    }
}

/// Plans the retention of one machine. `points` in any order.
#[must_use]
pub fn plan(
    points: &[Subject],
    leased: &HashSet<PointId>,
    rule: &RetentionRule,
    now: Timestamp,
) -> RetentionPlan {
    let mut points: Vec<&Subject> = points.iter().collect();
    points.sort_by_key(|point| (point.durable_at, point.id));
    let newest = |wanted: &dyn Fn(&Subject) -> bool| {
        points.iter().rev().find(|point| wanted(point)).map(|point| point.id)
    };
    let newest = [newest(&|point| point.usable), newest(&|point| point.usable && point.processed)];
    let chosen: Vec<HashMap<i64, &Subject>> =
        rule.tiers().iter().map(|tier| best_of_stretches(&points, tier.every_seconds)).collect();
    let of_groups: Vec<HashMap<(GroupId, i64), &Subject>> =
        rule.tiers().iter().map(|tier| best_parts(&points, tier.every_seconds)).collect();
    let verdict = |point: &Subject| {
        let verdict = by_age(point, rule, &chosen, &of_groups, now);
        match verdict {
            _ if !verdict.removes() => verdict,
            _ if newest.contains(&Some(point.id)) => Verdict::Newest,
            _ if leased.contains(&point.id) => Verdict::Held,
            _ => verdict,
        }
    };
    RetentionPlan { verdicts: points.iter().map(|point| (point.id, verdict(point))).collect() }
}

/// What the rule alone says.
fn by_age(
    point: &Subject,
    rule: &RetentionRule,
    chosen: &[HashMap<i64, &Subject>],
    of_groups: &[HashMap<(GroupId, i64), &Subject>],
    now: Timestamp,
) -> Verdict {
    let age = now.since(point.durable_at);
    if age <= rule.dense() {
        return Verdict::Dense;
    }
    if !point.usable {
        return Verdict::Void;
    }
    let mut tiers = rule.tiers().iter().zip(chosen.iter().zip(of_groups));
    let tier = tiers.find(|(tier, _)| age.as_secs() < tier.until_seconds);
    let Some((tier, (chosen, of_groups))) = tier else { return Verdict::Expired };
    let every_seconds = tier.every_seconds;
    let part = point.group.and_then(|part| of_groups.get(&(part.group, stretch(part.at(), every_seconds))));
    if part.is_some_and(|part| part.id == point.id) {
        return Verdict::Chosen { every_seconds };
    }
    match chosen.get(&stretch(point.durable_at, every_seconds)) {
        Some(best) if best.id != point.id => Verdict::Thinned { every_seconds, by: best.id },
        _ => Verdict::Chosen { every_seconds },
    }
}

/// The best usable point of each stretch.
fn best_of_stretches<'a>(points: &[&'a Subject], every_seconds: u64) -> HashMap<i64, &'a Subject> {
    let mut best: HashMap<i64, &Subject> = HashMap::new();
    for point in points.iter().filter(|point| point.usable) {
        let chosen = best.entry(stretch(point.durable_at, every_seconds)).or_insert(point);
        if rank(point) < rank(chosen) {
            *chosen = point;
        }
    }
    best
}

/// The best part of a group point of each group and stretch.
fn best_parts<'a>(points: &[&'a Subject], every_seconds: u64) -> HashMap<(GroupId, i64), &'a Subject> {
    let mut best: HashMap<(GroupId, i64), (GroupPart, &Subject)> = HashMap::new();
    for point in points.iter().filter(|point| point.usable) {
        let Some(part) = point.group else { continue };
        let place = (part.group, stretch(part.at(), every_seconds));
        let (other, chosen) = best.entry(place).or_insert((part, point));
        // Points become durable in another order than the group was cut in, if a machine's link is slow.
        if (!point.intact, part.at(), part.cut) < (!chosen.intact, other.at(), other.cut) {
            (*other, *chosen) = (part, point);
        }
    }
    best.into_iter().map(|(place, (_, point))| (place, point)).collect()
}

/// Lower is better.
const fn rank(point: &Subject) -> (bool, bool) {
    (!point.intact, !point.app)
}

fn stretch(at: Timestamp, every_seconds: u64) -> i64 {
    let micros = i64::try_from(every_seconds.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    at.0.div_euclid(micros.max(1))
}

#[cfg(test)]
mod tests;
