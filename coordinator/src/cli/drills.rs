//! `holdfast drill` and `holdfast machine screenshot`.

use std::{fs, path::Path, time::Duration};

use holdfast_coordinator::api::{
    drills::{DrillRequest, DrillShape, ScreenshotShape},
    shapes::JobShape,
};
use serde::Serialize;

use crate::{
    arguments::DrillOptions,
    client::{Client, escape},
    duration,
    failover::{begun, finish, watch},
    output::{Failure, Output},
    tables::{table, with_age},
};

pub(crate) async fn run(client: &Client, output: Output, options: DrillOptions) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/drill", escape(&options.machine));
    if options.history {
        let drills: Vec<DrillShape> = client.get(&path).await?;
        return output.answer(&drills, |drills| history(drills));
    }
    let limit_ms = options.time_limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    let request = DrillRequest { point: options.point, probe: options.probe, limit_ms };
    let job: JobShape = client.post(&path, &request).await?;
    if options.no_wait {
        return output.answer(&job, begun);
    }
    let job = watch(client, output, job).await?;
    finish(output, &job)
}

fn history(drills: &[DrillShape]) -> String {
    if drills.is_empty() {
        return "There was no drill yet.".to_owned();
    }
    let mut table = table(&["ENDED", "RESULT", "RTO", "POINT", "WHAT HAPPENED", "SCREEN"]);
    for drill in drills {
        table.add_row([
            with_age(&drill.at),
            if drill.ok { "booted" } else { "FAILED" }.to_owned(),
            if drill.ok { duration::show(Duration::from_micros(drill.rto_us)) } else { String::new() },
            drill.point.clone().unwrap_or_default(),
            drill.text.clone(),
            drill.screenshot.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

/// What was taken.
#[derive(Debug, Serialize)]
struct Taken {
    job: String,
    file: String,
    bytes: usize,
}

pub(crate) async fn screenshot(
    client: &Client,
    output: Output,
    machine: &str,
    file: &Path,
) -> Result<(), Failure> {
    let path = format!("/v1/machines/{}/screenshot", escape(machine));
    let shape: ScreenshotShape = client.post(&path, &()).await?;
    let bytes = unhex(&shape.png_hex).ok_or_else(|| {
        Failure::failed("the coordinator sent no picture", "see that both are of one version")
    })?;
    fs::write(file, &bytes).map_err(|error| {
        Failure::failed(
            format!("{} cannot be written: {error}", file.display()),
            "name a file in a folder of yours",
        )
    })?;
    let taken = Taken { job: shape.job, file: file.display().to_string(), bytes: bytes.len() };
    output.answer(&taken, |taken| format!("The screen of {machine} is in {}.", taken.file))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair.first()?)? << 4 | digit(pair.get(1)?)?)).collect()
}
