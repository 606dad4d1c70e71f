//! Requests about the consoles of machines that run from a recovery point.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path as FilePath,
};

use axum::{
    Json,
    extract::{Path, State},
};

use super::{ApiError, ApiState, machine_shapes::ConsoleShape};

/// Bytes of the log that are given: its end.
const LOG_BYTES_MAX: u64 = 64 << 10;

pub(super) async fn show(
    State(state): State<ApiState>,
    Path(given): Path<String>,
) -> Result<Json<ConsoleShape>, ApiError> {
    let machine = state.registry.resolve(&given)?.to_string();
    let jobs = state.jobs.list().await?;
    let running = jobs.into_iter().filter(|job| job.machine == machine);
    // Newest first: a test beside a failed-over machine is the newer one.
    let found = running.filter_map(|job| Some((job.id, job.kind, job.runs?))).next();
    let Some((job, kind, runs)) = found else {
        return Err(ApiError::conflict(
            format!("{given} does not run from a recovery point"),
            "`holdfast failover MACHINE --vm` or `holdfast test-failover MACHINE --vm` has it run",
        ));
    };
    let path = runs.console_log.clone().unwrap_or_default();
    let log = tokio::task::spawn_blocking(move || tail(path.as_ref())).await.unwrap_or_default();
    Ok(Json(ConsoleShape { job, kind, runs, log }))
}

/// The end of a log; empty if there is none yet.
fn tail(path: &FilePath) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(LOG_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
