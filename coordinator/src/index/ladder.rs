//! Which runs there are, and which ones make a cut.
//!
//! Owns the set of names and the arithmetic of the ladder. Pure. A run of level k covers the cuts m * 2^k + 1 to
//! (m + 1) * 2^k; the state at cut n is made of the runs of n's binary digits, so of at most log2(n) + 1 runs.
//! Invariant: a missing run is made up for by its two halves, as long as they are there.

use std::collections::BTreeMap;

use super::run_format::RunName;

/// The highest level: 2^40 cuts.
const LEVEL_MAX: u8 = 40;

/// The runs of closed intervals that exist.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    /// By first cut and level.
    runs: BTreeMap<(u64, u8), RunName>,
}

impl Ladder {
    /// A run exists.
    pub fn add(&mut self, name: RunName) {
        self.runs.insert((name.first_cut(), name.level), name);
    }

    /// A run does not exist (any more).
    pub fn remove(&mut self, name: RunName) {
        self.runs.remove(&(name.first_cut(), name.level));
    }

    /// Number of runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs that make cut number `cut`, oldest first, or as far as they go. Each begins where the one before ends.
    #[must_use]
    pub fn chain(&self, cut: u64) -> Vec<RunName> {
        let mut chain = Vec::new();
        let mut at = 0;
        let mut from = holdfast_common::ids::Sequence(0);
        while at < cut {
            let levels = self.runs.range((at, 0)..=(at, LEVEL_MAX)).rev();
            let fitting =
                levels.map(|(_, name)| *name).find(|name| name.last_cut <= cut && name.from == from);
            let Some(name) = fitting else { break };
            at = name.last_cut;
            from = name.to;
            chain.push(name);
        }
        chain
    }

    /// The next merge that is due with `last` cuts: two neighbours of one level that have no run of the next level yet.
    #[must_use]
    pub fn due(&self, last: u64) -> Option<(RunName, RunName)> {
        let mut at = 0;
        for level in (0..=LEVEL_MAX).rev().filter(|level| last >> level & 1 == 1) {
            if let Some(pair) = self.due_in(at, level) {
                return Some(pair);
            }
            at += 1 << level;
        }
        None
    }

    /// The merge that is due to get the run of a slot.
    fn due_in(&self, at: u64, level: u8) -> Option<(RunName, RunName)> {
        if level == 0 || self.runs.contains_key(&(at, level)) {
            return None;
        }
        let half = level - 1;
        let behind = at + (1 << half);
        match (self.runs.get(&(at, half)), self.runs.get(&(behind, half))) {
            (Some(older), Some(newer)) => (older.to == newer.from).then_some((*older, *newer)),
            (None, _) => self.due_in(at, half),
            (_, None) => self.due_in(behind, half),
        }
    }
}

/// The name of the run that two neighbours make.
#[must_use]
pub fn merged_name(older: RunName, newer: RunName) -> RunName {
    RunName {
        part: older.part,
        level: older.level.max(newer.level) + 1,
        last_cut: newer.last_cut,
        from: older.from,
        to: newer.to,
    }
}
