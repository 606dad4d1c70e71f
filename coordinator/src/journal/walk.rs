//! Walking over a segment from front to back, verifying every frame: for segments that have no usable footer.
//!
//! Owns the search for the next good part behind damage. Does not know what damage means (see [`super::recovery`]).
//! Invariant: pure; every frame that comes out has passed its digest, is of the expected disk, and its sequence is higher
//! than that of the frame before.
//! Limit: holds one frame and one search window in memory.

use std::io;

use bytes::Bytes;

use holdfast_common::{
    frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, header::FRAME_MAGIC},
    ids::{DiskId, Sequence},
};

use super::{
    format::{FOOTER_MAGIC, MARK_BYTES, MARK_MAGIC, Mark, MarkPlace, SEGMENT_HEADER_BYTES},
    source::ReadAt,
};

/// Bytes that are looked through at a time for the next good part.
const WINDOW_BYTES: usize = 1 << 20;

/// What lies in a segment behind its header.
#[derive(Clone, Debug)]
pub enum Part {
    /// A verified frame.
    Frame {
        /// Offset of its first byte.
        offset: u64,
        /// The frame.
        frame: Frame,
    },
    /// A mark.
    Mark(Mark),
    /// Bytes that are none of these, up to the next good part or the end of the file.
    Unreadable {
        /// Offset of the first byte.
        from: u64,
        /// Offset behind the last byte.
        to: u64,
    },
    /// A footer begins.
    Footer {
        /// What it says was durable.
        mark: Mark,
        /// Offset of its first byte.
        offset: u64,
    },
}

/// Walks over one segment.
#[derive(Debug)]
pub struct Walk<'a, S: ReadAt + ?Sized> {
    source: &'a S,
    disk: DiskId,
    last: Sequence,
    at: u64,
    end: u64,
    done: bool,
    window: (u64, Vec<u8>),
}

impl<'a, S: ReadAt + ?Sized> Walk<'a, S> {
    /// Begins behind the header of a segment of `disk`, whose frames come after `last`.
    ///
    /// # Errors
    /// The length cannot be read.
    pub fn new(source: &'a S, disk: DiskId, last: Sequence) -> io::Result<Self> {
        Ok(Self {
            source,
            disk,
            last,
            at: SEGMENT_HEADER_BYTES as u64,
            end: source.length()?,
            done: false,
            window: (0, Vec::new()),
        })
    }

    /// The next part, or `None` at the end.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn next_part(&mut self) -> io::Result<Option<Part>> {
        if self.done || self.at >= self.end {
            return Ok(None);
        }
        let from = self.at;
        if let Some((part, bytes)) = self.part_at(from)? {
            return Ok(Some(self.step(part, from + bytes)));
        }
        let mut search = from + 1;
        while let Some(candidate) = self.find_magic(search)? {
            if self.part_at(candidate)?.is_some() {
                self.at = candidate;
                return Ok(Some(Part::Unreadable { from, to: candidate }));
            }
            search = candidate + 1;
        }
        self.at = self.end;
        Ok(Some(Part::Unreadable { from, to: self.end }))
    }

    fn step(&mut self, part: Part, next: u64) -> Part {
        match &part {
            Part::Frame { frame, .. } => self.last = frame.header().sequence,
            Part::Footer { .. } => self.done = true,
            Part::Mark(_) | Part::Unreadable { .. } => {}
        }
        self.at = next;
        part
    }

    /// The part that begins exactly here, and its size.
    fn part_at(&self, offset: u64) -> io::Result<Option<(Part, u64)>> {
        let front = self.source.read_up_to(offset, FRAME_HEADER_BYTES)?;
        if let Ok((mark, place)) = Mark::parse(&front, self.disk) {
            return Ok(match place {
                // A mark speaks of what lies in front of it.
                MarkPlace::Group if mark.durable_bytes <= offset => {
                    Some((Part::Mark(mark), MARK_BYTES as u64))
                }
                MarkPlace::Footer if mark.durable_bytes == offset => {
                    Some((Part::Footer { mark, offset }, self.end - offset))
                }
                _ => None,
            });
        }
        let Ok(header) = FrameHeader::parse(&front) else { return Ok(None) };
        let size = header.frame_bytes();
        let expected = header.disk == self.disk && header.sequence > self.last;
        if !expected || offset + size as u64 > self.end {
            return Ok(None);
        }
        let mut bytes = vec![0; size];
        self.source.read_exact_at(offset, &mut bytes)?;
        let frame = Frame::verify(Bytes::from(bytes)).ok();
        Ok(frame.map(|frame| (Part::Frame { offset, frame }, size as u64)))
    }

    /// The next offset from `from` on where a part may begin.
    fn find_magic(&mut self, from: u64) -> io::Result<Option<u64>> {
        let mut at = from;
        loop {
            let (start, window) = self.window(at)?;
            let skip = usize::try_from(at - start).unwrap_or(usize::MAX);
            let rest = window.get(skip..).unwrap_or_default();
            let magics = [FRAME_MAGIC, MARK_MAGIC, FOOTER_MAGIC];
            if let Some(found) = rest.windows(4).position(|four| magics.iter().any(|magic| four == magic)) {
                return Ok(Some(at + found as u64));
            }
            let window_end = start + window.len() as u64;
            if window_end >= self.end {
                return Ok(None);
            }
            // A magic may lie across two windows.
            at = window_end - 3;
        }
    }

    /// The window that holds `at` and at least three more bytes, unless the file ends before.
    fn window(&mut self, at: u64) -> io::Result<(u64, &[u8])> {
        let (start, window) = &self.window;
        let window_end = start + window.len() as u64;
        let inside = at >= *start && (at + 4 <= window_end || (window_end >= self.end && at <= window_end));
        if !inside || window.is_empty() {
            self.window = (at, self.source.read_up_to(at, WINDOW_BYTES)?);
        }
        Ok((self.window.0, &self.window.1))
    }
}
