//! The window: sealed frames from the moment capture hands them over until they are acknowledged.
//!
//! Owns the frames and, per disk, what was sent and what is durable. Does not know connections or messages.
//! Invariant: the frames held of a disk are of one generation and follow each other without a gap; a frame leaves only
//! by an acknowledgement, or because its whole line of history was replaced.
//! Limit: the byte budget given to [`Window::new`]; [`Window::push`] must be preceded by [`Window::has_room`].

use std::collections::{BTreeMap, VecDeque};

use holdfast_common::ids::{DiskId, Generation, Sequence};
use thiserror::Error;

use super::port::OutgoingFrame;

/// Frames of all disks.
#[derive(Debug)]
pub struct Window {
    disks: BTreeMap<DiskId, DiskWindow>,
    held_bytes: usize,
    bytes_max: usize,
}

/// Frames of one disk.
#[derive(Debug)]
struct DiskWindow {
    generation: Generation,
    /// Last durable frame, as far as we were told.
    acknowledged: Sequence,
    /// Last frame given out in this session, or the position it resumed from.
    sent: Sequence,
    /// `acknowledged + 1 ..` in order.
    frames: VecDeque<OutgoingFrame>,
    /// Bytes in `frames`.
    held_bytes: usize,
    /// The coordinator lacks frames that are no longer here: this line of history is at its end.
    lost: bool,
}

/// What became of a pushed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is held.
    Held,
    /// It belongs to a line of history that was replaced or has ended, and was dropped. Capture learns of that by
    /// the events that are on their way to it.
    Stale,
}

/// A frame that cannot be held. This is a mistake in capture, never of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("frame {got} of disk {disk} does not follow: {expected} is next")]
pub struct PushError {
    /// The disk.
    pub disk: DiskId,
    /// What must come next.
    pub expected: Sequence,
    /// What came.
    pub got: Sequence,
}

/// How a disk goes on in a new session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// Frames after the coordinator's position are sent again.
    Ready,
    /// The coordinator lacks frames that are no longer here, or has some that we never sent; the text says which.
    HistoryLost(String),
}

/// An acknowledgement of a frame that was never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the coordinator acknowledges frame {acknowledged} of disk {disk}, but only {sent} were sent")]
pub struct AcknowledgedTooMuch {
    /// The disk.
    pub disk: DiskId,
    /// What was acknowledged.
    pub acknowledged: Sequence,
    /// Last frame sent.
    pub sent: Sequence,
}

