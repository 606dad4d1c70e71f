//! Requests about the checks of stored data.
//!
//! Owns the handlers; the checks are behind [`StoreChecks`](super::port::StoreChecks).

use axum::{
    Json,
    extract::{ConnectInfo, State},
};
use holdfast_common::ids::MachineId;

use super::{
    ApiError, ApiState, Who,
    port::{CheckFigures, PassFigures},
    shapes::{CheckShape, PassShape, ScrubRequest},
    views,
};
use crate::registry::DiskState;

pub(super) async fn show(State(state): State<ApiState>) -> Json<Vec<CheckShape>> {
    let machines = state.registry.machines().into_iter().map(|machine| machine.record.id);
    Json(machines.flat_map(|machine| shapes(&state, machine)).collect())
}

pub(super) async fn start(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Json(request): Json<ScrubRequest>,
) -> Result<Json<Vec<CheckShape>>, ApiError> {
    let machines: Vec<MachineId> = match &request.machine {
        Some(given) => vec![state.registry.resolve(given)?],
        None => state.registry.machines().into_iter().map(|machine| machine.record.id).collect(),
    };
    let subject = request.machine.unwrap_or_else(|| "all machines".to_owned());
    state.registry.record_act(&peer.name(), "scrub", subject, "").await?;
    // Disks that are protected no more have history as well.
    let disks: Vec<DiskState> = machines.iter().flat_map(|machine| disks_of(&state, *machine)).collect();
    let begun = disks.iter().filter(|disk| state.checks.start(disk.record.id)).count();
    if begun == 0 {
        return Err(ApiError::conflict(
            "there is no stored data to scrub",
            "protect a disk first; `holdfast status` shows what is stored",
        ));
    }
    Ok(Json(machines.into_iter().flat_map(|machine| shapes(&state, machine)).collect()))
}

fn disks_of(state: &ApiState, machine: MachineId) -> impl Iterator<Item = DiskState> {
    state.registry.disks().into_iter().filter(move |disk| disk.record.machine == machine)
}

fn shapes(state: &ApiState, machine: MachineId) -> Vec<CheckShape> {
    let name = state.registry.machine(machine).map(|machine| machine.record.name).unwrap_or_default();
    let shapes = disks_of(state, machine).filter_map(|disk| {
        let figures = state.checks.figures(disk.record.id)?;
        Some(shape(machine, &name, &disk, figures))
    });
    shapes.collect()
}

fn shape(machine: MachineId, name: &str, disk: &DiskState, figures: CheckFigures) -> CheckShape {
    let running = figures.pass.is_some();
    let left_bytes = figures.pass.map(|pass| left(&figures, &pass));
    let rate = figures.bytes_per_second.filter(|rate| *rate > 0);
    CheckShape {
        machine: machine.to_string(),
        machine_name: name.to_owned(),
        disk: disk.record.id.to_string(),
        path: disk.record.path.clone(),
        state: if running { "running" } else { "idle" }.to_owned(),
        verified_sequence: figures.verified.0,
        unverified_bytes: figures.unverified_bytes,
        stored_bytes: figures.journal_bytes,
        left_bytes,
        left_ms: left_bytes.zip(rate).map(|(left, rate)| left.saturating_mul(1000) / rate),
        bytes_per_second: figures.bytes_per_second,
        pass: figures.pass.map(pass_shape),
        last: figures.last.map(pass_shape),
        next_at: (!running).then(|| views::time(figures.next_at)),
        damaged_frames: figures.damaged_frames,
    }
}

/// What a pass still has to read, by the proportion of frames.
fn left(figures: &CheckFigures, pass: &PassFigures) -> u64 {
    let frames = u128::from(pass.up_to.saturating_sub(pass.position));
    let bytes = u128::from(figures.journal_bytes) * frames / u128::from(pass.up_to.max(1));
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn pass_shape(pass: PassFigures) -> PassShape {
    PassShape {
        started_at: views::time(pass.started_at),
        ended_at: pass.ended_at.map(views::time),
        good_bytes: pass.good_bytes,
        bad_frames: pass.bad_frames,
    }
}
