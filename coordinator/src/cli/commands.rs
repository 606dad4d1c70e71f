//! Commands about machines, protection, points and status.
//!
//! Owns one function per command: ask, print.

use std::{io::IsTerminal as _, time::Duration};

use holdfast_coordinator::{
    api::shapes::{
        CheckShape, DiffShape, MachineDetailShape, MachineShape, OverviewShape, PointRequest,
        PointRequestShape, PointsShape, ProtectRequest, ProtectShape, RetentionPlanShape, ScrubRequest,
        StatusShape, TokenRequest, TokenShape, UnprotectRequest, UnprotectShape,
    },
    points::retention::RetentionRule,
    quickstart::{self, QuickstartOptions},
};

use crate::{
    arguments::{DiffOptions, HookFailure, ProtectOptions, QuickstartArguments, TokenOptions},
    client::{Client, escape},
    duration, forecasts,
    output::{Failure, Output},
    retention_tables, tables,
};

/// Time between two pictures of `status --watch`.
const WATCH_STEP: Duration = Duration::from_secs(2);

pub(crate) async fn create_token(
    client: &Client,
    output: Output,
    options: TokenOptions,
) -> Result<(), Failure> {
    let life_seconds = Some(options.life.as_secs());
    let request = TokenRequest { label: options.label, machine: options.machine, life_seconds };
    let token: TokenShape = client.post("/v1/tokens", &request).await?;
    output.answer(&token, |token| {
        format!(
            "{}\n\nIt works once, until {}. On the machine to protect, run\n  \
             holdfast-agent enroll --coordinator HOST:PORT --token TOKEN\n\
             where HOST:PORT reaches this coordinator, which listens on {} (UDP).",
            token.token,
            tables::local(&token.expires_at),
            token.coordinator
        )
    })
}

pub(crate) async fn machines(client: &Client, output: Output) -> Result<(), Failure> {
    let machines: Vec<MachineShape> = client.get("/v1/machines").await?;
    output.answer(&machines, |machines| tables::machines(machines))
}

pub(crate) async fn show_machine(client: &Client, output: Output, machine: &str) -> Result<(), Failure> {
    let machine: MachineDetailShape = client.get(&format!("/v1/machines/{}", escape(machine))).await?;
    output.answer(&machine, tables::machine)
}

pub(crate) async fn revoke(client: &Client, output: Output, machine: &str, yes: bool) -> Result<(), Failure> {
    let found: MachineDetailShape = client.get(&format!("/v1/machines/{}", escape(machine))).await?;
    let (name, id) = (&found.machine.name, &found.machine.id);
    if !yes && !confirmed(&format!("Revoke machine {name} ({id})? It is no longer protected then. [y/N] "))? {
        return Err(Failure::failed("nothing was changed", ""));
    }
    let revoked: MachineShape = client.post(&format!("/v1/machines/{id}/revoke"), &()).await?;
    output.answer(&revoked, |machine| format!("Machine {} is revoked; its history stays.", machine.name))
}

/// Asks on the terminal.
pub(crate) fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this needs a confirmation", "give --yes where nobody can be asked"));
    }
    eprint!("{question}");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Failure::failed(format!("the answer cannot be read: {error}"), "give --yes"))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(crate) async fn protect(client: &Client, output: Output, options: ProtectOptions) -> Result<(), Failure> {
    let mebibytes = |rate: Option<u64>| rate.map(|rate| rate.saturating_mul(1 << 20));
    let millis =
        |time: Option<Duration>| time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    let request = ProtectRequest {
        disks: options.disk,
        interval_ms: millis(options.interval),
        retention_seconds: options.retention.as_ref().map(|rule| rule.dense().as_secs()),
        retention_tiers: options.retention.map(|rule| rule.tiers().to_vec()),
        hold_ms_max: millis(options.hold),
        send_bytes_per_second_max: mebibytes(options.send_rate),
        scan_bytes_per_second_max: mebibytes(options.scan_rate),
        application_interval_ms: millis(options.app_consistent_interval),
        drill_every_ms: millis(options.drill),
        drill_probe: options.drill_probe,
        drill_limit_ms: millis(options.drill_time_limit),
        application_strict: options.on_hook_failure.map(|then| then == HookFailure::Void),
    };
    let nothing = serde_json::to_value(&request).ok() == serde_json::to_value(ProtectRequest::default()).ok();
    if nothing {
        let advice = "name a disk with --disk, or a setting; `holdfast protect --help` has examples";
        return Err(Failure::usage("there is nothing to do", advice));
    }
    let path = format!("/v1/machines/{}/protect", escape(&options.machine));
    let protected: ProtectShape = client.post(&path, &request).await?;
    output.answer(&protected, |protected| {
        let mut text = String::new();
        for disk in &protected.disks {
            text.push_str(&format!("Protected: {} ({})\n", disk.path, tables::bytes(disk.size_bytes)));
        }
        let interval = duration::show(Duration::from_millis(protected.policy.interval_ms));
        text + &format!(
            "A point every {interval}, {}. `holdfast status` shows how it goes.",
            tables::kept(&protected.policy)
        )
    })
}

