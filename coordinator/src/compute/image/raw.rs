//! Raw images: every cluster at its own offset; holes are holes of the file.
//!
//! Owns the layout. Knows no view. Invariant: the file is exactly as long as the disk.

use std::{fs::File, io, ops::Range};

use super::{copy::Layout, map::ClusterMap};

/// The layout.
#[derive(Debug)]
pub(super) struct Raw;

impl Layout for Raw {
    fn place(&self, _map: &ClusterMap, bytes: Range<u64>) -> io::Result<(Option<u64>, u64)> {
        Ok((Some(bytes.start), bytes.end - bytes.start))
    }

    fn file_bytes(&self, map: &ClusterMap) -> u64 {
        map.size_bytes()
    }

    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()> {
        // The last cluster may have been written whole.
        file.set_len(map.size_bytes())
    }
}
