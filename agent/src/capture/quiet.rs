//! The verdict on a cut: was the disk at rest while its last blocks were read?
//!
//! Pure. Owns the rules; the figures come from takes and counters around the reads. A request counts as in flight only if
//! tracking and the kernel's statistics both say so: a lost completion leaves a stale slot behind, which costs a copy
//! and must not forbid cuts of an idle disk.
//! Invariant: a disk is called at rest only if no write completed, and none was under way, between the two looks.

use holdfast_common::units::BlockRange;

use super::{Taken, WriteCounters};

/// Most ranges named in a reason.
const NAMED_RANGES_MAX: usize = 4;

/// Figures of one disk around the reads of its residue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Counters before the last take.
    pub before: WriteCounters,
    /// The last take before the reads.
    pub taken: Taken,
    /// Counters after the reads.
    pub after: WriteCounters,
}

/// Whether requests were really in flight when this was taken.
#[must_use]
pub const fn in_flight(taken: Taken, counters: WriteCounters) -> bool {
    taken.in_flight.0 > 0 && counters.in_flight > 0
}

impl Watch {
    /// Whether no write completed between the looks, and none was under way at the first.
    #[must_use]
    pub const fn unchanged(&self) -> bool {
        self.before.sectors == self.after.sectors && !in_flight(self.taken, self.before)
    }

    /// Whether no write completed and none was under way between the looks. If only requests in flight at the last look
    /// speak against it, they may be reads: another take tells, since writes are marked when they are issued.
    #[must_use]
    pub const fn at_rest(&self) -> bool {
        self.unchanged() && self.after.in_flight == 0
    }
}

/// Whether a range lies entirely in these areas.
#[must_use]
pub fn covered(range: BlockRange, areas: &[BlockRange]) -> bool {
    let mut start = range.start;
    while start < range.end() {
        let Some(area) = areas.iter().find(|area| area.contains(start)) else { return false };
        start = area.end();
    }
    true
}

/// Names ranges for people; the first few only.
#[must_use]
pub fn name_ranges(ranges: &[BlockRange]) -> String {
    let named: Vec<String> = ranges.iter().take(NAMED_RANGES_MAX).map(ToString::to_string).collect();
    let rest = ranges.len().saturating_sub(NAMED_RANGES_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    named.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use holdfast_common::units::{BlockCount, BlockRange};

    use super::{Watch, covered, name_ranges};
    use crate::capture::{Taken, WriteCounters};

    fn watch(before: (u64, u64), in_flight: u64, after: (u64, u64)) -> Watch {
        let counters = |(sectors, in_flight)| WriteCounters { sectors, in_flight };
        let taken = Taken { blocks: BlockCount(0), in_flight: BlockCount(in_flight) };
        Watch { before: counters(before), taken, after: counters(after) }
    }

    #[test]
    fn rest_needs_equal_counters_and_nothing_in_flight() {
        assert!(watch((5, 0), 0, (5, 0)).at_rest());
        assert!(!watch((5, 0), 0, (6, 0)).at_rest(), "a write completed");
        assert!(!watch((5, 0), 0, (5, 1)).at_rest(), "a write was issued");
        assert!(!watch((5, 1), 3, (5, 0)).at_rest(), "a write was under way");
        assert!(watch((5, 0), 3, (5, 0)).at_rest(), "a stale slot forbids nothing");
        assert!(watch((5, 2), 0, (5, 0)).at_rest(), "reads forbid nothing");
    }

    #[test]
    fn a_range_may_be_covered_by_several_areas() {
        let areas = [BlockRange::new(10, 10), BlockRange::new(20, 5)];
        assert!(covered(BlockRange::new(12, 12), &areas));
        assert!(!covered(BlockRange::new(12, 14), &areas));
        assert!(!covered(BlockRange::new(9, 2), &areas));
    }

    #[test]
    fn names_the_first_ranges() {
        let ranges: Vec<BlockRange> = (0..6).map(|i| BlockRange::new(i * 10, 1)).collect();
        assert_eq!(name_ranges(&ranges[..1]), "blocks 0..1");
        assert!(name_ranges(&ranges).ends_with("blocks 30..31 and 2 more"));
    }
}
