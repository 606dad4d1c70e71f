//! From records to shapes.
//!
//! Owns the conversion only. Pure.

use std::time::Duration;

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, MachineId},
    units::{BLOCK_BYTES, BlockCount},
    wire::DiskHealth,
};

use super::{
    ApiState,
    port::DiskFigures,
    shapes::{
        DiskShape, DiskStatusShape, GapShape, LinkShape, MachineShape, PointDiskShape, PointShape,
        PolicyShape, WitnessShape,
    },
};
use crate::{
    catalog::record::{
        DiskRecord, PointDiskRecord, PointRecord, PointState, PolicyRecord, VoidedCutRecord,
        consistency_text, method_text,
    },
    ingest::links::LinkFigures,
    points::{
        self,
        damage::{Differing, DiskDamage},
        gaps::Gap,
    },
    registry::{
        DiskState, MachineStatus,
        health::{DiskFacts, Finding, Level, disk_findings, worst},
        retention_rule,
    },
    store::Alarm,
};

/// A time as RFC 3339 text, in UTC and with microseconds, so that texts sort as times do.
pub(crate) fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |at| format!("{at:.6}"))
}

pub(super) fn policy(policy: &PolicyRecord) -> PolicyShape {
    PolicyShape {
        interval_ms: policy.interval_ms,
        retention_seconds: policy.retention_seconds,
        retention_tiers: policy.retention_tiers.clone(),
        retention: retention_rule(policy).map(|rule| rule.to_string()).unwrap_or_default(),
        hold_ms_max: policy.hold_ms_max,
        send_bytes_per_second_max: policy.send_bytes_per_second_max,
        scan_bytes_per_second_max: policy.scan_bytes_per_second_max,
        application_interval_ms: policy.application_interval_ms,
        application_strict: policy.application_strict,
        drill: policy.drill.clone(),
    }
}

pub(super) fn disk(disk: &DiskRecord) -> DiskShape {
    DiskShape {
        id: disk.id.to_string(),
        path: disk.path.clone(),
        size_bytes: disk.size_bytes,
        generation: disk.generation.0,
    }
}

pub(super) fn machine(state: &ApiState, status: &MachineStatus, health: Level) -> MachineShape {
    let link = state.links.figures(status.record.id);
    MachineShape {
        id: status.record.id.to_string(),
        name: status.record.name.clone(),
        state: status.record.state.text().to_owned(),
        connected: status.connected_since.is_some(),
        address: link.map(|link| link.peer.to_string()),
        disconnect_reason: status.disconnect_reason.clone().filter(|_| status.connected_since.is_none()),
        health,
        enrolled_at: time(status.record.enrolled_at),
        last_seen_at: status.record.last_seen_at.map(time),
        agent_version: status.record.agent_version.clone(),
        operating_system: status
            .inventory
            .as_ref()
            .map(|inventory| inventory.operating_system.clone())
            .unwrap_or_default(),
        protected_disks: state.registry.protected_disks(status.record.id).len(),
    }
}

pub(super) fn point(state: &ApiState, point: &PointRecord) -> PointShape {
    let disks = point.disks.iter().map(|member| PointDiskShape {
        id: member.disk.to_string(),
        path: disk_path(state, member.disk),
        generation: member.generation.0,
        sequence: member.sequence.0,
        stored_bytes: member.stored_bytes,
    });
    let damage = point_damage(state, point);
    let application = point.more.application.as_ref();
    PointShape {
        id: point.id.to_string(),
        machine: point.machine.to_string(),
        state: if damage.is_some() { "damaged" } else { point.state.text() }.to_owned(),
        at: time(point.cut_at),
        at_us: point.cut_at.0,
        durable_at: time(point.durable_at),
        durable_at_us: point.durable_at.0,
        rpo_us: point.rpo_us,
        hold_us: point.hold_us,
        consistency: consistency_text(point.consistency).to_owned(),
        method: method_text(point.method).to_owned(),
        stored_bytes: point.disks.iter().map(|disk| disk.stored_bytes).sum(),
        request: point.request,
        notes: point.notes.clone(),
        void_reason: point.void_reason.clone(),
        damage,
        disks: disks.collect(),
        verified_at: point.verified_at.map(time),
        booted_at: None,
        booted_rto_us: None,
        witness: (point.witness.blocks > 0).then(|| WitnessShape {
            blocks: point.witness.blocks,
            compared_at: point.witness.compared_at.map(time),
            differed: point.witness.differed,
        }),
        group_cut: point.more.group.as_ref().map(|mark| mark.cut.to_string()),
        hooks: application.map(|freeze| freeze.hooks.clone()).unwrap_or_default(),
        application_frozen_us: application.map(|freeze| freeze.frozen_us),
    }
}

