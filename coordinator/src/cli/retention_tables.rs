//! A retention plan for people: first what happens in sum, then the points that go.
//!
//! Owns the texts. Limit: [`REMOVED_SHOWN`] points are listed; `--json` has all.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use holdfast_coordinator::api::shapes::{PlannedPointShape, RetentionPlanShape};

use crate::{
    duration,
    tables::{bytes, local, table},
};

/// Points listed by name.
const REMOVED_SHOWN: usize = 20;

/// `holdfast retention plan`.
pub(crate) fn plan(plan: &RetentionPlanShape) -> String {
    let mut text = format!("Retention of {}: {}", plan.name, plan.retention);
    text.push_str(if plan.own_rule { "\n\n" } else { " (not its own rule; nothing is done with it)\n\n" });
    if plan.points.is_empty() {
        return text + "It has no points.";
    }
    let mut groups: BTreeMap<(bool, String), Vec<&PlannedPointShape>> = BTreeMap::new();
    for point in &plan.points {
        groups.entry((!point.kept, why(point))).or_default().push(point);
    }
    let mut rows = table(&["", "POINTS", "OLDEST", "NEWEST", "BYTES", "WHY"]);
    for ((removed, why), points) in &groups {
        let at = |point: Option<&&PlannedPointShape>| point.map(|point| local(&point.at)).unwrap_or_default();
        rows.add_row([
            if *removed { "remove" } else { "keep" }.to_owned(),
            points.len().to_string(),
            at(points.first()),
            at(points.last()),
            bytes(points.iter().map(|point| point.stored_bytes).sum()),
            why.clone(),
        ]);
    }
    let _infallible = writeln!(text, "{rows}");
    let _infallible = write!(
        text,
        "\n{} points stay. {} go; their intervals take {}, less what later points need of it.",
        plan.kept_points,
        plan.removed_points,
        bytes(plan.removed_bytes)
    );
    let removed = plan.points.iter().filter(|point| !point.kept);
    for point in removed.take(REMOVED_SHOWN) {
        let _infallible = write!(text, "\n  {}  {}  {}", local(&point.at), point.id, why(point));
    }
    let more = usize::try_from(plan.removed_points).unwrap_or(usize::MAX).saturating_sub(REMOVED_SHOWN);
    if more > 0 {
        let _infallible = write!(text, "\n  and {more} more; --json lists them all");
    }
    text
}

fn why(point: &PlannedPointShape) -> String {
    let every = duration::show(Duration::from_secs(point.every_seconds.unwrap_or(0)));
    match &*point.reason {
        "dense" => "young: every point is kept".to_owned(),
        "chosen" => format!("the best of its {every}"),
        "newest" => "the newest".to_owned(),
        "held" => "a job needs it; old enough otherwise".to_owned(),
        "thinned" => format!("another one stands for its {every}"),
        "expired" => "older than anything that is kept".to_owned(),
        "void" => "cannot be used".to_owned(),
        other => other.to_owned(),
    }
}
