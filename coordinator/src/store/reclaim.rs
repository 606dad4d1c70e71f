//! Segments lose the frames that nobody needs: dropped as a whole, or written again without them.
//!
//! Owns the census of segments, the plan, and its steps. Does not know why a frame is needless ([`super::kept`] says that it
//! is). Invariants: the segment being written and the last one are left alone; at every moment each needed frame is
//! in a segment under its name, so a crash at any point loses nothing and leaves at most a file that is deleted later; readers
//! that hold an old segment go on with it. Frames are copied whole and verified, never decompressed.
//! Limits: [`PLAN_BYTES_MAX`] bytes are copied per plan; needless bytes may stay as long as they are at most
//! [`SLACK_PERCENT`] of the needed ones.
//!
//! Cost: a census reads 8 bytes per frame of the segments that changed; a step reads and writes the needed bytes of its
//! segments. Those with the largest needless share go first, so that little is copied for what becomes free.

use std::{cmp::Reverse, collections::BTreeMap, fs};

use holdfast_common::{durable, ids::Sequence};

use super::{error::StoreError, kept::Kept, log::DiskLog};
use crate::journal::rewrite::{RewriteError, header_like, rewrite};

/// Needless bytes that may stay, as a share of the needed ones.
pub const SLACK_PERCENT: u64 = 20;
/// A segment with a smaller needless share is not written again: that would copy much and free little.
const SHARE_PERCENT_MIN: u64 = 10;
/// Bytes that one plan copies at most.
pub const PLAN_BYTES_MAX: u64 = 1 << 30;

/// What one sealed segment holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentCensus {
    /// Size of the file.
    pub file_bytes: u64,
    /// Bytes of frames that somebody needs.
    pub live_bytes: u64,
    /// Bytes of frames that nobody needs.
    pub dead_bytes: u64,
    /// Frames that somebody needs.
    pub live_frames: u64,
    /// Its last frame.
    pub last: Sequence,
}

/// What a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes of frames that the newest state takes blocks from.
    pub live_bytes: u64,
    /// Bytes of other frames that points need.
    pub history_bytes: u64,
    /// Bytes of frames that nobody needs; reclaim gives them back, but for the slack that it leaves.
    pub reclaimable_bytes: u64,
}

/// What is to be done with a log's segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReclaimPlan {
    /// Segments without a needed frame.
    pub drop: Vec<Sequence>,
    /// Neighbours that become one segment.
    pub rewrite: Vec<Vec<Sequence>>,
    /// Bytes to be copied.
    pub copy_bytes: u64,
    /// Bytes that become free.
    pub free_bytes: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Bytes of files that are gone.
    pub freed_bytes: u64,
    /// Bytes of files that were written.
    pub written_bytes: u64,
}

/// Plans from the census of all sealed segments but the last. `segment_bytes` is how large a joined segment may become.
#[must_use]
pub fn plan(census: &BTreeMap<u64, SegmentCensus>, segment_bytes: u64) -> ReclaimPlan {
    let (dropped, census): (BTreeMap<_, _>, BTreeMap<_, _>) =
        with_copies_emptied(census).into_iter().partition(|(_, segment)| segment.live_frames == 0);
    let mut plan = ReclaimPlan {
        drop: dropped.keys().copied().map(Sequence).collect(),
        free_bytes: dropped.values().map(|segment| segment.file_bytes).sum(),
        ..ReclaimPlan::default()
    };
    let kept = census.iter();
    let live: u64 = kept.clone().map(|(_, segment)| segment.live_bytes).sum();
    let mut dead: u64 = kept.clone().map(|(_, segment)| segment.dead_bytes).sum();
    let share = |segment: &SegmentCensus| {
        u128::from(segment.dead_bytes) * 10_000 / u128::from((segment.dead_bytes + segment.live_bytes).max(1))
    };
    let mut worst: Vec<(&u64, &SegmentCensus)> = kept.collect();
    worst.sort_by_key(|(first, segment)| (Reverse(share(segment)), **first));
    let mut chosen = BTreeMap::new();
    for (first, segment) in worst {
        let enough = dead.saturating_mul(100) <= live.saturating_mul(SLACK_PERCENT);
        let dear = share(segment) < u128::from(SHARE_PERCENT_MIN * 100);
        if enough || dear || plan.copy_bytes + segment.live_bytes > PLAN_BYTES_MAX.max(segment.live_bytes) {
            break;
        }
        dead -= segment.dead_bytes;
        plan.copy_bytes += segment.live_bytes;
        plan.free_bytes += segment.dead_bytes;
        chosen.insert(*first, segment.live_bytes);
    }
    plan.rewrite = joined(&census, &chosen, segment_bytes);
    plan
}

