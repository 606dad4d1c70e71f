//! Which runs there are, and which ones make a cut.
//!
//! Owns the set of names, the arithmetic of the ladder, and what may go. Pure.
//!
//! Runs are steps from one frame to a later one, and a cut is made of the fewest steps that lead to it from the beginning.
//! Runs of level 0, the *tiles*, lie end to end over the whole log and never span a cut that is needed. Above them a
//! run of level k covers the cuts m * 2^k + 1 to (m + 1) * 2^k, so when a cut is made, the runs of its number's binary
//! digits lead to it: at most log2(n) + 1. What leads to a needed cut, to the newest one, or belongs to the digits of the
//! newest one (from which the next ladder runs are merged), stays; all else may go. So the number of steps to a cut never
//! grows afterwards, whatever retention removes around it.
//! Invariant: a missing run is made up for by shorter steps, as long as the tiles are there.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use holdfast_common::ids::Sequence;

use super::run_format::RunName;

/// The highest level: 2^40 cuts.
const LEVEL_MAX: u8 = 40;

/// The runs of closed intervals that exist.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    /// By where they begin, where they end (furthest first), and level.
    runs: BTreeMap<(u64, Reverse<u64>, u8), RunName>,
    /// By first cut and level.
    slots: BTreeMap<(u64, u8), RunName>,
    /// The last of the fewest steps to each frame at which a run ends, and how many they are.
    steps: HashMap<u64, (u32, RunName)>,
    /// To frames behind this one fewer steps may lead than `steps` knows.
    stale: Option<u64>,
}

impl Ladder {
    /// A run exists. Where others lead on from its end, counting the steps behind it waits for [`Self::settle`]: many merges in
    /// the middle of a long history would count all of it each time.
    pub fn add(&mut self, name: RunName) {
        self.put(name);
        self.step(name);
        let leads_on = self.runs.range((name.to.0, Reverse(u64::MAX), 0)..).next();
        if leads_on.is_some_and(|((from, ..), _)| *from == name.to.0) {
            self.stale = Some(self.stale.map_or(name.to.0, |stale| stale.min(name.to.0)));
        }
    }

