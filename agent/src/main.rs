//! `holdfast-agent`: the agent on a source host.
//!
//! Owns arguments, signals and exit codes. Everything else is the library's.

use std::{io::Write as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use holdfast_agent::{
    app::{self, Surroundings},
    capture::{
        freeze::{HeldBackLog, guardian_main},
        tracked::TrackedOptions,
    },
    config::Settings,
    engine::StatusReport,
    enrol,
    forget::{self, Forgotten},
    hooks::keeper::{KeeperArguments, keeper_main},
    identity::IdentityStore,
};
use holdfast_common::{
    clock::SystemClock, entropy::SystemEntropy, ids::DiskId, telemetry, token::EnrolToken,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Threads of the async runtime: they only move packets.
const RUNTIME_THREADS: usize = 2;

/// Tracks changed blocks of this machine's disks and streams them to a Holdfast coordinator.
#[derive(Debug, Parser)]
#[command(name = "holdfast-agent", version, arg_required_else_help = true)]
struct Arguments {
    /// State folder [default: /var/lib/holdfast-agent]
    #[arg(long, global = true, env = "HOLDFAST_AGENT_STATE", value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Settings file [default: /etc/holdfast/agent.toml, if it exists]
    #[arg(long, global = true, env = "HOLDFAST_AGENT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Run {
        /// A plain disk-image file that may be protected (repeatable); found by comparing, without tracking
        #[arg(long, value_name = "FILE")]
        image: Vec<PathBuf>,
    },
    /// Enrol this machine at a coordinator with a one-time token
    Enroll {
        /// Host and port of the coordinator
        #[arg(long, env = "HOLDFAST_COORDINATOR", value_name = "HOST:PORT")]
        coordinator: String,
        /// Token made by `holdfast token create`
        #[arg(long, env = "HOLDFAST_TOKEN", hide_env_values = true)]
        token: String,
    },
    /// Show what the running agent does
    Status,
    /// Show this machine as the coordinator will see it
    Inventory,
    /// End tracking that agents left in this machine's kernel
    ///
    /// Tracking outlives the agent, so that a restart needs no full comparison. After an agent was uninstalled, or its state folder
    /// lost, nobody goes on with it; it costs memory and a little of every request until the next reboot, or until this. What a
    /// running agent uses is left alone. A disk that is still protected is resynced when its agent runs again.
    Forget {
        /// A disk to forget, by its id (repeatable); without any, the error names what is tracked
        #[arg(long, value_name = "ID", conflicts_with = "all")]
        disk: Vec<DiskId>,
        /// Forget every disk that no running agent uses
        #[arg(long)]
        all: bool,
    },
    /// Thaws file systems if the agent cannot; started by the agent
    #[command(hide = true)]
    Guardian,
    /// Runs freeze hooks, and thaws them whatever becomes of the agent; started by the agent
    #[command(hide = true)]
    HookKeeper {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        marker: PathBuf,
        #[arg(long)]
        call_ms: u64,
        #[arg(long)]
        bound_ms: u64,
        #[arg(long)]
        thaw_only: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Guardian => return guardian_main(),
        Command::HookKeeper { folder, marker, call_ms, bound_ms, thaw_only } => {
            let (call_max, bound) = (Duration::from_millis(call_ms), Duration::from_millis(bound_ms));
            return keeper_main(&KeeperArguments { folder, marker, call_max, bound, thaw_only });
        }
        _ => {}
    }
    let log = Arc::new(HeldBackLog::to_standard_error());
    telemetry::start(Arc::clone(&log));
    match perform(arguments, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(arguments: Arguments, log: Arc<HeldBackLog>) -> Result<()> {
    let mut settings = Settings::load(arguments.config.as_deref())?;
    if let Some(state) = arguments.state {
        settings.state = state;
    }
    match arguments.command {
        Command::Run { image } => {
            settings.images.extend(image);
            run(settings, log)
        }
        Command::Enroll { coordinator, token } => enroll(&settings, &coordinator, &token, arguments.json),
        Command::Status => {
            let report = app::status(&settings.state)?;
            if arguments.json { print(&serde_json::to_string(&report)?) } else { print(&table(&report)) }
        }
        Command::Inventory => {
            let inventory = app::machine(&settings.images);
            let text = if arguments.json {
                serde_json::to_string(&inventory)?
            } else {
                serde_json::to_string_pretty(&inventory)?
            };
            print(&text)
        }
        Command::Forget { disk, all } => forget(&disk, all, arguments.json),
        Command::Guardian | Command::HookKeeper { .. } => Ok(()),
    }
}

fn forget(disks: &[DiskId], all: bool, json: bool) -> Result<()> {
    let forgotten = forget::forget(disks, all, &TrackedOptions::default())?;
    if json {
        print(&serde_json::to_string(&forgotten)?)?;
    } else if forgotten.is_empty() {
        print("nothing is tracked on this machine")?;
    } else {
        for Forgotten { disk, reason, .. } in &forgotten {
            print(&match reason {
                None => format!("disk {disk}: no longer tracked"),
                Some(reason) => format!("disk {disk}: still tracked: {reason}"),
            })?;
        }
    }
    // With --all, what is in use was not meant.
    let kept = forgotten.iter().filter(|disk| !disk.forgotten).count();
    if kept > 0 && !all {
        bail!("{kept} of {} disks are still tracked", forgotten.len());
    }
    Ok(())
}

fn run(settings: Settings, log: Arc<HeldBackLog>) -> Result<()> {
    runtime()?.block_on(async {
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let asked = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.cancel();
        });
        app::run(settings, Surroundings::with_log(log), stop).await
    })
}

fn enroll(settings: &Settings, coordinator: &str, token: &str, json: bool) -> Result<()> {
    let token: EnrolToken = token.parse().context("the token cannot be used")?;
    let _lock = app::lock_state(&settings.state)?;
    let store = IdentityStore::new(&settings.state);
    let host_name = app::machine(&[]).host_name;
    let clock = Arc::new(SystemClock::new());
    let entropy = SystemEntropy::new();
    let enrolment = enrol::enrol(coordinator, &token, &host_name, &store, clock, &entropy);
    let identity = runtime()?.block_on(enrolment)?;
    if json {
        return print(
            &serde_json::json!({ "machine": identity.machine, "coordinator": coordinator }).to_string(),
        );
    }
    print(&format!(
        "enrolled at {coordinator} as machine {}; start the agent: holdfast-agent run",
        identity.machine
    ))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(RUNTIME_THREADS).max_blocking_threads(4).enable_all().build()?)
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("standard output")
}

/// The state, for people.
fn table(report: &StatusReport) -> String {
    let mut lines =
        vec![format!("coordinator: {}", if report.connected { "connected" } else { "not connected" })];
    if let Some(reason) = &report.fenced {
        lines.push(format!("FENCED: {reason}"));
    }
    if let Some(hold) = report.last_hold_us {
        let milliseconds = std::time::Duration::from_micros(hold).as_secs_f64() * 1000.0;
        lines.push(format!("last cut: writes held for {milliseconds:.1} ms"));
    }
    if let Some(reason) = &report.last_void {
        lines.push(format!("last void cut: {reason}"));
    }
    if report.disks.is_empty() {
        lines.push("no disk is protected".into());
    }
    for disk in &report.disks {
        lines.push(format!(
            "{}: {:?} ({}), generation {}, {} of {} MiB compared, {} KiB marked, {} KiB not acknowledged",
            disk.path,
            disk.health,
            disk.capture,
            disk.generation,
            disk.scanned_bytes >> 20,
            disk.size_bytes >> 20,
            disk.marked_bytes >> 10,
            disk.unacknowledged_bytes >> 10,
        ));
    }
    lines.join("\n")
}
