//! Commands about jobs: begin one, watch it, end it.
//!
//! Owns the progress bar and the wording. A job goes on without this program; watching may be broken off.

use std::{fmt::Write as _, io::IsTerminal as _, path::PathBuf, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use holdfast_coordinator::api::shapes::{
    ChangePointRequest, ForecastShape, JobShape, JobStepShape, LifecycleShape, ModeShape, SetFailoverRequest,
    TargetShape,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;

use crate::{
    arguments::{FailoverOptions, ImageFormat, PlannedFailoverOptions, TestFailoverOptions},
    client::{Client, escape},
    commands::confirmed,
    duration, forecasts,
    output::{Failure, Output},
    plan, tables,
};

/// First pause between two looks at a job; doubled up to [`STEP_MAX`].
const STEP_FIRST: Duration = Duration::from_millis(5);
/// Longest pause between two looks at a job.
const STEP_MAX: Duration = Duration::from_millis(250);

pub(crate) async fn failover(
    client: &Client,
    output: Output,
    options: FailoverOptions,
) -> Result<(), Failure> {
    let point = with_zone(&options.point);
    if options.dry_run {
        return dry_run(client, output, &options.machines, &point).await;
    }
    let target = target(
        client,
        made(options.image, options.vm, options.stream, options.writable),
        options.format,
        options.update,
    )?;
    let (mode, stop_source) = (ModeShape::Failover, options.shutdown);
    let request = SetFailoverRequest { machines: options.machines, point, target, mode, stop_source };
    begin(client, output, &request, options.no_wait).await
}

pub(crate) async fn test_failover(
    client: &Client,
    output: Output,
    options: TestFailoverOptions,
) -> Result<(), Failure> {
    if options.cleanup {
        let mut ended = Vec::new();
        for machine in &options.machines {
            let path = format!("/v1/machines/{}/cleanup", escape(machine));
            ended.push(client.post::<LifecycleShape>(&path, &()).await?);
        }
        return output.answer(&ended, |ended| format!("Cleaned up: {} test failover(s).", ended.len()));
    }
    let target = target(
        client,
        made(options.image, options.vm, options.stream, options.writable),
        options.format,
        options.update,
    )?;
    let point = with_zone(&options.point);
    let mode = ModeShape::Test;
    let request = SetFailoverRequest { machines: options.machines, point, target, mode, stop_source: false };
    begin(client, output, &request, options.no_wait).await
}

pub(crate) async fn planned_failover(
    client: &Client,
    output: Output,
    options: PlannedFailoverOptions,
) -> Result<(), Failure> {
    let target = target(
        client,
        made(options.image, options.vm, options.stream, options.writable),
        options.format,
        false,
    )?;
    let (mode, point) = (ModeShape::Planned, "latest".to_owned());
    let request = SetFailoverRequest { machines: options.machines, point, target, mode, stop_source: true };
    begin(client, output, &request, options.no_wait).await
}

pub(crate) async fn change_point(
    client: &Client,
    output: Output,
    machine: &str,
    point: &str,
    no_wait: bool,
) -> Result<(), Failure> {
    let request = ChangePointRequest { point: with_zone(point) };
    let path = format!("/v1/machines/{}/change-point", escape(machine));
    let job: JobShape = client.post(&path, &request).await?;
    if no_wait {
        return output.answer(&job, begun);
    }
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

/// Re-protection and failback: jobs of a machine at its target.
pub(crate) async fn way_back(
    client: &Client,
    output: Output,
    machine: &str,
    verb: &str,
    no_wait: bool,
) -> Result<(), Failure> {
    let job: JobShape = client.post(&format!("/v1/machines/{}/{verb}", escape(machine)), &()).await?;
    if no_wait {
        return output.answer(&job, begun);
    }
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

/// Commit, cancel, resume: something happens to the machine, and it is told where it stands then.
pub(crate) async fn verb(client: &Client, output: Output, machine: &str, verb: &str) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/{verb}", escape(machine));
    let stage: LifecycleShape = client.post(&path, &()).await?;
    output.answer(&stage, |stage| {
        let source = if stage.fenced { "its source is fenced" } else { "its source is the machine" };
        format!("Machine {machine} is {}: {source}.", stage.stage)
    })
}

pub(crate) async fn resume(client: &Client, output: Output, machine: &str, yes: bool) -> Result<(), Failure> {
    let question =
        format!("Give up what the target of {machine} has written, and go back to the source? [y/N] ");
    if !yes && !confirmed(&question)? {
        return Err(Failure::failed("nothing was changed", ""));
    }
    verb(client, output, machine, "resume").await
}

/// What the operator wants of the point.
pub(crate) enum Made {
    Devices { writable: bool },
    Images(PathBuf),
    Machine { stream: bool },
}

pub(crate) fn made(image: Option<PathBuf>, vm: bool, stream: bool, writable: bool) -> Made {
    match image {
        Some(folder) => Made::Images(folder),
        None if vm => Made::Machine { stream },
        None => Made::Devices { writable },
    }
}

pub(crate) fn target(
    client: &Client,
    made: Made,
    format: ImageFormat,
    update: bool,
) -> Result<TargetShape, Failure> {
    let folder = match made {
        Made::Devices { writable: false } => return Ok(TargetShape::Attach),
        Made::Devices { writable: true } => return Ok(TargetShape::Branch),
        Made::Machine { stream } => return Ok(TargetShape::Machine { stream }),
        Made::Images(folder) => folder,
    };
    if !client.is_local() && !folder.is_absolute() {
        let message = format!("{} is no full path", folder.display());
        let advice = "images are written on the coordinator's host: give a full path there";
        return Err(Failure::usage(message, advice));
    }
    let folder = std::path::absolute(&folder)
        .map_err(|error| Failure::usage(format!("the folder is unusable: {error}"), "give a full path"))?;
    let format = match format {
        ImageFormat::Raw => "raw",
        ImageFormat::Qcow2 => "qcow2",
    };
    Ok(TargetShape::Image { folder, format: format.to_owned(), update })
}

/// Begins the jobs of one or several machines, and waits for them.
async fn begin(
    client: &Client,
    output: Output,
    request: &SetFailoverRequest,
    no_wait: bool,
) -> Result<(), Failure> {
    let is_set = request.machines.len() > 1;
    let mut jobs: Vec<JobShape> = client.post("/v1/failover", request).await?;
    if !no_wait {
        for job in &mut jobs {
            *job = watch(client, output, job.clone()).await?;
        }
    }
    match jobs.as_slice() {
        [job] if !is_set && no_wait => output.answer(job, begun),
        [job] if !is_set => finish(output, job),
        jobs if no_wait => output.answer(&jobs, |jobs| jobs.iter().map(begun).collect::<Vec<_>>().join("\n")),
        jobs => finish_set(output, jobs),
    }
}

pub(crate) fn begun(job: &JobShape) -> String {
    format!("Job {} of {} was begun; follow it with `holdfast job show`.", job.id, job.machine_name)
}

/// What a failover would give and lose.
async fn dry_run(client: &Client, output: Output, machines: &[String], point: &str) -> Result<(), Failure> {
    let named: Vec<String> = machines.iter().map(|machine| escape(machine)).collect();
    let path = format!("/v1/forecast?machines={}&point={}", named.join(","), escape(point));
    let forecast: Vec<ForecastShape> = client.get(&path).await?;
    output.answer(&forecast, |forecast| forecasts::forecast(forecast))?;
    match forecast.iter().find(|machine| machine.point.is_none()) {
        None => Ok(()),
        Some(machine) => {
            let why = machine.refusal.clone().unwrap_or_default();
            Err(Failure::failed(format!("{} would get no point: {why}", machine.name), ""))
        }
    }
}

/// A time of the local time zone as one that says its zone; everything else as it is.
pub(crate) fn with_zone(point: &str) -> String {
    let local =
        point.parse::<jiff::civil::DateTime>().ok().and_then(|time| time.to_zoned(TimeZone::system()).ok());
    match (point.parse::<jiff::Timestamp>(), local) {
        (Err(_), Some(local)) if point.contains(':') => local.timestamp().to_string(),
        _ => point.to_owned(),
    }
}

pub(crate) async fn jobs(client: &Client, output: Output) -> Result<(), Failure> {
    let jobs: Vec<JobShape> = client.get("/v1/jobs").await?;
    output.answer(&jobs, |jobs| {
        if jobs.is_empty() {
            return "No jobs yet.".to_owned();
        }
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["JOB", "KIND", "MACHINE", "STATE", "BEGUN", "POINT"]);
        for job in jobs {
            table.add_row([
                job.id.clone(),
                job.kind.clone(),
                job.machine_name.clone(),
                job.state.clone(),
                tables::local(&job.created_at),
                job.point.clone().unwrap_or_else(|| job.selection.clone()),
            ]);
        }
        table.to_string()
    })
}

pub(crate) async fn show(client: &Client, output: Output, job: &str, follow: bool) -> Result<(), Failure> {
    let job: JobShape = client.get(&format!("/v1/jobs/{}", escape(job))).await?;
    if !follow {
        return output.answer(&job, describe);
    }
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

pub(crate) async fn cancel(client: &Client, output: Output, job: &str) -> Result<(), Failure> {
    let job: JobShape = client.post(&format!("/v1/jobs/{}/cancel", escape(job)), &()).await?;
    let job = until(client, job, |job| !matches!(&*job.state, "running" | "holding" | "cancelling"), |_| {})
        .await?;
    output.answer(&job, |job| format!("Job {} is {}.", job.id, job.state))
}

/// `retry` or `continue`: the job goes on, and is watched.
pub(crate) async fn go_on(client: &Client, output: Output, job: &str, how: &str) -> Result<(), Failure> {
    let job: JobShape = client.post(&format!("/v1/jobs/{}/{how}", escape(job)), &()).await?;
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

/// Follows a job until it is settled, with a bar where somebody sees it.
pub(crate) async fn watch(client: &Client, output: Output, job: JobShape) -> Result<JobShape, Failure> {
    let bar = ProgressBar::hidden();
    if !output.json && std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    let style = "{msg:16} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    let settled = until(
        client,
        job,
        |job| job.settled,
        |job| {
            let running = job.steps.iter().find(|step| step.state == "running");
            bar.set_message(running.map(|step| step.kind.clone()).unwrap_or_default());
            if let Some(progress) = job.progress {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
            }
        },
    )
    .await;
    bar.finish_and_clear();
    settled
}

async fn until(
    client: &Client,
    mut job: JobShape,
    done: impl Fn(&JobShape) -> bool,
    see: impl Fn(&JobShape),
) -> Result<JobShape, Failure> {
    let mut step = STEP_FIRST;
    while !done(&job) {
        see(&job);
        tokio::time::sleep(step).await;
        step = (step * 2).min(STEP_MAX);
        job = client.get(&format!("/v1/jobs/{}", job.id)).await?;
    }
    Ok(job)
}

/// Prints a settled job; one that did not do what was asked is a failure.
pub(crate) fn finish(output: Output, job: &JobShape) -> Result<(), Failure> {
    if job.ok {
        return output.answer(job, describe);
    }
    if job.plan.is_some() {
        // What became of each machine is asked for in every case.
        output.answer(job, describe)?;
    }
    let reason = job.messages.last().map_or("no reason is known", |message| message.text.as_str());
    let message = format!("job {} is {}: {reason}", job.id, job.state);
    Err(Failure::job(message, advice(job)))
}

/// What to do about a job that did not do, or not yet, what was asked.
fn advice(job: &JobShape) -> String {
    let id = &job.id;
    match &*job.state {
        "waiting" => format!("when it is done, `holdfast job continue {id}`; or `holdfast job cancel {id}`"),
        "holding" => format!("`holdfast job show {id}` says what failed; what was failed over is kept"),
        _ => format!("`holdfast job show {id}` has the particulars; `holdfast job retry {id}` tries again"),
    }
}

/// Prints the settled jobs of a set.
fn finish_set(output: Output, jobs: &[JobShape]) -> Result<(), Failure> {
    output.answer(&jobs, |jobs| jobs.iter().map(describe).collect::<Vec<_>>().join("\n"))?;
    match jobs.iter().find(|job| !job.ok) {
        None => Ok(()),
        Some(job) => {
            let message = format!("job {} of machine {} is {}", job.id, job.machine_name, job.state);
            let advice = format!(
                "`holdfast job show {0}` has the particulars; `holdfast job retry {0}` tries again",
                job.id
            );
            Err(Failure::job(message, advice))
        }
    }
}

/// A job as text.
fn describe(job: &JobShape) -> String {
    let mut text = format!("Job {} ({} of {}): {}\n", job.id, job.kind, job.machine_name, job.state);
    if let Some(point) = &job.point {
        let at = job.point_at.as_deref().map(tables::local).unwrap_or_default();
        let _infallible = writeln!(text, "  point {point} of {at}");
    }
    let title =
        |step: &JobStepShape| if step.title.is_empty() { step.kind.clone() } else { step.title.clone() };
    let width = job.steps.iter().map(|step| title(step).chars().count()).max().unwrap_or(0);
    for step in &job.steps {
        let at = step.started_at.as_deref().map(tables::local).unwrap_or_default();
        let took = step.took_ms.map(|took| duration::show(Duration::from_millis(took))).unwrap_or_default();
        let _infallible = writeln!(text, "  {:<width$} {:<8} {at} {took}", title(step), step.state);
    }
    text.push_str(&plan::machines(job));
    for message in &job.messages {
        let _infallible = writeln!(text, "  {} {}", tables::local(&message.at), message.text);
    }
    if let Some(progress) = job.progress {
        let (done, total) = (tables::bytes(progress.done_bytes), tables::bytes(progress.total_bytes));
        let _infallible =
            writeln!(text, "  {done} of {total}, {}/s", tables::bytes(progress.bytes_per_second));
    }
    if let Some(verification) = &job.verification {
        let progress = verification.progress;
        let (done, total) = (tables::bytes(progress.done_bytes), tables::bytes(progress.total_bytes));
        let rate = tables::bytes(progress.bytes_per_second);
        let left = progress.left_ms.filter(|_| verification.state == "running");
        let left = left.map(|left| format!(", {} left", duration::show(Duration::from_millis(left))));
        let _infallible = writeln!(
            text,
            "  verification   {:<8} {done} of {total}, {rate}/s{}",
            verification.state,
            left.unwrap_or_default()
        );
    }
    if let Some(rto) = job.rto_us {
        let rto = duration::show(Duration::from_micros(rto));
        let _infallible = writeln!(text, "  usable {rto} after it was asked for");
    }
    for export in &job.exports {
        let _infallible =
            writeln!(text, "{} ({}): {}", export.path, tables::bytes(export.size_bytes), export.uri);
    }
    for image in &job.images {
        let size = tables::bytes(image.size_bytes);
        let _infallible = writeln!(text, "{} ({size}): {}", image.path, image.file);
    }
    if !job.exports.is_empty() && job.state == "holding" {
        let kind = match job.target {
            Some(TargetShape::Branch) => "Writable NBD exports (what is written is kept beside the point)",
            _ => "Read-only NBD exports",
        };
        let _infallible = writeln!(text, "{kind}, for qemu, nbdcopy, nbd-client and others.");
        let until = match &*job.kind {
            "test-failover" => format!("`holdfast test-failover {} --cleanup`", job.machine_name),
            _ => format!("`holdfast cancel {}`, or beyond its commit", job.machine_name),
        };
        let _infallible = writeln!(text, "They are served until {until}.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::with_zone;

    #[test]
    fn only_local_times_are_given_a_zone() {
        for same in [
            "latest",
            "2026-11-25T22:00:00Z",
            "2026-11-25T22:00:00+01:00",
            "0192f0c1-aaaa-7bbb-8ccc-0123456789ab",
        ] {
            assert_eq!(with_zone(same), same);
        }
        for local in ["2026-11-25 22:00:00", "2026-11-25T22:00"] {
            assert!(with_zone(local).ends_with('Z'), "{local}");
        }
    }
}
