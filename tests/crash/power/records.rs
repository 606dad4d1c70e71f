//! The records beside the logs, the catalog, and images, under losses of power: after each, every one of them says what was acknowledged
//! last, or what was to be said next, and nothing in between.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use holdfast_common::{
    clock::Timestamp,
    ids::{JobId, MachineId, PointId, Sequence},
    units::BlockRange,
};
use holdfast_coordinator::{
    catalog::{
        Catalog as _, Change, SqliteCatalog,
        record::{AuditRecord, JobEventRow},
    },
    compute::{
        image::writer::ImageWriter,
        port::{DiskView, ImageFormat, ImageRequest, Task, WriteImage as _},
    },
    drills::{DrillBook as _, DrillFolder, DrillRecord},
    readiness::{Report, record::ReadinessRecord},
    store::{AuditRecord as Compared, AuditedPass, CheckRecord, DiskLog},
};
use holdfast_tests::{
    journal::{DISK, frame},
    memory_view::MemoryView,
};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::{FOLDER, lose_power_under};
use crate::{reclaim::open, store::close};

const MACHINE: MachineId = MachineId::from_bytes([0x22; 16]);
const JOB: JobId = JobId::from_bytes([0x44; 16]);
/// Damaged frames that stay; older ones are forgotten.
const STAY: u64 = 4;
/// Size of an image.
const IMAGE_BYTES: usize = 1 << 20;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn at(number: u64) -> Timestamp {
    Timestamp(i64::try_from(number).unwrap())
}

fn image(folder: &Path, number: u64) -> ImageRequest {
    let view = Arc::new(MemoryView::patchy(number, IMAGE_BYTES));
    ImageRequest {
        owner: format!("job-{number}"),
        point: PointId(Uuid::from_u128(number.into())),
        disk: DiskView { disk: DISK, name: format!("disk-{number}"), view },
        folder: folder.join("images"),
        format: ImageFormat::Raw,
        update: false,
    }
}

/// What is written in each round, in this order; each is acknowledged for itself, so that none is made durable by the next.
const TURNS: u64 = 10;

/// Says this round's number in the record whose turn it is.
async fn say(
    folder: &Path,
    log: &DiskLog,
    catalog: &SqliteCatalog,
    images: &ImageWriter,
    turn: u64,
    round: u64,
) {
    match turn {
        0 => {
            let event = JobEventRow { job: JOB, number: round, at: at(round), body: "{}".into() };
            let audit = AuditRecord {
                id: Uuid::from_u128(round.into()),
                at: at(round),
                who: "operator root".into(),
                what: "test".into(),
                subject: round.to_string(),
                detail: "x".repeat(300),
            };
            catalog.apply(vec![Change::AddJobEvent(event), Change::Audit(audit)]).await.unwrap();
        }
        1 => {
            let mut checks = CheckRecord::default();
            checks.verified_to = round;
            checks.store(&log.layout().checks()).unwrap();
        }
        2 => {
            let mut compared = Compared::default();
            compared.pass = Some(AuditedPass { position: round, ..AuditedPass::default() });
            compared.store(&log.layout().audit()).unwrap();
        }
        3 => log.bad_frames().note([Sequence(round)]),
        4 => log.bad_frames().forget(Sequence(round.saturating_sub(STAY))),
        5 => _ = log.differences().note(Sequence(round), &[BlockRange::new(round, 1)], at(round)),
        6 => {
            let looked = ReadinessRecord::new(at(round), String::new(), String::new(), Report::default());
            looked.store(&folder.join("readiness.json")).unwrap();
        }
        7 => {
            let drill = DrillRecord {
                job: JobId(Uuid::from_u128(round.into())),
                point: None,
                at: at(round),
                ok: true,
                rto_us: 0,
                text: String::new(),
                screenshot: None,
            };
            DrillFolder::new(folder.to_owned()).record(MACHINE, drill).await.unwrap();
        }
        8 => _ = images.write(image(folder, round), Arc::new(Task::default())).await.unwrap(),
        _ => images.discard(folder.join("images"), format!("job-{}", round - 1)).await.unwrap(),
    }
}

