//! Reading stored frames to see whether they still are what was written.
//!
//! Owns the way through the files: in their order, in large pieces, on as many threads as it is given, and only the frames
//! that are asked for. Does not know why frames are checked, at what rate, or what becomes of bad ones.
//! Invariants: every frame that was asked for either passed its digest as it lies in the file or is named as bad; nothing is
//! decompressed. When told to stop it ends between two pieces, and what it says was checked is a beginning of the log.
//! Limit: [`PIECE_BYTES`] of memory per thread (more only for a single larger frame), and the entries of one segment.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use holdfast_common::{
    frame::{FRAME_HEADER_BYTES, FrameHeader, check_in_place},
    ids::Sequence,
};

use super::{
    error::StoreError,
    frame_set::FrameSet,
    log::DiskLog,
    segments::{Place, StoredFrames},
};
use crate::journal::segment::SegmentError;

/// Bytes read at a time: they stay in a processor's own cache until they are hashed.
pub const PIECE_BYTES: u64 = 512 << 10;

/// Unwanted bytes that are read along rather than beginning a new piece.
const GAP_BYTES: u64 = 16 << 10;

/// What is to be checked.
#[derive(Clone, Copy, Debug)]
pub struct CheckOrder<'a> {
    /// Frames behind this one.
    pub after: Sequence,
    /// Up to and including this one.
    pub up_to: Sequence,
    /// Only these; `None` for all that the log has.
    pub wanted: Option<&'a FrameSet>,
    /// Threads that work; one is the caller's.
    pub threads: usize,
    /// Whether what was read stays in the system's cache; if not, others' files are not pushed out of it.
    pub keep_cached: bool,
}

impl CheckOrder<'_> {
    /// Everything.
    #[must_use]
    pub const fn all(threads: usize) -> Self {
        let (after, up_to) = (Sequence(0), Sequence(u64::MAX));
        Self { after, up_to, wanted: None, threads, keep_cached: false }
    }
}

/// What was checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Everything that was ordered up to here.
    pub up_to: Sequence,
    /// Number of good frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that are damaged or missing, ascending.
    pub bad: Vec<Sequence>,
}

impl DiskLog {
    /// Checks frames. `between` hears of each piece's bytes (all of them together are [`Self::bytes_to_check`]) on all threads; it may
    /// wait, to hold a rate, and stops the work by giving `false`. Blocks.
    ///
    /// # Errors
    /// A file cannot be read for a reason other than damage.
    pub fn check(
        &self,
        order: &CheckOrder<'_>,
        between: &(dyn Fn(u64) -> bool + Sync),
    ) -> Result<Checked, StoreError> {
        let order = &CheckOrder { up_to: order.up_to.min(*self.durable().borrow()), ..*order };
        let work = Work { log: self, order, between, planner: Mutex::new(Planner::new(order)) };
        let outcome = thread::scope(|scope| {
            let others: Vec<_> = (1..order.threads).map(|_| scope.spawn(|| work.run())).collect();
            let mut outcome = work.run();
            for other in others {
                // What a thread that panicked was at is not known: nothing may be called good.
                outcome = outcome.and(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            outcome
        });
        let planner = work.planner.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome?;
        let mut checked = planner.checked;
        checked.bad.sort_unstable();
        checked.bad.dedup();
        Ok(checked)
    }

    /// Bytes of the frames of a set, by the segments' entries: what [`Self::check`] will read.
    ///
    /// # Errors
    /// A segment cannot be read at all.
    pub fn bytes_to_check(&self, wanted: &FrameSet) -> Result<u64, StoreError> {
        let mut bytes = 0;
        let mut next = wanted.iter().next();
        while let Some(sequence) = next {
            let stored = match self.stored_frames(sequence) {
                Err(error) if is_lost(&error) => {
                    next = wanted.iter_after(self.segment_end(sequence)).next();
                    continue;
                }
                other => other?,
            };
            let within = wanted.iter_after(Sequence(sequence.0 - 1)).take_while(|next| *next <= stored.end);
            bytes += within.filter_map(|sequence| stored.find(sequence)).map(|(_, bytes)| bytes).sum::<u64>();
            next = wanted.iter_after(stored.end).next();
        }
        Ok(bytes)
    }
}

/// Some frames that lie close together, and are read at once.
struct Piece {
    place: Place,
    offset: u64,
    bytes: u64,
    /// Sequence, offset, and size with what stands behind the frame.
    frames: Vec<(Sequence, u64, u64)>,
}

/// What the threads share.
struct Work<'a> {
    log: &'a DiskLog,
    order: &'a CheckOrder<'a>,
    between: &'a (dyn Fn(u64) -> bool + Sync),
    planner: Mutex<Planner<'a>>,
}

impl<'a> Work<'a> {
    fn run(&self) -> Result<(), StoreError> {
        let mut buffer = Vec::new();
        loop {
            let next = self.planner().next_piece(self.log);
            let Some(piece) = next.inspect_err(|_error| self.planner().stopped = true)? else {
                return Ok(());
            };
            let checked = self.check(&piece, &mut buffer);
            if !self.order.keep_cached {
                piece.place.leave_cache(piece.offset, piece.bytes);
            }
            let (good, bytes, bad) = checked.inspect_err(|_error| self.planner().stopped = true)?;
            let mut planner = self.planner();
            planner.checked.frames += good;
            planner.checked.bytes += bytes;
            planner.checked.bad.extend(bad);
            drop(planner);
            if !(self.between)(piece.frames.iter().map(|(.., bytes)| bytes).sum()) {
                self.planner().stopped = true;
            }
        }
    }

