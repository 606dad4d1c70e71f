//! Buffers for direct reads: aligned to a block, touched once, used again and again.
//!
//! Owns the memory; does not know what is read into it. Invariant: no more buffers exist than the pool's limit, and a
//! buffer goes back to its pool when it is dropped. First touch of fresh memory costs more than hashing it, and while
//! file systems are frozen no page may be faulted in; so all memory is touched when the pool is made or grown.
//! Limit: `buffers_max` times 64 KiB.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{frame::FRAME_PLAIN_BYTES_TARGET, units::BLOCK_BYTES};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Blocks that one buffer holds, which are the most data blocks of one frame that capture makes.
pub const FRAME_BLOCKS: usize = FRAME_PLAIN_BYTES_TARGET / BLOCK_BYTES;

/// Memory of one block, aligned as direct reads want it.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; BLOCK_BYTES]);

/// A bounded set of buffers of [`FRAME_BLOCKS`] blocks each. Clones share the buffers.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Mutex<Shelf>>,
}

struct Shelf {
    free: Vec<Box<[Page]>>,
    made: usize,
    limit: usize,
}

/// One buffer on loan.
pub struct FrameBuffer {
    pages: Box<[Page]>,
    home: Arc<Mutex<Shelf>>,
}

impl BufferPool {
    /// A pool of at most `limit` buffers, of which `ready` are made now.
    #[must_use]
    pub fn new(limit: usize, ready: usize) -> Self {
        let shelf = Shelf { free: Vec::with_capacity(limit), made: 0, limit };
        let pool = Self { shared: Arc::new(Mutex::new(shelf)) };
        pool.prepare(ready);
        pool
    }

    /// A buffer, made if none is free, or `None` if all are on loan.
    #[must_use]
    pub fn take(&self) -> Option<FrameBuffer> {
        let mut shelf = lock(&self.shared);
        if shelf.free.is_empty() {
            shelf.make();
        }
        let pages = shelf.free.pop()?;
        Some(FrameBuffer { pages, home: Arc::clone(&self.shared) })
    }

    /// Makes and touches buffers until `count` are free, or the limit is reached. Returns how many are free.
    pub fn prepare(&self, count: usize) -> usize {
        let mut shelf = lock(&self.shared);
        while shelf.free.len() < count && shelf.made < shelf.limit {
            shelf.make();
        }
        shelf.free.len()
    }

    /// Gives the memory of free buffers beyond `keep` back to the system.
    pub fn shrink(&self, keep: usize) {
        let mut shelf = lock(&self.shared);
        let surplus = shelf.free.len().saturating_sub(keep);
        shelf.free.truncate(keep);
        shelf.made -= surplus;
    }

    /// Buffers that [`Self::take`] would give now.
    #[must_use]
    pub fn available(&self) -> usize {
        let shelf = lock(&self.shared);
        shelf.free.len() + (shelf.limit - shelf.made)
    }

    /// Buffers that are made and not on loan.
    #[must_use]
    pub fn ready(&self) -> usize {
        lock(&self.shared).free.len()
    }
}

impl Shelf {
    fn make(&mut self) {
        if self.made < self.limit {
            let mut pages = vec![Page([0xff; BLOCK_BYTES]); FRAME_BLOCKS].into_boxed_slice();
            std::hint::black_box(&mut pages);
            self.free.push(pages);
            self.made += 1;
        }
    }
}

impl FrameBuffer {
    /// The first `blocks` blocks (at most [`FRAME_BLOCKS`]).
    #[must_use]
    pub fn bytes(&self, blocks: usize) -> &[u8] {
        let pages = self.pages.get(..blocks).unwrap_or(&self.pages);
        pages.as_bytes()
    }

    /// The whole buffer, to read into.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_bytes()
    }
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        lock(&self.home).free.push(pages);
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shelf = lock(&self.shared);
        f.debug_struct("BufferPool").field("free", &shelf.free.len()).field("made", &shelf.made).finish()
    }
}

impl fmt::Debug for FrameBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameBuffer")
    }
}

fn lock(shelf: &Mutex<Shelf>) -> MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{BufferPool, FRAME_BLOCKS};

    #[test]
    fn lends_no_more_than_its_limit_and_takes_back() {
        let pool = BufferPool::new(2, 0);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert!(pool.take().is_none());
        assert_eq!(first.bytes(1).as_ptr() as usize % 4096, 0);
        assert_eq!(second.bytes(FRAME_BLOCKS).len(), 65536);
        drop(first);
        assert_eq!((pool.available(), pool.ready()), (1, 1));
        pool.shrink(0);
        assert_eq!((pool.available(), pool.ready()), (1, 0));
        assert!(pool.take().is_some());
    }

    #[test]
    fn prepares_up_to_its_limit() {
        let pool = BufferPool::new(3, 1);
        assert_eq!(pool.prepare(2), 2);
        assert_eq!(pool.prepare(9), 3);
    }
}
