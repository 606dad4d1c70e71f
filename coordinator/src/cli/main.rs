//! `holdfast`, the operator's command.
//!
//! Owns the command line, the connection to the coordinator and what is printed. Does not know the coordinator's inside:
//! it speaks the interface of `holdfast_coordinator::api`.
//! Exit codes: 0 done; 1 refused or failed; 2 wrong arguments; 3 the coordinator cannot be reached; 4 the job failed.

mod arguments;
mod client;
mod commands;
mod comparisons;
mod console;
mod drills;
mod duration;
mod failover;
mod forecasts;
mod groups;
mod manual;
mod operators;
mod output;
mod plan;
mod readiness;
mod retention_tables;
mod settings;
mod tables;
mod thresholds;

use std::process::ExitCode;

use clap::Parser as _;

use arguments::{
    Arguments, Command, JobCommand, MachineCommand, PointCommand, PointsCommand, RetentionCommand,
    ScrubCommand, TokenCommand,
};
use client::Client;
use output::{Failure, Output};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output { json: arguments.json };
    match run(arguments, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    match &arguments.command {
        Command::Completions { shell } => return manual::completions(*shell),
        Command::Man { folder } => return manual::pages(folder, output),
        Command::Logout => return operators::logout(output),
        Command::Quickstart(options) => return commands::quickstart(options, output),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("the program cannot start: {error}"), ""))?;
    match arguments.command {
        Command::Login(options) => runtime.block_on(operators::login(output, options)),
        command => {
            let token = std::env::var("HOLDFAST_TOKEN").ok();
            let target = settings::target(arguments.coordinator.as_deref(), token.as_deref())?;
            runtime.block_on(dispatch(command, Client::new(target), output))
        }
    }
}

async fn dispatch(command: Command, client: Client, output: Output) -> Result<(), Failure> {
    match command {
        Command::Token { command: TokenCommand::Create(options) } => {
            commands::create_token(&client, output, options).await
        }
        Command::Machines => commands::machines(&client, output).await,
        Command::Machine { command: MachineCommand::Show { machine } } => {
            commands::show_machine(&client, output, &machine).await
        }
        Command::Machine { command: MachineCommand::Revoke { machine, yes } } => {
            commands::revoke(&client, output, &machine, yes).await
        }
        Command::Protect(options) => commands::protect(&client, output, options).await,
        Command::Unprotect { machine, disk } => commands::unprotect(&client, output, &machine, disk).await,
        Command::Status { watch } => commands::status(&client, output, watch).await,
        Command::Points { command: Some(PointsCommand::Diff(options)), .. } => {
            commands::diff(&client, output, &options).await
        }
        Command::Points { machine, limit, .. } => {
            commands::points(&client, output, machine.as_deref(), limit).await
        }
        Command::Point { command: PointCommand::Create { machine, app_consistent, wait, time_limit } } => {
            let wait = wait.then_some(time_limit);
            commands::create_point(&client, output, &machine, app_consistent, wait).await
        }
        Command::Retention { command: RetentionCommand::Plan { machine, retention } } => {
            commands::plan_retention(&client, output, &machine, retention).await
        }
        Command::Failover(options) => failover::failover(&client, output, options).await,
        Command::TestFailover(options) => failover::test_failover(&client, output, options).await,
        Command::PlannedFailover(options) => failover::planned_failover(&client, output, options).await,
        Command::ChangePoint { machine, point, no_wait } => {
            failover::change_point(&client, output, &machine, &point, no_wait).await
        }
        Command::Commit { machine } => failover::verb(&client, output, &machine, "commit").await,
        Command::Cancel { machine } => failover::verb(&client, output, &machine, "cancel").await,
        Command::Reprotect { machine, no_wait } => {
            failover::way_back(&client, output, &machine, "reprotect", no_wait).await
        }
        Command::Failback { machine, no_wait } => {
            failover::way_back(&client, output, &machine, "failback", no_wait).await
        }
        Command::Resume { machine, yes } => failover::resume(&client, output, &machine, yes).await,
        Command::Jobs => failover::jobs(&client, output).await,
        Command::Job { command: JobCommand::Show { job, follow } } => {
            failover::show(&client, output, &job, follow).await
        }
        Command::Job { command: JobCommand::Cancel { job } } => failover::cancel(&client, output, &job).await,
        Command::Job { command: JobCommand::Retry { job } } => {
            failover::go_on(&client, output, &job, "retry").await
        }
        Command::Job { command: JobCommand::Continue { job } } => {
            failover::go_on(&client, output, &job, "continue").await
        }
        Command::Machine { command: MachineCommand::Console { machine, log } } => {
            console::run(&client, output, &machine, log).await
        }
        Command::Compare { command } => comparisons::run(&client, output, command).await,
        Command::Scrub { command: ScrubCommand::Status } => commands::scrub_status(&client, output).await,
        Command::Scrub { command: ScrubCommand::Start { machine } } => {
            commands::scrub_start(&client, output, machine).await
        }
        Command::Group { command } => groups::run(&client, output, command).await,
        Command::Plan { command } => plan::run(&client, output, command).await,
        Command::Audit { limit, since } => operators::audit(&client, output, limit, since).await,
        Command::Operator { command } => operators::operator(&client, output, command).await,
        Command::Thresholds(options) => thresholds::thresholds(&client, output, options).await,
        Command::Drill(options) => drills::run(&client, output, options).await,
        Command::Machine { command: MachineCommand::Screenshot { machine, file } } => {
            drills::screenshot(&client, output, &machine, &file).await
        }
        Command::Readiness { machine, now } => readiness::run(&client, output, &machine, now).await,
        Command::Who => operators::who(&client, output).await,
        Command::Completions { .. }
        | Command::Man { .. }
        | Command::Quickstart(_)
        | Command::Login(_)
        | Command::Logout => Ok(()),
    }
}
