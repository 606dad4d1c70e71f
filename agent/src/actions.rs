//! Programs that recovery plans have run on this machine.
//!
//! Owns one run of a program, and ending what an earlier one has left. A plan names a program that the machine's own operator has
//! laid out in a folder (`actions`); the coordinator cannot have anything else run. A program is a process group of its own and is ended as
//! a whole when it is too slow; what a killed agent left is found by its environment ([`Mark`]).
//! Limits: [`RUNS_MAX`] at a time; the last [`OUTPUT_BYTES_MAX`] of output are kept.

use std::{
    fs, io,
    io::Read as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use holdfast_common::{clock::Clock, marked::Mark, wire::SourceRun};

use crate::hooks::wait;

/// Programs at a time.
pub const RUNS_MAX: usize = 8;
/// Bytes of a program's output that are kept, its last ones.
pub const OUTPUT_BYTES_MAX: usize = 2048;
/// Longest time of a program, whatever it is given.
const LIMIT_MAX: Duration = Duration::from_hours(7 * 24);
/// How long output is waited for when the program itself has ended.
const OUTPUT_WAIT: Duration = Duration::from_millis(500);
/// Where programs look for others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs a program to its end, marked as started by `by`; gives the end of what it printed.
///
/// # Errors
/// It must not be run, failed or was too slow; the text begins behind the program's name.
pub fn run(folder: &Path, run: &SourceRun, by: &str, clock: &dyn Clock) -> Result<String, String> {
    let program = program(folder, &run.program)?;
    let mark = Mark { job: run.job, step: run.step, by: by.to_owned() };
    end(&mark);
    let (reader, writer) = io::pipe().map_err(|error| format!("cannot be started: {error}"))?;
    let mut child =
        start(&program, run, &mark, writer).map_err(|error| format!("cannot be started: {error}"))?;
    let output = tail(reader);
    let limit = Duration::from_millis(run.limit_ms).min(LIMIT_MAX);
    let ended = wait(&mut child, limit, clock).map_err(|error| format!("cannot be watched: {error}"))?;
    let text = output.recv_timeout(OUTPUT_WAIT).unwrap_or_default();
    let why = match ended {
        Some(status) if status.success() => return Ok(text),
        Some(status) => format!("failed ({status})"),
        None => format!("took longer than {} s and was ended", limit.as_secs_f64()),
    };
    Err(if text.is_empty() {
        format!("{why}; it printed nothing")
    } else {
        format!("{why}; it printed: {text}")
    })
}

/// The program of this name, if it may be run.
fn program(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err("is no name of a program".to_owned());
    }
    let path = folder.join(name);
    let found = fs::metadata(&path).map_err(|error| {
        format!(
            "cannot be run on the machine: {} ({error}); its operator has to put it there",
            path.display()
        )
    })?;
    let (mode, own) = (found.permissions().mode(), rustix::process::geteuid().as_raw());
    if !found.is_file() || mode & 0o111 == 0 {
        return Err(format!("cannot be run on the machine: {} is no program", path.display()));
    }
    if mode & 0o022 != 0 || (found.uid() != own && found.uid() != 0) {
        return Err(format!(
            "may be changed by others than its owner: chown root and chmod 755 {} on the machine",
            path.display()
        ));
    }
    Ok(path)
}

fn start(program: &Path, run: &SourceRun, mark: &Mark, writer: io::PipeWriter) -> io::Result<Child> {
    Command::new(program)
        .args(&run.arguments)
        .current_dir("/")
        .env_clear()
        .env("PATH", PATH)
        .envs(run.environment.iter().map(|(name, value)| (name, value)))
        .envs(mark.variables())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()
}

/// Reads to the end on a thread of its own, keeps the last.
fn tail(mut from: io::PipeReader) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    let read = move || {
        let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            kept.extend(buffer.iter().take(count));
            let needless = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
            kept.drain(..needless);
        }
        let _nobody_waits = sender.send(String::from_utf8_lossy(&kept).trim().to_owned());
    };
    let _without_its_output = std::thread::Builder::new().name("action-output".into()).spawn(read);
    receiver
}

/// Ends every process of a step that an earlier run has left.
pub fn end(mark: &Mark) {
    let count = mark.end();
    if count > 0 {
        tracing::warn!(%mark, count, "ended what a plan's program has left running");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use holdfast_common::{clock::SystemClock, ids::JobId, wire::SourceRun};

    use super::{Mark, OUTPUT_BYTES_MAX, end, run};

    fn write(folder: &Path, name: &str, mode: u32) {
        let path = folder.join(name);
        fs::write(&path, "#!/bin/sh\neval \"$1\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn asked(program: &str, script: &str, step: u32, limit_ms: u64) -> SourceRun {
        SourceRun {
            job: JobId::from_bytes([9; 16]),
            step,
            program: program.into(),
            arguments: vec![script.into()],
            environment: vec![("HOLDFAST_PLAN".into(), "shop".into())],
            limit_ms,
        }
    }

    #[test]
    fn only_what_the_operator_has_laid_out_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, "good", 0o755);
        write(folder, "open", 0o777);
        write(folder, "plain", 0o644);
        let clock = SystemClock::new();
        let run =
            |program: &str, script: &str| run(folder, &asked(program, script, 1, 60_000), "here", &clock);
        assert_eq!(run("good", "echo $HOLDFAST_PLAN $HOLDFAST_STEP; echo x >&2").unwrap(), "shop 1\nx");
        let failed = run("good", "echo no; exit 3").unwrap_err();
        assert_eq!(failed, "failed (exit status: 3); it printed: no");
        let long = run("good", "yes | head -c 100000; echo end").unwrap();
        assert!(long.len() <= OUTPUT_BYTES_MAX && long.ends_with("end"));
        for (name, says) in [
            ("open", "changed by others"),
            ("plain", "is no program"),
            ("gone", "put it there"),
            ("/bin/sh", "no name"),
            ("../x", "no name"),
            (".", "no name"),
            ("", "no name"),
        ] {
            assert!(run(name, "true").unwrap_err().contains(says), "{name}");
        }
    }

    #[test]
    fn what_is_too_slow_or_left_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "good", 0o755);
        let clock = SystemClock::new();
        let slow = run(folder.path(), &asked("good", "sleep 1000", 2, 100), "here", &clock).unwrap_err();
        assert!(slow.starts_with("took longer than 0.1 s and was ended"), "{slow}");
        let leave = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
        let is_there = |id: &str| Path::new("/proc").join(id).join("exe").exists();
        let left = run(folder.path(), &asked("good", leave, 3, 60_000), "here", &clock).unwrap();
        assert!(is_there(&left));
        run(folder.path(), &asked("good", "true", 3, 60_000), "here", &clock).unwrap();
        assert!(!is_there(&left));
        let left = run(folder.path(), &asked("good", leave, 4, 60_000), "here", &clock).unwrap();
        end(&Mark { job: JobId::from_bytes([9; 16]), step: 4, by: "here".into() });
        assert!(!is_there(&left));
    }
}
