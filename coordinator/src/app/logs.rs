//! Follows the disks' logs: cuts become points, and points that are in the index become processed.
//!
//! Owns the open indexes and how far each log was followed. Invariant: a log's cuts are told in order; progress moves past
//! one only after the catalog of points has it, so what fails is seen again.
//! Limit: [`BATCH_BYTES`] of heads in memory per disk that is being read.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use holdfast_common::{
    frame::{CutRecord, FRAME_HEADER_BYTES, FrameHeader, FrameKind, extent::EXTENT_BYTES},
    ids::{DiskId, Generation, Interval, Sequence},
    units::BlockIndex,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    index::{
        CutHead, DiskIndex, Follower,
        room::{ROOM_BYTES, Room},
    },
    journal::tables::FrameHead,
    points::{
        assembler::CutSeen,
        catalog::{Arrival, PointCatalog},
    },
    registry::{LogState, Registry},
    store::{DiskLog, Store},
};

/// Heads read at a time.
const BATCH_BYTES: usize = 1 << 20;

/// When a log that could not be followed is tried again.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// What a frame takes in the log.
fn frame_bytes(header: &FrameHeader) -> u64 {
    let table = u64::from(header.extent_count).saturating_mul(EXTENT_BYTES as u64);
    FRAME_HEADER_BYTES as u64 + table + u64::from(header.stored_bytes)
}

/// All that a cut's frame says; what the index keeps of it if the frame cannot be read.
async fn whole_record(log: &Arc<DiskLog>, cut: &CutHead) -> CutRecord {
    let (reading, sequence) = (Arc::clone(log), cut.sequence);
    let read = tokio::task::spawn_blocking(move || {
        let frame = reading.read(sequence).map_err(anyhow::Error::from)?;
        frame.cut_record().map_err(anyhow::Error::from)
    });
    match read.await.map_err(anyhow::Error::from).flatten() {
        Ok(record) => record,
        Err(error) => {
            tracing::warn!(disk = %log.disk(), %sequence, error = format!("{error:#}"), "a cut's group and application are not known any more");
            cut.record.clone()
        }
    }
}

/// The logs and their indexes.
#[derive(Debug)]
pub(super) struct Logs {
    pub(super) store: Arc<Store>,
    points: Arc<PointCatalog>,
    follower: Follower,
    /// Of the indexes of all disks, for what they have no files of yet.
    room: Arc<Room>,
    disks: Mutex<HashMap<DiskId, Arc<Followed>>>,
    /// Set once the registry exists; it knows the clocks' differences. Until then cuts were found, not received.
    registry: OnceLock<Arc<Registry>>,
    tasks: TaskTracker,
    closing: CancellationToken,
    /// Disks whose logs end before points that they once had.
    shortened: Mutex<Vec<DiskId>>,
}