/// Not a test of its own: the child of the next one.
#[test]
#[ignore = "runs as a child until it is killed"]
fn child_that_keeps_records() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let (_store, log, _index) = open(&folder.join("store"));
    let (sink, images) = (log.sink().unwrap(), ImageWriter::new(1));
    runtime().block_on(async {
        let catalog = SqliteCatalog::open(&folder.join("catalog.sqlite")).await.unwrap();
        for number in TURNS.. {
            let (turn, round) = (number % TURNS, number / TURNS);
            if turn == 0 {
                // Lists end with the log.
                sink.append(vec![frame(round)]).await.unwrap();
                sink.settle().await.unwrap();
            }
            say(folder, &log, &catalog, &images, turn, round).await;
            println!("durable {number}");
        }
    });
}

/// The round that the record of a turn must say. It may say the next: the child goes on while its word is on its way.
const fn acknowledged_round(acknowledged: u64, turn: u64) -> u64 {
    (acknowledged + TURNS - turn) / TURNS - 1
}

fn judge(folder: &Path, acknowledged: u64) -> Result<()> {
    let is_round = |what: &str, turn: u64, round: u64| {
        let must = acknowledged_round(acknowledged, turn);
        ensure!(round == must || round == must + 1, "{what} says {round}, and not {must} or the next");
        Ok(())
    };
    let newest = |list: &[u64]| list.last().copied().unwrap_or(0);
    let (store, log, index) = open(&folder.join("store"));
    is_round(
        "the record of checks",
        1,
        CheckRecord::load(&log.layout().checks(), Sequence(u64::MAX), at(0)).verified_to,
    )?;
    is_round(
        "the record of comparisons",
        2,
        Compared::load(&log.layout().audit()).pass.map_or(0, |pass| pass.position),
    )?;
    let bad: Vec<u64> = log.bad_frames().list().iter().map(|frame| frame.0).collect();
    is_round("the list of damaged frames", 3, newest(&bad))?;
    let first = bad.first().copied().unwrap_or(0);
    if acknowledged_round(acknowledged, 4) >= STAY {
        is_round("what is forgotten of damaged frames", 4, first + STAY - 1)?;
    }
    ensure!(bad.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a damaged frame is forgotten: {bad:?}");
    let differ: Vec<u64> = log.differences().list().iter().map(|difference| difference.cut).collect();
    is_round("the list of differences", 5, newest(&differ))?;
    ensure!(differ.iter().copied().eq(1..=newest(&differ)), "a difference is forgotten: {differ:?}");
    drop(index);
    close(store, log);
    let looked = ReadinessRecord::load(&folder.join("readiness.json"));
    is_round("the record of readiness", 6, looked.map_or(Ok(0), |looked| u64::try_from(looked.at_us))?)?;
    let drills = DrillFolder::new(folder.to_owned()).list(MACHINE);
    is_round("the newest drill", 7, drills.first().map_or(Ok(0), |drill| u64::try_from(drill.at.0))?)?;
    runtime().block_on(async {
        let catalog = SqliteCatalog::open(&folder.join("catalog.sqlite")).await?;
        let events = catalog.job_events().await?;
        is_round("the catalog", 0, events.len() as u64)?;
        ensure!((1..).zip(&events).all(|(number, event)| event.number == number), "events are missing");
        let audit = catalog.audit(Timestamp(0), u32::MAX).await?;
        ensure!(audit.len() == events.len(), "half of a transaction is there");
        catalog.close().await;
        let written = acknowledged_round(acknowledged, 8);
        for round in [written, written + 1].into_iter().filter(|round| *round > 0) {
            let request = image(folder, round);
            let path = request.folder.join(format!("disk-{round}.raw"));
            let right = MemoryView::patchy(round, IMAGE_BYTES);
            // What has its final name is whole.
            ensure!(path.exists() || round > written, "image {round} is missing");
            ensure!(!path.exists() || fs::read(&path)? == right.bytes(), "image {round} is wrong");
            // What its record says of a partial one is there: what follows goes on from it.
            ImageWriter::new(1).write(request, Arc::new(Task::default())).await?;
            ensure!(fs::read(&path)? == right.bytes(), "image {round} is wrong when it has gone on");
        }
        Ok(())
    })
}

#[test]
fn records_catalog_and_images_say_what_was_acknowledged_or_the_next() -> Result<()> {
    lose_power_under("power::records::child_that_keeps_records", &judge).map(drop)
}
