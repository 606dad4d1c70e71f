//! Requests about drills: begin one, what they have shown, a picture of a machine's screen.
//!
//! Owns the handlers and their shapes. A drill is a job; what it has shown is kept by the book of drills.

use axum::{
    Json,
    extract::{ConnectInfo, Path, State},
};
use holdfast_common::ids::JobId;
use serde::{Deserialize, Serialize};

use super::{ApiError, ApiState, Who, forecast, shapes::JobShape, verbs, views};
use crate::drills::{Drill, DrillRecord};

/// A drill to begin.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DrillRequest {
    /// Which point, as `holdfast failover --point` takes it; the newest processed one if empty.
    pub point: String,
    /// What its console has to say; by the machine's policy if not given.
    pub probe: Option<String>,
    /// How long that may take; by the machine's policy if not given.
    pub limit_ms: Option<u64>,
}

/// A drill that has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DrillShape {
    /// Its job.
    pub job: String,
    /// The point that was booted.
    pub point: Option<String>,
    /// When it ended.
    pub at: String,
    /// Whether the machine has booted.
    pub ok: bool,
    /// From the trigger until it had, in microseconds.
    pub rto_us: u64,
    /// What happened.
    pub text: String,
    /// A picture of its screen, on the coordinator's host.
    pub screenshot: Option<String>,
}

/// A picture.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScreenshotShape {
    /// The job whose machine it is.
    pub job: String,
    /// The PNG file's bytes, in hexadecimal.
    pub png_hex: String,
}

/// Largest picture.
const PICTURE_BYTES_MAX: u64 = 16 << 20;

pub(super) fn shape(record: &DrillRecord) -> DrillShape {
    DrillShape {
        job: record.job.to_string(),
        point: record.point.map(|point| point.to_string()),
        at: views::time(record.at),
        ok: record.ok,
        rto_us: record.rto_us,
        text: record.text.clone(),
        screenshot: record.screenshot.as_ref().map(|path| path.display().to_string()),
    }
}

pub(super) async fn begin(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
    Json(request): Json<DrillRequest>,
) -> Result<Json<JobShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let policy =
        state.registry.machine(machine).map(|machine| machine.policy.drill.drill).unwrap_or_default();
    let drill = Drill {
        probe: request.probe.unwrap_or(policy.probe),
        limit_ms: request.limit_ms.unwrap_or(policy.limit_ms),
    };
    let advice =
        "give --probe a regular expression for what the serial console says when the machine has booted";
    drill.expression().map_err(|error| ApiError::invalid(error, advice))?;
    let point = if request.point.is_empty() { "latest-processed" } else { &request.point };
    let selection = forecast::selection(point)?;
    verbs::check_free(&state, machine, true)?;
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), "drill", name, selection.to_string()).await?;
    Ok(Json(state.jobs.drill(peer.name(), machine, selection, drill).await?))
}

pub(super) async fn list(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<Vec<DrillShape>>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    Ok(Json(state.drills.list(machine).iter().map(shape).collect()))
}

pub(super) async fn screenshot(
    State(state): State<ApiState>,
    ConnectInfo(peer): Who,
    Path(given): Path<String>,
) -> Result<Json<ScreenshotShape>, ApiError> {
    let machine = state.registry.resolve(&given)?;
    let id = machine.to_string();
    let jobs = state.jobs.list().await?;
    // Newest first: a test beside a failed-over machine is the newer one.
    let running = jobs.into_iter().filter(|job| job.machine == id && job.runs.is_some());
    let Some(job) = running.map(|job| job.id).next() else {
        return Err(ApiError::conflict(
            format!("{given} does not run from a recovery point"),
            "`holdfast failover MACHINE --vm` or `holdfast test-failover MACHINE --vm` has it run",
        ));
    };
    let name = views::machine_name(&state, machine);
    state.registry.record_act(&peer.name(), "screenshot", name, job.clone()).await?;
    let advice = "look whether it runs: `holdfast jobs`";
    let lost =
        |error: std::io::Error| ApiError::conflict(format!("the picture cannot be read: {error}"), advice);
    let id: JobId = job.parse().map_err(|_| lost(std::io::Error::other("its job has no id")))?;
    // Beside the pictures of drills, under a name that none of them has.
    let file = state.drills.screenshot(machine, id).map_err(lost)?.with_extension("now.png");
    let taken = state.machines.screenshot(job.clone(), file.clone()).await;
    taken.map_err(|error| ApiError::conflict(format!("no picture could be taken: {error}"), advice))?;
    let read = tokio::task::spawn_blocking(move || {
        let length = std::fs::metadata(&file)?.len();
        let read = if length > PICTURE_BYTES_MAX {
            Err(std::io::Error::other("it is too large"))
        } else {
            std::fs::read(&file)
        };
        let _only_a_copy = std::fs::remove_file(&file);
        read
    });
    let bytes = read.await.map_err(|error| std::io::Error::other(error.to_string())).flatten();
    let bytes = bytes.map_err(lost)?;
    let png_hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Json(ScreenshotShape { job, png_hex }))
}
