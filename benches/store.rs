//! The store alone: verify and append to durable, against BLAKE3 and a plain sequential write with fdatasync of the same bytes.
//!
//! Owns a store in a temporary folder. Frames come from this system's files, sealed as the agent seals them; both sides
//! alternate, because the machine's speed drifts.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    clock::{Clock as _, SystemClock},
    entropy::{Entropy as _, SystemEntropy},
    frame::Frame,
    ids::{DiskId, MachineId},
};
use holdfast_coordinator::{
    journal::writer::GROUP_BYTES_MAX,
    store::{DiskManifest, Store, StoreSettings},
};
use tempfile::TempDir;

use crate::{
    Run,
    machine::{Cost, Meter},
    report::{Row, percentile},
    stages::{self, Sealed},
};

/// Frames handed to the log at a time, as ingest does it.
const BATCH_FRAMES: usize = 16;
/// Least part of the limit that must be reached.
const RATIO_MIN: f64 = 0.8;

/// Extents of one block each that must be taken in per second.
const EXTENTS_PER_SECOND_MIN: f64 = 100_000.0;

/// Verify and append, against one pass of BLAKE3 and one of write.
pub(crate) fn store(run: Run) -> Result<Vec<Row>> {
    let (bytes, rounds) = if run.quick { (768 << 20, 5) } else { (1 << 30, 11) };
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let sample = stages::system_sample(folder.path(), bytes)?;
    let (sealed, _) = stages::seal_pass(&sample, Some(1))?;
    drop(sample);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut ours, mut limits, mut spent) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = folder.path().join(format!("store-{round}"));
        let cost = runtime.block_on(append(&place, &sealed))?;
        std::fs::remove_dir_all(&place)?;
        let hash = stages::verify_pass(&sealed)?;
        let write = stages::append_pass(&sealed, folder.path(), GROUP_BYTES_MAX as u64)?;
        let rate = |seconds: f64| sealed.bytes as f64 / seconds / 1e6;
        ours.push(rate(cost.elapsed.as_secs_f64()));
        limits.push(rate((hash.elapsed + write.elapsed).as_secs_f64()));
        spent.push((hash.spent + write.spent) / cost.spent);
    }
    let ratios: Vec<f64> = ours.iter().zip(&limits).map(|(ours, limit)| ours / limit).collect();
    let note = format!(
        "{rounds} alternating rounds of {} MiB of frames; pairwise ratio: median {:.2}, p10 {:.2}, p90 {:.2} (at least {RATIO_MIN}); \
         of processor seconds: {:.2}",
        sealed.bytes >> 20,
        percentile(&ratios, 50.0),
        percentile(&ratios, 10.0),
        percentile(&ratios, 90.0),
        percentile(&spent, 50.0),
    );
    Ok(vec![
        Row::new("store: verify and append to durable", percentile(&ours, 50.0), "MB/s")
            .against(
                percentile(&limits, 50.0),
                "BLAKE3, then write with fdatasync every 8 MiB, of the same bytes",
            )
            .note(note),
    ])
}

/// Frames of sixteen blocks of 4 KiB each, all over the disk: what random writes make of them. The limit is that of
/// [`store`], on the same bytes.
pub(crate) fn ingest(run: Run) -> Result<Vec<Row>> {
    let (bytes, rounds) = if run.quick { (512 << 20, 5) } else { (1 << 30, 11) };
    let folder = TempDir::with_prefix("holdfast-bench-")?;
    let sample = stages::system_sample(folder.path(), bytes)?;
    let sealed = stages::scattered(&sample)?;
    drop(sample);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut ours, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let place = folder.path().join(format!("ingest-{round}"));
        let cost = runtime.block_on(append(&place, &sealed))?;
        std::fs::remove_dir_all(&place)?;
        let hash = stages::verify_pass(&sealed)?;
        let write = stages::append_pass(&sealed, folder.path(), GROUP_BYTES_MAX as u64)?;
        ours.push(cost.elapsed.as_secs_f64());
        ratios.push((hash.elapsed + write.elapsed).as_secs_f64() / cost.elapsed.as_secs_f64());
    }
    let seconds = percentile(&ours, 50.0);
    let (frames, extents) = (sealed.frames.len() as f64, bytes as f64 / 4096.0);
    let note = format!(
        "{rounds} alternating rounds of {} MiB of frames, {:.0} frames/s; pairwise ratio to BLAKE3 and write with fdatasync: \
         median {:.2} (at least {RATIO_MIN})",
        sealed.bytes >> 20,
        frames / seconds,
        percentile(&ratios, 50.0),
    );
    Ok(vec![
        Row::new("ingest: 4 KiB extents to durable", extents / seconds, "extents/s")
            .against(EXTENTS_PER_SECOND_MIN, "target, at least")
            .note(note),
    ])
}

/// Verifies all frames and appends them to a new log, until the last one is durable.
async fn append(place: &Path, sealed: &Sealed) -> Result<Cost> {
    let (store, _) = Store::open(place, StoreSettings::default())?;
    let entropy = SystemEntropy::new();
    let machine = MachineId(entropy.uuid(SystemClock::new().wall()));
    let disk = DiskId::from_bytes(stages::DISK);
    store.create_disk(&DiskManifest { disk, machine, size_bytes: 1 << 40 })?;
    let log = store.disk(disk).context("the log")?;
    let sink = Arc::clone(&log).sink()?;
    let meter = Meter::start(&[])?;
    for batch in sealed.frames.chunks(BATCH_FRAMES) {
        let batch = batch.to_vec();
        let verify = tokio::task::spawn_blocking(move || {
            batch.into_iter().map(Frame::verify).collect::<Result<Vec<_>, _>>()
        });
        sink.append(verify.await??).await?;
    }
    let durable = sink.settle().await?;
    let cost = meter.stop()?;
    ensure!(durable.0 == sealed.frames.len() as u64, "{durable} is durable");
    Ok(cost)
}
