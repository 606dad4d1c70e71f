//! Giving up cuts: which frames nobody needs then, and which runs.
//!
//! Owns the finding of needless frames, and the joining and deleting of runs around cuts that are gone. Does not know why a
//! cut is given up, nor what becomes of needless frames' bytes. Invariants: a frame is needless only if no needed cut, nor
//! the newest state, takes a block from it; the log's record says so before anything relies on it.
//!
//! A version of a block, written behind one needed cut and up to the next, is needed exactly if it is the last one there.
//! So what a tile between two neighbouring needed cuts names is needed, and what it does not name is not. When a cut is given
//! up, its two intervals become one; then only blocks that the younger one wrote can hide versions of the older one. Those are
//! looked up, and the frames that held them are asked whether anything of them is left.
//!
//! Cost of giving up a cut: the entries and the heads of the interval behind it, and a lookup in the interval before it for
//! each of them; never a walk over the index. An interval is looked at once more when it is new, for what was overwritten
//! inside of it.
//! Limit: [`CUTS_PER_STEP`] cuts at a time; a bit per frame of the younger interval in memory.

use std::{collections::BTreeSet, sync::Arc};

use holdfast_common::{
    codec,
    frame::{FrameKind, ScanRecord},
    ids::Sequence,
    units::BlockRange,
};

use super::{BATCH_BYTES, DiskIndex};
use crate::{
    index::{
        ladder::joined_name,
        lookup::{IndexError, PieceSource, resolve},
        merge::{Layer, merge},
        records::RunRecords,
        run::Run,
        run_format::RunName,
    },
    journal::tables::FrameHead,
    store::NeededCuts,
};

/// Cuts that are given up, or looked at for the first time, in one step.
pub(super) const CUTS_PER_STEP: usize = 512;

/// Joins that one call makes.
const JOINS_PER_STEP: usize = 64;

/// Tiles are joined when the older is at most this many times as large as the younger ones together: so an entry is
/// copied a few times, however small what is joined to it.
const JOIN_RATIO: u64 = 2;
/// Tiles below this many entries are joined in any case.
const JOIN_ENTRIES: u64 = 1024;

/// What one step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Cuts that were given up.
    pub cuts: usize,
    /// Frames that nobody needs any more.
    pub frames: usize,
    /// Whether there is more to do.
    pub more: bool,
}

/// Two neighbouring cuts that stay, and where what was looked at before ends between them.
struct Gap {
    from: Sequence,
    seen: Sequence,
    to: Sequence,
}

impl DiskIndex {
    /// Gives up the cuts up to the horizon that are not needed: finds the frames that nobody needs then, and records both in
    /// the log, durably. Does a bounded part of it. One caller at a time.
    ///
    /// # Errors
    /// Index or journal cannot be read, or the record cannot be written; nothing was given up then.
    pub fn retire(&self, needed: &NeededCuts) -> Result<Retired, IndexError> {
        let kept = self.log.kept();
        let (known, processed) = {
            let state = self.read();
            (state.cuts.iter().map(|cut| cut.sequence).collect::<Vec<_>>(), state.processed)
        };
        let mut indexed = needed.cuts.iter().filter(|cut| **cut <= processed);
        let unknown = indexed.clone().find(|cut| known.binary_search(cut).is_err());
        if let Some(cut) = unknown.copied().or(Some(kept.needed().horizon).filter(|old| *old > processed)) {
            // The index is being made again, or a point's cut was lost: what it needs cannot be told now.
            tracing::debug!(disk = %self.log.disk(), %cut, "no cut is given up while the index lacks one");
            return Ok(Retired::default());
        }
        let newest = indexed.next_back().copied();
        let (next, gaps, cuts) = next_step(&known, kept.needed(), needed, newest);
        if next == *kept.needed() {
            return Ok(Retired::default());
        }
        let mut frames = Vec::new();
        for gap in &gaps {
            self.find_needless(gap, &next, &mut frames)?;
        }
        let more = next.horizon < needed.horizon || next.cuts != needed.cuts;
        let retired = Retired {
            cuts,
            frames: frames.len(),
            more: more && next.horizon > kept.needed().horizon || cuts > 0,
        };
        self.log.keep(kept.with(next, frames))?;
        self.write().cuts.retain(|cut| self.log.kept().needs_cut(cut.sequence));
        Ok(retired)
    }

    /// Adds the frames of a gap that nobody needs.
    fn find_needless(
        &self,
        gap: &Gap,
        next: &NeededCuts,
        needless: &mut Vec<Sequence>,
    ) -> Result<(), IndexError> {
        let older = self.open_tiles(gap.from, gap.seen)?;
        let younger = self.open_tiles(gap.seen, gap.to)?;
        let mut named = Bits::new(gap.seen, gap.to);
        let mut hidden = BTreeSet::new();
        merge(&layers(&younger), &mut |entry| {
            named.set(entry.sequence);
            if !older.is_empty() {
                each_source(&older, entry.range(), &mut |sequence| {
                    hidden.insert(sequence);
                    false
                })?;
            }
            Ok(())
        })?;
        if gap.seen > gap.from {
            needless.push(gap.seen);
        }
        self.each_head(gap.seen, gap.to, &mut |head| {
            let sequence = head.header.sequence;
            let needed = match head.header.kind {
                FrameKind::Data => named.get(sequence),
                FrameKind::Cut => next.cuts.binary_search(&sequence).is_ok(),
                FrameKind::Scan => self.tells_something(head),
            };
            if !needed {
                needless.push(sequence);
            }
        })?;
        let runs: Vec<Arc<Run>> = younger.into_iter().chain(older).collect();
        for sequence in hidden {
            if !self.is_needed(&runs, sequence)? {
                needless.push(sequence);
            }
        }
        Ok(())
    }

