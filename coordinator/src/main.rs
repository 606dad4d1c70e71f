//! `holdfast-coordinator`: keeps the replica, makes recovery points, runs failover.
//!
//! Owns arguments, signals and exit codes. Exit codes: 0 ended in order; 1 could not start or failed; 2 wrong arguments.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use holdfast_common::telemetry;
use holdfast_coordinator::{app, config::Settings};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
};

/// Holdfast's coordinator: keeps a second, always-recent copy of machines, and fails them over
#[derive(Debug, Parser)]
#[command(
    name = "holdfast-coordinator",
    version,
    after_help = "Logs go to standard error. HOLDFAST_LOG filters them (for example debug), HOLDFAST_LOG_FORMAT=json \
                  makes them JSON.\n\nExample:\n  holdfast-coordinator serve --data /srv/holdfast --listen 0.0.0.0:4433\n  \
                  holdfast-coordinator serve --data /srv/holdfast --api-listen 0.0.0.0:4434"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until told to end (SIGTERM or SIGINT)
    Serve(Common),
    /// Make the catalog again from the stored data, while the coordinator is not running. The old one is set aside
    RebuildCatalog(Common),
}

#[derive(Debug, Args)]
struct Common {
    /// Folder of everything that is kept [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// UDP address for agents [default: 0.0.0.0:4433]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// TCP address for operators on the network, HTTPS; `holdfast operator create` makes their tokens [default: none]
    #[arg(long, value_name = "ADDR:PORT")]
    api_listen: Option<SocketAddr>,
    /// Folder of unix sockets, if the data folder's path is too long for them
    #[arg(long, value_name = "DIR")]
    sockets: Option<PathBuf>,
    /// Settings file [default: /etc/holdfast/coordinator.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry::start(std::io::stderr);
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("holdfast-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Serve(common) => {
            let settings = settings(common)?;
            runtime(&settings)?.block_on(async {
                let stop = stop_signal()?;
                app::serve(settings, stop).await
            })
        }
        Command::RebuildCatalog(common) => {
            let settings = settings(common)?;
            let rebuilt = runtime(&settings)?.block_on(app::rebuild_catalog(&settings))?;
            for remark in &rebuilt.remarks {
                eprintln!("holdfast-coordinator: {remark}");
            }
            for line in &rebuilt.to_do {
                eprintln!("holdfast-coordinator: to do: {line}");
            }
            let app::Rebuilt { machines, disks, points, groups, operators, plans, .. } = rebuilt;
            eprintln!(
                "rebuilt: {machines} machines, {disks} disks, {points} points, {groups} groups, {operators} operators, {plans} plans"
            );
            Ok(())
        }
    }
}

fn settings(common: Common) -> Result<Settings> {
    let loaded = Settings::load(common.config.as_deref())?;
    let settings = Settings {
        data: std::path::absolute(common.data.unwrap_or(loaded.data)).context("the data folder's path")?,
        listen: common.listen.unwrap_or(loaded.listen),
        api_listen: common.api_listen.or(loaded.api_listen),
        sockets: common.sockets.or(loaded.sockets),
        ..Settings { data: PathBuf::new(), sockets: None, ..loaded }
    };
    settings.check()?;
    Ok(settings)
}

fn runtime(settings: &Settings) -> Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(settings.async_threads)
        .max_blocking_threads(settings.blocking_threads)
        .thread_name("async")
        .enable_all()
        .build()
        .context("starting threads")
}

/// Resolves at the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