    /// Whether [`Self::chain`] gives the fewest steps; otherwise it gives some that lead there.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.stale.is_none()
    }

    /// Counts what waits: time in proportion to the number of runs behind the first one that was added in the middle.
    pub fn settle(&mut self) {
        let Some(stale) = self.stale.take() else { return };
        // Runs that were added only make counts smaller.
        let behind = self.runs.range((stale, Reverse(u64::MAX), 0)..);
        for name in behind.map(|(_, name)| *name).collect::<Vec<_>>() {
            self.step(name);
        }
    }

    /// All these runs exist.
    pub fn add_all(&mut self, names: impl IntoIterator<Item = RunName>) {
        names.into_iter().for_each(|name| self.put(name));
        self.count();
    }

    /// These runs do not exist (any more).
    pub fn remove_all(&mut self, names: &[RunName]) {
        for name in names {
            self.runs.remove(&key(*name));
            if self.slots.get(&slot(*name)) == Some(name) {
                self.slots.remove(&slot(*name));
            }
        }
        self.count();
    }

    fn put(&mut self, name: RunName) {
        self.runs.insert(key(name), name);
        self.slots.insert(slot(name), name);
    }

    /// Counts all steps anew: time in proportion to the number of runs.
    fn count(&mut self) {
        self.stale = None;
        self.steps.clear();
        for name in self.runs.values().copied().collect::<Vec<_>>() {
            self.step(name);
        }
    }

    /// Considers a run whose beginning has been counted.
    fn step(&mut self, name: RunName) {
        let before =
            if name.from.0 == 0 { Some(0) } else { self.steps.get(&name.from.0).map(|(count, _)| *count) };
        let Some(count) = before.map(|before| before + 1) else { return };
        if self.steps.get(&name.to.0).is_none_or(|(known, _)| count < *known) {
            self.steps.insert(name.to.0, (count, name));
        }
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

    /// The fewest runs that make the state at `cut` (once settled), oldest first; `None` if none do. Each begins where the one
    /// before ends.
    #[must_use]
    pub fn chain(&self, cut: Sequence) -> Option<Vec<RunName>> {
        let (mut chain, mut at) = (Vec::new(), cut.0);
        while at > 0 {
            let (_, name) = self.steps.get(&at)?;
            chain.push(*name);
            at = name.from.0;
        }
        chain.reverse();
        Some(chain)
    }

    /// Runs that lead from one frame to a later one, each as far as it can, oldest first; `None` if they do not lead there.
    #[must_use]
    pub fn between(&self, from: Sequence, to: Sequence) -> Option<Vec<RunName>> {
        let (mut steps, mut at) = (Vec::new(), from.0);
        while at < to.0 {
            let (_, name) = self.runs.range((at, Reverse(to.0), 0)..).next()?;
            if name.from.0 != at {
                return None;
            }
            at = name.to.0;
            steps.push(*name);
        }
        Some(steps)
    }

    /// The tiles from one frame to another, oldest first; `None` if they do not lead there.
    #[must_use]
    pub fn tiles(&self, from: Sequence, to: Sequence) -> Option<Vec<RunName>> {
        let (mut tiles, mut at) = (Vec::new(), from.0);
        while at < to.0 {
            let tile = self.tile(at, to.0)?;
            at = tile.to.0;
            tiles.push(tile);
        }
        Some(tiles)
    }

    /// Up to where the tiles lie end to end.
    #[must_use]
    pub fn end(&self) -> Sequence {
        let mut at = 0;
        while let Some(tile) = self.tile(at, u64::MAX) {
            at = tile.to.0;
        }
        Sequence(at)
    }

    /// The longest tile that begins here and does not reach beyond `to`.
    fn tile(&self, from: u64, to: u64) -> Option<RunName> {
        let here = self.runs.range((from, Reverse(to), 0)..);
        here.take_while(|((begin, ..), _)| *begin == from).map(|(_, name)| *name).find(|name| name.level == 0)
    }

    /// Runs that do not lie within the tiles from the beginning to `end`.
    #[must_use]
    pub fn behind(&self, end: Sequence) -> Vec<RunName> {
        self.runs.values().filter(|name| name.to > end).copied().collect()
    }

    /// Runs that neither the needed cuts nor the newest cut, which has the number `last`, can make use of. `needed` are frames
    /// of cuts.
    #[must_use]
    pub fn needless(&mut self, needed: impl Iterator<Item = Sequence>, last: u64) -> Vec<RunName> {
        self.settle();
        let end = self.end();
        let mut useful: HashSet<RunName> = self.digits(last).into_iter().collect();
        useful.extend(self.tiles(Sequence(0), end).into_iter().flatten());
        let mut seen = HashSet::new();
        for cut in needed.chain([end]) {
            let mut at = cut.0;
            // Steps to one frame are the same for all that go on from it.
            while at > 0 && seen.insert(at) {
                let Some((_, name)) = self.steps.get(&at) else { break };
                useful.insert(*name);
                at = name.from.0;
            }
        }
        self.runs.values().filter(|name| !useful.contains(name)).copied().collect()
    }

    /// The runs of a number's binary digits that exist.
    fn digits(&self, last: u64) -> Vec<RunName> {
        let mut at = 0;
        let mut digits = Vec::new();
        for level in (0..=LEVEL_MAX).rev().filter(|level| last >> level & 1 == 1) {
            digits.extend(self.slots.get(&(at, level)));
            at += 1 << level;
        }
        digits
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
        if level == 0 || self.slots.contains_key(&(at, level)) {
            return None;
        }
        let half = level - 1;
        let behind = at + (1 << half);
        match (self.slots.get(&(at, half)), self.slots.get(&(behind, half))) {
            (Some(older), Some(newer)) => (older.to == newer.from).then_some((*older, *newer)),
            (None, _) => self.due_in(at, half),
            (_, None) => self.due_in(behind, half),
        }
    }
}

const fn key(name: RunName) -> (u64, Reverse<u64>, u8) {
    (name.from.0, Reverse(name.to.0), name.level)
}

fn slot(name: RunName) -> (u64, u8) {
    (name.first_cut(), name.level)
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

/// The name of the tile that neighbouring tiles make.
#[must_use]
pub fn joined_name(tiles: &[RunName]) -> Option<RunName> {
    let (first, last) = (tiles.first()?, tiles.last()?);
    Some(RunName { from: first.from, ..*last })
}
