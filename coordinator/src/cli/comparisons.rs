//! `holdfast compare`: disks against their sources.

use std::time::Duration;

use holdfast_coordinator::api::compare_shapes::{CompareShape, ComparedShape};

use crate::{
    arguments::CompareCommand,
    client::{Client, escape},
    duration,
    output::{Failure, Output},
    tables::{bytes, table, with_age},
};

pub(crate) async fn run(client: &Client, output: Output, command: CompareCommand) -> Result<(), Failure> {
    let disks: Vec<CompareShape> = match command {
        CompareCommand::Status => client.get("/v1/compare").await?,
        CompareCommand::Start { machine } => {
            client.post(&format!("/v1/machines/{}/compare", escape(&machine)), &()).await?
        }
        CompareCommand::Cancel { machine } => {
            client.post(&format!("/v1/machines/{}/compare/cancel", escape(&machine)), &()).await?
        }
    };
    output.answer(&disks, |disks| show(disks))
}

fn show(disks: &[CompareShape]) -> String {
    if disks.is_empty() {
        return "No disk is protected.".to_owned();
    }
    let mut table = table(&["MACHINE", "DISK", "SIZE", "LAST COMPARED", "NOW"]);
    for disk in disks {
        let last = disk.last.as_ref().map_or_else(|| "never".to_owned(), ended);
        let now = disk.pass.as_ref().map(|pass| under_way(disk, pass)).unwrap_or_default();
        table.add_row([disk.machine_name.clone(), disk.path.clone(), bytes(disk.size_bytes), last, now]);
    }
    table.to_string()
}

fn found(pass: &ComparedShape) -> String {
    let mut text = match pass.differed_bytes {
        0 => "no difference".to_owned(),
        differed => format!("{} differed", bytes(differed)),
    };
    if pass.unreadable_bytes > 0 {
        text += &format!(", {} not readable here", bytes(pass.unreadable_bytes));
    }
    text
}

fn ended(pass: &ComparedShape) -> String {
    let when = pass.ended_at.as_ref().map(|at| with_age(at)).unwrap_or_default();
    let how = if pass.cancelled {
        format!(", cancelled after {}", bytes(pass.compared_bytes))
    } else {
        String::new()
    };
    format!("{when}{how}: {}", found(pass))
}

fn under_way(disk: &CompareShape, pass: &ComparedShape) -> String {
    let mut text = format!("{} compared, {}", bytes(pass.compared_bytes), found(pass));
    if let Some(waiting) = &disk.waiting {
        text += &format!("; waits: {waiting}");
    } else if let (Some(rate), Some(left)) = (disk.bytes_per_second, disk.left_ms) {
        let left = duration::show(Duration::from_millis(left));
        text += &format!("; {}/s, {left} left", bytes(rate));
    }
    text
}