    /// Whether the state that `runs` make still takes a block from a frame.
    fn is_needed(&self, runs: &[Arc<Run>], frame: Sequence) -> Result<bool, IndexError> {
        let heads = self.log.heads_after(Sequence(frame.0 - 1), 1)?.heads;
        let Some(head) = heads.into_iter().find(|head| head.header.sequence == frame) else {
            // It is lost. What it held is missed, and must not be taken for needless.
            return Ok(true);
        };
        for extent in head.extents {
            if each_source(runs, extent.range, &mut |source| source == frame)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a scan frame must stay: the newest one says how far a comparison is, complete ones end a loss.
    fn tells_something(&self, head: &FrameHead) -> bool {
        let complete = codec::decode::<ScanRecord>(&head.record).map_or(true, |record| record.complete);
        complete || self.newest_scan().is_none_or(|newest| newest.sequence <= head.header.sequence)
    }

    /// The heads of the frames after `from` up to `to`.
    fn each_head(
        &self,
        from: Sequence,
        to: Sequence,
        found: &mut dyn FnMut(&FrameHead),
    ) -> Result<(), IndexError> {
        let mut at = from;
        while at < to {
            let batch = self.log.heads_after(at, BATCH_BYTES)?;
            batch.heads.iter().filter(|head| head.header.sequence <= to).for_each(&mut *found);
            if batch.up_to <= at {
                break;
            }
            at = batch.up_to;
        }
        Ok(())
    }

    /// The tiles between two frames, newest first.
    fn open_tiles(&self, from: Sequence, to: Sequence) -> Result<Vec<Arc<Run>>, IndexError> {
        let tiles = self.read().ladder.tiles(from, to);
        let tiles = tiles.ok_or_else(|| IndexError::Damaged { path: self.folder.clone() })?;
        tiles.into_iter().rev().map(|name| self.run(name)).collect()
    }

    /// Joins tiles around cuts that were given up, and deletes runs that nothing needs any more. Does a bounded part of it;
    /// `true` if there may be more.
    ///
    /// # Errors
    /// A run cannot be read or written.
    pub fn tidy(&self) -> Result<bool, IndexError> {
        let mut joins = 0;
        for (from, to) in self.gaps() {
            let _merging = self.merging();
            let _working = self.working();
            joins += usize::from(self.join_some(from, to)?);
            if joins >= JOINS_PER_STEP {
                return Ok(true);
            }
        }
        let _merging = self.merging();
        let _working = self.working();
        self.settle_files()?;
        self.delete_needless()?;
        Ok(false)
    }

    /// Joins tiles between two neighbouring needed cuts, if it is worth it.
    fn join_some(&self, from: Sequence, to: Sequence) -> Result<bool, IndexError> {
        let tiles = self.read().ladder.tiles(from, to).unwrap_or_default();
        if tiles.len() < 2 {
            return Ok(false);
        }
        let runs = tiles.iter().map(|name| self.run(*name)).collect::<Result<Vec<_>, _>>()?;
        let worth = worth_joining(&runs.iter().map(|run| run.len()).collect::<Vec<_>>());
        let (tiles, runs) = (tiles.get(worth..).unwrap_or_default(), runs.get(worth..).unwrap_or_default());
        match joined_name(tiles).filter(|_| tiles.len() > 1) {
            Some(name) => self.join(name, runs).map(|()| true),
            None => Ok(false),
        }
    }

    /// Bytes of the frames that the newest cut takes blocks from. Walks over its runs, and reads the heads of the whole log.
    ///
    /// # Errors
    /// Index or journal cannot be read.
    pub fn newest_bytes(&self) -> Result<u64, IndexError> {
        let runs = self.read().newest.clone();
        let to = runs.first().map_or(Sequence(0), |run| run.to());
        let mut named = Bits::new(Sequence(0), to);
        merge(&layers(&runs), &mut |entry| {
            named.set(entry.sequence);
            Ok(())
        })?;
        Ok(self.log.bytes_of(&mut |frame| named.get(frame))?)
    }

    /// Neighbouring needed cuts, up to the horizon: between them no cut is needed.
    fn gaps(&self) -> Vec<(Sequence, Sequence)> {
        let kept = self.log.kept();
        let needed = kept.needed();
        let before = std::iter::once(Sequence(0)).chain(needed.cuts.iter().copied());
        before.zip(needed.cuts.iter().copied()).collect()
    }

    /// Makes one tile of several. These stay until it is known whether the way to a needed cut is shorter with one of them: the
    /// last step to every other cut is a tile.
    fn join(&self, name: RunName, runs: &[Arc<Run>]) -> Result<(), IndexError> {
        let mut records = RunRecords::default();
        for run in runs {
            records = records.followed_by(run.records()?);
        }
        let newest_first: Vec<Layer<'_>> = runs.iter().rev().map(|run| Layer::Run(run)).collect();
        self.write_run(name, &newest_first, &self.needed_records(records))?;
        self.write().ladder.add(name);
        Ok(())
    }

    fn delete_needless(&self) -> Result<(), IndexError> {
        let mut state = self.write();
        let needed: Vec<Sequence> = state.cuts.iter().map(|cut| cut.sequence).collect();
        let needless = state.ladder.needless(needed.into_iter());
        if needless.is_empty() {
            return Ok(());
        }
        state.ladder.remove_all(&needless);
        drop(state);
        needless.iter().for_each(|name| self.delete(*name));
        self.renew_newest()
    }
}

/// What is to be recorded next, the gaps that change by it, and the number of cuts given up. `known` are the cuts that the
/// index has, `newest` is the newest needed one of them.
fn next_step(
    known: &[Sequence],
    old: &NeededCuts,
    needed: &NeededCuts,
    newest: Option<Sequence>,
) -> (NeededCuts, Vec<Gap>, usize) {
    let old = old.horizon;
    let mut horizon = newest.unwrap_or(old).max(old);
    let (mut gaps, mut cuts, mut given_up, mut work) = (Vec::new(), Vec::new(), 0, 0);
    let (mut from, mut open) = (Sequence(0), Vec::new());
    for cut in known.iter().copied().filter(|cut| *cut <= horizon) {
        let room = work < CUTS_PER_STEP || !open.is_empty();
        if room && needed.cuts.binary_search(&cut).is_err() {
            open.push(cut);
            work += 1;
            continue;
        }
        if cut > old && !room {
            horizon = from.max(old);
            break;
        }
        if cut > old || !open.is_empty() {
            // Behind the old horizon nothing was looked at yet.
            let seen = open.first().copied().filter(|seen| *seen <= old).unwrap_or(from);
            gaps.push(Gap { from, seen, to: cut });
            work += 1;
        }
        given_up += open.len();
        open.clear();
        from = cut;
        cuts.push(cut);
    }
    // There is no needed cut behind these: they stay, or nothing would be left.
    cuts.append(&mut open);
    (NeededCuts { horizon, cuts }, gaps, given_up)
}

/// Runs as a merge or a lookup takes them.
fn layers(runs: &[Arc<Run>]) -> Vec<Layer<'_>> {
    runs.iter().map(|run| Layer::Run(run)).collect()
}

/// Calls `found` with the frames from which the runs take blocks of a range, until it says `true`.
fn each_source(
    runs: &[Arc<Run>],
    range: BlockRange,
    found: &mut dyn FnMut(Sequence) -> bool,
) -> Result<bool, IndexError> {
    let mut left = range;
    while !left.is_empty() {
        let pieces = resolve(&layers(runs), left)?;
        let Some(end) = pieces.last().map(|piece| piece.range.end().0) else { break };
        for piece in pieces {
            let (PieceSource::Frame { sequence, .. } | PieceSource::Zero(sequence)) = piece.source else {
                continue;
            };
            if found(sequence) {
                return Ok(true);
            }
        }
        left = BlockRange::new(end, range.end().0.saturating_sub(end));
    }
    Ok(false)
}

/// From which tile on the tiles of a gap are worth joining, by their sizes, oldest first.
fn worth_joining(sizes: &[u64]) -> usize {
    let mut from = sizes.len().saturating_sub(1);
    let mut younger = sizes.last().copied().unwrap_or(0);
    for (at, size) in sizes.iter().enumerate().rev().skip(1) {
        if *size > JOIN_ENTRIES.max(younger.saturating_mul(JOIN_RATIO)) {
            break;
        }
        (from, younger) = (at, younger.saturating_add(*size));
    }
    from
}

/// One bit for each frame behind `from` up to `to`.
struct Bits {
    from: u64,
    words: Vec<u64>,
}

impl Bits {
    fn new(from: Sequence, to: Sequence) -> Self {
        let count = usize::try_from(to.0.saturating_sub(from.0)).unwrap_or(0);
        Self { from: from.0, words: vec![0; count.div_ceil(64)] }
    }

    fn place(&self, frame: Sequence) -> Option<(usize, u64)> {
        let bit = frame.0.checked_sub(self.from + 1)?;
        Some((usize::try_from(bit / 64).ok()?, 1 << (bit % 64)))
    }

    fn set(&mut self, frame: Sequence) {
        let place = self.place(frame);
        if let Some((word, bit)) = place.and_then(|(word, bit)| Some((self.words.get_mut(word)?, bit))) {
            *word |= bit;
        }
    }

    fn get(&self, frame: Sequence) -> bool {
        let place = self.place(frame);
        place.and_then(|(word, bit)| Some(self.words.get(word)? & bit != 0)).unwrap_or(false)
    }
}