/// A log that is followed.
#[derive(Debug)]
pub(super) struct Followed {
    pub(super) index: Arc<DiskIndex>,
    position: tokio::sync::Mutex<Position>,
    /// Why the log cannot be followed now.
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Position {
    up_to: Sequence,
    since_cut_bytes: u64,
    /// Last cut of the index that was looked at.
    indexed_cut: Sequence,
}

impl Logs {
    pub(super) fn new(store: Arc<Store>, points: Arc<PointCatalog>) -> Result<Arc<Self>> {
        let follower = Follower::start().context("starting the index thread")?;
        Ok(Arc::new(Self {
            store,
            points,
            follower,
            room: Room::new(ROOM_BYTES),
            disks: Mutex::default(),
            registry: OnceLock::new(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            shortened: Mutex::default(),
        }))
    }

    /// From now on cuts count as received now.
    pub(super) fn set_registry(&self, registry: Arc<Registry>) {
        let _set_once = self.registry.set(registry);
    }

    /// Ends all following.
    pub(super) async fn stop(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The index of a disk, if it has a log.
    pub(super) fn index(&self, disk: DiskId) -> Option<Arc<DiskIndex>> {
        self.followed(disk).map(|followed| Arc::clone(&followed.index))
    }

    /// Why a disk's log cannot be followed now, if so.
    pub(super) fn trouble(&self, disk: DiskId) -> Option<String> {
        self.followed(disk)?.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Disks whose logs have lost their ends, with points on them.
    pub(super) fn shortened(&self) -> Vec<DiskId> {
        self.shortened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn followed(&self, disk: DiskId) -> Option<Arc<Followed>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).get(&disk).cloned()
    }

    /// Opens the index of a log, brings points up to it, and follows the log from now on.
    pub(super) async fn follow(self: &Arc<Self>, disk: DiskId) -> Result<()> {
        if self.followed(disk).is_some() {
            return Ok(());
        }
        let Some(log) = self.store.disk(disk) else { return Ok(()) };
        let (opening, room) = (Arc::clone(&log), Arc::clone(&self.room));
        let index = tokio::task::spawn_blocking(move || {
            let index = DiskIndex::open_in(opening, room)?;
            index.catch_up().map(|_processed| index)
        });
        let index = index.await?.with_context(|| format!("opening the index of disk {disk}"))?;
        let followed =
            Arc::new(Followed { index, position: tokio::sync::Mutex::default(), trouble: Mutex::default() });
        self.replay(&followed).await?;
        let before = {
            let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
            disks.insert(disk, Arc::clone(&followed))
        };
        if before.is_none() {
            self.follower.add(Arc::clone(&followed.index));
            self.tasks.spawn(Arc::clone(self).run(log, followed));
        }
        Ok(())
    }

    /// Tells the points of all cuts that the index has.
    async fn replay(&self, followed: &Followed) -> Result<()> {
        let mut position = followed.position.lock().await;
        let log = followed.index.log();
        let mut before = Sequence(0);
        for cut in followed.index.cuts() {
            let stored_bytes = log.bytes_after(before).saturating_sub(log.bytes_after(cut.sequence));
            before = cut.sequence;
            let seen = CutSeen {
                disk: log.disk(),
                generation: cut.generation,
                sequence: cut.sequence,
                stored_bytes,
                record: if self.points.is_known(cut.record.point) {
                    cut.record.clone()
                } else {
                    whole_record(log, &cut).await
                },
            };
            let arrival = self.arrival(&cut.record);
            self.points.observe(seen, arrival).await.context("recording a cut")?;
        }
        let progress = followed.index.progress();
        position.up_to = progress.processed;
        position.since_cut_bytes = log.bytes_after(before);
        let lost = self.points.void_beyond(log.disk(), log.tail().sequence).await?;
        if !lost.is_empty() {
            tracing::error!(disk = %log.disk(), count = lost.len(), "points have lost their data and are void");
            self.shortened.lock().unwrap_or_else(PoisonError::into_inner).push(log.disk());
        }
        self.settle(followed, &mut position).await
    }

    async fn run(self: Arc<Self>, log: Arc<DiskLog>, followed: Arc<Followed>) {
        let mut durable = log.durable();
        loop {
            let trouble = self.catch_up(&log, &followed).await.err().map(|error| format!("{error:#}"));
            let failed = trouble.is_some();
            {
                let mut shown = followed.trouble.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(error) = trouble.as_ref().filter(|error| shown.as_ref() != Some(*error)) {
                    tracing::error!(disk = %log.disk(), error, "a disk's log cannot be followed; it is tried again");
                }
                *shown = trouble;
            }
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(FOLLOW_AGAIN), if failed => {}
                changed = durable.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes in what is durable: first the cuts, so that their points show as pending, then the index.
    async fn catch_up(&self, log: &Arc<DiskLog>, followed: &Followed) -> Result<()> {
        let mut position = followed.position.lock().await;
        loop {
            let (reader, after) = (Arc::clone(log), position.up_to);
            let batch = tokio::task::spawn_blocking(move || reader.heads_after(after, BATCH_BYTES)).await??;
            if batch.up_to == after {
                break;
            }
            for head in &batch.heads {
                self.take(&mut position, head).await?;
            }
            position.up_to = batch.up_to;
        }
        let index = Arc::clone(&followed.index);
        tokio::task::spawn_blocking(move || index.catch_up()).await??;
        self.settle(followed, &mut position).await
    }

    async fn take(&self, position: &mut Position, head: &FrameHead) -> Result<()> {
        let header = &head.header;
        let stored_bytes = position.since_cut_bytes.saturating_add(frame_bytes(header));
        if header.kind != FrameKind::Cut {
            position.since_cut_bytes = stored_bytes;
            return Ok(());
        }
        let record: CutRecord = CutRecord::decode(&head.record).context("reading a cut record")?;
        let arrival = self.arrival(&record);
        let (disk, generation, sequence) = (header.disk, header.generation, header.sequence);
        let cut = CutSeen { disk, generation, sequence, stored_bytes, record };
        self.points.observe(cut, arrival).await.context("recording a cut")?;
        position.since_cut_bytes = 0;
        position.up_to = sequence;
        Ok(())
    }

    /// Tells the points how far the index is, and which cuts are not whole.
    async fn settle(&self, followed: &Followed, position: &mut Position) -> Result<()> {
        let disk = followed.index.log().disk();
        for cut in followed.index.cuts_after(position.indexed_cut) {
            if !cut.whole {
                let reason = format!("frames of disk {disk} before it were lost, and not compared again yet");
                self.points.void(cut.record.point, reason).await?;
            }
            position.indexed_cut = cut.sequence;
        }
        self.points.indexed(disk, followed.index.progress().processed).await?;
        Ok(())
    }

    fn arrival(&self, record: &CutRecord) -> Arrival {
        self.registry.get().map_or(Arrival::Found, |registry| Arrival::Now {
            clock_offset_us: registry.clock_offset_us(record.machine),
        })
    }

    /// How far a disk's log is, as of all frames that are durable now.
    pub(super) async fn state(&self, disk: DiskId, generation: Generation) -> Result<LogState> {
        let empty = LogState {
            durable: Sequence(0),
            interval: Interval(1),
            scanned_to: BlockIndex(0),
            scan_complete: false,
        };
        let (Some(log), Some(followed)) = (self.store.disk(disk), self.followed(disk)) else {
            return Ok(empty);
        };
        self.catch_up(&log, &followed).await?;
        let tail = log.tail();
        let scan = followed.index.newest_scan().filter(|scan| scan.generation == generation);
        Ok(LogState {
            durable: tail.sequence,
            interval: Interval(tail.next_interval.0.max(1)),
            scanned_to: scan.map_or(BlockIndex(0), |scan| scan.record.scanned_to),
            scan_complete: scan.is_some_and(|scan| scan.record.complete),
        })
    }
}
