//! A run's file in memory: mapped, or read if it is small.
//!
//! Owns the choice. Opening a cut of a long history opens tens of runs of which most are small, and mapping one, with the faults of
//! its first use, takes several times as long as reading it. Does not know what is in a run. Invariant: the bytes never change.
//! Limit: a file of at most [`READ_BYTES_MAX`] takes as much memory; what is mapped is the page cache's.
#![expect(unsafe_code, reason = "mapping a file is unsafe: somebody else might change it")]

use std::{fs::File, io, ops::Deref, os::unix::fs::FileExt as _};

use memmap2::{Advice, Mmap};

/// Files up to this size are read.
const READ_BYTES_MAX: u64 = 16 << 10;

/// The bytes of a file.
#[derive(Debug)]
pub(super) enum FileBytes {
    Mapped(Mmap),
    Read(Box<[u8]>),
}

impl FileBytes {
    /// Opens a file that never changes once it has its name.
    pub(super) fn open(file: &File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        if bytes <= READ_BYTES_MAX {
            let mut read = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
            file.read_exact_at(&mut read, 0)?;
            return Ok(Self::Read(read.into()));
        }
        // SAFETY: runs are written under another name, and neither changed nor cut once they have theirs; the store's lock keeps
        // other coordinators away. Bytes that a failing disk changes under us are caught by the pages' checks.
        let map = unsafe { Mmap::map(file)? };
        // Lookups jump; reading ahead would only push other pages out.
        let _ = map.advise(Advice::Random);
        Ok(Self::Mapped(map))
    }

    /// Has the system read a part that is looked at soon.
    pub(super) fn expect(&self, from: usize, bytes: usize) {
        if let Self::Mapped(map) = self {
            // Only an advice.
            let _refused = map.advise_range(Advice::WillNeed, from, bytes);
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
        }
    }
}
