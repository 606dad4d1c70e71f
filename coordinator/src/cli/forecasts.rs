//! What choices would give and lose, as text.
//!
//! Owns the layout only.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use holdfast_coordinator::api::shapes::{ForecastShape, OverviewShape};

use crate::{duration, tables};

/// Newer cuts that are shown of each machine; `--json` has more.
const NEWER_SHOWN: usize = 8;

/// `holdfast failover --dry-run`.
pub(crate) fn forecast(machines: &[ForecastShape]) -> String {
    let mut text = String::new();
    for machine in machines {
        one(&mut text, machine);
        text.push('\n');
    }
    text.push_str("Nothing was changed.");
    text
}

fn one(text: &mut String, machine: &ForecastShape) {
    if let Some(why) = &machine.left_alone {
        let _infallible = writeln!(text, "{}: left alone: {why}", machine.name);
        return;
    }
    match (&machine.point, &machine.refusal) {
        (Some(point), _) => {
            let pending = if machine.pending { ", to be processed first" } else { "" };
            let _infallible = writeln!(
                text,
                "{}: point {} of {}, {}-consistent{pending}",
                machine.name,
                point.id,
                tables::local(&point.at),
                point.consistency
            );
            if let Some(lost) = machine.loses_ms {
                let lost = duration::show(Duration::from_millis(lost));
                let _infallible = writeln!(text, "  loses    what was written in the last {lost}");
            }
        }
        (None, Some(refusal)) => {
            let _infallible = writeln!(text, "{}: no point: {refusal}", machine.name);
        }
        (None, None) => {
            let _infallible = writeln!(text, "{}: no point", machine.name);
        }
    }
    for remark in &machine.remarks {
        let _infallible = writeln!(text, "  note     {remark}");
    }
    for newer in machine.newer.iter().take(NEWER_SHOWN) {
        let point = newer.point.as_deref().unwrap_or("(no point)");
        let _infallible = writeln!(text, "  not used {point} of {}: {}", tables::local(&newer.at), newer.why);
    }
    let more = machine.newer_count.saturating_sub(NEWER_SHOWN);
    if more > 0 {
        let _infallible = writeln!(text, "  not used {more} more");
    }
}

/// A machine by its name, or a group.
fn named(machine: &OverviewShape) -> String {
    if machine.group.is_some() { format!("group {}", machine.name) } else { machine.name.clone() }
}

/// `holdfast points` of all machines.
pub(crate) fn overview(machines: &[OverviewShape]) -> String {
    if machines.is_empty() {
        return "No machines yet. `holdfast token create` makes a token to enrol one.".to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["MACHINE", "CHOICE", "AGE", "CUT", "POINT"]);
    for machine in machines {
        for (number, kind) in machine.kinds.iter().enumerate() {
            table.add_row([
                if number == 0 { named(machine) } else { String::new() },
                kind.kind.clone(),
                kind.age_ms.map_or_else(|| "-".to_owned(), |age| duration::show(Duration::from_millis(age))),
                kind.at.as_deref().map_or_else(|| "none".to_owned(), tables::local),
                kind.point.clone().or_else(|| kind.refusal.clone()).unwrap_or_default(),
            ]);
        }
    }
    table.to_string()
}