pub(crate) async fn unprotect(
    client: &Client,
    output: Output,
    machine: &str,
    disks: Vec<String>,
) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/unprotect", escape(machine));
    let ended: UnprotectShape = client.post(&path, &UnprotectRequest { disks }).await?;
    output.answer(&ended, |ended| match ended.disks.as_slice() {
        [] => "No disk of the machine was protected.".to_owned(),
        disks => {
            let paths: Vec<&str> = disks.iter().map(|disk| disk.path.as_str()).collect();
            format!("Protected no more: {}. Their points stay until retention ends them.", paths.join(", "))
        }
    })
}

pub(crate) async fn status(client: &Client, output: Output, watch: bool) -> Result<(), Failure> {
    if !watch {
        let status: StatusShape = client.get("/v1/status").await?;
        return output.answer(&status, tables::status);
    }
    loop {
        let text = match client.get::<StatusShape>("/v1/status").await {
            Ok(status) if output.json => serde_json::to_string(&status).unwrap_or_default(),
            Ok(status) => tables::status(&status),
            Err(failure) if failure.is_unreachable() && !output.json => {
                "The coordinator cannot be reached; trying again.".to_owned()
            }
            Err(failure) => return Err(failure),
        };
        if output.json {
            output.line(&text);
        } else {
            // Clear the screen and go to its first line.
            output.line(&format!("\x1b[2J\x1b[H{text}"));
        }
        tokio::time::sleep(WATCH_STEP).await;
    }
}

pub(crate) async fn points(
    client: &Client,
    output: Output,
    machine: Option<&str>,
    limit: Option<u32>,
) -> Result<(), Failure> {
    let Some(machine) = machine else {
        let overview: Vec<OverviewShape> = client.get("/v1/points").await?;
        return output.answer(&overview, |overview| forecasts::overview(overview));
    };
    let limit = limit.map(|limit| format!("?limit={limit}")).unwrap_or_default();
    let points: PointsShape = client.get(&format!("/v1/machines/{}/points{limit}", escape(machine))).await?;
    output.answer(&points, tables::points)
}

pub(crate) async fn plan_retention(
    client: &Client,
    output: Output,
    machine: &str,
    rule: Option<RetentionRule>,
) -> Result<(), Failure> {
    let rule = rule.map(|rule| format!("?retention={}", escape(&rule.to_string()))).unwrap_or_default();
    let path = format!("/v1/machines/{}/retention{rule}", escape(machine));
    let plan: RetentionPlanShape = client.get(&path).await?;
    output.answer(&plan, retention_tables::plan)
}

pub(crate) async fn diff(client: &Client, output: Output, options: &DiffOptions) -> Result<(), Failure> {
    let ranges = options.ranges.unwrap_or(if output.json { 1000 } else { 20 });
    let (from, to) = (escape(&options.from), escape(&options.to));
    let path =
        format!("/v1/machines/{}/points/diff?from={from}&to={to}&ranges={ranges}", escape(&options.machine));
    let diff: DiffShape = client.get(&path).await?;
    output.answer(&diff, tables::diff)
}

pub(crate) async fn create_point(
    client: &Client,
    output: Output,
    machine: &str,
    application: bool,
    wait: Option<Duration>,
) -> Result<(), Failure> {
    let wait_ms = wait.map_or(0, |wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let path = format!("/v1/machines/{}/points", escape(machine));
    let made: PointRequestShape = client.post(&path, &PointRequest { wait_ms, application }).await?;
    if wait.is_some() && made.point.is_none() {
        let advice = "the request stands; look at `holdfast points` and `holdfast status`";
        return Err(Failure::failed("the point did not come in time", advice));
    }
    output.answer(&made, |made| match &made.point {
        Some(point) => format!("Point {} of {}.", point.id, tables::local(&point.at)),
        None => "A point was asked for; `holdfast points` will list it.".to_owned(),
    })
}

pub(crate) async fn scrub_status(client: &Client, output: Output) -> Result<(), Failure> {
    let checks: Vec<CheckShape> = client.get("/v1/scrub").await?;
    output.answer(&checks, |checks| tables::checks(checks))
}

pub(crate) async fn scrub_start(
    client: &Client,
    output: Output,
    machine: Option<String>,
) -> Result<(), Failure> {
    let checks: Vec<CheckShape> = client.post("/v1/scrub", &ScrubRequest { machine }).await?;
    output.answer(&checks, |checks| tables::checks(checks))
}

pub(crate) fn quickstart(arguments: &QuickstartArguments, output: Output) -> Result<(), Failure> {
    let options = QuickstartOptions { json: output.json, seconds: arguments.seconds };
    quickstart::run(&options)
        .map_err(|error| Failure::failed(format!("{error:#}"), "the text above says at which step"))
}