fn point_damage(state: &ApiState, point: &PointRecord) -> Option<String> {
    if point.state == PointState::Void {
        return None;
    }
    let damage = state.damage.point(point);
    let texts = damage.iter().map(|(disk, damage)| format!("{damage} of {}", disk_path(state, *disk)));
    (!damage.is_empty()).then(|| texts.collect::<Vec<_>>().join("; "))
}

/// What damage of a disk means, if there is some. `points` are the machine's, newest first.
pub(super) fn damage_finding(state: &ApiState, disk: DiskId, points: &[PointRecord]) -> Option<Finding> {
    let damage = state.damage.disk(disk);
    // What differs from the source has a finding of its own.
    let damage = DiskDamage { differing: Vec::new(), ..damage };
    if damage.is_empty() {
        return None;
    }
    let needs = |point: &&PointRecord| {
        let hit =
            |member: &PointDiskRecord| member.disk == disk && !damage.of_cut(member.sequence).is_empty();
        point.state != PointState::Void && point.disks.iter().any(hit)
    };
    let hit: Vec<String> = points.iter().filter(needs).map(|point| point.id.to_string()).collect();
    let named = hit.iter().take(POINTS_NAMED).cloned().collect::<Vec<_>>().join(", ");
    let more = if hit.len() > POINTS_NAMED { ", ..." } else { "" };
    let path = disk_path(state, disk);
    let needed = match hit.len() {
        0 => "no point needs it".to_owned(),
        1 => format!("1 point needs it ({named})"),
        count => format!("{count} points need it ({named}{more})"),
    };
    if damage.is_repaired() {
        let reason =
            format!("stored data of {path} is damaged: {damage}; {needed}; newer points do without it");
        let advice = "choose a newer point, or an older one that `holdfast points` does not call damaged; have the \
                      storage under the coordinator's data folder checked";
        return Some(Finding { level: Level::Warning, reason, advice: advice.to_owned() });
    }
    let reason = format!("stored data of {path} is damaged: {damage}; {needed}");
    let advice = "the source sends it again by itself as soon as it is connected, and newer points are good then; if the \
                  source is lost, choose a point that `holdfast points` does not call damaged; have the storage under \
                  the coordinator's data folder checked";
    Some(Finding { level: Level::Critical, reason, advice: advice.to_owned() })
}

/// What it means that the copy of a disk was found to differ from its source, until all of it was compared again.
fn difference_finding(state: &ApiState, machine: MachineId, disk: DiskId, alarm: Alarm) -> Finding {
    let machine = machine_name(state, machine);
    let damage = state.damage.disk(disk);
    let path = disk_path(state, disk);
    let blocks = match alarm.blocks {
        1 => "1 block".to_owned(),
        count => format!("{count} blocks"),
    };
    let when = time(Timestamp(alarm.last_us));
    let now = if damage.differing.iter().all(Differing::is_repaired) {
        "they were sent again, and newer points are right there"
    } else {
        "they are being sent again, and points are damaged there until then"
    };
    let reason = format!(
        "the copy of {path} is not what its source has: {blocks} differed, last found {when}; {now}. Something is written \
         past tracking, or a read on the way was wrong, so others may differ as well"
    );
    let advice = format!(
        "run `holdfast compare start {machine}`: it compares every block and has sent again what differs; one that finds \
         nothing ends this alarm. Find what writes to the disk past the kernel that tracks it (another host, a hypervisor, a backing file); points \
         before the alarm may be wrong in the same places"
    );
    Finding { level: Level::Critical, reason, advice }
}

/// Points that a finding names.
const POINTS_NAMED: usize = 5;

pub(super) fn machine_name(state: &ApiState, machine: MachineId) -> String {
    state.registry.machine(machine).map(|machine| machine.record.name).unwrap_or_default()
}

/// Times without points; both lists are newest first.
pub(super) fn gaps(points: &[PointRecord], voided: &[VoidedCutRecord], interval: Duration) -> Vec<Gap> {
    let usable = points.iter().filter(|point| point.state != PointState::Void);
    let cuts: Vec<Timestamp> = usable.map(|point| point.cut_at).collect();
    let voided: Vec<(Timestamp, &str)> = voided.iter().map(|cut| (cut.at, cut.reason.as_str())).collect();
    points::gaps::gaps(&cuts, &voided, interval)
}

pub(super) fn gap(gap: &Gap) -> GapShape {
    GapShape {
        from: time(gap.from),
        to: time(gap.to),
        length_ms: u64::try_from(gap.to.since(gap.from).as_millis()).unwrap_or(u64::MAX),
        voided: gap.voided,
        reason: gap.reason.clone(),
    }
}

/// A gap in a sentence.
pub(super) fn gap_text(gap: &Gap) -> String {
    let (from, to) = (time(gap.from), time(gap.to));
    let seconds = gap.to.since(gap.from).as_secs();
    let why = match &gap.reason {
        Some(reason) => format!("; {} cuts were void in it, the last: {reason}", gap.voided),
        None => String::new(),
    };
    format!("there are no points between {from} and {to} ({seconds} s){why}")
}

