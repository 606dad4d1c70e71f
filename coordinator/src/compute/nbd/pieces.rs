//! Reading a range of a view in pieces: data, holes, and exactly what cannot be read.
//!
//! Owns the splitting. Knows no protocol. Invariant: pieces come in ascending order, without gaps, and cover the range; a
//! byte of a data piece was read successfully.

use std::ops::Range;

use holdfast_common::units::BlockRange;

use crate::points::view::{BlockView, ViewError, ViewExtent};

/// A part of a range that could not be read.
#[derive(Debug)]
pub(super) struct Failure {
    /// Byte offsets on the disk.
    pub range: Range<u64>,
    /// Why.
    pub error: ViewError,
}

/// Fills `buffer` from `offset` as far as it can be read and returns what could not, ascending. The bytes of failed ranges
/// are undefined.
pub(super) fn read_around_damage(view: &dyn BlockView, offset: u64, buffer: &mut [u8]) -> Vec<Failure> {
    let mut failures = Vec::new();
    let mut work = Vec::new();
    let mut next = Some(offset..offset + buffer.len() as u64);
    while let Some(range) = next.take().or_else(|| work.pop()) {
        let Some(part) = part_of(buffer, offset, &range) else { continue };
        let Err(error) = view.read(range.start, part) else { continue };
        let bad = match &error {
            // Damage is the view's to delimit; the rest is asked for again.
            ViewError::Damaged { range: blocks, .. } | ViewError::Differs { range: blocks, .. } => {
                clip(*blocks, &range).unwrap_or(range.clone())
            }
            ViewError::BeyondEnd { .. } | ViewError::Io { .. } => range.clone(),
        };
        if bad.end < range.end {
            work.push(bad.end..range.end);
        }
        if range.start < bad.start {
            work.push(range.start..bad.start);
        }
        failures.push(Failure { range: bad, error });
    }
    failures.sort_by_key(|failure| failure.range.start);
    failures
}

/// Extents of `range`, in bytes: where each ends and whether it is a hole. A view that may not say more gives fewer;
/// one that says nothing useful gives the whole range as data.
pub(super) fn extents_of(
    view: &dyn BlockView,
    range: &Range<u64>,
) -> Result<Vec<(Range<u64>, bool)>, ViewError> {
    let mut parts: Vec<(Range<u64>, bool)> = Vec::new();
    let mut position = range.start;
    for ViewExtent { range: blocks, hole } in
        view.extents(BlockRange::covering(range.start, range.end - range.start))?
    {
        let end = blocks.end().byte_offset().min(range.end);
        if end <= position {
            continue;
        }
        match parts.last_mut() {
            Some((last, last_hole)) if *last_hole == hole => last.end = end,
            _ => parts.push((position..end, hole)),
        }
        position = end;
    }
    if parts.is_empty() {
        parts.push((range.clone(), false));
    }
    Ok(parts)
}

fn part_of<'a>(buffer: &'a mut [u8], offset: u64, range: &Range<u64>) -> Option<&'a mut [u8]> {
    let start = usize::try_from(range.start - offset).ok()?;
    let end = usize::try_from(range.end - offset).ok()?;
    buffer.get_mut(start..end)
}

fn clip(blocks: BlockRange, range: &Range<u64>) -> Option<Range<u64>> {
    let start = blocks.start.byte_offset().max(range.start);
    let end = blocks.end().byte_offset().min(range.end);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests;
