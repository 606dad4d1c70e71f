//! Words shared with the kernel's programs: array maps mapped into memory.
//!
//! Owns the mapping of a map's memory. Does not know what the words mean.
//! Invariant: words are only reached as atomics, because programs change them at any moment.
//! Limit: the map's size, which is fixed when it is made.

#![expect(unsafe_code, reason = "a slice over the memory of a map that the kernel's programs change")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::atomic::AtomicU64,
};

use memmap2::{MmapOptions, MmapRaw};

/// An array map of 64-bit words, in memory.
#[derive(Debug)]
pub(super) struct SharedWords {
    descriptor: OwnedFd,
    memory: MmapRaw,
    words: usize,
}

impl SharedWords {
    /// Maps the `words` words of an array map.
    pub(super) fn map(descriptor: OwnedFd, words: usize) -> io::Result<Self> {
        let memory = MmapOptions::new().len(words * 8).map_raw(descriptor.as_raw_fd())?;
        Ok(Self { descriptor, memory, words })
    }

    /// The words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, `words * 8` bytes long and lives as long as `self`; the kernel and we
        // only ever change it with atomic operations or single aligned stores of 8 bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast::<AtomicU64>(), self.words) }
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}