/// A segment that begins at or before the last frame of the one in front of it was joined to that, and a crash kept it from
/// being deleted: what it holds is there, too.
fn with_copies_emptied(census: &BTreeMap<u64, SegmentCensus>) -> BTreeMap<u64, SegmentCensus> {
    let mut last = Sequence(0);
    let mut found = census.clone();
    for (first, segment) in &mut found {
        if Sequence(*first) <= last {
            segment.live_frames = 0;
        }
        last = last.max(segment.last);
    }
    found
}

/// Neighbours that fit into one segment together, of the segments that are not dropped.
fn joined(
    census: &BTreeMap<u64, SegmentCensus>,
    chosen: &BTreeMap<u64, u64>,
    segment_bytes: u64,
) -> Vec<Vec<Sequence>> {
    let mut groups: Vec<Vec<Sequence>> = Vec::new();
    let (mut bytes, mut open) = (0, false);
    for first in census.keys() {
        match chosen.get(first) {
            Some(live) => {
                match groups.last_mut().filter(|_| open && bytes + live <= segment_bytes) {
                    Some(group) => group.push(Sequence(*first)),
                    None => {
                        groups.push(vec![Sequence(*first)]);
                        bytes = 0;
                    }
                }
                bytes += live;
                open = true;
            }
            // A segment that stays ends the group.
            None => open = false,
        }
    }
    groups
}

