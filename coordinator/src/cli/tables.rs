//! Answers as text for people.
//!
//! Owns tables and wording. Times are local, with their age where that is what counts.

use std::{fmt::Write as _, time::Duration};

use comfy_table::{Table, presets::NOTHING};
pub(crate) use holdfast_coordinator::size::show as bytes;
use holdfast_coordinator::{
    api::shapes::{
        AuditShape, CheckShape, DiffShape, DiskStatusShape, MachineDetailShape, MachineShape,
        MachineStatusShape, PointsShape, PolicyShape, StatusShape,
    },
    registry::health::{Finding, Level},
};
use jiff::{Timestamp, tz::TimeZone};

use crate::duration;

/// A time of an answer as local time; as it is if it cannot be read.
pub(crate) fn local(text: &str) -> String {
    match text.parse::<Timestamp>() {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// A time of an answer as local time, and how long ago it was.
pub(crate) fn with_age(text: &str) -> String {
    let Ok(at) = text.parse::<Timestamp>() else { return text.to_owned() };
    let age = Timestamp::now().duration_since(at);
    let age = Duration::try_from(age).unwrap_or_default();
    format!("{} ({} ago)", local(text), duration::show(age))
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header.iter().copied());
    table
}

pub(crate) const fn level(level: Level) -> &'static str {
    match level {
        Level::Healthy => "healthy",
        Level::Warning => "WARNING",
        Level::Critical => "CRITICAL",
    }
}

fn findings(text: &mut String, of: &str, findings: &[Finding]) {
    for finding in findings {
        let _infallible = writeln!(text, "{} {of}: {}", level(finding.level), finding.reason);
        let _infallible = writeln!(text, "  to do: {}", finding.advice);
    }
}

/// `holdfast machines`.
pub(crate) fn machines(machines: &[MachineShape]) -> String {
    if machines.is_empty() {
        return "No machines yet. `holdfast token create` makes a token to enrol one.".to_owned();
    }
    let mut table = table(&["NAME", "HEALTH", "CONNECTED", "DISKS", "LAST SEEN", "SYSTEM", "ID"]);
    for machine in machines {
        let connected = match (&*machine.state, machine.connected) {
            ("revoked", _) => "revoked".to_owned(),
            (_, true) => machine.address.clone().unwrap_or_else(|| "yes".to_owned()),
            (_, false) => "no".to_owned(),
        };
        table.add_row([
            machine.name.clone(),
            level(machine.health).to_owned(),
            connected,
            machine.protected_disks.to_string(),
            machine.last_seen_at.as_deref().map_or_else(|| "never".to_owned(), local),
            machine.operating_system.clone(),
            machine.id.clone(),
        ]);
    }
    table.to_string()
}

