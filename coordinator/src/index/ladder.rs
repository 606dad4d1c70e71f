//! Which runs there are, and which ones make a cut.
//!
//! Owns the set of names, the rule of the ladder, and what may go. Pure.
//!
//! Runs are steps from one frame to a later one, and a cut is made of the fewest steps that lead to it from the beginning.
//! Runs of level 0, the *tiles*, lie end to end over the whole log and never span a cut that is needed. Above them stand
//! runs that were merged from neighbours. What leads to a needed cut or to the newest one stays; all else may go. So the number of
//! steps to a cut never grows afterwards, whatever retention removes around it.
//! Invariant: a missing run is made up for by shorter steps, as long as the tiles are there.
//!
//! **The rule.** The *stack* is what makes the newest cut, oldest run first. A run's *class* is the logarithm of its size in bytes
//! to the base [`FAN`], rounded down. A stack is *in order* if for each of its beginnings this holds: of the runs at its end
//! whose class is at most that of its last run, there are fewer than [`FAN`]. The shortest beginning that is out of order is
//! mended first: those runs become one; but if only its last run is that large, what is smaller in front of it becomes one without
//! it ([`due`]). So a large run is copied together with runs of its own size, never for the sake of small ones.
//!
//! **Few runs.** Take the class of each run of a stack in order, or that of a newer run if that is higher. Runs of the same
//! class in this sense stand side by side, and the last of them has the class itself; the beginning that ends with it is in order, so
//! they are fewer than [`FAN`]. With C classes between its smallest and largest run a stack has at most C * (FAN - 1) runs. Every cut
//! once ended a beginning that was in order, because shorter beginnings are mended first; what it stood on then stays.
//!
//! **Few copies.** [`FAN`] runs of a class become one that mostly has the next class, so a byte is copied about once per class between
//! its tile's and the largest run's, and the last of the [`FAN`] goes at once, as no cut needs it beside what it became part of. A first
//! interval that is larger than all others together is never copied. `benches/index.rs` measures it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    ops::Range,
};

use holdfast_common::ids::Sequence;

use super::run_format::RunName;

/// So many runs of one class become one. More of them mean fewer copies of an extent and more runs that a reader looks into.
pub const FAN: usize = 8;

/// The highest level; runs that are merged even more often keep it.
pub const LEVEL_MAX: u8 = 63;

/// The runs of closed intervals that exist.
#[derive(Clone, Debug, Default)]
pub struct Ladder {
    /// By where they begin, where they end (furthest first), and level.
    runs: BTreeMap<(u64, Reverse<u64>, u8), RunName>,
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
        }
        self.count();
    }

    fn put(&mut self, name: RunName) {
        self.runs.insert(key(name), name);
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

    /// Whether a run exists.
    #[must_use]
    pub fn has(&self, name: RunName) -> bool {
        self.runs.contains_key(&key(name))
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

    /// Runs that lead neither to the needed cuts nor to the newest one. `needed` are frames of cuts.
    #[must_use]
    pub fn needless(&mut self, needed: impl Iterator<Item = Sequence>) -> Vec<RunName> {
        self.settle();
        let end = self.end();
        let mut useful: HashSet<RunName> = self.tiles(Sequence(0), end).into_iter().flatten().collect();
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

    /// Removes those of these runs that no cut needs since `merged` was added, which was made of them, and gives them.
    pub fn remove_merged(&mut self, inputs: &[RunName], merged: RunName) -> Vec<RunName> {
        let ends_alike = inputs.iter().filter(|name| name.level > 0 && name.to == merged.to);
        let needless: Vec<RunName> = ends_alike.filter(|name| !self.is_step(**name)).copied().collect();
        for name in &needless {
            self.runs.remove(&key(*name));
        }
        needless
    }

    /// Whether a run is the last of the fewest steps to its end.
    fn is_step(&self, name: RunName) -> bool {
        self.steps.get(&name.to.0).is_none_or(|(_, step)| *step == name)
    }
}

/// The merge that is due in a stack of runs of these sizes in bytes, oldest first: the places of the runs that become one. `fan` stands
/// for [`FAN`], and is 2 at least.
#[must_use]
pub fn due(stack: &[u64], fan: usize) -> Option<Range<usize>> {
    let classes: Vec<u32> = stack.iter().map(|bytes| bytes.max(&1).ilog(fan as u64)).collect();
    (1..=classes.len()).find_map(|end| due_at_the_end(classes.get(..end)?, fan))
}

/// The merge that is due if what comes before the last run is in order.
fn due_at_the_end(classes: &[u32], fan: usize) -> Option<Range<usize>> {
    let (last, before) = classes.split_last()?;
    let group = before.iter().rev().take_while(|class| *class <= last).count() + 1;
    let smaller = before.iter().rev().take_while(|class| *class < last).count();
    if group < fan {
        None
    } else if smaller > 1 {
        Some(before.len() - smaller..before.len())
    } else {
        Some(classes.len() - group..classes.len())
    }
}

const fn key(name: RunName) -> (u64, Reverse<u64>, u8) {
    (name.from.0, Reverse(name.to.0), name.level)
}

/// The name of the run that neighbours make, oldest first; `None` if there are none.
#[must_use]
pub fn merged_name(runs: &[RunName]) -> Option<RunName> {
    let (oldest, newest) = (runs.first()?, runs.last()?);
    let level = runs.iter().map(|name| name.level).max()?.saturating_add(1).min(LEVEL_MAX);
    Some(RunName { level, from: oldest.from, ..*newest })
}

/// The name of the tile that neighbouring tiles make.
#[must_use]
pub fn joined_name(tiles: &[RunName]) -> Option<RunName> {
    let (first, last) = (tiles.first()?, tiles.last()?);
    Some(RunName { from: first.from, ..*last })
}