impl DiskLog {
    /// Counts what the sealed segments hold, but for the last one and the one being written. What was counted under the same
    /// record of what is kept is not read again.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn census(&self) -> Result<BTreeMap<u64, SegmentCensus>, StoreError> {
        let kept = self.kept();
        let sealed = self.segments().sealed_but_last();
        let mut known = self.census_memory();
        known.retain(|first, _| sealed.iter().any(|(sealed, _)| sealed.0 == *first));
        for (at, (first, file_bytes)) in sealed.iter().enumerate() {
            let last = sealed.get(at + 1).map_or(u64::MAX, |(next, _)| next.0 - 1);
            let stretches = kept.gone_in(*first, Sequence(last));
            if known.get(&first.0).is_some_and(|(size, seen, _)| size == file_bytes && *seen == stretches) {
                continue;
            }
            let counted = self.count(*first, *file_bytes, &kept)?;
            known.insert(first.0, (*file_bytes, stretches, counted));
        }
        Ok(known.iter().map(|(first, (_, _, census))| (*first, *census)).collect())
    }

    fn count(&self, first: Sequence, file_bytes: u64, kept: &Kept) -> Result<SegmentCensus, StoreError> {
        let segment = self.segments().sealed(first)?;
        let mut census = SegmentCensus { file_bytes, ..SegmentCensus::default() };
        for (sequence, bytes) in segment.frames() {
            census.last = sequence;
            if kept.is_gone(sequence) {
                census.dead_bytes += bytes;
            } else {
                census.live_bytes += bytes;
                census.live_frames += 1;
            }
        }
        Ok(census)
    }

    /// Bytes of the frames in sealed segments (but for the last) that `named` names.
    ///
    /// # Errors
    /// A segment cannot be read.
    pub fn bytes_of(&self, named: &mut dyn FnMut(Sequence) -> bool) -> Result<u64, StoreError> {
        let sealed = self.segments().sealed_but_last();
        let mut sum = 0;
        for (first, _) in sealed {
            let segment = self.segments().sealed(first)?;
            sum += segment.frames().filter(|(frame, _)| named(*frame)).map(|(_, bytes)| bytes).sum::<u64>();
        }
        Ok(sum)
    }

    /// What the log holds, given what the newest state needs of it. Counts the segments of the last census, and what was
    /// written since as needed.
    #[must_use]
    pub fn space_with(&self, live_bytes: u64) -> DiskSpace {
        let memory = self.census_memory();
        let counted: u64 = memory.values().map(|(_, _, census)| census.file_bytes).sum();
        let dead: u64 = memory.values().map(|(_, _, census)| census.dead_bytes).sum();
        let needed: u64 = memory.values().map(|(_, _, census)| census.live_bytes).sum();
        drop(memory);
        let behind = self.segments().file_bytes().saturating_sub(counted);
        let needed = needed.saturating_add(behind);
        let live_bytes = live_bytes.min(needed);
        DiskSpace { live_bytes, history_bytes: needed - live_bytes, reclaimable_bytes: dead }
    }

    /// Does what a plan says. `pace` is called with the bytes of each piece before it is copied; `false` stops, and what was
    /// not begun stays for the next plan. A segment with a damaged frame that is needed is left as it is.
    ///
    /// # Errors
    /// A file cannot be written or deleted; everything is as a crash would leave it, which is safe.
    pub fn reclaim(
        &self,
        plan: &ReclaimPlan,
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Reclaimed, StoreError> {
        let mut done = Reclaimed::default();
        for first in &plan.drop {
            let _shaping = self.shaping();
            done.freed_bytes += self.drop_segment(*first)?;
        }
        for group in &plan.rewrite {
            match self.rewrite_group(group, pace) {
                Ok(one) => {
                    done.freed_bytes += one.freed_bytes;
                    done.written_bytes += one.written_bytes;
                }
                Err(StoreError::Rewrite { source: RewriteError::Stopped, .. }) => break,
                Err(StoreError::Rewrite { source: RewriteError::Read(frame, error), path })
                    if error.is_damage() =>
                {
                    tracing::warn!(disk = %self.disk(), %frame, segment = %path.display(), "a damaged frame keeps a segment from being reclaimed");
                    self.bad_frames().note([frame]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Deletes a segment of which nothing is needed.
    fn drop_segment(&self, first: Sequence) -> Result<u64, StoreError> {
        let path = self.layout().segment(first);
        let bytes = self.segments_mut().remove(first);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("deleting", &path, error))
            }
            _ => Ok(bytes),
        }
    }

    /// Writes what is needed of neighbouring segments into one, and puts it in the place of the first.
    fn rewrite_group(
        &self,
        group: &[Sequence],
        pace: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Reclaimed, StoreError> {
        let Some(first) = group.first() else { return Ok(Reclaimed::default()) };
        let kept = self.kept();
        let segments = self.segments();
        let opened = group.iter().map(|first| segments.sealed(*first)).collect::<Result<Vec<_>, _>>()?;
        drop(segments);
        let needed = |sequence: &Sequence| !kept.is_gone(*sequence);
        let sources: Vec<_> = opened
            .iter()
            .map(|segment| {
                let frames = segment.frames().map(|(sequence, _)| sequence).filter(needed).collect();
                (segment.as_ref(), frames)
            })
            .collect();
        let (path, beside) = (self.layout().segment(*first), self.layout().segment_beside(*first));
        let header = opened.first().map(|segment| header_like(segment, self.disk(), *first));
        let Some(header) = header else { return Ok(Reclaimed::default()) };
        let written = rewrite(&beside, header, &sources, pace).map_err(|source| {
            // What is left is found and deleted at the next start, too.
            let _ = fs::remove_file(&beside);
            StoreError::Rewrite { path: beside.clone(), source }
        })?;
        let _shaping = self.shaping();
        durable::rename(&beside, &path).map_err(|error| StoreError::io("renaming", &beside, error))?;
        let mut done = Reclaimed { freed_bytes: 0, written_bytes: written };
        done.freed_bytes += self.segments_mut().replace(*first, written);
        for other in group.iter().skip(1) {
            done.freed_bytes += self.drop_segment(*other)?;
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests;
