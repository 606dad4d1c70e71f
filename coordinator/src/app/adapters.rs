//! The contracts that registry, ingest and the interface state, answered by store and index.
//!
//! Owns the translation only.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use holdfast_common::{
    durable,
    frame::Frame,
    ids::{DiskId, Generation, Sequence},
    units::BlockRange,
    wire::{Refusal, RefusalCode, ScanAnswer, ScanQuestion},
};
use tokio::sync::watch;

use super::{logs::Logs, reclaim::SpaceFigures};
use crate::{
    api::port::{DiskFigures, Space, StoreFigures},
    compute::port::BoxFuture,
    ingest::port::{FrameSink, FrameStore, PortError, PortFuture, ReplicaComparer},
    points::{frame_cache::FrameCache, point_view::PointView},
    registry::{
        DiskLogs, LogState,
        description::Description,
        health::{Finding, Level},
        operators_record::OperatorsRecord,
    },
    store::{DiskManifest, Store},
};

/// The logs as the registry sees them.
#[derive(Clone, Debug)]
pub(super) struct RegistryLogs {
    pub(super) logs: Arc<Logs>,
    pub(super) machines: PathBuf,
    pub(super) operators: PathBuf,
}

impl DiskLogs for RegistryLogs {
    fn state(&self, disk: DiskId, generation: Generation) -> BoxFuture<'_, Result<LogState>> {
        Box::pin(self.logs.state(disk, generation))
    }

    fn describe(&self, description: Description) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let disks: Vec<DiskId> = description.disks().iter().map(|disk| disk.id).collect();
            let (store, machines) = (Arc::clone(&self.logs.store), self.machines.clone());
            tokio::task::spawn_blocking(move || write_description(&store, &machines, &description)).await??;
            for disk in disks {
                self.logs.follow(disk).await?;
            }
            Ok(())
        })
    }

    fn describe_operators(&self, operators: OperatorsRecord) -> BoxFuture<'_, Result<()>> {
        let path = self.operators.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || write_json(&path, &serde_json::to_vec_pretty(&operators)?))
                .await?
        })
    }
}

/// Makes the logs that do not exist yet, and writes the machine's file.
fn write_description(store: &Store, machines: &std::path::Path, description: &Description) -> Result<()> {
    for disk in description.disks() {
        if disk.size_bytes > 0 && store.disk(disk.id).is_none() {
            let (machine, size_bytes) = (disk.machine, disk.size_bytes);
            store.create_disk(&DiskManifest { disk: disk.id, machine, size_bytes })?;
        }
    }
    let path = machines.join(format!("{}.json", description.machine));
    write_json(&path, &serde_json::to_vec_pretty(description)?)
}

fn write_json(path: &std::path::Path, bytes: &[u8]) -> Result<()> {
    durable::replace(path, bytes, durable::MODE_PRIVATE)
        .with_context(|| format!("writing {}", path.display()))
}

/// The store as ingest sees it: disks whose size is not known yet have an empty log that takes nothing.
#[derive(Debug)]
pub(super) struct IngestStore(pub(super) Arc<Store>);

impl FrameStore for IngestStore {
    fn open(&self, disk: DiskId) -> PortFuture<'_, Arc<dyn FrameSink>> {
        if self.0.disk(disk).is_some() {
            return self.0.open(disk);
        }
        Box::pin(async {
            let sink: Arc<dyn FrameSink> = Arc::new(SizelessDisk(watch::channel(Sequence(0)).0));
            Ok(sink)
        })
    }
}

#[derive(Debug)]
struct SizelessDisk(watch::Sender<Sequence>);

impl FrameSink for SizelessDisk {
    fn append(&self, _frames: Vec<Frame>) -> PortFuture<'_, ()> {
        let text = "the disk's size is not known yet; report it and wait for the new assignment";
        Box::pin(async move { Err(PortError::Refused(Refusal::new(RefusalCode::STORAGE, text))) })
    }

    fn durable(&self) -> watch::Receiver<Sequence> {
        self.0.subscribe()
    }

    fn settle(&self) -> PortFuture<'_, Sequence> {
        Box::pin(async { Ok(Sequence(0)) })
    }
}

