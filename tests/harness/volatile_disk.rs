//! A disk with a write cache that can lose power: what was written since the last flush may be there, missing, or torn, each
//! write for itself and in any order.
//!
//! Owns the content, in memory: as it is read, and the writes that no flush has made durable. Does not know file systems.
//! Invariant: what [`VolatileDisk::lost`] gives has every write that returned before a flush began which has returned.
//! Limit: one disk, of the size given; losing power gives a copy and does not disturb whoever writes.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use anyhow::Result;
use holdfast_common::entropy::Entropy;

use crate::{
    fuse_disk::{Content, FuseDisk},
    loop_device::LoopDevice,
};

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// The loop device over the file.
#[derive(Debug)]
pub struct VolatileDisk {
    disk: FuseDisk,
    file: Arc<VolatileFile>,
}

impl VolatileDisk {
    /// A disk of `bytes` zeroes.
    ///
    /// # Errors
    /// FUSE or loop devices are not to be had.
    pub fn create(bytes: usize) -> Result<Self> {
        let cache = Cache { now: vec![0; bytes], durable: vec![0; bytes], ..Cache::default() };
        let file = Arc::new(VolatileFile { cache: Mutex::new(cache) });
        Ok(Self { disk: FuseDisk::create(Arc::clone(&file) as Arc<dyn Content>)?, file })
    }

    /// The device.
    #[must_use]
    pub const fn device(&self) -> &LoopDevice {
        self.disk.device()
    }

    /// Number of flushes so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.file.cache().flushes
    }

    /// From now on waits for so many flushes, then for one that has something to do, and keeps what the cache holds just before
    /// it; `known` is looked at in the same moment. [`Self::lost`] gives it.
    pub fn lose_power_in(&self, flushes: u64, known: &Arc<AtomicU64>) {
        let mut cache = self.file.cache();
        cache.watch = Some((cache.flushes + flushes, Arc::clone(known)));
        cache.caught = None;
    }

    /// What the loss of power leaves, how many writes were in the cache, and what was known; nothing before it has come.
    pub fn lost(&self, entropy: &dyn Entropy) -> Option<(Vec<u8>, usize, u64)> {
        let Caught { durable: mut left, pending, known } = self.file.cache().caught.take()?;
        for (offset, data) in &pending {
            let fate = entropy.next_u64() % 8;
            let sectors = data.chunks(SECTOR_BYTES).zip((*offset..).step_by(SECTOR_BYTES));
            for (sector, at) in sectors {
                // All of it, nothing of it, or any sectors.
                let arrives = match fate {
                    0..3 => true,
                    3..6 => false,
                    _ => entropy.next_u64().is_multiple_of(2),
                };
                if arrives {
                    left[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Some((left, pending.len(), known))
    }
}

#[derive(Debug)]
struct VolatileFile {
    cache: Mutex<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    flushes: u64,
    watch: Option<(u64, Arc<AtomicU64>)>,
    caught: Option<Caught>,
}

#[derive(Debug)]
struct Caught {
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
    known: u64,
}

impl VolatileFile {
    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content for VolatileFile {
    fn bytes(&self) -> u64 {
        self.cache().now.len() as u64
    }

    fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        let cache = self.cache();
        let start = offset.min(cache.now.len());
        cache.now[start..(start + bytes).min(cache.now.len())].to_vec()
    }

    fn write(&self, offset: usize, data: &[u8]) -> bool {
        let mut cache = self.cache();
        let place = cache.now.get_mut(offset..offset + data.len());
        let fits = place.is_some();
        place.into_iter().for_each(|place| place.copy_from_slice(data));
        if fits {
            cache.pending.push((offset, data.to_vec()));
        }
        fits
    }

    fn sync(&self) {
        let mut cache = self.cache();
        let due = cache.watch.as_ref().is_some_and(|(flush, _)| cache.flushes >= *flush);
        if due && !cache.pending.is_empty() {
            let known = cache.watch.take().map_or(0, |(_, known)| known.load(Ordering::SeqCst));
            cache.caught =
                Some(Caught { durable: cache.durable.clone(), pending: cache.pending.clone(), known });
        }
        for (offset, data) in std::mem::take(&mut cache.pending) {
            cache.durable[offset..offset + data.len()].copy_from_slice(&data);
        }
        cache.flushes += 1;
    }
}
