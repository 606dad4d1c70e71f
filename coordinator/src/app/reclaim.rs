//! Gives back what retention has given up: cuts, then runs, then the bytes of frames that nobody needs.
//!
//! Owns the rhythm, the rate, and the figures of what there is. The rules are those of [`crate::points::retention`] (which
//! points stay), [`DiskIndex::retire`] (which frames then are needless) and [`crate::store::reclaim`] (what is copied).
//! Invariant: one disk is worked on at a time, beside ingest and never in its way: nothing here holds a lock while it
//! copies. Limits: `reclaim_bytes_per_second` of copying; figures are counted at most every [`COUNT_EVERY`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use holdfast_common::{clock::Clock, ids::DiskId};
use tokio_util::sync::CancellationToken;

use super::logs::Logs;
use crate::{
    index::DiskIndex,
    points::catalog::PointCatalog,
    store::{DiskSpace, NeededCuts, reclaim},
};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(30);
/// Counting what the newest state needs walks over its index: not more often than this.
const COUNT_EVERY: Duration = Duration::from_mins(10);

/// Works on all logs, one after the other.
#[derive(Debug)]
pub(super) struct Reclaimer {
    pub(super) logs: Arc<Logs>,
    pub(super) points: Arc<PointCatalog>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) bytes_per_second: u64,
    pub(super) segment_bytes: u64,
    pub(super) figures: Arc<SpaceFigures>,
}

/// What each disk's log holds, as of the last count.
#[derive(Debug, Default)]
pub(super) struct SpaceFigures {
    disks: Mutex<HashMap<DiskId, Counted>>,
}

#[derive(Clone, Debug, Default)]
struct Counted {
    space: DiskSpace,
    at: Option<Duration>,
    trouble: Option<String>,
}

impl SpaceFigures {
    /// What a disk's log holds; nothing if it was not counted yet.
    pub(super) fn of(&self, disk: DiskId) -> (DiskSpace, Option<String>) {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.get(&disk).map(|counted| (counted.space, counted.trouble.clone())).unwrap_or_default()
    }

    fn change(&self, disk: DiskId, change: impl FnOnce(&mut Counted)) {
        change(self.disks.lock().unwrap_or_else(PoisonError::into_inner).entry(disk).or_default());
    }
}

impl Reclaimer {
    /// Works until told to end.
    pub(super) async fn run(self, closing: CancellationToken) {
        let this = Arc::new(self);
        loop {
            for log in this.logs.store.disks() {
                let disk = log.disk();
                let Some(index) = this.logs.index(disk) else { continue };
                let done = Arc::clone(&this).round(index, closing.clone()).await;
                let trouble = done.err().map(|error| format!("{error:#}"));
                if let Some(error) = &trouble {
                    tracing::error!(%disk, error, "space was not given back; it is tried again");
                }
                this.figures.change(disk, |counted| counted.trouble = trouble);
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
            }
        }
    }

    async fn round(self: Arc<Self>, index: Arc<DiskIndex>, closing: CancellationToken) -> Result<()> {
        let needed = self.points.needed(index.log().disk()).await?;
        tokio::task::spawn_blocking(move || self.work(&index, &needed, &closing)).await?
    }

    /// One round of one disk. Blocks.
    fn work(&self, index: &DiskIndex, needed: &NeededCuts, closing: &CancellationToken) -> Result<()> {
        let (disk, log) = (index.log().disk(), index.log());
        let (mut cuts, mut frames) = (0, 0);
        loop {
            let retired = index.retire(needed).inspect_err(|error| {
                // It is derived: made again from the journal, it is as good as new.
                if error.is_damage() {
                    let rebuilt = index.rebuild();
                    tracing::warn!(%disk, %error, ok = rebuilt.is_ok(), "the index is damaged and is rebuilt");
                }
            });
            let retired = retired.context("finding what is needed no more")?;
            cuts += retired.cuts;
            frames += retired.frames;
            if !retired.more || closing.is_cancelled() {
                break;
            }
        }
        while !closing.is_cancelled() && index.tidy().context("tidying the index")? {}
        let census = log.census().context("counting what the log holds")?;
        let plan = reclaim::plan(&census, self.segment_bytes);
        let mut pace = Pace { clock: self.clock.as_ref(), rate: self.bytes_per_second, due: Duration::ZERO };
        let done = log
            .reclaim(&plan, &mut |bytes| pace.wait(bytes, closing))
            .context("writing segments without needless frames")?;
        if cuts + frames > 0 || done != reclaim::Reclaimed::default() {
            let (freed, written) = (done.freed_bytes, done.written_bytes);
            tracing::info!(%disk, cuts, frames, freed, written, "what retention gave up was cleared away");
        }
        self.count(index)
    }

    fn count(&self, index: &DiskIndex) -> Result<()> {
        let (disk, now) = (index.log().disk(), self.clock.monotonic());
        let mut before = None;
        self.figures.change(disk, |counted| before = counted.at.map(|at| (at, counted.space.live_bytes)));
        // What is needless is known from the census; what the newest state needs must be walked for.
        let live_bytes = match before {
            Some((at, live_bytes)) if now < at + COUNT_EVERY => Some(live_bytes),
            _ => None,
        };
        let walked = live_bytes.is_none();
        let live_bytes = match live_bytes {
            Some(live_bytes) => live_bytes,
            None => index.newest_bytes().context("counting what the newest state needs")?,
        };
        let space = index.log().space_with(live_bytes);
        self.figures.change(disk, |counted| {
            counted.space = space;
            counted.at = if walked { Some(now) } else { counted.at };
        });
        Ok(())
    }
}

/// Holds a rate of copying.
struct Pace<'a> {
    clock: &'a dyn Clock,
    rate: u64,
    /// When the next piece may begin.
    due: Duration,
}

impl Pace<'_> {
    /// Waits until `bytes` more may be copied. `false` if the program ends.
    fn wait(&mut self, bytes: u64, closing: &CancellationToken) -> bool {
        /// Longest sleep, so that the end of the program is noticed.
        const STEP: Duration = Duration::from_millis(100);
        let mut now = self.clock.monotonic();
        while now < self.due && !closing.is_cancelled() {
            std::thread::sleep(STEP.min(self.due - now));
            now = self.clock.monotonic();
        }
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate.max(1) as f64);
        self.due = self.due.max(now) + takes;
        !closing.is_cancelled()
    }
}
