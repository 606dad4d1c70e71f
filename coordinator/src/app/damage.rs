//! What is done about damaged frames, and about blocks that differ from the source: they are assessed, named, and sent again
//! by the source if it lives.
//!
//! Owns the rhythm and the orders to agents, and the failed reads of attached disks. The rules are those of
//! [`crate::points::damage`].
//! Limits: [`RANGES_PER_ORDER`] ranges per order; [`READS_KEPT`] failed reads per attachment, [`ATTACHMENTS_KEPT`]
//! attachments.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::{
    clock::{Clock, Timestamp},
    ids::{DiskId, Sequence},
    units::{BlockCount, BlockRange},
    wire::limits::SCAN_CHUNK_BLOCKS,
};
use tokio_util::sync::CancellationToken;

use super::logs::Logs;
use crate::{
    compute::nbd::server::{DamageSink, LogDamage},
    index::DiskIndex,
    ingest::links::{LiveLinks, Push},
    points::{
        damage::{DamageLedger, DamagedFrame, Differing, DiskDamage},
        view::ViewError,
    },
    registry::Registry,
    store::DiskLog,
};

/// Time between two looks.
const STEP: Duration = Duration::from_millis(200);
/// An order to send again is repeated after this time, if it had no effect.
const AGAIN: Duration = Duration::from_secs(10);
/// Most ranges in one order.
const RANGES_PER_ORDER: usize = 1024;
/// Failed reads that are kept of one attachment.
const READS_KEPT: usize = 16;
/// Attachments whose failed reads are kept.
const ATTACHMENTS_KEPT: usize = 64;

/// Watches over all logs.
#[derive(Debug)]
pub(super) struct Repair {
    pub(super) logs: Arc<Logs>,
    pub(super) registry: Arc<Registry>,
    pub(super) links: LiveLinks,
    pub(super) ledger: Arc<DamageLedger>,
    pub(super) clock: Arc<dyn Clock>,
}

/// What a source was asked for last.
struct Asked {
    at: Duration,
    ranges: Vec<BlockRange>,
}

impl Repair {
    /// Works until told to end.
    pub(super) async fn run(self, closing: CancellationToken) {
        let mut asked: HashMap<DiskId, Asked> = HashMap::new();
        let mut examined = HashSet::new();
        loop {
            for log in self.logs.store.disks() {
                let is_clean = log.bad_frames().list().is_empty() && log.differences().list().is_empty();
                if is_clean && self.ledger.disk(log.disk()).is_empty() {
                    continue;
                }
                let Some(index) = self.logs.index(log.disk()) else { continue };
                let first_look = examined.insert(log.disk());
                self.look(index, first_look, &mut asked).await;
            }
            tokio::select! {
                () = closing.cancelled() => return,
                () = tokio::time::sleep(STEP) => {}
            }
        }
    }

    async fn look(&self, index: Arc<DiskIndex>, read_again: bool, asked: &mut HashMap<DiskId, Asked>) {
        let disk = index.log().disk();
        let known = self.ledger.disk(disk);
        let before = known.clone();
        let assessed = tokio::task::spawn_blocking(move || assess(&index, known, read_again)).await;
        let damage = match assessed {
            Ok(damage) => damage,
            Err(error) => {
                tracing::error!(%disk, %error, "damage was not assessed; it is tried again");
                return;
            }
        };
        if before.differing.len() < damage.differing.len() {
            tracing::error!(disk = %disk, %damage, "the copy differs from its source; what is wrong is marked, and asked for again");
        }
        if before.frames.len() < damage.frames.len() {
            tracing::error!(%disk, %damage, "stored data is damaged; what needs it is marked");
        }
        if !before.is_repaired() && damage.is_repaired() {
            tracing::info!(%disk, "new points do without the damaged data");
        }
        self.ledger.set(disk, damage.clone());
        self.send_again(disk, &damage, asked);
        self.compare_anew(disk).await;
    }

