//! Requests about how everything is doing.
//!
//! Owns the gathering of facts from registry, points, links and store; the rules of health are the registry's.

use std::time::Duration;

use axum::{
    Json,
    extract::{Query, State},
};
use holdfast_common::{clock::Timestamp, frame::Consistency, ids::Generation};
use serde::Deserialize;

use super::{
    ApiError, ApiState,
    shapes::{AuditShape, DiskStatusShape, LifecycleShape, MachineStatusShape, SpaceShape, StatusShape},
    views,
};
use crate::{
    catalog::{ROWS_MAX, record::MachineState},
    drills::DrillRecord,
    registry::{
        DiskState, MachineStatus,
        health::{FailedOver, Finding, Level, MachineFacts, machine_findings, worst},
    },
    store::pressure,
};

/// Free space is worth a warning below this many times the reserve.
const SPACE_WARNING_RESERVES: u64 = 4;

/// Voided cuts looked at to tell whether the last ones all were.
const VOIDED_LOOKED_AT: u32 = 100;

/// Points looked at for gaps between them; `holdfast points` looks at all that it lists.
const POINTS_LOOKED_AT: u32 = 300;

pub(super) async fn status(State(state): State<ApiState>) -> Result<Json<StatusShape>, ApiError> {
    let mut machines = Vec::new();
    for machine in state.registry.machines() {
        machines.push(machine_status(&state, &machine).await?);
    }
    let groups = super::groups::statuses(&state).await?;
    let findings = own_findings(&state);
    let all = machines.iter().map(|machine| machine.health).chain(groups.iter().map(|group| group.health));
    let health = all.fold(worst(&findings), Ord::max);
    Ok(Json(StatusShape {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at: views::time(state.started_at),
        listen: state.listen.clone(),
        health,
        findings,
        space: state
            .store
            .space()
            .map(|space| SpaceShape { free_bytes: space.free_bytes, total_bytes: space.total_bytes }),
        machines,
        groups,
    }))
}

/// What is wrong with the coordinator itself.
fn own_findings(state: &ApiState) -> Vec<Finding> {
    let mut findings = state.store.trouble();
    let Some(space) = state.store.space() else { return findings };
    let free = space.free_bytes >> 20;
    let advice =
        "free space on the data folder's file system, enlarge it, or shorten the retention".to_owned();
    if space.free_bytes <= space.reserve_bytes {
        let reason = format!("no space left: {free} MiB are free, so nothing more is taken from agents");
        findings.push(Finding { level: Level::Critical, reason, advice });
    } else if space.free_bytes < space.reserve_bytes.saturating_mul(SPACE_WARNING_RESERVES) {
        let slowed = match pressure::rate(space.free_bytes, space.reserve_bytes) {
            Some(rate) => format!(
                "; each disk's frames are taken at {} MiB/s at most, so points may come late",
                rate >> 20
            ),
            None => String::new(),
        };
        let reason = format!("space is nearly used up: {free} MiB are free{slowed}");
        findings.push(Finding { level: Level::Warning, reason, advice });
    }
    findings
}

/// How one machine is doing.
pub(super) async fn machine_status(
    state: &ApiState,
    machine: &MachineStatus,
) -> Result<MachineStatusShape, ApiError> {
    let id = machine.record.id;
    let connected = machine.connected_since.is_some();
    let mut disks = Vec::new();
    let protected = state.registry.protected_disks(id);
    let damaged = protected.iter().any(|disk| !state.damage.disk(disk.record.id).is_empty());
    let points = if damaged { state.points.list(id, ROWS_MAX).await? } else { Vec::new() };
    for disk in protected {
        let anew = compared_anew_because(state, &disk).await?;
        disks.push(views::disk_status(state, &disk, connected, anew, &points));
    }
    let newest = state.points.newest(id);
    let lag = newest.as_ref().map(|point| age(state, machine, point.cut_at));
    let newest_app = state.catalog.newest_point(id, Consistency::App).await?;
    let app_age = newest_app.as_ref().map(|point| age(state, machine, point.cut_at));
    let since = newest.as_ref().map_or(Timestamp(i64::MIN), |point| point.cut_at);
    let voided = state.catalog.voided_cuts(id, VOIDED_LOOKED_AT).await?;
    let voided_since = voided.iter().filter(|cut| cut.at > since).count();
    let interval = Duration::from_millis(machine.policy.interval_ms);
    let recent = state.points.list(id, POINTS_LOOKED_AT).await?;
    let gaps = views::gaps(&recent, &voided, interval);
    let newest_gap = gaps.first().map(|gap| (views::gap_text(gap), age(state, machine, gap.to)));
    let drills = state.drills.list(id);
    let last_good = drills.iter().find(|drill| drill.ok);
    let facts = MachineFacts {
        revoked: machine.record.state == MachineState::Revoked,
        failed_over: failed_over(state, machine),
        connected,
        ever_connected: machine.record.last_seen_at.is_some(),
        disk_count: disks.len(),
        scans_complete: !disks.is_empty() && disks.iter().all(|disk| disk.state == "protected"),
        point_age: lag,
        interval,
        voided_since: u32::try_from(voided_since).unwrap_or(u32::MAX),
        voided_because: voided.first().map(|cut| cut.reason.clone()),
        rpo: newest.as_ref().map(|point| Duration::from_micros(point.rpo_us)),
        app_age,
        gap: newest_gap,
        unready: state.readiness.record(id).and_then(|record| record.report.against()),
        undrilled: undrilled(machine, &drills, state.clock.wall()),
        thresholds: machine.thresholds,
    };
    let findings = machine_findings(&facts);
    let health = disks.iter().map(|disk| disk.health).fold(worst(&findings), Ord::max);
    let sum = |figure: fn(&DiskStatusShape) -> u64| disks.iter().map(figure).sum();
    Ok(MachineStatusShape {
        id: id.to_string(),
        name: machine.record.name.clone(),
        health,
        findings,
        lifecycle: lifecycle(machine),
        connected,
        interval_ms: machine.policy.interval_ms,
        newest_point: newest.as_ref().map(|point| views::point(state, point)),
        lag_ms: lag.map(millis),
        drill: last_good.map(super::drills::shape),
        drill_age_ms: last_good.map(|drill| millis(state.clock.wall().since(drill.at))),
        app_age_ms: app_age.map(millis),
        voided_since,
        gaps: gaps.iter().map(views::gap).collect(),
        thresholds: machine.thresholds,
        pending_points: state.points.pending_count(id),
        arriving_points: state.points.arriving(id).len(),
        stored_bytes: sum(|disk| disk.stored_bytes),
        live_bytes: sum(|disk| disk.live_bytes),
        history_bytes: sum(|disk| disk.history_bytes),
        reclaimable_bytes: sum(|disk| disk.reclaimable_bytes),
        pending_bytes: sum(|disk| disk.pending_bytes),
        link: state.links.figures(id).as_ref().map(views::link),
        disks,
    })
}

