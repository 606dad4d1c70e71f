//! Which points have served their time.
//!
//! Owns the rule, as a plan: a value that can be printed and tested, and is then applied by the catalog of points.
//! Pure. Invariant: the newest complete point, the newest processed one, and points that something depends on are never
//! in the plan.

use std::{collections::HashSet, time::Duration};

use holdfast_common::{clock::Timestamp, ids::PointId};

use crate::catalog::record::{PointRecord, PointState};

/// What retention would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionPlan {
    /// Points to remove, oldest first.
    pub remove: Vec<PointId>,
    /// Points that are old enough, and stay because something depends on them.
    pub held: Vec<PointId>,
}

/// Plans the retention of one machine. `points` in any order; their age counts from when they became durable here, so
/// that a source with a wrong clock loses nothing.
#[must_use]
pub fn plan(
    points: &[PointRecord],
    leased: &HashSet<PointId>,
    retention: Duration,
    now: Timestamp,
) -> RetentionPlan {
    let newest = |usable: &dyn Fn(&&PointRecord) -> bool| {
        points.iter().filter(usable).max_by_key(|point| (point.durable_at, point.id)).map(|point| point.id)
    };
    let newest_complete = newest(&|point| point.state != PointState::Void);
    let newest_processed = newest(&|point| point.state == PointState::Processed);
    let mut old: Vec<&PointRecord> = points
        .iter()
        .filter(|point| now.since(point.durable_at) > retention)
        .filter(|point| Some(point.id) != newest_complete && Some(point.id) != newest_processed)
        .collect();
    old.sort_by_key(|point| (point.durable_at, point.id));
    let (held, remove) = old.into_iter().partition::<Vec<_>, _>(|point| leased.contains(&point.id));
    let ids = |points: Vec<&PointRecord>| points.into_iter().map(|point| point.id).collect();
    RetentionPlan { remove: ids(remove), held: ids(held) }
}

#[cfg(test)]
mod tests;