    /// More differs than can be told range by range.
    async fn compare_anew(&self, disk: DiskId) {
        let Some(log) = self.logs.store.disk(disk).filter(|log| log.differences().overflowed()) else {
            return;
        };
        let reason = "much of its copy differs from the source".to_owned();
        tracing::error!(%disk, reason, "the disk is compared with its source anew");
        match self.registry.history_lost(disk, reason).await {
            Ok(()) => {
                log.differences().compared_anew();
                if let Err(error) = self.links.reassign(log.manifest().machine).await {
                    tracing::warn!(%disk, %error, "the source learns of it at its next connect");
                }
            }
            Err(error) => {
                tracing::error!(%disk, %error, "no new line of history can be begun; it is tried again")
            }
        }
    }

    /// Asks the source for what the newest state lacks.
    fn send_again(&self, disk: DiskId, damage: &DiskDamage, asked: &mut HashMap<DiskId, Asked>) {
        let mut wanted: Vec<_> =
            damage.frames.iter().flat_map(|frame| frame.wanted.iter().copied()).collect();
        // What was missed once seldom was a single block.
        let blocks =
            self.logs.store.disk(disk).map_or(0, |log| BlockCount::covering(log.manifest().size_bytes).0);
        wanted.extend(damage.differing.iter().flat_map(|some| around(&some.wanted, blocks)));
        let now = self.clock.monotonic();
        if wanted.is_empty() {
            asked.remove(&disk);
            return;
        }
        let asked_already =
            |asked: &Asked| now < asked.at + AGAIN && wanted.iter().all(|range| asked.ranges.contains(range));
        if asked.get(&disk).is_some_and(asked_already) {
            return;
        }
        let Some(state) = self.registry.disk(disk).filter(crate::registry::DiskState::is_protected) else {
            return;
        };
        for ranges in wanted.chunks(RANGES_PER_ORDER) {
            let order = Push::SendAgain { disk, ranges: ranges.to_vec() };
            if let Err(error) = self.links.push(state.record.machine, order) {
                tracing::debug!(%disk, %error, "damaged data cannot be asked for now");
                return;
            }
        }
        tracing::info!(%disk, ranges = wanted.len(), "the source is asked to send damaged data again");
        asked.insert(disk, Asked { at: now, ranges: wanted });
    }
}

/// What of a log differs from its source, by the cut at which it was found.
pub(super) fn differing(log: &DiskLog) -> BTreeMap<Sequence, Vec<BlockRange>> {
    let mut by_cut: BTreeMap<Sequence, Vec<BlockRange>> = BTreeMap::new();
    for difference in log.differences().list() {
        by_cut.entry(difference.at()).or_default().push(difference.range());
    }
    by_cut
}

/// The chunks that these blocks of a disk lie in.
fn around(ranges: &[BlockRange], blocks: u64) -> Vec<BlockRange> {
    let mut chunks: Vec<BlockRange> = Vec::new();
    for range in ranges {
        let start = range.start.0 - range.start.0 % SCAN_CHUNK_BLOCKS;
        let end = range.end().0.next_multiple_of(SCAN_CHUNK_BLOCKS).min(blocks);
        match chunks.last_mut().filter(|last| last.end().0 >= start) {
            Some(last) => last.count.0 = end.max(last.end().0) - last.start.0,
            None => chunks.push(BlockRange::new(start, end - start)),
        }
    }
    chunks
}

/// Brings the assessment of one disk up to date. What nobody needs, or is good again, is forgotten.
fn assess(index: &DiskIndex, known: DiskDamage, read_again: bool) -> DiskDamage {
    let differing = assess_differing(index, known.differing);
    DiskDamage { frames: assess_frames(index, known.frames, read_again), differing }
}

