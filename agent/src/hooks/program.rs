//! Hooks as programs: which there are, and one call of one of them.
//!
//! Owns the rules for the folder, the time limit and the captured output. Does not know why a hook is called.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    time::Duration,
};

use holdfast_common::clock::Clock;
use rustix::process::{Pid, Signal, kill_process_group};

/// Most hooks in a folder.
pub const HOOKS_MAX: usize = 64;
/// Bytes of a hook's output that are kept, the first ones.
pub const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Endings of files that package managers and editors leave behind.
const IGNORED: [&str; 8] = ["~", ".bak", ".orig", ".rpmnew", ".rpmsave", ".dpkg-old", ".dpkg-new", ".sample"];
/// How often it is looked whether a hook has ended.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long the output is waited for after the end: a child that the hook has left behind may keep it open.
const OUTPUT_WAIT: Duration = Duration::from_millis(200);

/// The hooks of a folder, in order of their names.
///
/// # Errors
/// There are none, or one must not be run; the text says what to do.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let shown = folder.display();
    let unreadable = |error: io::Error| format!("the hooks in {shown} cannot be listed ({error})");
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_hooks(folder)),
        Err(error) => return Err(unreadable(error)),
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || IGNORED.iter().any(|ending| name.ends_with(ending)) {
            continue;
        }
        let metadata = fs::metadata(&path).map_err(unreadable)?;
        if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
            continue;
        }
        let own = rustix::process::geteuid().as_raw();
        if metadata.permissions().mode() & 0o022 != 0 || (metadata.uid() != own && metadata.uid() != 0) {
            return Err(format!(
                "hook {} may be changed by others than its owner: chown root and chmod 755 it, since it runs with all rights",
                path.display()
            ));
        }
        hooks.push(path);
    }
    hooks.sort();
    match hooks.len() {
        0 => Err(no_hooks(folder)),
        count if count > HOOKS_MAX => Err(format!("there are more than {HOOKS_MAX} hooks in {shown}")),
        _ => Ok(hooks),
    }
}

fn no_hooks(folder: &Path) -> String {
    format!(
        "there is no freeze hook in {}: put one there for each application (docs/consistency.md), or ask for \
         crash-consistent points",
        folder.display()
    )
}

/// Calls a hook and waits for its end, at most so long; then it is killed with all it has started.
///
/// # Errors
/// It cannot be started, took too long, or said that it failed; the text has what it printed.
pub(crate) fn call(hook: &Path, verb: &str, at_most: Duration, clock: &dyn Clock) -> Result<(), String> {
    let name = hook.display();
    let mut child = Command::new(hook)
        .arg(verb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| format!("hook {name} cannot be started ({error})"))?;
    let output = [capture(child.stdout.take()), capture(child.stderr.take())];
    let ended = wait(&mut child, at_most, clock);
    let printed = || {
        let texts = output.iter().filter_map(|text| text.recv_timeout(OUTPUT_WAIT).ok());
        let text = texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" / ");
        if text.is_empty() { String::new() } else { format!("; it printed: {text}") }
    };
    match ended {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("hook {name} {verb} failed ({status}){}", printed())),
        Ok(None) => {
            let seconds = at_most.as_secs_f64();
            Err(format!("hook {name} {verb} took more than {seconds} s and was killed{}", printed()))
        }
        Err(error) => Err(format!("hook {name} {verb} cannot be waited for ({error})")),
    }
}

/// Waits for the end of a child in a process group of its own; of one that is too slow, none, and it is killed with all it has
/// started.
pub(crate) fn wait(
    child: &mut Child,
    at_most: Duration,
    clock: &dyn Clock,
) -> io::Result<Option<std::process::ExitStatus>> {
    let start = clock.monotonic();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if clock.monotonic().saturating_sub(start) >= at_most {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            let _ended_just_now = group.map(|group| kill_process_group(group, Signal::KILL));
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Reads to the end on a thread of its own, keeps the beginning.
fn capture(from: Option<impl io::Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = sync_channel(1);
    let read = move || {
        let Some(mut from) = from else { return };
        let mut kept = Vec::new();
        let _what_was_read_counts = from.by_ref().take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut kept);
        let _nobody_waits = sender.send(String::from_utf8_lossy(&kept).trim().to_owned());
        // The rest goes nowhere, so that the hook is not stopped by a full pipe.
        let _nowhere = io::copy(&mut from, &mut io::sink());
    };
    let _without_its_output = std::thread::Builder::new().name("hook-output".into()).spawn(read);
    receiver
}
