//! Witness: which blocks of a machine's disks are hashed at a cut, and how many.
//!
//! Pure. Owns the choice and the budget. Does not read, hash or know time: durations are told. Invariants: every block of
//! every disk is as likely as any other, whether it ever changed or not (that is what finds changes that tracking missed);
//! none stands in a choice twice; blocks of swap areas are left out, since swap may be written while file systems are frozen.
//! Limits: [`BLOCKS_MAX`] blocks and [`TIME_MAX`] per cut. A source whose reads take longer is asked for fewer blocks, and
//! then only at some of its cuts; a hold that is long already ([`HOLD_LONG`]) is not made longer.

use std::time::Duration;

use holdfast_common::{
    frame::WITNESS_BLOCKS_MAX,
    units::{BlockCount, BlockIndex, BlockRange},
};

/// Most blocks of one cut.
pub const BLOCKS_MAX: usize = 16;
const _: () = assert!(BLOCKS_MAX <= WITNESS_BLOCKS_MAX, "the record has room for them");

/// Blocks that are read at a time; the clock is looked at in between.
pub const READS: usize = 4;

/// Time that the reads of one cut may add to its hold.
pub const TIME_MAX: Duration = Duration::from_millis(2);

/// After so much of a hold nothing is witnessed any more.
pub const HOLD_LONG: Duration = Duration::from_millis(20);

/// Most cuts in a row that are not witnessed because one block takes too long.
const SKIP_MAX: u32 = 64;

/// A disk to choose from.
#[derive(Clone, Debug)]
pub struct Field {
    /// Its size.
    pub size: BlockCount,
    /// Areas that are left out.
    pub without: Vec<BlockRange>,
}

/// A chosen block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Chosen {
    /// Place of its disk in the list that was chosen from.
    pub disk: usize,
    /// The block.
    pub block: BlockIndex,
}

/// Chooses up to `count` blocks among those of all disks, each equally likely; `draw` gives random numbers. They stand in
/// the order in which they were drawn, so that any number of the first ones is as good a choice.
pub fn choose(fields: &[Field], count: usize, draw: &mut dyn FnMut() -> u64) -> Vec<Chosen> {
    let all: u64 = fields.iter().map(|field| field.size.0).sum();
    let mut chosen = Vec::with_capacity(count);
    if all == 0 {
        return chosen;
    }
    // What falls into a swap area, or was chosen before, is not made up for: the others stay as likely as they were.
    for _ in 0..count {
        let found = locate(fields, draw() % all).filter(|found| !chosen.contains(found));
        chosen.extend(found);
    }
    chosen
}

/// The block that has this place when all disks stand one behind the other; none if it is left out.
fn locate(fields: &[Field], mut place: u64) -> Option<Chosen> {
    for (disk, field) in fields.iter().enumerate() {
        if place < field.size.0 {
            let block = BlockIndex(place);
            let left_out = field.without.iter().any(|area| area.contains(block));
            return (!left_out).then_some(Chosen { disk, block });
        }
        place -= field.size.0;
    }
    None
}

/// How many blocks the cuts of a source are witnessed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    blocks: usize,
    /// Cuts to leave out, and how many after the next block that takes too long.
    skip: u32,
    skips: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { blocks: BLOCKS_MAX, skip: 0, skips: 1 }
    }
}

impl Pace {
    /// Blocks for the next cut; zero if it is left out.
    pub const fn next(&mut self) -> usize {
        if self.skip > 0 {
            self.skip -= 1;
            return 0;
        }
        self.blocks
    }

    /// Reading so many blocks took so long.
    pub fn learn(&mut self, blocks: usize, took: Duration) {
        if blocks == 0 {
            return;
        }
        if took <= TIME_MAX {
            self.blocks = (self.blocks * 2).min(BLOCKS_MAX);
            self.skips = 1;
        } else if blocks > 1 {
            self.blocks = (blocks / 2).max(1);
        } else {
            self.blocks = 1;
            self.skip = self.skips;
            self.skips = (self.skips * 2).min(SKIP_MAX);
        }
    }
}

/// Whether the next reads fit into what is left of the budget, if they take as long as the last ones did.
#[must_use]
pub fn goes_on(spent: Duration, last: Duration) -> bool {
    spent + last <= TIME_MAX
}

#[cfg(test)]
mod tests;
