//! What a slot says about a request in flight.
//!
//! Owns the packing of a range into 64 bits. Does not know where slots are kept.
//! Invariant: a slot in use is never zero, so zero means free.
//! Limit: [`SLOT_BLOCKS_MAX`] blocks in a disk (256 TiB), [`SLOT_COUNT_BITS`] bits for a length (1 TiB).
//! Format: bits 28..64 first block, bits 0..28 number of blocks; [`SLOT_MANY_RANGES`] for a request of several ranges.

use holdfast_common::units::BlockRange;

/// Bits of a slot for the number of blocks.
pub(super) const SLOT_COUNT_BITS: u32 = 28;
/// Largest disk whose blocks fit.
pub(super) const SLOT_BLOCKS_MAX: u64 = 1 << (64 - SLOT_COUNT_BITS);
/// A discard of several ranges is in flight: any block taken in this interval may be among them.
pub(super) const SLOT_MANY_RANGES: u64 = u64::MAX;

/// What is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InFlight {
    /// A request on this range.
    Range(BlockRange),
    /// A request on ranges that the slot cannot tell.
    ManyRanges,
}

/// What a slot's value means; `None` if the slot is free.
pub(super) fn decode(value: u64) -> Option<InFlight> {
    match value {
        0 => None,
        SLOT_MANY_RANGES => Some(InFlight::ManyRanges),
        _ => {
            let count = value & ((1 << SLOT_COUNT_BITS) - 1);
            Some(InFlight::Range(BlockRange::new(value >> SLOT_COUNT_BITS, count)))
        }
    }
}

#[cfg(test)]
mod tests;
