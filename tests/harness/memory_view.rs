//! A disk in memory behind `BlockView`, with holes and damage on demand.
//!
//! Owns its bytes. Invariant: reads outside the damage give what [`MemoryView::bytes`] says; extents agree with the holes.

use std::ops::Range;

use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    ids::Sequence,
    units::{BLOCK_BYTES, BlockRange},
};
use holdfast_coordinator::points::view::{BlockView, ViewError, ViewExtent};

/// The model.
#[derive(Debug)]
pub struct MemoryView {
    bytes: Vec<u8>,
    /// One entry per block.
    holes: Vec<bool>,
    damaged: Vec<BlockRange>,
}

impl MemoryView {
    /// A disk of `size_bytes` in which stretches of random data and holes alternate, as the seed says.
    #[must_use]
    pub fn patchy(seed: u64, size_bytes: usize) -> Self {
        let entropy = SeededEntropy::new(seed);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let mut view = Self { bytes: vec![0; size_bytes], holes: Vec::new(), damaged: Vec::new() };
        while view.holes.len() < blocks {
            let number = entropy.next_u64();
            // Short stretches and long ones.
            let most = if number & 2 == 0 { 8 } else { 512 };
            let run = 1 + usize::try_from((number >> 8) % most).unwrap_or(0);
            view.holes.extend(std::iter::repeat_n(number & 1 == 0, run.min(blocks - view.holes.len())));
        }
        for (block, hole) in view.bytes.chunks_mut(BLOCK_BYTES).zip(&view.holes) {
            if !hole {
                entropy.fill(block);
            }
        }
        view
    }

    /// A disk with these bytes and no holes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let holes = vec![false; bytes.len().div_ceil(BLOCK_BYTES)];
        Self { bytes, holes, damaged: Vec::new() }
    }

    /// The same disk with these blocks damaged; they are data then, since a hole has nothing to be damaged.
    #[must_use]
    pub fn with_damage(mut self, range: BlockRange) -> Self {
        for block in range.start.0..range.end().0 {
            if let Some(hole) = usize::try_from(block).ok().and_then(|block| self.holes.get_mut(block)) {
                *hole = false;
            }
        }
        self.damaged.push(range);
        self
    }

    /// What the disk holds.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes in blocks that are no holes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let blocks = self.holes.iter().filter(|hole| !**hole).count();
        blocks as u64 * BLOCK_BYTES as u64
    }

    fn part(&self, offset: u64, bytes: usize) -> Option<Range<usize>> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(bytes)?;
        (end <= self.bytes.len()).then_some(start..end)
    }
}

impl BlockView for MemoryView {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let bytes = buffer.len() as u64;
        let part = self.part(offset, buffer.len()).ok_or(ViewError::BeyondEnd { offset, bytes })?;
        let asked = BlockRange::covering(offset, bytes);
        if let Some(range) = self.damaged.iter().find(|range| range.intersection(asked).is_some()) {
            return Err(ViewError::Damaged { range: *range, sequence: Sequence(1), place: "model".into() });
        }
        buffer.copy_from_slice(self.bytes.get(part).unwrap_or_default());
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        let mut extents: Vec<ViewExtent> = Vec::new();
        for block in range.start.0..range.end().0 {
            let hole = usize::try_from(block).ok().and_then(|block| self.holes.get(block)).copied();
            let hole = hole.unwrap_or(true);
            let full = extents.len() == EXTENTS_MAX;
            match extents.last_mut() {
                Some(last) if last.hole == hole => last.range.count.0 += 1,
                // Views may stop early; this one does, so that callers are tested on it.
                Some(_) if full => break,
                _ => extents.push(ViewExtent { range: BlockRange::new(block, 1), hole }),
            }
        }
        Ok(extents)
    }
}

/// Extents per answer.
const EXTENTS_MAX: usize = 7;