/// Drills may be so many times as old as their policy wants them before that is worth a warning.
const DRILLS_LATE: u32 = 2;

/// What speaks against a machine's drills.
fn undrilled(machine: &MachineStatus, drills: &[DrillRecord], now: Timestamp) -> Option<String> {
    if let Some(last) = drills.first().filter(|last| !last.ok) {
        return Some(format!("its last drill failed: {}", last.text));
    }
    let every = Duration::from_millis(machine.policy.drill.every_ms);
    let age = now.since(drills.first()?.at);
    (!every.is_zero() && age > every * DRILLS_LATE)
        .then(|| format!("its last drill is {} h old", age.as_secs() / 3600))
}

fn failed_over(state: &ApiState, machine: &MachineStatus) -> Option<FailedOver> {
    let stage = machine.lifecycle.is_fenced().then_some(machine.lifecycle.stage)?;
    let told = machine.told_fenced_at.map(|at| state.clock.wall().since(at));
    Some(FailedOver { stage, told })
}

/// Where a machine stands between its sites.
pub(super) fn lifecycle(machine: &MachineStatus) -> LifecycleShape {
    let lifecycle = &machine.lifecycle;
    LifecycleShape {
        stage: lifecycle.stage.name().to_owned(),
        fenced: lifecycle.is_fenced(),
        source_told_at: machine.told_fenced_at.map(views::time),
        job: lifecycle.stage.failover().map(|job| job.to_string()),
        point: lifecycle.stage.point().map(|point| point.to_string()),
        tests: lifecycle.tests.iter().map(ToString::to_string).collect(),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Age of a cut by our clock; `cut_at` is by the source's.
pub(super) fn age(state: &ApiState, machine: &MachineStatus, cut_at: Timestamp) -> Duration {
    let cut_here = Timestamp(cut_at.0.saturating_add(machine.clock_offset_us.unwrap_or(0)));
    state.clock.wall().since(cut_here)
}

/// Why a disk is compared anew: the reason of its line of history, if it is not the first.
async fn compared_anew_because(state: &ApiState, disk: &DiskState) -> Result<Option<String>, ApiError> {
    if disk.record.generation <= Generation(1) {
        return Ok(None);
    }
    let generations = state.catalog.generations(disk.record.id).await?;
    Ok(generations.into_iter().next_back().map(|generation| generation.reason))
}

#[derive(Debug, Deserialize)]
pub(super) struct AuditQuery {
    limit: Option<u32>,
    /// Only entries of this time or later, in microseconds since 1970 UTC.
    since_us: Option<i64>,
    /// Only entries that are no older than this.
    age_ms: Option<u64>,
}

pub(super) async fn audit(
    State(state): State<ApiState>,
    Query(query): Query<AuditQuery>,
) -> Result<Json<Vec<AuditShape>>, ApiError> {
    let oldest = query.age_ms.map(|age| {
        let age_us = i64::try_from(age).unwrap_or(i64::MAX).saturating_mul(1000);
        state.clock.wall().0.saturating_sub(age_us)
    });
    let since = Timestamp(query.since_us.or(oldest).unwrap_or(i64::MIN));
    let entries = state.catalog.audit(since, query.limit.unwrap_or(100)).await?;
    let shapes = entries.into_iter().map(|entry| AuditShape {
        at: views::time(entry.at),
        who: entry.who,
        what: entry.what,
        subject: entry.subject,
        detail: entry.detail,
    });
    Ok(Json(shapes.collect()))
}
