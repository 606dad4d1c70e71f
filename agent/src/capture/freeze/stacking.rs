//! Which file systems to freeze, in which order, and where swap lies.
//!
//! Owns the order. Pure: works on one reading of the machine ([`Stack`]). Invariants:
//! - **A file system is frozen before the ones that carry its devices' files, and thawed after them.** Freezing the upper
//!   one writes out its dirty data through the loop device into the lower one; were that frozen already, the write
//!   would wait for a thaw that only comes later. Thawing the upper one writes its superblock, so the lower one must
//!   be writable by then.
//! - Each superblock is frozen once, however many mounts it has. Read-only ones are left out: nothing is written there, and
//!   if one is remounted writable during a hold, the disk's counters tell.
//! - A file system that is reached only through another mount namespace is not seen; the counters tell there too.

use std::collections::BTreeMap;

use holdfast_common::units::{BLOCK_BYTES, BlockRange};

use crate::inventory::{
    DeviceNumber,
    block::BlockNode,
    stack::{Stack, Superblock},
};

/// What is to be frozen for a set of disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stacking {
    /// File systems, in the order of freezing.
    pub(super) file_systems: Vec<Superblock>,
    /// Blocks of each disk that belong to nothing but swap areas.
    pub(super) swap: BTreeMap<DeviceNumber, Vec<BlockRange>>,
}

impl Stacking {
    /// Plans for these disks.
    ///
    /// # Errors
    /// The number of a disk that is not there.
    pub(super) fn plan(stack: &Stack, disks: &[DeviceNumber]) -> Result<Self, DeviceNumber> {
        let nodes = disks
            .iter()
            .map(|&number| stack.graph.numbered(number).ok_or(number))
            .collect::<Result<Vec<&BlockNode>, DeviceNumber>>()?;
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        let mut writable: Vec<&Superblock> =
            stack.above(&names).superblocks.into_iter().filter(|superblock| !superblock.read_only).collect();
        // The carriers of a carrier are carriers too, so whoever lies higher has strictly more of them.
        writable.sort_by_key(|superblock| std::cmp::Reverse(stack.carriers(superblock).len()));
        let swap = nodes
            .iter()
            .map(|disk| {
                let mut ranges = Vec::new();
                swap_ranges(stack, disk, 0, &mut ranges);
                ranges.sort_by_key(|range| range.start);
                (disk.number, ranges)
            })
            .collect();
        Ok(Self { file_systems: writable.into_iter().cloned().collect(), swap })
    }
}

/// Collects the ranges of a disk that only swap areas use, directly or through a stack of their own (dm-crypt).
fn swap_ranges(stack: &Stack, node: &BlockNode, start_bytes: u64, ranges: &mut Vec<BlockRange>) {
    if is_only_swap(stack, node, 0) {
        // Blocks that a neighbour shares are not harmless.
        let block = BLOCK_BYTES as u64;
        let first = start_bytes.div_ceil(block);
        let end = start_bytes.saturating_add(node.size_bytes) / block;
        if first < end {
            ranges.push(BlockRange::new(first, end - first));
        }
        return;
    }
    for upper in stack.graph.above(&node.name) {
        if let Some(place) = &upper.partition {
            swap_ranges(stack, upper, start_bytes.saturating_add(place.start_bytes), ranges);
        }
    }
}

/// Deepest stack followed; deeper ones count as not swap.
const DEPTH_MAX: usize = 16;

fn is_only_swap(stack: &Stack, node: &BlockNode, depth: usize) -> bool {
    let mut areas = stack.swaps.iter().filter(|swap| swap.is_device);
    if areas.any(|swap| stack.graph.at(&swap.path).is_some_and(|area| area.name == node.name)) {
        return true;
    }
    let used = stack.superblocks.iter().any(|superblock| superblock.members.contains(&node.name));
    let mut above = stack.graph.above(&node.name).peekable();
    // A partitioned disk has its table beside the areas.
    !used
        && depth < DEPTH_MAX
        && above.peek().is_some()
        && above.all(|upper| upper.partition.is_none() && is_only_swap(stack, upper, depth + 1))
}

#[cfg(test)]
mod tests;
