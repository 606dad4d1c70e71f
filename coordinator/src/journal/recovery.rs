//! From a segment as a crash left it to one that can be appended to: first a plan, then its application.
//!
//! Owns the distinction between a torn tail and damage in the middle. Does not know other segments.
//! Invariant: the plan is a value and changes nothing; applying it cuts only what no mark calls durable, so only what was
//! never acknowledged. Applying it twice, or again after a crash, has the same result.
//! Format: see [`super::format`].

use std::{fs::File, io, ops::RangeInclusive};

use holdfast_common::{
    durable,
    ids::{DiskId, Generation, Interval, Sequence},
};

use super::{
    format::{FormatError, Mark, SEGMENT_HEADER_BYTES, SegmentHeader},
    segment::SegmentError,
    source::ReadAt,
    tables::SegmentTables,
    walk::{Part, Walk},
};

/// Bytes of a segment that cannot be read although they were durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the first bad byte in the file.
    pub from: u64,
    /// Offset behind the last bad byte.
    pub to: u64,
    /// Frames that were there. `None` if only marks or the header were hit.
    pub lost: Option<RangeInclusive<u64>>,
}

/// What is to be done with the newest segment of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryPlan {
    /// Size of the file now.
    pub file_bytes: u64,
    /// Size to keep; everything behind was never acknowledged.
    pub keep_bytes: u64,
    /// Damage in front of that.
    pub damage: Vec<Damage>,
    /// The frames that are good.
    pub tables: SegmentTables,
    /// Last sequence of the log: of the last good frame, or of the last one that a mark calls durable.
    pub last_sequence: Sequence,
    /// Interval of the last good frame, or the header's.
    pub last_interval: Interval,
    /// Generation of the last good frame, or the header's.
    pub last_generation: Generation,
}

impl RecoveryPlan {
    /// Bytes that will be cut off.
    #[must_use]
    pub const fn torn_bytes(&self) -> u64 {
        self.file_bytes - self.keep_bytes
    }
}

/// Looks at the newest segment of `disk`, whose first sequence is `first` (the file's name says so).
///
/// # Errors
/// The file is a newer version's or another disk's, or cannot be read.
pub fn plan<S: ReadAt + ?Sized>(
    source: &S,
    disk: DiskId,
    first: Sequence,
) -> Result<RecoveryPlan, SegmentError> {
    let mut survey = Survey::new(disk, first, source.length()?);
    survey.header(&source.read_up_to(0, SEGMENT_HEADER_BYTES)?)?;
    let mut walk = Walk::new(source, disk, Sequence(first.0.saturating_sub(1)))?;
    while let Some(part) = walk.next_part()? {
        survey.part(part)?;
    }
    Ok(survey.finish())
}

/// Does what the plan says, and makes what is kept durable.
///
/// # Errors
/// The file cannot be cut or synced; it is unchanged or cut, and can be planned again.
pub fn apply(file: &File, plan: &RecoveryPlan) -> io::Result<()> {
    if plan.keep_bytes < plan.file_bytes {
        file.set_len(plan.keep_bytes)?;
    }
    durable::sync_all(file)
}

/// What was seen so far.
struct Survey {
    disk: DiskId,
    first: Sequence,
    file_bytes: u64,
    header: Option<SegmentHeader>,
    tables: SegmentTables,
    unreadable: Vec<Unreadable>,
    durable_bytes: u64,
    durable_sequence: Sequence,
    footer_at: Option<u64>,
}

/// Bytes without a good part, and how many good frames stood in front of them.
struct Unreadable {
    from: u64,
    to: u64,
    frames_before: usize,
}

impl Survey {
    fn new(disk: DiskId, first: Sequence, file_bytes: u64) -> Self {
        Self {
            disk,
            first,
            file_bytes,
            header: None,
            tables: SegmentTables::new(first),
            unreadable: Vec::new(),
            durable_bytes: SEGMENT_HEADER_BYTES as u64,
            durable_sequence: Sequence(first.0.saturating_sub(1)),
            footer_at: None,
        }
    }

    fn header(&mut self, bytes: &[u8]) -> Result<(), SegmentError> {
        match SegmentHeader::parse(bytes) {
            Ok(header) if header.disk != self.disk || header.first_sequence != self.first => {
                Err(SegmentError::Foreign { disk: header.disk, first_sequence: header.first_sequence })
            }
            Ok(header) => {
                self.header = Some(header);
                Ok(())
            }
            Err(FormatError::Damaged { .. }) => {
                let to = (SEGMENT_HEADER_BYTES as u64).min(self.file_bytes);
                self.unreadable.push(Unreadable { from: 0, to, frames_before: 0 });
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn part(&mut self, part: Part) -> Result<(), SegmentError> {
        match part {
            Part::Frame { offset, frame } => {
                let pushed = self.tables.push(&frame, offset);
                pushed.ok_or(FormatError::Damaged { what: "segment" })?;
            }
            Part::Mark(mark) => self.durable(mark),
            Part::Unreadable { from, to } => {
                self.unreadable.push(Unreadable { from, to, frames_before: self.tables.entries().len() });
            }
            Part::Footer { mark, offset } => {
                self.durable(mark);
                self.footer_at = Some(offset);
            }
        }
        Ok(())
    }

    fn durable(&mut self, mark: Mark) {
        self.durable_bytes = self.durable_bytes.max(mark.durable_bytes);
        self.durable_sequence = self.durable_sequence.max(mark.durable_sequence);
    }

    fn finish(mut self) -> RecoveryPlan {
        let torn = self.unreadable.iter().position(|hole| hole.from >= self.durable_bytes);
        let mut keep_bytes = self.footer_at.unwrap_or(self.file_bytes);
        if let Some((position, hole)) = torn.and_then(|at| Some((at, self.unreadable.get(at)?))) {
            keep_bytes = hole.from;
            self.tables.truncate(hole.frames_before);
            self.unreadable.truncate(position);
        }
        let damage = self.unreadable.iter().map(|hole| self.damage(hole)).collect();
        let last = self.tables.last_head();
        let header = self.header.as_ref();
        RecoveryPlan {
            file_bytes: self.file_bytes,
            keep_bytes,
            damage,
            last_sequence: self.tables.last_sequence().unwrap_or_default().max(self.durable_sequence),
            last_interval: last.map_or_else(
                || header.map_or(Interval(0), |header| header.base_interval),
                |last| last.interval,
            ),
            last_generation: last.map_or_else(
                || header.map_or(Generation(0), |header| header.base_generation),
                |last| last.generation,
            ),
            tables: self.tables,
        }
    }

    /// Which frames were lost in a hole: those between its neighbours.
    fn damage(&self, hole: &Unreadable) -> Damage {
        let before = hole.frames_before.checked_sub(1).and_then(|at| self.tables.sequence_at(at));
        let first = before.map_or(self.first.0, |before| before.0.saturating_add(1));
        let behind = self.tables.sequence_at(hole.frames_before);
        let last = behind.map_or(self.durable_sequence.0, |behind| behind.0.saturating_sub(1));
        Damage {
            from: hole.from,
            to: hole.to,
            lost: (hole.to > SEGMENT_HEADER_BYTES as u64 && first <= last).then_some(first..=last),
        }
    }
}
