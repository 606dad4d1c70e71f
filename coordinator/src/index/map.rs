//! Mapping a run's file into memory.
#![expect(unsafe_code, reason = "mapping a file is unsafe: somebody else might change it")]

use std::{fs::File, io};

use memmap2::{Advice, Mmap};

/// Maps a file that never changes once it has its name.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: runs are written under another name, and neither changed nor cut once they have theirs; the store's lock keeps
    // other coordinators away. Bytes that a failing disk changes under us are caught by the pages' checks.
    let map = unsafe { Mmap::map(file)? };
    // Lookups jump; reading ahead would only push other pages out.
    let _ = map.advise(Advice::Random);
    Ok(map)
}
