//! A bounded cache of verified, decompressed frames, shared by all views.
//!
//! Owns the cache, its budget, and that a frame is read once however many readers want it at the same time. Does not know
//! what is done with the bytes. Invariant: what is in here passed its digest and decompressed to its stated size.
//! Limit: the bytes given to [`FrameCache::new`], plus what readers hold. A hit takes one lock of a sixteenth of the cache for
//! a look into a table; what was not asked for between two passes of eviction goes (second chance).

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use holdfast_common::{
    frame::{Extent, ExtentKind},
    ids::{DiskId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};

use super::view::BundleReader;
use crate::store::{DiskLog, StoreError};

/// Parts of the cache, each with its own lock.
const SHARDS: usize = 16;

/// A frame's plain bytes and what they belong to.
#[derive(Debug)]
pub struct PlainFrame {
    extents: Box<[Extent]>,
    plain: Vec<u8>,
}

impl PlainFrame {
    /// The bytes of `range`, which should begin `plain_block` blocks into the plain bytes. `None` if the frame's own table
    /// says otherwise: then the index is wrong, and nothing must be served.
    #[must_use]
    pub fn blocks(&self, range: BlockRange, plain_block: u32) -> Option<&[u8]> {
        // Neighbouring extents of one frame may be one entry in the index.
        let mut at = 0u64;
        let mut next = range.start;
        for extent in self.extents.iter().filter(|extent| extent.kind == ExtentKind::Data) {
            if next < range.end() && extent.range.contains(next) {
                let offset = at + next.0 - extent.range.start.0;
                if offset != u64::from(plain_block) + next.0 - range.start.0 {
                    return None;
                }
                next = extent.range.end();
            }
            at += extent.range.count.0;
        }
        let start = plain_block as usize * BLOCK_BYTES;
        let bytes = usize::try_from(range.bytes()).ok()?;
        self.plain.get(start..start + bytes).filter(|_| next >= range.end())
    }

    fn cost(&self) -> usize {
        self.plain.len() + mem::size_of_val(&*self.extents) + SLOT_BYTES
    }
}

/// What became of a read; shared by all who waited for it.
type Outcome = Result<Arc<PlainFrame>, Arc<StoreError>>;

type Key = (DiskId, Sequence);

#[derive(Default)]
struct Shard {
    slots: HashMap<Key, Slot>,
    /// Every slot's key once, in the order in which eviction looks at them.
    order: VecDeque<Key>,
    bytes: usize,
}

struct Slot {
    outcome: Arc<OnceLock<Outcome>>,
    /// Asked for since eviction last looked.
    used: bool,
    /// What it counts for; zero while it is being read.
    cost: usize,
}

/// The cache.
pub struct FrameCache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
}

impl fmt::Debug for FrameCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl FrameCache {
    /// A cache of at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self { shards, shard_bytes_max: bytes_max / SHARDS })
    }

    /// Bytes held now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).bytes).sum()
    }

    /// A frame, from the cache or the log. If several threads ask for the same frame, one reads and the others wait.
    ///
    /// # Errors
    /// The frame cannot be read or is damaged; nothing is remembered then, so that a later try reads again.
    pub fn get(&self, log: &DiskLog, sequence: Sequence) -> Outcome {
        let key = (log.disk(), sequence);
        let outcome = lock(self.shard(key)).outcome(key);
        let mut read_here = false;
        let result = outcome.get_or_init(|| {
            read_here = true;
            load(log, sequence).map(Arc::new).map_err(Arc::new)
        });
        if read_here {
            let cost = result.as_ref().ok().map(|frame| frame.cost());
            lock(self.shard(key)).settle(key, &outcome, cost, self.shard_bytes_max);
        }
        result.clone()
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the number of shards")]
    fn shard(&self, (disk, sequence): Key) -> &Mutex<Shard> {
        // Neighbouring frames go to different shards; disks are told apart so that they do not march in step.
        let spread = disk.into_bytes().iter().fold(0usize, |sum, byte| sum + usize::from(*byte));
        let number = usize::try_from(sequence.0).unwrap_or(0).wrapping_add(spread);
        &self.shards[number % SHARDS]
    }
}

impl Shard {
    fn outcome(&mut self, key: Key) -> Arc<OnceLock<Outcome>> {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.used = true;
            return Arc::clone(&slot.outcome);
        }
        let outcome = Arc::default();
        self.slots.insert(key, Slot { outcome: Arc::clone(&outcome), used: false, cost: 0 });
        self.order.push_back(key);
        outcome
    }

    /// A read has ended; without a cost it failed.
    fn settle(&mut self, key: Key, outcome: &Arc<OnceLock<Outcome>>, cost: Option<usize>, bytes_max: usize) {
        let Some(slot) = self.slots.get_mut(&key).filter(|slot| Arc::ptr_eq(&slot.outcome, outcome)) else {
            return;
        };
        let Some(cost) = cost else {
            self.remove(key);
            self.order.retain(|other| *other != key);
            return;
        };
        slot.cost = cost;
        self.bytes += cost;
        self.evict(key, bytes_max);
    }

    /// Drops what was not used until the budget holds, the newest last. Frames being read now cost nothing yet and stay.
    fn evict(&mut self, newest: Key, bytes_max: usize) {
        // Twice round takes everything else that can go.
        for _ in 0..self.order.len() * 2 {
            if self.bytes <= bytes_max {
                return;
            }
            let Some(key) = self.order.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(&key) else { continue };
            if mem::take(&mut slot.used) || slot.cost == 0 || key == newest {
                self.order.push_back(key);
            } else {
                self.remove(key);
            }
        }
        if self.bytes > bytes_max {
            self.order.retain(|other| *other != newest);
            self.remove(newest);
        }
    }

    fn remove(&mut self, key: Key) {
        let cost = self.slots.remove(&key).map_or(0, |slot| slot.cost);
        self.bytes -= cost;
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn load(log: &DiskLog, sequence: Sequence) -> Result<PlainFrame, StoreError> {
    thread_local! {
        static READER: RefCell<BundleReader> = RefCell::default();
    }
    READER.with_borrow_mut(|reader| {
        let frame = log.read_into(sequence, mem::take(&mut reader.stored))?;
        let mut plain = Vec::new();
        let read = reader.plain.read(&frame, &mut plain);
        let extents = frame.extents().into();
        reader.stored = frame.into_bytes().try_into_mut().unwrap_or_default();
        read.map_err(|source| StoreError::Payload { sequence, source })?;
        Ok(PlainFrame { extents, plain })
    })
}

/// What a slot takes besides its frame, about.
const SLOT_BYTES: usize = 256;

#[cfg(test)]
mod tests;
