//! Which clusters of a disk hold data: found from the view's extents before the first byte is copied.
//!
//! Owns one bit per cluster of 64 KiB. Knows no file. Invariant: the number of a data cluster among all data clusters
//! (its rank) depends on the view alone, so an interrupted image finds every cluster in its old place.
//! Limit: `DISK_BYTES_MAX`, for which the map takes 128 MiB.

use std::ops::Range;

use holdfast_common::units::{BLOCK_BYTES, BlockRange};

use crate::{
    compute::port::{ComputeError, Task},
    points::view::BlockView,
};

/// Bytes of a cluster: the grain of holes in images.
pub(super) const CLUSTER_BYTES: usize = 64 << 10;
/// The same, for arithmetic on offsets.
pub(super) const CLUSTER: u64 = CLUSTER_BYTES as u64;
/// The largest disk that is written to an image.
pub(super) const DISK_BYTES_MAX: u64 = 64 << 40;

/// The map.
#[derive(Debug)]
pub(super) struct ClusterMap {
    size_bytes: u64,
    /// Bit `n % 64` of word `n / 64` belongs to cluster `n`.
    words: Vec<u64>,
    /// Data clusters before each group of [`GROUP_WORDS`] words.
    ranks: Vec<u64>,
    /// Data in each such group, in blocks.
    blocks: Vec<u64>,
    count: u64,
}

impl ClusterMap {
    /// Asks a view for all its extents.
    ///
    /// # Errors
    /// The view's index cannot be read, the disk is too large, or the task was cancelled.
    pub(super) fn scan(view: &dyn BlockView, name: &str, task: &Task) -> Result<Self, ComputeError> {
        let size_bytes = view.size_bytes();
        if size_bytes > DISK_BYTES_MAX {
            let detail =
                format!("disk {name} is larger than the 64 TiB that an image can hold; attach it instead");
            return Err(ComputeError::Invalid { detail });
        }
        let word_count = usize::try_from(size_bytes.div_ceil(CLUSTER).div_ceil(64)).unwrap_or(usize::MAX);
        let mut map =
            Self { size_bytes, words: vec![0; word_count], ranks: Vec::new(), blocks: Vec::new(), count: 0 };
        map.blocks = vec![0; map.words.len().div_ceil(GROUP_WORDS)];
        let whole = BlockRange::covering(0, size_bytes);
        let mut rest = whole;
        while !rest.is_empty() {
            if task.is_cancelled() {
                return Err(ComputeError::Cancelled);
            }
            let view_failed = |source| ComputeError::View { name: name.into(), source };
            let before = rest.start;
            for extent in view.extents(rest).map_err(view_failed)? {
                if let Some(part) = extent.range.intersection(rest) {
                    if !extent.hole {
                        map.mark(part.start.byte_offset()..part.end().byte_offset().min(size_bytes));
                    }
                    rest = BlockRange::new(part.end().0, whole.end().0 - part.end().0);
                }
            }
            if rest.start == before {
                // The view has nothing to say about it: then it is data.
                map.mark(rest.start.byte_offset()..size_bytes);
                break;
            }
        }
        map.rank_all();
        Ok(map)
    }

    /// A map of the clusters that `fill` adds, each below the disk's end. It knows nothing of blocks.
    ///
    /// # Errors
    /// Those of `fill`.
    pub(super) fn of<E>(
        size_bytes: u64,
        fill: impl FnOnce(&mut dyn FnMut(u64)) -> Result<(), E>,
    ) -> Result<Self, E> {
        let words = usize::try_from(size_bytes.div_ceil(CLUSTER).div_ceil(64)).unwrap_or(usize::MAX);
        let mut map =
            Self { size_bytes, words: vec![0; words], ranks: Vec::new(), blocks: Vec::new(), count: 0 };
        fill(&mut |cluster| {
            if let Some(word) = map.word_mut(cluster / 64) {
                *word |= 1 << (cluster % 64);
            }
        })?;
        map.rank_all();
        Ok(map)
    }

    /// The clusters that hold data, ascending.
    pub(super) fn data(&self) -> impl Iterator<Item = u64> {
        let runs = std::iter::successors(self.next_run(0, RESUME_CLUSTERS), |run| {
            self.next_run(run.end, RESUME_CLUSTERS)
        });
        runs.flatten()
    }

