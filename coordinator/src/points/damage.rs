//! Which points need damaged frames, and which blocks the source has to send again.
//!
//! Owns the assessment of damaged frames, and of blocks that the source is known to have had otherwise, and its result for all
//! disks. Does not know who finds damage or who repairs it.
//! Invariants: a point that needs a damaged frame is named as such before it is offered; a frame that was not assessed yet
//! counts against every point behind it. Because the newest frame wins, the cuts that need a frame stand side by side in
//! the log: from the frame to the first cut by which all its blocks were written again.
//! Limit: [`RANGES_MAX`] ranges are kept per frame for people; repair takes what the index says.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use holdfast_common::{
    frame::extent::ExtentKind,
    ids::{DiskId, Sequence},
    units::{BlockCount, BlockRange},
};

use crate::{
    catalog::record::PointRecord,
    index::{BlockMap, CutHead, DiskIndex, IndexError, PieceSource},
};

/// Ranges of one frame that are kept.
pub const RANGES_MAX: usize = 1024;

/// A damaged frame, and who needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedFrame {
    /// The frame.
    pub sequence: Sequence,
    /// The blocks whose bytes it held; empty while it is not assessed.
    pub ranges: Vec<BlockRange>,
    /// Blocks of them that the newest state still takes from it: to be sent again.
    pub wanted: Vec<BlockRange>,
    /// The first cut behind the frame that does not need it; `None` while the newest one does.
    pub spared_from: Option<Sequence>,
}

/// Blocks that the source had otherwise at a cut: their bytes are whole, but wrong there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differing {
    /// The cut at which it was found. Cuts before it that have the same versions of the blocks may be wrong as well: when
    /// the source changed is not known.
    pub cut: Sequence,
    /// The blocks.
    pub ranges: Vec<BlockRange>,
    /// Blocks of them that the newest state still has in no newer version: to be sent again.
    pub wanted: Vec<BlockRange>,
    /// The first cut by which all of them were sent again; `None` while there is none.
    pub spared_from: Option<Sequence>,
}

/// Damage of one disk, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskDamage {
    /// The frames, ascending.
    pub frames: Vec<DamagedFrame>,
    /// What differs from the source, by cut, ascending.
    pub differing: Vec<Differing>,
}

/// Damage of all disks.
#[derive(Debug, Default)]
pub struct DamageLedger {
    disks: Mutex<HashMap<DiskId, DiskDamage>>,
}

impl DamagedFrame {
    /// A frame of which nothing else is known yet.
    #[must_use]
    pub const fn unassessed(sequence: Sequence) -> Self {
        Self { sequence, ranges: Vec::new(), wanted: Vec::new(), spared_from: None }
    }

    /// Whether the state at this cut needs the frame.
    #[must_use]
    pub fn hits(&self, cut: Sequence) -> bool {
        cut >= self.sequence && self.spared_from.is_none_or(|spared| cut < spared)
    }

    /// Whether new points do without it.
    #[must_use]
    pub const fn is_repaired(&self) -> bool {
        self.spared_from.is_some()
    }

    /// Asks the index who needs a frame. `None` if nobody does.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn assess(index: &DiskIndex, sequence: Sequence) -> Result<Option<Self>, IndexError> {
        let cuts = index.cuts_after(Sequence(sequence.0.saturating_sub(1)));
        let mut ranges = ranges_of_frame(index, sequence);
        if ranges.is_empty() {
            // Its head is damaged too. What the first cut behind it takes from it is all that anybody can need.
            ranges = match cuts.first() {
                Some(cut) => taken_from(&index.at_cut(cut.sequence)?, &whole(index), sequence)?,
                None => taken_from(index, &whole(index), sequence)?,
            };
        }
        let low =
            first_without(&cuts, |cut| Ok(!taken_from(&index.at_cut(cut)?, &ranges, sequence)?.is_empty()))?;
        let spared_from = cuts.get(low).map(|cut| cut.sequence);
        let wanted = if spared_from.is_some() { Vec::new() } else { taken_from(index, &ranges, sequence)? };
        let needless = if low == 0 { spared_from.is_some() || wanted.is_empty() } else { false };
        ranges.truncate(RANGES_MAX);
        Ok((!needless).then_some(Self { sequence, ranges, wanted, spared_from }))
    }
}

impl Differing {
    /// Blocks of which nothing else is known yet.
    #[must_use]
    pub const fn unassessed(cut: Sequence, ranges: Vec<BlockRange>) -> Self {
        Self { cut, ranges, wanted: Vec::new(), spared_from: None }
    }

    /// Whether the state at this cut is known to be wrong.
    #[must_use]
    pub fn hits(&self, cut: Sequence) -> bool {
        cut >= self.cut && self.spared_from.is_none_or(|spared| cut < spared)
    }