    /// Good frames, their bytes, and the bad ones of a piece.
    fn check(&self, piece: &Piece, buffer: &mut Vec<u8>) -> Result<(u64, u64, Vec<Sequence>), StoreError> {
        let wanted = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        let (mut good, mut bytes, mut bad) = (0, 0, Vec::new());
        let read = piece.place.read_at(piece.offset, buffer.get_mut(..wanted).unwrap_or_default());
        for (sequence, offset, _) in &piece.frames {
            let size = if read.is_ok() {
                let start = usize::try_from(offset - piece.offset).unwrap_or(usize::MAX);
                let frame = buffer.get_mut(start..wanted).unwrap_or_default();
                let header = check_in_place(frame).ok();
                let ours =
                    |header: &FrameHeader| header.disk == self.log.disk() && header.sequence == *sequence;
                header.filter(ours).map(|header| header.frame_bytes() as u64)
            } else {
                // Something in the piece cannot be read; perhaps not this frame.
                self.read_alone(*sequence)?
            };
            match size {
                Some(size) => {
                    good += 1;
                    bytes += size;
                }
                None => bad.push(*sequence),
            }
        }
        Ok((good, bytes, bad))
    }

    fn read_alone(&self, sequence: Sequence) -> Result<Option<u64>, StoreError> {
        match self.log.read(sequence) {
            Ok(frame) => Ok(Some(frame.bytes().len() as u64)),
            Err(error) if is_lost(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn planner(&self) -> MutexGuard<'_, Planner<'a>> {
        self.planner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the bytes of a frame are gone: damaged, missing, or on a part of the medium that cannot be read.
fn is_lost(error: &StoreError) -> bool {
    let medium = |source: &io::Error| {
        source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
            || source.kind() == io::ErrorKind::NotFound
    };
    match error {
        StoreError::Io { source, .. } => medium(source),
        StoreError::Segment { source: SegmentError::Io(source), .. } => medium(source) || error.is_damage(),
        other => other.is_damage(),
    }
}

/// What is read next.
struct Planner<'a> {
    order: &'a CheckOrder<'a>,
    /// The segment at hand, and the position of the next entry in it.
    stored: Option<(StoredFrames, usize)>,
    checked: Checked,
    stopped: bool,
}

impl<'a> Planner<'a> {
    fn new(order: &'a CheckOrder<'a>) -> Self {
        let checked = Checked { up_to: order.after, ..Checked::default() };
        Self { order, stored: None, checked, stopped: false }
    }

    fn next_piece(&mut self, log: &DiskLog) -> Result<Option<Piece>, StoreError> {
        while !self.stopped {
            if let Some((stored, at)) = self.stored.take() {
                if let Some(piece) = self.piece_of(log, stored, at) {
                    return Ok(Some(piece));
                }
                continue;
            }
            if self.checked.up_to >= self.order.up_to {
                return Ok(None);
            }
            let next = match self.order.wanted {
                Some(wanted) => wanted.iter_after(self.checked.up_to).next(),
                None => Some(self.checked.up_to.next()),
            };
            let Some(next) = next.filter(|next| *next <= self.order.up_to) else {
                self.checked.up_to = self.order.up_to;
                return Ok(None);
            };
            match log.stored_frames(next) {
                Ok(stored) => {
                    let at = stored.position(next);
                    self.checked.up_to = Sequence(next.0 - 1);
                    self.stored = Some((stored, at));
                }
                Err(error) if is_lost(&error) => {
                    self.checked.up_to = Sequence(next.0 - 1);
                    let end = log.segment_end(next).min(self.order.up_to).max(next);
                    self.missing(log, end.next());
                    self.checked.up_to = end;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The next piece of a segment; keeps the segment if there may be more. `None` at its end.
    fn piece_of(&mut self, log: &DiskLog, stored: StoredFrames, mut at: usize) -> Option<Piece> {
        let mut piece: Option<Piece> = None;
        while let Some((sequence, offset, bytes)) = stored.entry(at) {
            if sequence > self.order.up_to {
                break;
            }
            let wanted = self.order.wanted.is_none_or(|wanted| wanted.contains(sequence));
            if wanted {
                let piece = piece.get_or_insert_with(|| Piece {
                    place: stored.place.clone(),
                    offset,
                    bytes: 0,
                    frames: Vec::new(),
                });
                let end = piece.offset + piece.bytes;
                let fits = offset + bytes - piece.offset <= PIECE_BYTES && offset <= end + GAP_BYTES;
                if !piece.frames.is_empty() && !fits {
                    break;
                }
                piece.bytes = offset + bytes - piece.offset;
                piece.frames.push((sequence, offset, bytes));
            }
            self.missing(log, sequence);
            self.checked.up_to = sequence;
            at += 1;
        }
        let ended = stored.entry(at).is_none_or(|(sequence, ..)| sequence > self.order.up_to);
        if ended {
            let end = stored.end.min(self.order.up_to);
            self.missing(log, end.next());
            self.checked.up_to = self.checked.up_to.max(end);
        } else {
            self.stored = Some((stored, at));
        }
        piece
    }

    /// Notes frames in front of `sequence` that should be there and are not: unless nobody asked for them, or they are missing on
    /// purpose.
    fn missing(&mut self, log: &DiskLog, sequence: Sequence) {
        let before = self.checked.up_to;
        if before.next() >= sequence {
            return;
        }
        let asked = |sequence: &Sequence| self.order.wanted.is_none_or(|wanted| wanted.contains(*sequence));
        self.checked.bad.extend(log.missing(before.next(), sequence).into_iter().filter(asked));
    }
}

const _: () = assert!(PIECE_BYTES > FRAME_HEADER_BYTES as u64);

#[cfg(test)]
mod tests;