pub(super) fn disk_path(state: &ApiState, disk: DiskId) -> String {
    state.registry.disk(disk).map(|disk| disk.record.path).unwrap_or_default()
}

pub(super) fn link(figures: &LinkFigures) -> LinkShape {
    LinkShape {
        address: figures.peer.to_string(),
        connected_at: time(figures.connected_at),
        rtt_us: figures.rtt_us,
        sent_bytes: figures.received_bytes,
        received_bytes: figures.sent_bytes,
        frame_bytes: figures.frame_bytes,
        lost_packets: figures.lost_packets,
        congestion_window_bytes: figures.congestion_window_bytes,
        mtu_bytes: figures.mtu_bytes,
    }
}

pub(super) fn disk_status(
    state: &ApiState,
    disk: &DiskState,
    connected: bool,
    anew: Option<String>,
    points: &[PointRecord],
) -> DiskStatusShape {
    let now = state.clock.monotonic();
    let figures: DiskFigures = state.store.disk(disk.record.id);
    let checks = state.checks.figures(disk.record.id);
    let report = disk.report.as_ref();
    let facts = DiskFacts {
        connected,
        report: report.map(|(report, at)| (report.health.clone(), now.saturating_sub(*at))),
        size_bytes: disk.record.size_bytes,
        compared_anew_because: anew,
    };
    let mut findings = disk_findings(&facts);
    findings.extend(figures.trouble.map(|text| {
        Finding {
            level: Level::Critical,
            reason: format!("the replica does not go on: {text}"),
            advice: "nothing is lost: the source keeps its changes marked; free or enlarge the space of the coordinator's \
                     data folder, or make it writable, and it goes on by itself"
                .to_owned(),
        }
    }));
    findings.extend(figures.reclaim_trouble.map(|text| {
        Finding {
            level: Level::Warning,
            reason: format!("space that retention gave up is not given back: {text}"),
            advice: "it is tried again by itself; if it lasts, look at the coordinator's log and at its disk"
                .to_owned(),
        }
    }));
    findings.extend(damage_finding(state, disk.record.id, points));
    let alarm = figures.alarm;
    findings.extend(alarm.map(|alarm| difference_finding(state, disk.record.machine, disk.record.id, alarm)));
    let report = report.map(|(report, _)| report);
    DiskStatusShape {
        id: disk.record.id.to_string(),
        path: report.map_or_else(|| disk.record.path.clone(), |report| report.path.clone()),
        size_bytes: disk.record.size_bytes,
        generation: disk.record.generation.0,
        state: report.map_or("unknown", |report| health_text(&report.health)).to_owned(),
        health: worst(&findings),
        findings,
        capture: report.map(|report| report.capture.clone()).unwrap_or_default(),
        marked_bytes: report.map_or(0, |report| report.marked.0.saturating_mul(BLOCK_BYTES as u64)),
        unacknowledged_bytes: report.map_or(0, |report| report.unacknowledged_bytes),
        written_bytes_per_second: disk.written_bytes_per_second,
        scanned_percent: report.map_or(0, |report| percent(report.scanned_to.0, disk.record.size_bytes)),
        stored_bytes: figures.stored_bytes,
        live_bytes: figures.space.live_bytes,
        history_bytes: figures.space.history_bytes,
        reclaimable_bytes: figures.space.reclaimable_bytes,
        pending_bytes: figures.pending_bytes,
        unverified_bytes: checks.map_or(0, |checks| checks.unverified_bytes),
        scrubbed_at: checks.and_then(|checks| checks.last?.ended_at).map(time),
    }
}

const fn health_text(health: &DiskHealth) -> &'static str {
    match health {
        DiskHealth::Protected => "protected",
        DiskHealth::Scanning => "scanning",
        DiskHealth::Missing => "missing",
        DiskHealth::Resized { .. } => "resized",
        DiskHealth::Failed(_) => "failed",
    }
}

/// How many percent of the disk lie below a block, rounded down.
fn percent(block: u64, size_bytes: u64) -> u8 {
    let blocks = BlockCount::covering(size_bytes).0.max(1);
    let percent = u128::from(block) * 100 / u128::from(blocks);
    u8::try_from(percent.min(100)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use holdfast_common::clock::Timestamp;

    use super::{percent, time};

    #[test]
    fn times_are_utc_with_microseconds() {
        assert_eq!(time(Timestamp(0)), "1970-01-01T00:00:00.000000Z");
        assert_eq!(time(Timestamp(1_700_000_000_123_456)), "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn percents_stay_in_their_bounds() {
        assert_eq!([percent(0, 0), percent(1, 8192), percent(9, 8192)], [0, 50, 100]);
    }
}
