//! Processes that a plan's step has started, found by their environment.
//!
//! Owns the marks' names and the search. Whoever started them may have been killed, so nothing but the environment that they have
//! inherited says whose they are.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::ids::JobId;

/// Names the job in the environment of what a step starts.
pub const JOB: &str = "HOLDFAST_JOB";
/// Names the step, counted from zero.
pub const STEP: &str = "HOLDFAST_STEP";

/// Kills all processes of a step that can be seen; gives how many. More may be started meanwhile. Blocks.
#[must_use]
pub fn end_marked(job: JobId, step: u32) -> usize {
    let marks = [format!("{JOB}={job}"), format!("{STEP}={step}")];
    let Ok(processes) = fs::read_dir("/proc") else { return 0 };
    let mut ended = 0;
    for entry in processes.flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        let Some(id) = id else { continue };
        // Those of others cannot be read, and are not ours.
        let Ok(environment) = fs::read(entry.path().join("environ")) else { continue };
        let has = |mark: &String| environment.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes());
        if marks.iter().all(has) && kill_process(id, Signal::KILL).is_ok() {
            ended += 1;
        }
    }
    ended
}
