//! What is done about damaged frames: they are assessed, named, and sent again by the source if it lives.
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
};
use tokio_util::sync::CancellationToken;

use super::logs::Logs;
use crate::{
    compute::nbd::server::{DamageSink, LogDamage},
    index::DiskIndex,
    ingest::links::{LiveLinks, Push},
    points::{
        damage::{DamageLedger, DamagedFrame, DiskDamage},
        view::ViewError,
    },
    registry::Registry,
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

impl Repair {
    /// Works until told to end.
    pub(super) async fn run(self, closing: CancellationToken) {
        let mut asked: HashMap<DiskId, Duration> = HashMap::new();
        let mut examined = HashSet::new();
        loop {
            for log in self.logs.store.disks() {
                if log.bad_frames().list().is_empty() && self.ledger.disk(log.disk()).is_empty() {
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

    async fn look(&self, index: Arc<DiskIndex>, read_again: bool, asked: &mut HashMap<DiskId, Duration>) {
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
        if before.frames.len() < damage.frames.len() {
            tracing::error!(%disk, %damage, "stored data is damaged; what needs it is marked");
        }
        if !before.is_repaired() && damage.is_repaired() {
            tracing::info!(%disk, "new points do without the damaged data");
        }
        self.ledger.set(disk, damage.clone());
        self.send_again(disk, &damage, asked);
    }

    /// Asks the source for what the newest state lacks.
    fn send_again(&self, disk: DiskId, damage: &DiskDamage, asked: &mut HashMap<DiskId, Duration>) {
        let wanted: Vec<_> = damage.frames.iter().flat_map(|frame| frame.wanted.iter().copied()).collect();
        let now = self.clock.monotonic();
        if wanted.is_empty() {
            asked.remove(&disk);
            return;
        }
        if asked.get(&disk).is_some_and(|at| now < *at + AGAIN) {
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
        asked.insert(disk, now);
    }
}

/// Brings the assessment of one disk up to date. Frames that nobody needs, or that are good again, are forgotten.
fn assess(index: &DiskIndex, known: DiskDamage, read_again: bool) -> DiskDamage {
    let bad = index.log().bad_frames();
    let mut known: BTreeMap<Sequence, DamagedFrame> =
        known.frames.into_iter().map(|frame| (frame.sequence, frame)).collect();
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
    DiskDamage { frames }
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