impl Window {
    /// An empty window that holds at most `bytes_max` bytes of frames.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { disks: BTreeMap::new(), held_bytes: 0, bytes_max }
    }

    /// Takes a frame in.
    ///
    /// # Errors
    /// It does not follow the last one of its disk and generation.
    pub fn push(&mut self, frame: OutgoingFrame) -> Result<Pushed, PushError> {
        let identity = frame.identity;
        let Some(disk) = self.disks.get_mut(&identity.disk) else { return Ok(Pushed::Stale) };
        if identity.generation != disk.generation || disk.lost {
            return Ok(Pushed::Stale);
        }
        let expected = disk.last().next();
        if identity.sequence != expected {
            return Err(PushError { disk: identity.disk, expected, got: identity.sequence });
        }
        disk.held_bytes += frame.bytes.len();
        self.held_bytes += frame.bytes.len();
        disk.frames.push_back(frame);
        Ok(Pushed::Held)
    }

    /// The next frame of a disk that was not sent in this session; `None` if there is none now.
    pub fn next(&mut self, disk: DiskId, generation: Generation) -> Option<OutgoingFrame> {
        let disk = self.disks.get_mut(&disk)?;
        if disk.generation != generation || disk.lost {
            return None;
        }
        let index = usize::try_from(disk.sent.0.checked_sub(disk.acknowledged.0)?).ok()?;
        let frame = disk.frames.get(index)?.clone();
        disk.sent = frame.identity.sequence;
        Some(frame)
    }

    /// Forgets frames up to this one. Returns whether anything was new.
    ///
    /// # Errors
    /// The coordinator speaks of frames that it cannot have.
    pub fn acknowledge(&mut self, id: DiskId, acknowledged: Sequence) -> Result<bool, AcknowledgedTooMuch> {
        let Some(disk) = self.disks.get_mut(&id).filter(|disk| !disk.lost) else { return Ok(false) };
        if acknowledged > disk.sent {
            return Err(AcknowledgedTooMuch { disk: id, acknowledged, sent: disk.sent });
        }
        if acknowledged <= disk.acknowledged {
            return Ok(false);
        }
        self.held_bytes -= disk.forget_to(acknowledged);
        Ok(true)
    }

    /// A new session: the coordinator has everything up to `durable` of this disk, and wants this generation.
    pub fn resume(&mut self, id: DiskId, generation: Generation, durable: Sequence) -> Resumed {
        let known = self.disks.get_mut(&id).filter(|disk| disk.generation == generation);
        let Some(disk) = known else {
            self.begin(id, generation, durable);
            return Resumed::Ready;
        };
        let reason = if disk.lost {
            "its frames were lost earlier".to_owned()
        } else if durable < disk.acknowledged {
            format!(
                "the coordinator has frames up to {durable} only, but had acknowledged {}",
                disk.acknowledged
            )
        } else if durable > disk.last() {
            format!("the coordinator has frames up to {durable}, but only {} were made here", disk.last())
        } else {
            disk.sent = durable;
            self.held_bytes -= disk.forget_to(durable);
            return Resumed::Ready;
        };
        self.held_bytes -= disk.drop_all();
        disk.lost = true;
        Resumed::HistoryLost(reason)
    }

    /// Begins a line of history after `durable`; what was held of another one is dropped.
    pub fn begin(&mut self, id: DiskId, generation: Generation, durable: Sequence) {
        let fresh = DiskWindow {
            generation,
            acknowledged: durable,
            sent: durable,
            frames: VecDeque::new(),
            held_bytes: 0,
            lost: false,
        };
        if let Some(mut old) = self.disks.insert(id, fresh) {
            self.held_bytes -= old.drop_all();
        }
    }

    /// Forgets disks that are protected no more.
    pub fn retain(&mut self, mut keep: impl FnMut(DiskId) -> bool) {
        let held_bytes = &mut self.held_bytes;
        self.disks.retain(|id, disk| {
            let keep = keep(*id);
            if !keep {
                *held_bytes -= disk.drop_all();
            }
            keep
        });
    }

    /// Whether a frame of this size may be pushed now. A single frame is always let in, however small the budget.
    #[must_use]
    pub const fn has_room(&self, bytes: usize) -> bool {
        self.held_bytes == 0 || self.held_bytes + bytes <= self.bytes_max
    }

    /// Bytes held, all disks together.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Bytes held of one disk.
    #[must_use]
    pub fn held_bytes_of(&self, disk: DiskId) -> usize {
        self.disks.get(&disk).map_or(0, |disk| disk.held_bytes)
    }

    /// The generation that a disk works in.
    #[must_use]
    pub fn generation(&self, disk: DiskId) -> Option<Generation> {
        self.disks.get(&disk).map(|disk| disk.generation)
    }

    /// Disks, their generations and what is durable of them.
    pub fn positions(&self) -> impl Iterator<Item = (DiskId, Generation, Sequence)> + '_ {
        self.disks.iter().map(|(id, disk)| (*id, disk.generation, disk.acknowledged))
    }
}

impl DiskWindow {
    /// Last frame held, or the last one that was.
    fn last(&self) -> Sequence {
        self.frames.back().map_or(self.acknowledged, |frame| frame.identity.sequence)
    }

    fn forget_to(&mut self, acknowledged: Sequence) -> usize {
        let mut freed = 0;
        while self.frames.front().is_some_and(|frame| frame.identity.sequence <= acknowledged) {
            freed += self.frames.pop_front().map_or(0, |frame| frame.bytes.len());
        }
        self.acknowledged = acknowledged;
        self.held_bytes -= freed;
        freed
    }

    fn drop_all(&mut self) -> usize {
        self.frames.clear();
        std::mem::take(&mut self.held_bytes)
    }
}

#[cfg(test)]
mod tests;
