//! Programs that recovery plans have run on this host.
//!
//! Owns processes, their time and what is kept of their output. A program is a process group of its own; it is ended as a whole when it
//! is too slow or cancelled. A coordinator that is killed cannot do that: what it left is found by its environment
//! ([`Mark`]) and ended before the same step runs again.
//! Limits: the last [`OUTPUT_BYTES_MAX`] of output are kept, and what a program's own children print is waited for
//! [`DRAIN_MAX`].

use std::{
    io,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use holdfast_common::{ids::JobId, marked::Mark};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt as _,
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    compute::port::{BoxFuture, Task},
    failover::port::{ScriptRequest, Scripts},
};

/// Bytes of a program's output that are kept, its last ones.
const OUTPUT_BYTES_MAX: usize = 2048;
/// How long output is waited for when the program itself has ended.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether the job was cancelled.
const CANCEL_LOOK: Duration = Duration::from_millis(50);
/// Where programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs as processes of this host.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HostScripts;

impl Scripts for HostScripts {
    fn run(&self, request: ScriptRequest, task: Arc<Task>) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(async move {
            end_left(request.job, request.step).await;
            run(&request, &task).await
        })
    }

    fn end(&self, job: JobId, step: u32) -> BoxFuture<'_, ()> {
        Box::pin(end_left(job, step))
    }
}

async fn run(request: &ScriptRequest, task: &Task) -> Result<String, String> {
    let (child, mut output) = start(request).map_err(|error| format!("cannot be started: {error}"))?;
    let mut group = Group { child, over: false };
    let mut tail = Vec::new();
    let ended = tokio::select! {
        biased;
        ended = watched(&mut group.child, &mut output, &mut tail) => Some(ended),
        () = cancelled(task) => None,
        () = sleep(request.limit) => {
            drop(group);
            let limit = request.limit.as_secs_f64();
            return Err(printed(&tail, &format!("took longer than {limit} s and was ended")));
        }
    };
    let Some(ended) = ended else {
        return Err("was cancelled".to_owned());
    };
    group.over = true;
    let status = ended.map_err(|error| format!("cannot be watched: {error}"))?;
    let _more_may_come = timeout(DRAIN_MAX, drain(&mut output, &mut tail)).await;
    if status.success() {
        return Ok(text(&tail));
    }
    Err(printed(&tail, &status_text(status)))
}

fn start(request: &ScriptRequest) -> io::Result<(Child, Receiver)> {
    let [program, arguments @ ..] = request.command.as_slice() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no program"));
    };
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .envs(&request.environment)
        .envs(mark(request.job, request.step).variables())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let child = command.spawn()?;
    Ok((child, Receiver::from_owned_fd(OwnedFd::from(reader))?))
}

/// A program with everything that it has started; ended when it is dropped before its end.
struct Group {
    child: Child,
    over: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(id) = id.filter(|_| !self.over) {
            let _ended_by_itself = kill_process_group(id, Signal::KILL);
        }
    }
}

async fn watched(child: &mut Child, output: &mut Receiver, tail: &mut Vec<u8>) -> io::Result<ExitStatus> {
    tokio::select! {
        biased;
        ended = child.wait() => ended,
        () = async { drain(output, tail).await; std::future::pending().await } => {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

/// Reads to the end of what is printed.
async fn drain(output: &mut Receiver, tail: &mut Vec<u8>) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        tail.extend(buffer.iter().take(count));
        let needless = tail.len().saturating_sub(OUTPUT_BYTES_MAX);
        tail.drain(..needless);
    }
}

async fn cancelled(task: &Task) {
    while !task.is_cancelled() {
        sleep(CANCEL_LOOK).await;
    }
}

fn text(tail: &[u8]) -> String {
    String::from_utf8_lossy(tail).trim().to_owned()
}

fn printed(tail: &[u8], why: &str) -> String {
    let text = text(tail);
    if text.is_empty() { format!("{why}; it printed nothing") } else { format!("{why}; it printed: {text}") }
}

fn status_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// No two coordinators have the same job, so their names need not differ.
fn mark(job: JobId, step: u32) -> Mark {
    Mark { job, step, by: "coordinator".to_owned() }
}

/// Ends every process of a step.
async fn end_left(job: JobId, step: u32) {
    match tokio::task::spawn_blocking(move || mark(job, step).end()).await {
        Ok(0) => {}
        Ok(count) => {
            tracing::warn!(%job, step, count, "ended what an earlier run of a plan's program left");
        }
        Err(error) => {
            tracing::error!(%job, step, %error, "what a plan's program left cannot be looked for");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

    use super::{HostScripts, JobId, OUTPUT_BYTES_MAX, ScriptRequest, Scripts as _, Task};

    fn shell(step: u32, script: &str, limit_ms: u64) -> ScriptRequest {
        ScriptRequest {
            job: JobId::from_bytes([7; 16]),
            step,
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            environment: BTreeMap::from([("HOLDFAST_PLAN".to_owned(), "shop".to_owned())]),
            limit: Duration::from_millis(limit_ms),
        }
    }

    async fn run(request: ScriptRequest) -> Result<String, String> {
        HostScripts.run(request, Arc::default()).await
    }

    #[tokio::test]
    async fn what_a_program_prints_and_how_it_ends_is_told() {
        let told = run(shell(1, "echo $HOLDFAST_PLAN $HOLDFAST_STEP; echo oops >&2", 60_000)).await;
        assert_eq!(told.unwrap(), "shop 1\noops");
        let failed = run(shell(1, "echo no database; exit 3", 60_000)).await;
        assert_eq!(failed.unwrap_err(), "failed with exit code 3; it printed: no database");
        let long = run(shell(1, "yes | head -c 100000; echo end", 60_000)).await.unwrap();
        assert!(long.len() <= OUTPUT_BYTES_MAX && long.ends_with("end"), "{long}");
        let missing = ScriptRequest { command: vec!["/no/such/program".into()], ..shell(1, "", 60_000) };
        assert!(run(missing).await.unwrap_err().starts_with("cannot be started: "));
    }

    /// Too slow, or cancelled: it ends with everything that it has started.
    #[tokio::test]
    async fn a_program_that_is_too_slow_is_ended_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("left");
        let script = format!("(sleep 1; touch {0}) & sleep 100", file.display());
        let slow = run(shell(2, &script, 200)).await;
        assert!(slow.unwrap_err().starts_with("took longer than 0.2 s and was ended"));
        let task = Arc::new(Task::default());
        task.cancel();
        let cancelled = HostScripts.run(shell(2, &script, 60_000), task).await;
        assert_eq!(cancelled.unwrap_err(), "was cancelled");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!Path::new(&file).exists());
    }

    /// What a coordinator that was killed has left is ended before the step runs again; other steps' programs go on.
    #[tokio::test]
    async fn what_an_earlier_run_left_is_ended() {
        let leave = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
        let (left, other) = (run(shell(3, leave, 60_000)).await, run(shell(4, leave, 60_000)).await);
        let is_there = |id: &str| Path::new("/proc").join(id).join("exe").exists();
        let (left, other) = (left.unwrap(), other.unwrap());
        assert!(is_there(&left) && is_there(&other));
        run(shell(3, "true", 60_000)).await.unwrap();
        assert!(!is_there(&left) && is_there(&other));
        HostScripts.end(JobId::from_bytes([7; 16]), 4).await;
        assert!(!is_there(&other));
    }
}
