//! `holdfast readiness`: whether a machine will boot at the target.

use holdfast_coordinator::{api::readiness::ReadinessShape, readiness::Verdict, registry::health::Level};

use crate::{
    client::{Client, escape},
    output::{Failure, Output},
    tables::with_age,
};

pub(crate) async fn run(client: &Client, output: Output, machine: &str, now: bool) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/readiness", escape(machine));
    let found: ReadinessShape = if now { client.post(&path, &()).await? } else { client.get(&path).await? };
    output.answer(&found, show)
}

fn show(found: &ReadinessShape) -> String {
    let Some(at) = &found.at else {
        return format!(
            "{} was not looked at yet: that is done after its first processed point, or with --now.",
            found.machine_name
        );
    };
    let report = &found.report;
    let verdict = match report.verdict {
        Verdict::Ready => "ready: nothing speaks against its booting at the target",
        Verdict::Unknown => "unknown: nothing was found against it, but not all could be looked into",
        Verdict::Doubtful => "doubtful: it may not boot, or not as it should",
        Verdict::NotReady => "NOT READY: it will not boot at the target as it is",
    };
    let mut lines = vec![
        format!("{}: {verdict}", found.machine_name),
        format!("looked at {} (point {})", with_age(at), found.point),
    ];
    for finding in &report.findings {
        let level = match finding.level {
            Level::Healthy => "note",
            Level::Warning => "warning",
            Level::Critical => "critical",
        };
        lines.push(format!("  {level:<9} {}\n            -> {}", finding.reason, finding.advice));
    }
    lines.extend(report.not_looked_into.iter().map(|what| format!("  not looked into: {what}")));
    lines.extend(report.seen.iter().map(|what| format!("  seen: {what}")));
    lines.join("\n")
}