    /// Whether new points are right again.
    #[must_use]
    pub const fn is_repaired(&self) -> bool {
        self.spared_from.is_some()
    }

    /// Asks the index which cuts are wrong, and what is to be sent again. `None` if no cut is, and nothing.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn assess(
        index: &DiskIndex,
        cut: Sequence,
        ranges: Vec<BlockRange>,
    ) -> Result<Option<Self>, IndexError> {
        let is_old = |source: PieceSource| source.sequence() <= cut;
        let cuts = index.cuts_after(Sequence(cut.0.saturating_sub(1)));
        let needed = first_without(&cuts, |at| Ok(!pick(&index.at_cut(at)?, &ranges, &is_old)?.is_empty()))?;
        let spared_from = cuts.get(needed).map(|cut| cut.sequence);
        let wanted = if spared_from.is_some() { Vec::new() } else { pick(index, &ranges, &is_old)? };
        let needless = needed == 0 && wanted.is_empty();
        Ok((!needless).then_some(Self { cut, ranges, wanted, spared_from }))
    }
}

/// How many cuts from the first on need something; the others do not.
fn first_without(
    cuts: &[Arc<CutHead>],
    needs: impl Fn(Sequence) -> Result<bool, IndexError>,
) -> Result<usize, IndexError> {
    let (mut low, mut high) = (0, cuts.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let Some(cut) = cuts.get(middle) else { break };
        if needs(cut.sequence)? { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

/// The data extents that a frame's head names; nothing if the head cannot be had.
fn ranges_of_frame(index: &DiskIndex, sequence: Sequence) -> Vec<BlockRange> {
    let before = Sequence(sequence.0.saturating_sub(1));
    let heads = index.log().heads_after(before, 1).map(|batch| batch.heads).unwrap_or_default();
    let head = heads.into_iter().find(|head| head.header.sequence == sequence);
    let extents = head.map(|head| head.extents).unwrap_or_default();
    extents.iter().filter(|extent| extent.kind == ExtentKind::Data).map(|extent| extent.range).collect()
}

fn whole(index: &DiskIndex) -> [BlockRange; 1] {
    [BlockRange::new(0, BlockCount::covering(index.log().manifest().size_bytes).0)]
}

/// The blocks of `ranges` whose bytes a map takes from this frame.
fn taken_from<M: BlockMap + ?Sized>(
    map: &M,
    ranges: &[BlockRange],
    sequence: Sequence,
) -> Result<Vec<BlockRange>, IndexError> {
    pick(
        map,
        ranges,
        &|source| matches!(source, PieceSource::Frame { sequence: from, .. } if from == sequence),
    )
}

/// The blocks of `ranges` whose bytes a map takes from a wanted source.
fn pick<M: BlockMap + ?Sized>(
    map: &M,
    ranges: &[BlockRange],
    wanted: &dyn Fn(PieceSource) -> bool,
) -> Result<Vec<BlockRange>, IndexError> {
    let mut taken: Vec<BlockRange> = Vec::new();
    for range in ranges {
        let mut left = *range;
        while !left.is_empty() {
            let pieces = map.resolve(left)?;
            let Some(end) = pieces.last().map(|piece| piece.range.end().0) else { break };
            for piece in pieces {
                if !wanted(piece.source) {
                    continue;
                }
                match taken.last_mut().filter(|last| last.end() == piece.range.start) {
                    Some(last) => last.count.0 += piece.range.count.0,
                    None => taken.push(piece.range),
                }
            }
            left = BlockRange::new(end, left.end().0.saturating_sub(end));
        }
    }
    Ok(taken)
}

impl DiskDamage {
    /// Frames that the state at a cut needs.
    #[must_use]
    pub fn of_cut(&self, cut: Sequence) -> Self {
        Self {
            frames: self.frames.iter().filter(|frame| frame.hits(cut)).cloned().collect(),
            differing: self.differing.iter().filter(|some| some.hits(cut)).cloned().collect(),
        }
    }

    /// Whether the state at a cut is hit.
    #[must_use]
    pub fn hits(&self, cut: Sequence) -> bool {
        self.frames.iter().any(|frame| frame.hits(cut)) || self.differing.iter().any(|some| some.hits(cut))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.differing.is_empty()
    }

    /// Whether new points do without all of the frames.
    #[must_use]
    pub fn is_repaired(&self) -> bool {
        self.frames.iter().all(DamagedFrame::is_repaired) && self.differing.iter().all(Differing::is_repaired)
    }
}

/// What is damaged, in a few words.
impl fmt::Display for DiskDamage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.frames.is_empty() {
            return differing_text(&self.differing, f);
        }
        let ranges: Vec<&BlockRange> = self.frames.iter().flat_map(|frame| &frame.ranges).collect();
        name_ranges(&ranges, f)?;
        let frames = self.frames.len();
        let first = self.frames.first().map_or(0, |frame| frame.sequence.0);
        if frames == 1 {
            write!(f, " (frame {first})")?;
        } else {
            write!(f, " ({frames} frames from {first} on)")?;
        }
        if self.differing.is_empty() {
            return Ok(());
        }
        f.write_str("; ")?;
        differing_text(&self.differing, f)
    }
}

fn differing_text(differing: &[Differing], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let ranges: Vec<&BlockRange> = differing.iter().flat_map(|some| &some.ranges).collect();
    name_ranges(&ranges, f)?;
    f.write_str(" not as the source had it")
}

/// The first ranges, in bytes, and how many more there are.
fn name_ranges(ranges: &[&BlockRange], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (position, range) in ranges.iter().take(RANGES_SHOWN).enumerate() {
        let comma = if position > 0 { ", " } else { "" };
        write!(f, "{comma}bytes {}..{}", range.start.byte_offset(), range.end().byte_offset())?;
    }
    match ranges.len() {
        0 => f.write_str("an unknown range"),
        count if count > RANGES_SHOWN => write!(f, " and {} more ranges", count - RANGES_SHOWN),
        _ => Ok(()),
    }
}

/// Ranges that a text names.
const RANGES_SHOWN: usize = 3;

impl DamageLedger {
    /// Damage of a disk.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> DiskDamage {
        self.disks().get(&disk).cloned().unwrap_or_default()
    }

    /// Replaces what is known of a disk; empty damage forgets it.
    pub fn set(&self, disk: DiskId, damage: DiskDamage) {
        if damage.is_empty() {
            self.disks().remove(&disk);
        } else {
            self.disks().insert(disk, damage);
        }
    }

    /// Whether the state of a disk at a cut needs a damaged frame.
    #[must_use]
    pub fn hits(&self, disk: DiskId, cut: Sequence) -> bool {
        self.disks().get(&disk).is_some_and(|damage| damage.hits(cut))
    }

    /// What is damaged of a point: by disk.
    #[must_use]
    pub fn point(&self, point: &PointRecord) -> Vec<(DiskId, DiskDamage)> {
        let disks = self.disks();
        let hit = |member: &crate::catalog::record::PointDiskRecord| {
            let damage = disks.get(&member.disk)?.of_cut(member.sequence);
            (!damage.is_empty()).then_some((member.disk, damage))
        };
        point.disks.iter().filter_map(hit).collect()
    }

    fn disks(&self) -> MutexGuard<'_, HashMap<DiskId, DiskDamage>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::{ids::Sequence, units::BlockRange};

    use super::{DamagedFrame, Differing, DiskDamage};

    fn frame(sequence: u64, spared_from: Option<u64>) -> DamagedFrame {
        let ranges = vec![BlockRange::new(sequence, 1)];
        let spared_from = spared_from.map(Sequence);
        DamagedFrame { sequence: Sequence(sequence), ranges, wanted: Vec::new(), spared_from }
    }

    #[test]
    fn only_cuts_between_the_frame_and_its_replacement_are_hit() {
        let frame = frame(5, Some(9));
        assert_eq!([4, 5, 8, 9].map(|cut| frame.hits(Sequence(cut))), [false, true, true, false]);
        let open = DamagedFrame::unassessed(Sequence(5));
        assert_eq!([4, 5, 900].map(|cut| open.hits(Sequence(cut))), [false, true, true]);
    }

    #[test]
    fn the_text_names_ranges_and_frames() {
        let damage = DiskDamage { frames: vec![frame(1, None)], ..DiskDamage::default() };
        assert_eq!(damage.to_string(), "bytes 4096..8192 (frame 1)");
        let frames = (1..=5).map(|number| frame(number, None)).collect();
        let damage = DiskDamage { frames, ..DiskDamage::default() };
        let text = damage.to_string();
        assert!(text.contains("bytes 12288..16384 and 2 more ranges (5 frames from 1 on)"), "{text}");
        assert!(!damage.is_repaired());
        let differing = Differing::unassessed(Sequence(9), vec![BlockRange::new(2, 1)]);
        assert_eq!([8, 9, 900].map(|cut| differing.hits(Sequence(cut))), [false, true, true]);
        let damage = DiskDamage { differing: vec![differing], ..DiskDamage::default() };
        assert_eq!(damage.to_string(), "bytes 8192..12288 not as the source had it");
        assert!(damage.of_cut(Sequence(8)).is_empty() && damage.hits(Sequence(9)) && !damage.is_repaired());
    }
}