/// `holdfast machine show`.
pub(crate) fn machine(detail: &MachineDetailShape) -> String {
    let machine = &detail.machine;
    let field = |name: &str| match &detail.inventory[name] {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut text = format!("Machine {} ({})\n", machine.name, machine.id);
    let _infallible = writeln!(text, "  state       {}, {}", machine.state, level(machine.health));
    let _infallible = writeln!(text, "  enrolled    {}", with_age(&machine.enrolled_at));
    if let Some(seen) = &machine.last_seen_at {
        let _infallible = writeln!(text, "  last seen   {}", with_age(seen));
    }
    for (label, name) in [
        ("system", "operating_system"),
        ("kernel", "kernel"),
        ("hardware", "hardware"),
        ("platform", "platform"),
        ("firmware", "firmware"),
        ("CPUs", "processors"),
    ] {
        let _infallible = writeln!(text, "  {label:<11} {}", field(name));
    }
    let memory = detail.inventory["memory_bytes"].as_u64().map_or_else(|| "-".to_owned(), bytes);
    let _infallible = writeln!(text, "  memory      {memory}");
    let interval = duration::show(Duration::from_millis(detail.policy.interval_ms));
    let kept = kept(&detail.policy);
    let _infallible = writeln!(text, "  policy      a point every {interval}, {kept}\n");
    text.push_str(&inventory_disks(detail));
    text.push_str("\n\n");
    text.push_str(&stored(&detail.disks));
    findings(&mut text, &machine.name, &detail.findings);
    for disk in &detail.disks {
        findings(&mut text, &disk.path, &disk.findings);
    }
    text
}

/// How long a policy keeps points.
pub(crate) fn kept(policy: &PolicyShape) -> String {
    let time = |seconds| duration::show(Duration::from_secs(seconds));
    let mut text = format!("kept for {}", time(policy.retention_seconds));
    for tier in &policy.retention_tiers {
        let (every, until) = (time(tier.every_seconds), time(tier.until_seconds));
        let _infallible = write!(text, ", then one every {every} until they are {until} old");
    }
    text
}

/// What the protected disks take in the store, and what for.
fn stored(disks: &[DiskStatusShape]) -> String {
    if disks.is_empty() {
        return String::new();
    }
    let mut rows = table(&["STORED", "IN ALL", "NEWEST STATE", "HISTORY", "RECLAIMABLE"]);
    for disk in disks {
        rows.add_row([
            disk.path.clone(),
            bytes(disk.stored_bytes),
            bytes(disk.live_bytes),
            bytes(disk.history_bytes),
            bytes(disk.reclaimable_bytes),
        ]);
    }
    format!("{rows}\n\n")
}

/// All disks of a machine: those that could be protected, too.
fn inventory_disks(detail: &MachineDetailShape) -> String {
    let mut table = table(&["DISK", "SIZE", "PROTECTED", "MODEL", "USED FOR"]);
    let known = detail.inventory["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
    for disk in known {
        let path = disk["path"].as_str().unwrap_or_default();
        let protected = detail.disks.iter().find(|shown| shown.path == path);
        let systems = disk["file_systems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let used: Vec<String> = systems
            .iter()
            .map(|system| {
                let kind = system["kind"].as_str().unwrap_or_default();
                let mounts = system["mount_points"].as_array().map(Vec::as_slice).unwrap_or_default();
                let mount = mounts.first().and_then(|mount| mount.as_str()).unwrap_or_default();
                format!("{kind} {mount}").trim_end().to_owned()
            })
            .collect();
        table.add_row([
            path.to_owned(),
            bytes(disk["size_bytes"].as_u64().unwrap_or(0)),
            protected.map_or_else(|| "no".to_owned(), |disk| disk.state.clone()),
            disk["model"].as_str().unwrap_or_default().to_owned(),
            used.join(", "),
        ]);
    }
    if known.is_empty() {
        "Its disks are not known yet: it has not connected.".to_owned()
    } else {
        table.to_string()
    }
}

/// `holdfast status`.
pub(crate) fn status(status: &StatusShape) -> String {
    let mut text =
        format!("Coordinator {}, on {} since {}", status.version, status.listen, local(&status.started_at));
    if let Some(space) = status.space {
        let _infallible = write!(text, ", {} of {} free", bytes(space.free_bytes), bytes(space.total_bytes));
    }
    text.push_str("\n\n");
    if status.machines.is_empty() {
        text.push_str("No machines yet. `holdfast token create` makes a token to enrol one.\n");
    } else {
        let mut rows = table(&[
            "MACHINE", "DISK", "HEALTH", "STATE", "LAG", "RPO", "PENDING", "CHURN", "STORED", "LINK",
        ]);
        for machine in &status.machines {
            machine_rows(&mut rows, machine);
        }
        text.push_str(&rows.to_string());
        text.push_str("\n\n");
    }
    for group in &status.groups {
        let lag = group.lag_ms.map(|lag| duration::show(Duration::from_millis(lag)));
        let lag = lag.map_or_else(
            || "no point of all machines yet".to_owned(),
            |lag| format!("newest point of all machines {lag} old"),
        );
        let _infallible = writeln!(text, "Group {}: {}, {lag}", group.name, level(group.health));
    }
    if !status.groups.is_empty() {
        text.push('\n');
    }
    findings(&mut text, "coordinator", &status.findings);
    for group in &status.groups {
        findings(&mut text, &format!("group {}", group.name), &group.findings);
    }
    for machine in &status.machines {
        findings(&mut text, &machine.name, &machine.findings);
        for disk in &machine.disks {
            findings(&mut text, &format!("{} {}", machine.name, disk.path), &disk.findings);
        }
    }
    text
}

/// Where the machine stands between its sites; while its source is the machine, whether that is connected.
fn stage(machine: &MachineStatusShape) -> String {
    let lifecycle = &machine.lifecycle;
    let stage = match (&*lifecycle.stage, machine.connected) {
        ("" | "protected", true) => "connected",
        ("" | "protected", false) => "not connected",
        (stage, _) => stage,
    };
    if !lifecycle.tests.is_empty() { format!("{stage}, test failover") } else { stage.to_owned() }
}

/// Age of the last drill in which it has booted.
fn booted(machine: &MachineStatusShape) -> String {
    let age = machine.drill_age_ms.map(|age| duration::show(Duration::from_millis(age)));
    age.map_or_else(String::new, |age| format!(", booted {age} ago"))
}

fn machine_rows(table: &mut Table, machine: &MachineStatusShape) {
    let link = machine.link.as_ref().map_or_else(
        || if machine.connected { "up".to_owned() } else { "down".to_owned() },
        |link| format!("rtt {}", duration::show(Duration::from_micros(link.rtt_us))),
    );
    let newest = machine.newest_point.as_ref();
    let source = |disk: &DiskStatusShape| disk.marked_bytes.saturating_add(disk.unacknowledged_bytes);
    table.add_row([
        machine.name.clone(),
        String::new(),
        level(machine.health).to_owned(),
        stage(machine) + &booted(machine),
        machine
            .lag_ms
            .map_or_else(|| "no point".to_owned(), |lag| duration::show(Duration::from_millis(lag))),
        newest.map_or_else(|| "-".to_owned(), |point| duration::show(Duration::from_micros(point.rpo_us))),
        bytes(machine.disks.iter().map(source).sum::<u64>().saturating_add(machine.pending_bytes)),
        String::new(),
        bytes(machine.stored_bytes),
        link,
    ]);
    for disk in &machine.disks {
        let state = match &*disk.state {
            "scanning" => format!("scanning {} %", disk.scanned_percent),
            other => other.to_owned(),
        };
        table.add_row([
            String::new(),
            disk.path.clone(),
            level(disk.health).to_owned(),
            state,
            String::new(),
            String::new(),
            bytes(source(disk).saturating_add(disk.pending_bytes)),
            format!("{}/s", bytes(disk.written_bytes_per_second)),
            bytes(disk.stored_bytes),
            disk.capture.clone(),
        ]);
    }
}

/// `holdfast points`.
pub(crate) fn diff(diff: &DiffShape) -> String {
    let mut text = format!(
        "{} were written between {} ({}) and {} ({}).\n",
        bytes(diff.changed_bytes),
        diff.from,
        local(&diff.from_at),
        diff.to,
        local(&diff.to_at)
    );
    for disk in &diff.disks {
        let (changed, size) = (bytes(disk.changed_bytes), bytes(disk.size_bytes));
        let _infallible =
            writeln!(text, "{}: {changed} of {size} in {} ranges", disk.path, disk.ranges_total);
        if !disk.in_both {
            let _infallible = writeln!(text, "  only the second point has this disk");
        }
        for range in &disk.ranges {
            let _infallible = writeln!(text, "  {:>16} + {}", range.offset, range.bytes);
        }
        let more = disk.ranges_total.saturating_sub(disk.ranges.len() as u64);
        if more > 0 {
            let _infallible = writeln!(text, "  and {more} more; --ranges shows more of them");
        }
    }
    for path in &diff.disks_only_in_from {
        let _infallible = writeln!(text, "{path}: only the first point has this disk");
    }
    text
}

pub(crate) fn points(list: &PointsShape) -> String {
    let mut text = String::new();
    if list.points.is_empty() {
        let _infallible = writeln!(text, "Machine {} has no complete point yet.", list.name);
    } else {
        let mut table = table(&["POINT", "CUT", "STATE", "KIND", "RPO", "HOLD", "SIZE", "REMARKS"]);
        for point in &list.points {
            table.add_row([
                point.id.clone(),
                with_age(&point.at),
                match &point.verified_at {
                    Some(_) if point.state == "processed" => "verified".to_owned(),
                    _ => point.state.clone(),
                },
                format!("{}-consistent, {}", point.consistency, point.method),
                duration::show(Duration::from_micros(point.rpo_us)),
                duration::show(Duration::from_micros(point.hold_us)),
                bytes(point.stored_bytes),
                point
                    .damage
                    .iter()
                    .map(|damage| format!("damaged: {damage}"))
                    .chain(point.booted_at.iter().map(|at| {
                        let rto = duration::show(Duration::from_micros(point.booted_rto_us.unwrap_or(0)));
                        format!("verified bootable {}, RTO {rto}", with_age(at))
                    }))
                    .chain(point.application_frozen_us.map(|time_us| {
                        let time = duration::show(Duration::from_micros(time_us));
                        format!("applications frozen for {time} by {}", point.hooks.join(", "))
                    }))
                    .chain(point.witness.iter().filter_map(|witness| {
                        witness.compared_at.as_ref()?;
                        Some(match witness.differed {
                            0 => format!("witnessed {} blocks", witness.blocks),
                            differed => format!("{differed} of {} witnessed blocks DIFFER", witness.blocks),
                        })
                    }))
                    .chain(point.group_cut.as_ref().map(|cut| format!("group point {cut}")))
                    .chain(point.notes.clone())
                    .collect::<Vec<_>>()
                    .join("; "),
            ]);
        }
        text.push_str(&table.to_string());
        text.push('\n');
    }
    for gap in &list.gaps {
        let length = duration::show(Duration::from_millis(gap.length_ms));
        let why = gap
            .reason
            .as_deref()
            .map(|why| format!("; {} cuts were void in it, the last: {why}", gap.voided));
        let _infallible = writeln!(
            text,
            "Gap: no points between {} and {} ({length}){}",
            local(&gap.from),
            local(&gap.to),
            why.unwrap_or_default()
        );
    }
    for arriving in &list.arriving {
        let missing = arriving.missing_disks.join(", ");
        let _infallible = writeln!(text, "Arriving: cut of {}, still without {missing}", local(&arriving.at));
    }
    for point in &list.void_points {
        let reason = point.void_reason.as_deref().unwrap_or("unknown reason");
        let _infallible = writeln!(text, "Void: {} of {}: {reason}", point.id, local(&point.at));
    }
    for cut in &list.voided_cuts {
        let _infallible = writeln!(text, "Voided cut of {}: {}", local(&cut.at), cut.reason);
    }
    text
}

/// `holdfast scrub status`.
pub(crate) fn checks(checks: &[CheckShape]) -> String {
    if checks.is_empty() {
        return "There is no stored data yet.".to_owned();
    }
    let mut table = table(&["MACHINE", "DISK", "STORED", "NOT VERIFIED", "DAMAGED", "LAST SCRUB", "NOW"]);
    for check in checks {
        let last = check.last.as_ref().and_then(|last| {
            let read = bytes(last.good_bytes);
            Some(format!(
                "{}, {read} good, {} frames bad",
                with_age(last.ended_at.as_ref()?),
                last.bad_frames
            ))
        });
        let now = match (&check.pass, check.left_bytes) {
            (Some(pass), Some(left)) => {
                let rate = check.bytes_per_second.map_or_else(|| "all".to_owned(), bytes);
                let time = check.left_ms.map(|left| duration::show(Duration::from_millis(left)));
                let time = time.map(|time| format!(", {time} left")).unwrap_or_default();
                format!("{} read, {} to read at {rate}/s{time}", bytes(pass.good_bytes), bytes(left))
            }
            _ => check.next_at.as_ref().map(|at| format!("next {}", local(at))).unwrap_or_default(),
        };
        let frames = if check.damaged_frames == 1 { "frame" } else { "frames" };
        table.add_row([
            check.machine_name.clone(),
            check.path.clone(),
            bytes(check.stored_bytes),
            bytes(check.unverified_bytes),
            format!("{} {frames}", check.damaged_frames),
            last.unwrap_or_else(|| "never".to_owned()),
            now,
        ]);
    }
    table.to_string()
}

/// `holdfast audit`.
pub(crate) fn audit(entries: &[AuditShape]) -> String {
    let mut table = table(&["WHEN", "WHO", "WHAT", "ON", "PARTICULARS"]);
    for entry in entries {
        table.add_row([
            local(&entry.at),
            entry.who.clone(),
            entry.what.clone(),
            entry.subject.clone(),
            entry.detail.clone(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::{bytes, local};

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)],
            ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
        );
    }

    #[test]
    fn what_is_no_time_is_shown_as_it_is() {
        assert_eq!(local("soon"), "soon");
    }
}