    fn mark(&mut self, bytes: Range<u64>) {
        let (mut block, last) = (bytes.start / BLOCK, bytes.end.div_ceil(BLOCK));
        while block < last {
            let group = block / GROUP_BLOCKS;
            let end = last.min((group + 1) * GROUP_BLOCKS);
            if let Some(blocks) = usize::try_from(group).ok().and_then(|group| self.blocks.get_mut(group)) {
                *blocks += end - block;
            }
            block = end;
        }
        let (mut cluster, end) = (bytes.start / CLUSTER, bytes.end.div_ceil(CLUSTER));
        while cluster < end {
            let bit = cluster % 64;
            let bits = (end - cluster).min(64 - bit);
            let mask = if bits == 64 { u64::MAX } else { ((1 << bits) - 1) << bit };
            if let Some(word) = self.word_mut(cluster / 64) {
                *word |= mask;
            }
            cluster += bits;
        }
    }

    fn rank_all(&mut self) {
        for group in self.words.chunks(GROUP_WORDS) {
            self.ranks.push(self.count);
            self.count += group.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
    }

    /// Size of the disk.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Clusters of the disk, a last partial one included.
    pub(super) fn clusters(&self) -> u64 {
        self.size_bytes.div_ceil(CLUSTER)
    }

    /// Clusters that hold data.
    pub(super) fn data_clusters(&self) -> u64 {
        self.count
    }

    /// Bytes of data, in whole blocks, below a cluster that is a multiple of [`RESUME_CLUSTERS`].
    pub(super) fn block_bytes_below(&self, cluster: u64) -> u64 {
        let groups = usize::try_from(cluster.div_ceil(RESUME_CLUSTERS)).unwrap_or(usize::MAX);
        self.blocks.iter().take(groups).sum::<u64>() * BLOCK
    }

    /// Whether a cluster holds data.
    pub(super) fn is_data(&self, cluster: u64) -> bool {
        self.word(cluster / 64) >> (cluster % 64) & 1 == 1
    }

    /// Data clusters before this one.
    pub(super) fn rank(&self, cluster: u64) -> u64 {
        let word = cluster / 64;
        let group = word / GROUP_WORDS as u64;
        let index = usize::try_from(group).unwrap_or(usize::MAX);
        let Some(before) = self.ranks.get(index) else { return self.count };
        let whole = (group * GROUP_WORDS as u64..word).map(|word| u64::from(self.word(word).count_ones()));
        let part = self.word(word) & ((1 << (cluster % 64)) - 1);
        before + whole.sum::<u64>() + u64::from(part.count_ones())
    }

    /// The next run of data clusters at or after `from`, at most `most` long.
    pub(super) fn next_run(&self, from: u64, most: u64) -> Option<Range<u64>> {
        let mut cluster = from;
        while cluster < self.clusters() {
            let rest = self.word(cluster / 64) >> (cluster % 64);
            if rest != 0 {
                let start = cluster + u64::from(rest.trailing_zeros());
                let limit = (start + most).min(self.clusters());
                let end = (start..limit).find(|cluster| !self.is_data(*cluster)).unwrap_or(limit);
                return Some(start..end);
            }
            cluster = (cluster / 64 + 1) * 64;
        }
        None
    }

    /// A digest of the map: two images with the same one have every cluster in the same place.
    pub(super) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.size_bytes.to_le_bytes());
        for word in &self.words {
            hasher.update(&word.to_le_bytes());
        }
        hasher.finalize()
    }

    fn word(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.words.get(index)).copied().unwrap_or(0)
    }

    fn word_mut(&mut self, index: u64) -> Option<&mut u64> {
        usize::try_from(index).ok().and_then(|index| self.words.get_mut(index))
    }
}

/// Words that share one entry of ranks.
const GROUP_WORDS: usize = 8;
/// Clusters in such a group: images are continued at multiples of it.
pub(super) const RESUME_CLUSTERS: u64 = GROUP_WORDS as u64 * 64;
const BLOCK: u64 = BLOCK_BYTES as u64;
const GROUP_BLOCKS: u64 = RESUME_CLUSTERS * CLUSTER / BLOCK;

#[cfg(test)]
mod tests;
