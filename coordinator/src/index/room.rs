//! Memory for what has no file yet: closed intervals, and open ones beyond what each disk has in any case.
//!
//! Owns the count of free bytes, of all disks that share it. Does not know runs. Invariant: a share lasts as long as what it
//! was taken for, whoever holds that: a view may keep a run in memory long after its file was written.
//! Limit: [`ROOM_BYTES`] for all disks of a coordinator; who gets no share writes a file instead.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Bytes of all disks together: 8 million extents of closed intervals, or 3 million of open ones.
pub const ROOM_BYTES: usize = 128 << 20;

/// Room in memory.
#[derive(Debug)]
pub struct Room {
    free_bytes: AtomicUsize,
}

impl Room {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { free_bytes: AtomicUsize::new(bytes) })
    }

    /// So many bytes of it, unless that is more than is free.
    #[must_use]
    pub fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let left = |free: usize| free.checked_sub(bytes);
        self.free_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left).ok()?;
        Some(Share { room: Arc::clone(self), bytes })
    }

    /// Bytes that nobody has.
    #[must_use]
    pub fn free_bytes(&self) -> usize {
        self.free_bytes.load(Ordering::Relaxed)
    }
}

/// A part of the room, which is free again when it is dropped.
#[derive(Debug)]
pub struct Share {
    room: Arc<Room>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.free_bytes.fetch_add(self.bytes, Ordering::Relaxed);
    }
}
