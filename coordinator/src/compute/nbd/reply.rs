//! Several chunks of structured replies, collected to be sent by one system call.
//!
//! Owns the buffer that views read into and the headers around it. Does no IO on sockets. Invariant: the slices are whole
//! chunks in the order they were added. Limit: `BATCH_BYTES` of data and `CHUNKS_MAX` chunks.

use std::{io::IoSlice, ops::Range};

use super::{
    pieces::{self, Failure},
    protocol::{chunk, error},
    transmission,
    worker::BATCH_BYTES,
};
use crate::{compute::branch::WriteError, points::view::BlockView};

/// Chunks to be sent together. Reused from reply to reply.
pub(super) struct Batch {
    /// Bytes read; allocated on first use and kept.
    data: Vec<u8>,
    /// How much of `data` is in use.
    filled: usize,
    /// Headers and small contents, in order.
    heads: Vec<u8>,
    /// For each piece of data: where in `heads` it comes, and which bytes of `data`.
    inserts: Vec<(usize, Range<usize>)>,
    /// Where the header of the present reply's last chunk starts in `heads`.
    last_head: Option<usize>,
    /// What came of the pieces of the present request that were written while it was read.
    pub(super) written: Result<(), WriteError>,
}

impl Default for Batch {
    fn default() -> Self {
        let (data, heads, inserts) = (Vec::new(), Vec::new(), Vec::new());
        Self { data, filled: 0, heads, inserts, last_head: None, written: Ok(()) }
    }
}

impl Batch {
    /// Empties the batch; its memory stays.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
        self.heads.clear();
        self.inserts.clear();
        self.last_head = None;
    }

    /// A further reply begins.
    pub(super) fn begin_reply(&mut self) {
        self.last_head = None;
    }

    /// Whether it should be sent before more is added.
    pub(super) fn is_full(&self) -> bool {
        self.filled == BATCH_BYTES || self.heads.len() >= CHUNKS_MAX * transmission::CHUNK_HEADER_BYTES
    }

    /// Bytes of data that still fit.
    pub(super) fn room(&self) -> u64 {
        (BATCH_BYTES - self.filled) as u64
    }

    /// The whole buffer, for replies that are no chunks.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        if self.data.is_empty() {
            self.data.resize(BATCH_BYTES, 0);
        }
        &mut self.data
    }

    /// Reads a range that fits [`room`](Self::room) and adds its chunks.
    pub(super) fn read(
        &mut self,
        cookie: u64,
        view: &dyn BlockView,
        range: Range<u64>,
        mut report: impl FnMut(&Failure),
    ) {
        let base = self.filled;
        let bytes = usize::try_from(range.end - range.start).unwrap_or(0);
        let failures = match self.buffer().get_mut(base..base + bytes) {
            Some(part) => pieces::read_around_damage(view, range.start, part),
            None => return,
        };
        self.filled += bytes;
        let mut position = range.start;
        for failure in &failures {
            report(failure);
            self.data(cookie, base, range.start, position..failure.range.start);
            self.error(cookie, error::IO, &failure.error.to_string(), Some(failure.range.start));
            position = failure.range.end;
        }
        self.data(cookie, base, range.start, position..range.end);
    }

    /// Adds a chunk for `part`, whose bytes lie in the buffer from `base` on for disk offset `origin`.
    fn data(&mut self, cookie: u64, base: usize, origin: u64, part: Range<u64>) {
        let bytes = u32::try_from(part.end - part.start).unwrap_or(0);
        if bytes == 0 {
            return;
        }
        self.begin();
        transmission::push_data(&mut self.heads, cookie, false, part.start, bytes);
        let start = base + usize::try_from(part.start - origin).unwrap_or(0);
        self.inserts.push((self.heads.len(), start..start + bytes as usize));
    }

    /// Adds a hole.
    pub(super) fn hole(&mut self, cookie: u64, range: Range<u64>) {
        self.begin();
        let bytes = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
        transmission::push_hole(&mut self.heads, cookie, false, range.start, bytes);
    }

    /// Adds an error.
    pub(super) fn error(&mut self, cookie: u64, number: u32, text: &str, at: Option<u64>) {
        self.begin();
        transmission::push_error(&mut self.heads, cookie, false, number, text, at);
    }

    /// Adds block status.
    pub(super) fn block_status(&mut self, cookie: u64, extents: &[(u32, u32)]) {
        self.begin();
        transmission::push_block_status(&mut self.heads, cookie, extents);
    }

    /// Makes the last chunk that was added the reply's last; adds an empty one if there is none.
    pub(super) fn mark_done(&mut self, cookie: u64) {
        match self.last_head {
            // Flags stand behind the magic number.
            Some(head) => {
                if let Some(flags) = self.heads.get_mut(head + 4..head + 6) {
                    flags.copy_from_slice(&chunk::FLAG_DONE.to_be_bytes());
                }
            }
            None => transmission::push_done(&mut self.heads, cookie),
        }
    }

    /// All chunks.
    pub(super) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(self.inserts.len() * 2 + 1);
        let mut position = 0;
        for (at, bytes) in &self.inserts {
            slices.push(IoSlice::new(self.heads.get(position..*at).unwrap_or_default()));
            slices.push(IoSlice::new(self.data.get(bytes.clone()).unwrap_or_default()));
            position = *at;
        }
        let rest = self.heads.get(position..).unwrap_or_default();
        if !rest.is_empty() {
            slices.push(IoSlice::new(rest));
        }
        slices
    }

    fn begin(&mut self) {
        self.last_head = Some(self.heads.len());
    }
}

/// Chunks in one batch, about (holes are not worth a system call each).
const CHUNKS_MAX: usize = 512;