fn assess_differing(index: &DiskIndex, known: Vec<Differing>) -> Vec<Differing> {
    let mut known: BTreeMap<Sequence, Differing> = known.into_iter().map(|some| (some.cut, some)).collect();
    let mut differing_now = Vec::new();
    for (cut, ranges) in differing(index.log()) {
        let repaired = known.remove(&cut).filter(|some| some.is_repaired() && some.ranges == ranges);
        if let Some(some) = repaired {
            differing_now.push(some);
            continue;
        }
        match Differing::assess(index, cut, ranges.clone()) {
            Ok(Some(some)) => differing_now.push(some),
            Ok(None) => index.log().differences().forget(cut),
            Err(error) => {
                tracing::warn!(disk = %index.log().disk(), %cut, %error, "what differs from the source cannot be assessed yet");
                differing_now.push(Differing::unassessed(cut, ranges));
            }
        }
    }
    differing_now
}

fn assess_frames(index: &DiskIndex, known: Vec<DamagedFrame>, read_again: bool) -> Vec<DamagedFrame> {
    let bad = index.log().bad_frames();
    let mut known: BTreeMap<Sequence, DamagedFrame> =
        known.into_iter().map(|frame| (frame.sequence, frame)).collect();
    let mut frames = Vec::new();
    for sequence in bad.list() {
        if read_again && index.log().read(sequence).is_ok() {
            tracing::info!(disk = %index.log().disk(), %sequence, "a frame that was damaged can be read again");
            bad.forget(sequence);
            continue;
        }
        // Once cuts do without it, no later one needs it.
        if let Some(frame) = known.remove(&sequence).filter(DamagedFrame::is_repaired) {
            frames.push(frame);
            continue;
        }
        match DamagedFrame::assess(index, sequence) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => bad.forget(sequence),
            Err(error) => {
                tracing::warn!(disk = %index.log().disk(), %sequence, %error, "a damaged frame cannot be assessed yet");
                frames.push(DamagedFrame::unassessed(sequence));
            }
        }
    }
    frames
}

/// A read that failed for a client of an attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FailedRead {
    pub(super) at: Timestamp,
    disk: String,
    bytes: Range<u64>,
    why: String,
}

impl FailedRead {
    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { disk, bytes, why, .. } = self;
        format!(
            "bytes {}..{} of {disk} cannot be read: {why}; clients get an IO error there and nowhere else",
            bytes.start, bytes.end
        )
    }
}

/// Failed reads of attached disks, by attachment; they are shown with the job.
#[derive(Debug)]
pub(super) struct FailedReads {
    clock: Arc<dyn Clock>,
    reads: Mutex<BTreeMap<String, Vec<FailedRead>>>,
}

impl FailedReads {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, reads: Mutex::default() })
    }

    pub(super) fn of(&self, attachment: &str) -> Vec<FailedRead> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.get(attachment).cloned().unwrap_or_default()
    }
}

impl DamageSink for FailedReads {
    fn cannot_read(&self, export: &str, bytes: Range<u64>, error: &ViewError) {
        LogDamage.cannot_read(export, bytes.clone(), error);
        let (attachment, disk) = export.split_once('/').unwrap_or(("", export));
        let why = match error {
            ViewError::Damaged { sequence, place, .. } => {
                format!("stored data is damaged (frame {sequence} in {place})")
            }
            ViewError::Differs { .. } => "it is known to differ from what the source had".to_owned(),
            other => other.to_string(),
        };
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        if !reads.contains_key(attachment) && reads.len() >= ATTACHMENTS_KEPT {
            reads.pop_first();
        }
        let kept = reads.entry(attachment.to_owned()).or_default();
        // Clients read a damaged frame block by block.
        let same = |read: &&mut FailedRead| {
            let touches = read.bytes.start <= bytes.end && bytes.start <= read.bytes.end;
            read.disk == disk && read.why == why && touches
        };
        if let Some(read) = kept.iter_mut().find(same) {
            read.bytes = read.bytes.start.min(bytes.start)..read.bytes.end.max(bytes.end);
        } else if kept.len() < READS_KEPT {
            kept.push(FailedRead { at: self.clock.wall(), disk: disk.to_owned(), bytes, why });
        }
    }
}
