//! Commands about recovery plans.
//!
//! Owns their arguments, what is asked, and what is printed. Running a plan is a job: it is shown and followed like others.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets::NOTHING};
use holdfast_coordinator::api::{
    plan_shapes::{
        PlanCheckShape, PlanEndedShape, PlanRequest, PlanRunRequest, PlanShape, PlanStagesShape,
        PlanTurnShape,
    },
    shapes::{ForecastShape, JobShape, ModeShape},
};

use crate::{
    arguments::ImageFormat,
    client::{Client, escape},
    duration,
    failover::{begun, finish, made, target, watch, with_zone},
    forecasts,
    output::{Failure, Output},
    tables,
};

#[derive(Debug, Subcommand)]
pub(crate) enum PlanCommand {
    /// Keep a plan's file at the coordinator; one of the same name is replaced
    #[command(after_help = "\
Example:
  holdfast plan apply shop.toml

A plan, in short (docs/plans.md has everything):
  name = \"shop\"

  [[group]]
  name = \"databases\"
  machines = [\"db-1\", \"db-2\"]

  [[group]]
  name = \"front\"
  machines = [\"web-1\"]
  [[group.before]]
  script = [\"/etc/holdfast/scripts/move-address\", \"192.0.2.7\"]
  [[group.after]]
  manual = \"Look at the shop in a browser.\"

A run that is under way goes on as it was begun.")]
    Apply {
        /// The file (TOML); - reads standard input
        file: PathBuf,
    },
    /// Name every mistake of a plan's file with its line; changes nothing
    Validate {
        /// The file (TOML); - reads standard input
        file: PathBuf,
    },
    /// List the plans
    List,
    /// Show a plan: its groups, their order, what is wrong with it now, and its runs
    Show {
        /// Its name
        plan: String,
        /// Print its file only
        #[arg(long)]
        file: bool,
    },
    /// Forget a plan; a run that is under way goes on
    Remove {
        /// Its name
        plan: String,
    },
    /// Fail all machines of a plan over, group after group; goes on to its end whatever fails, and says what did
    #[command(after_help = "\
Examples:
  holdfast plan failover shop --dry-run
      shows what each machine would get and lose, and changes nothing
  holdfast plan failover shop
  holdfast plan failover shop --point latest-multi-vm --vm --shutdown

Machines that are at their target already are left alone, so a plan may be run again for those that failed.
Where the plan waits for somebody, this command ends with exit code 4 and says for what; then
  holdfast job continue JOB
Afterwards: `holdfast plan commit shop` keeps it, `holdfast plan cancel shop` takes it back in reverse order.")]
    Failover(PlanFailoverOptions),
    /// Try a plan on copies while the sources go on; or clean such a test up
    #[command(after_help = "\
Examples:
  holdfast plan test-failover shop --vm
  holdfast plan test-failover shop --cleanup

Scripts run too: HOLDFAST_MODE says that it is a test.")]
    TestFailover(PlanTestOptions),
    /// Fail all machines of a plan over without losing anything: each source stops and gives what it has written last
    PlannedFailover(PlanPlannedOptions),
    /// Protect the machines of a plan at their targets: what they write there is replicated; no script runs
    #[command(after_help = "\
Example:
  holdfast plan commit shop
  holdfast plan reprotect shop

Machines that run at their source, or are protected at their target already, are left alone.")]
    Reprotect(PlanBackOptions),
    /// Bring the machines of a plan back to their sources with what they wrote at their targets, group after group
    #[command(after_help = "\
Examples:
  holdfast plan failback shop --dry-run
      shows what would be done with each machine, and changes nothing
  holdfast plan failback shop

The groups come in the order of a failover: what a group needs is back before it. Actions run too, with
HOLDFAST_DIRECTION=to-source and HOLDFAST_MODE=failback, but for those of direction = \"to-target\".
Machines that run at their source already are left alone. `holdfast plan cancel` takes back what is under way;
a machine that went back already stays there, with all that it wrote.")]
    Failback(PlanBackOptions),
    /// Keep what a plan has failed over: it cannot be cancelled any more. Deletes nothing
    Commit {
        /// Its name
        plan: String,
    },
    /// Take a plan's failover (or its way back, if that is under way) back, at whatever step it is, the last group first
    Cancel {
        /// Its name
        plan: String,
    },
}

/// What is made of points, where the plan is to be overruled.
#[derive(Debug, Args)]
pub(crate) struct Into {
    /// Serve the disks as NBD exports, read-only (what a plan does that says nothing)
    #[arg(long, conflicts_with_all = ["image", "vm"])]
    attach: bool,
    /// Let clients write to them
    #[arg(long, requires = "attach", conflicts_with_all = ["image", "vm"])]
    writable: bool,
    /// Write images into a folder per machine below this one on the coordinator's host
    #[arg(long, value_name = "DIR", conflicts_with = "vm")]
    image: Option<PathBuf>,
    /// Run the machines on the coordinator's host
    #[arg(long)]
    vm: bool,
    /// Move the running machines to images of their own behind their backs
    #[arg(long, requires = "vm", conflicts_with_all = ["attach", "image"])]
    stream: bool,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    format: ImageFormat,
    /// Return at once, without waiting for the job
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanFailoverOptions {
    /// Its name
    plan: String,
    /// As in `holdfast failover --help`; the plan's own if not said
    #[arg(long, value_name = "POINT")]
    point: Option<String>,
    /// Show what each machine would get and lose; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ask the sources to stop first; go on whether they do or not
    #[arg(long)]
    shutdown: bool,
    #[command(flatten)]
    into: Into,
}

#[derive(Debug, Args)]
pub(crate) struct PlanTestOptions {
    /// Its name
    plan: String,
    /// As in `holdfast failover --help`; the plan's own if not said
    #[arg(long, value_name = "POINT")]
    point: Option<String>,
    /// Remove what the plan's tests have made
    #[arg(long)]
    cleanup: bool,
    #[command(flatten)]
    into: Into,
}

#[derive(Debug, Args)]
pub(crate) struct PlanBackOptions {
    /// Its name
    plan: String,
    /// Show what would be done with each machine; change nothing
    #[arg(long)]
    dry_run: bool,
    /// Return at once, without waiting for the job
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PlanPlannedOptions {
    /// Its name
    plan: String,
    /// Show what would be done with each machine; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    into: Into,
}

pub(crate) async fn run(client: &Client, output: Output, command: PlanCommand) -> Result<(), Failure> {
    match command {
        PlanCommand::Apply { file } => {
            let plan: PlanShape = client.post("/v1/plans", &PlanRequest { text: read(&file)? }).await?;
            output.answer(&plan, |plan| format!("Plan {} is kept.\n{}", plan.name, described(plan)))
        }
        PlanCommand::Validate { file } => validate(client, output, &file).await,
        PlanCommand::List => {
            let plans: Vec<PlanShape> = client.get("/v1/plans").await?;
            output.answer(&plans, |plans| listed(plans))
        }
        PlanCommand::Show { plan, file } => {
            let plan: PlanShape = client.get(&path(&plan, "")).await?;
            output.answer(&plan, |plan| if file { plan.text.clone() } else { described(plan) })
        }
        PlanCommand::Remove { plan } => {
            let plan: PlanShape = client.post(&path(&plan, "/remove"), &()).await?;
            output.answer(&plan, |plan| format!("Plan {} is forgotten; its runs go on.", plan.name))
        }
        PlanCommand::Failover(options) => failover(client, output, options).await,
        PlanCommand::TestFailover(options) if options.cleanup => {
            end(client, output, &options.plan, "cleanup").await
        }
        PlanCommand::TestFailover(options) => {
            let request = PlanRunRequest {
                mode: ModeShape::Test,
                point: options.point.as_deref().map(with_zone),
                ..PlanRunRequest::default()
            };
            begin(client, output, &options.plan, request, options.into).await
        }
        PlanCommand::PlannedFailover(options) if options.dry_run => {
            turns(client, output, &options.plan, "planned-failover").await
        }
        PlanCommand::Reprotect(options) => lead_back(client, output, options, "reprotect").await,
        PlanCommand::Failback(options) => lead_back(client, output, options, "failback").await,
        PlanCommand::PlannedFailover(options) => {
            let request = PlanRunRequest { mode: ModeShape::Planned, ..PlanRunRequest::default() };
            begin(client, output, &options.plan, request, options.into).await
        }
        PlanCommand::Commit { plan } => {
            let stages: PlanStagesShape = client.post(&path(&plan, "/commit"), &()).await?;
            output.answer(&stages, |stages| {
                let names: Vec<&str> = stages.machines.iter().map(|machine| &*machine.name).collect();
                format!("Committed: {}.", names.join(", "))
            })
        }
        PlanCommand::Cancel { plan } => end(client, output, &plan, "cancel").await,
    }
}

async fn validate(client: &Client, output: Output, file: &PathBuf) -> Result<(), Failure> {
    let found: PlanCheckShape = client.post("/v1/validate-plan", &PlanRequest { text: read(file)? }).await?;
    output.answer(&found, |found| {
        let mut text = String::new();
        for mistake in &found.mistakes {
            let _infallible = writeln!(text, "{}:{}: {}", file.display(), mistake.line, mistake.text);
        }
        if found.mistakes.is_empty() {
            let _infallible = writeln!(
                text,
                "Plan {}: {} group(s), {} machine(s), no mistake.",
                found.name, found.groups, found.machines
            );
        }
        text
    })?;
    match found.mistakes.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("the plan has {count} mistake(s)"), "")),
    }
}

async fn failover(client: &Client, output: Output, options: PlanFailoverOptions) -> Result<(), Failure> {
    let point = options.point.as_deref().map(with_zone);
    if options.dry_run {
        let query = point.map(|point| format!("?point={}", escape(&point))).unwrap_or_default();
        let forecast: Vec<ForecastShape> =
            client.get(&format!("{}{query}", path(&options.plan, "/forecast"))).await?;
        return output.answer(&forecast, |forecast| forecasts::forecast(forecast));
    }
    let (mode, stop_source) = (ModeShape::Failover, options.shutdown);
    let request = PlanRunRequest { mode, point, stop_source, ..PlanRunRequest::default() };
    begin(client, output, &options.plan, request, options.into).await
}

async fn begin(
    client: &Client,
    output: Output,
    plan: &str,
    mut request: PlanRunRequest,
    into: Into,
) -> Result<(), Failure> {
    if into.attach || into.vm || into.image.is_some() {
        let made = made(into.image, into.vm, into.stream, into.writable);
        request.target = Some(target(client, made, into.format, false)?);
    }
    let job: JobShape = client.post(&path(plan, "/failover"), &request).await?;
    followed(client, output, job, into.no_wait).await
}

async fn followed(client: &Client, output: Output, job: JobShape, no_wait: bool) -> Result<(), Failure> {
    if no_wait {
        return output.answer(&job, begun);
    }
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

async fn lead_back(
    client: &Client,
    output: Output,
    options: PlanBackOptions,
    verb: &str,
) -> Result<(), Failure> {
    if options.dry_run {
        return turns(client, output, &options.plan, verb).await;
    }
    let job: JobShape = client.post(&path(&options.plan, &format!("/{verb}")), &()).await?;
    followed(client, output, job, options.no_wait).await
}

/// What would be done with each machine.
async fn turns(client: &Client, output: Output, plan: &str, course: &str) -> Result<(), Failure> {
    let turns: Vec<PlanTurnShape> = client.get(&path(plan, &format!("/turns?course={course}"))).await?;
    output.answer(&turns, |turns| {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["GROUP", "MACHINE", "STANDS", "WOULD BE", "WHY"]);
        for turn in turns {
            let would = match &*turn.turn {
                "goes" => "moved",
                "stays" => "left alone",
                _ => "refused",
            };
            table.add_row([&*turn.group, &*turn.name, &*turn.stage, would, &*turn.reason]);
        }
        format!("{table}\nNothing was changed.")
    })
}

async fn end(client: &Client, output: Output, plan: &str, verb: &str) -> Result<(), Failure> {
    let ended: PlanEndedShape = client.post(&path(plan, &format!("/{verb}")), &()).await?;
    output.answer(&ended, |ended| {
        let line = |job: &JobShape| format!("Job {} is {}.", job.id, job.state);
        ended.jobs.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// The machines of a plan's run, as part of its job's text.
pub(crate) fn machines(job: &JobShape) -> String {
    if job.machines.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["  GROUP", "MACHINE", "STATE", "JOB", "USABLE AFTER", "SAID LAST"]);
    for machine in &job.machines {
        table.add_row([
            format!("  {}", machine.group),
            machine.name.clone(),
            machine.state.clone(),
            machine.job.clone().unwrap_or_default(),
            machine.rto_us.map(|rto| duration::show(Duration::from_micros(rto))).unwrap_or_default(),
            machine.reason.clone().unwrap_or_default(),
        ]);
    }
    format!("{table}\n")
}

fn listed(plans: &[PlanShape]) -> String {
    if plans.is_empty() {
        return "No plans yet; `holdfast plan apply --help` shows one.".to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "PLAN",
        "GROUPS",
        "MACHINES",
        "STATE",
        "RUNS",
        "CHANGED",
        "DESCRIPTION",
    ]);
    for plan in plans {
        let state = match plan.mistakes.len() {
            0 => "ready".to_owned(),
            count => format!("{count} mistake(s)"),
        };
        table.add_row([
            plan.name.clone(),
            plan.groups.len().to_string(),
            plan.groups.iter().map(|group| group.machines.len()).sum::<usize>().to_string(),
            state,
            plan.jobs.len().to_string(),
            tables::local(&plan.changed_at),
            plan.description.clone(),
        ]);
    }
    table.to_string()
}

fn described(plan: &PlanShape) -> String {
    let mut text = format!("Plan {}: {}\n", plan.name, plan.description);
    let changed = tables::local(&plan.changed_at);
    let _infallible = writeln!(text, "  applied {changed} by {}; point: {}", plan.changed_by, plan.point);
    for (number, wave) in plan.order.iter().enumerate() {
        for name in wave {
            let Some(group) = plan.groups.iter().find(|group| group.name == *name) else { continue };
            let limit = duration::show(Duration::from_millis(group.time_limit_ms));
            let _infallible =
                writeln!(text, "  {}. {name} (at most {limit}, on error {})", number + 1, group.on_error);
            for action in &group.before {
                let _infallible = writeln!(text, "       before: {action}");
            }
            let stands = |name: &String| {
                let stage = plan.stages.iter().find(|stage| stage.name == *name);
                stage.map_or_else(|| name.clone(), |stage| format!("{name} ({})", stage.lifecycle.stage))
            };
            let machines: Vec<String> = group.machines.iter().map(stands).collect();
            let _infallible = writeln!(text, "       machines: {}", machines.join(", "));
            for action in &group.after {
                let _infallible = writeln!(text, "       after: {action}");
            }
        }
    }
    for mistake in &plan.mistakes {
        let _infallible = writeln!(text, "  WRONG NOW: {mistake}");
    }
    for job in &plan.jobs {
        let _infallible = writeln!(text, "  run: job {job}");
    }
    text
}

fn read(file: &PathBuf) -> Result<String, Failure> {
    let read = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(file)
    };
    read.map_err(|error| {
        Failure::usage(format!("{} cannot be read: {error}", file.display()), "name a plan's file")
    })
}

fn path(plan: &str, rest: &str) -> String {
    format!("/v1/plans/{}{rest}", escape(plan))
}
