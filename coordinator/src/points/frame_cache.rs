//! A bounded cache of verified, decompressed frames, shared by all views.
//!
//! Owns the cache, its budget, and that a frame is read once however many readers want it at the same time. Does not know
//! what is done with the bytes. Invariant: what is in here passed its digest and decompressed to its stated size.
//! Limit: the bytes given to [`FrameCache::new`], plus what readers hold.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use holdfast_common::{
    frame::{ExtentKind, Frame, PlainReader},
    ids::{DiskId, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};

use crate::store::{DiskLog, StoreError};

/// Parts of the cache, each with its own lock.
const SHARDS: usize = 16;

/// A frame's plain bytes and what they belong to.
#[derive(Debug)]
pub struct PlainFrame {
    frame: Frame,
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
        for extent in self.frame.extents().iter().filter(|extent| extent.kind == ExtentKind::Data) {
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
        // Frames that did not compress share their stored bytes' size with the plain bytes; both are held.
        self.plain.len() + self.frame.bytes().len() + 128
    }
}

/// What became of a read; shared by all who waited for it.
type Outcome = Result<Arc<PlainFrame>, Arc<StoreError>>;

type Key = (DiskId, Sequence);

#[derive(Default)]
struct Shard {
    tick: u64,
    slots: HashMap<Key, (Arc<OnceLock<Outcome>>, u64)>,
    /// By age, oldest first.
    order: BTreeMap<u64, Key>,
    bytes: usize,
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
        let bytes = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        self.shards.iter().map(bytes).sum()
    }

    /// A frame, from the cache or the log. If several threads ask for the same frame, one reads and the others wait.
    ///
    /// # Errors
    /// The frame cannot be read or is damaged; nothing is remembered then, so that a later try reads again.
    pub fn get(&self, log: &DiskLog, sequence: Sequence) -> Outcome {
        let key = (log.disk(), sequence);
        let slot = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner).slot(key);
        let mut read_here = false;
        let outcome = slot.get_or_init(|| {
            read_here = true;
            load(log, sequence).map(Arc::new).map_err(Arc::new)
        });
        if read_here {
            let mut shard = self.shard(key).lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(frame) => {
                    shard.bytes += frame.cost();
                    shard.evict(self.shard_bytes_max);
                }
                Err(_) => shard.forget(key),
            }
        }
        outcome.clone()
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
    fn slot(&mut self, key: Key) -> Arc<OnceLock<Outcome>> {
        self.tick += 1;
        let tick = self.tick;
        let (slot, used) = self.slots.entry(key).or_insert_with(|| (Arc::default(), tick));
        self.order.remove(used);
        *used = tick;
        self.order.insert(tick, key);
        Arc::clone(slot)
    }

    fn forget(&mut self, key: Key) {
        if let Some((slot, used)) = self.slots.remove(&key) {
            self.order.remove(&used);
            if let Some(Ok(frame)) = slot.get() {
                self.bytes = self.bytes.saturating_sub(frame.cost());
            }
        }
    }

    /// Drops the oldest until the budget holds. Frames being read now cost nothing yet and stay.
    fn evict(&mut self, bytes_max: usize) {
        let mut reading = Vec::new();
        while self.bytes > bytes_max {
            let Some((tick, key)) = self.order.pop_first() else { break };
            let ready = self.slots.get(&key).is_some_and(|(slot, _)| slot.get().is_some());
            if ready {
                self.forget(key);
            } else {
                reading.push((tick, key));
            }
        }
        self.order.extend(reading);
    }
}

fn load(log: &DiskLog, sequence: Sequence) -> Result<PlainFrame, StoreError> {
    thread_local! {
        static READER: std::cell::RefCell<PlainReader> = std::cell::RefCell::new(PlainReader::new());
    }
    let frame = log.read(sequence)?;
    let mut plain = Vec::new();
    let read = READER.with_borrow_mut(|reader| reader.read(&frame, &mut plain));
    read.map_err(|source| StoreError::Payload { sequence, source })?;
    Ok(PlainFrame { frame, plain })
}