/// Comparison of source digests with the newest replica.
#[derive(Debug)]
pub(super) struct Comparer {
    pub(super) logs: Arc<Logs>,
    pub(super) cache: Arc<FrameCache>,
}

impl ReplicaComparer for Comparer {
    fn compare(&self, question: ScanQuestion) -> PortFuture<'_, ScanAnswer> {
        Box::pin(async move {
            let index =
                self.logs.index(question.disk).ok_or_else(|| failed("the disk has no log yet".into()))?;
            let cache = Arc::clone(&self.cache);
            let answered = tokio::task::spawn_blocking(move || {
                // What is durable and not in the index yet must count, or it would be sent again.
                index.catch_up()?;
                let view = PointView::newest(&index, cache);
                let found =
                    view.digest_ranges(BlockRange { start: question.start, count: question.count })?;
                let mut found = found.into_iter();
                let differs = question
                    .digests
                    .iter()
                    .map(|asked| found.next().flatten().as_ref() != Some(asked))
                    .collect();
                anyhow::Ok(ScanAnswer { question: question.question, disk: question.disk, differs })
            });
            match answered.await {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(failed(error.into())),
                Err(error) => Err(failed(error.into())),
            }
        })
    }
}

fn failed(source: Box<dyn std::error::Error + Send + Sync>) -> PortError {
    PortError::Failed { operation: "the comparison with the replica", source }
}

/// Figures of the store.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) logs: Arc<Logs>,
    /// What recovery found at start.
    pub(super) trouble: Vec<Trouble>,
    /// What the logs hold.
    pub(super) space: Arc<SpaceFigures>,
}

/// Something that recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    finding: Finding,
    /// It is over once the scan of this generation is complete.
    until: Option<(DiskId, Generation)>,
}

impl Trouble {
    /// Something of the store is lost or cannot be used.
    pub(super) fn new(reason: String, until: Option<(DiskId, Generation)>) -> Self {
        let advice = "look at the coordinator's log for what was done about it".to_owned();
        Self { finding: Finding { level: Level::Critical, reason, advice }, until }
    }

    /// A file beside the store was damaged, and protection does not depend on it.
    pub(super) fn beside(reason: String) -> Self {
        let advice =
            "protection goes on; look whether the device under the data folder is failing".to_owned();
        Self { finding: Finding { level: Level::Warning, reason, advice }, until: None }
    }
}

impl Figures {
    fn is_over(&self, trouble: &Trouble) -> bool {
        let Some((disk, generation)) = trouble.until else { return false };
        let scan = self.logs.index(disk).and_then(|index| index.newest_scan());
        scan.is_some_and(|scan| scan.generation >= generation && scan.record.complete)
    }
}

impl StoreFigures for Figures {
    fn space(&self) -> Option<Space> {
        let space = self.logs.store.space().ok()?;
        Some(Space {
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            reserve_bytes: space.reserve_bytes,
        })
    }

    fn trouble(&self) -> Vec<Finding> {
        let lasting = self.trouble.iter().filter(|trouble| !self.is_over(trouble));
        lasting.map(|trouble| trouble.finding.clone()).collect()
    }

    fn disk(&self, disk: DiskId) -> DiskFigures {
        let Some(log) = self.logs.store.disk(disk) else { return DiskFigures::default() };
        let usage = log.usage();
        let (space, reclaim_trouble) = self.space.of(disk);
        let progress = self.logs.index(disk).map(|index| index.progress()).unwrap_or_default();
        DiskFigures {
            stored_bytes: usage.journal_bytes.saturating_add(usage.index_bytes),
            pending_bytes: progress.pending_bytes,
            durable: log.tail().sequence.0,
            indexed: progress.processed.0,
            space,
            reclaim_trouble,
            alarm: log.differences().alarm(),
            trouble: log.trouble().map(|text| format!("its log cannot be written: {text}")).or_else(|| {
                self.logs.trouble(disk).map(|text| format!("its points cannot be recorded: {text}"))
            }),
        }
    }
}
