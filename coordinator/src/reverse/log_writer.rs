//! The coordinator as the writer of a disk's log.
//!
//! Owns the numbering, the planning into frames and their sealing. Does not know where blocks come from. Invariant: blocks stand
//! in a frame in ascending order, each once; frames go to the log in the order in which blocks were put.
//! Limits: a frame's ([`FRAME_PLAIN_BYTES_TARGET`] at most), and [`PENDING_BYTES_MAX`] of sealed frames that wait to be handed
//! over. All methods block; callers have a thread for them outside the runtime.

use std::{io, sync::Arc};

use bytes::Bytes;
use holdfast_common::{
    codec::CodecError,
    frame::{
        CutRecord, Extent, ExtentKind, FRAME_EXTENTS_MAX, FRAME_PLAIN_BYTES_TARGET, Frame, FrameError,
        FrameIdentity, FrameSealer, ScanRecord,
        seal::{seal_cut, seal_scan},
    },
    ids::{Generation, Interval, Sequence},
    units::{BlockIndex, BlockRange},
};
use thiserror::Error;
use tokio::runtime::Handle;

use crate::store::{DiskLog, append::LogSink, error::StoreError};

/// Why nothing can be written to a log.
#[derive(Debug, Error)]
pub enum LogWriterError {
    /// The log takes nothing.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The compressor cannot be set up.
    #[error("frames cannot be compressed")]
    Compressor(#[source] io::Error),
    /// A frame cannot be made.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A record cannot be made.
    #[error(transparent)]
    Record(#[from] CodecError),
}

/// Appends to a disk's log.
#[derive(Debug)]
pub struct LogWriter {
    sink: Arc<LogSink>,
    runtime: Handle,
    sealer: FrameSealer,
    next: FrameIdentity,
    extents: Vec<Extent>,
    plain: Vec<u8>,
    sealed: Vec<Frame>,
    sealed_bytes: usize,
    /// Blocks put so far.
    blocks: u64,
}

impl LogWriter {
    /// Goes on at the log's end, under this generation. Nobody else may write to the log meanwhile.
    ///
    /// # Errors
    /// The log takes nothing now.
    pub fn open(log: &Arc<DiskLog>, generation: Generation, runtime: Handle) -> Result<Self, LogWriterError> {
        let sink = log.sink()?;
        let tail = log.tail();
        let interval = Interval(tail.next_interval.0.max(1));
        let next = FrameIdentity { disk: log.disk(), generation, sequence: tail.sequence.next(), interval };
        let sealer = FrameSealer::new(Some(COMPRESSION_LEVEL)).map_err(LogWriterError::Compressor)?;
        let (extents, plain, sealed) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { sink, runtime, sealer, next, extents, plain, sealed, sealed_bytes: 0, blocks: 0 })
    }

    /// Blocks put so far.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Puts a block of [`BLOCK_BYTES`](holdfast_common::units::BLOCK_BYTES) bytes.
    ///
    /// # Errors
    /// The log takes nothing.
    pub fn put(&mut self, block: BlockIndex, bytes: &[u8]) -> Result<(), LogWriterError> {
        let kind = if is_zero(bytes) { ExtentKind::Zero } else { ExtentKind::Data };
        let end = self.extents.last().map_or(0, |last| last.range.end().0);
        let is_full = self.plain.len() + bytes.len() > FRAME_PLAIN_BYTES_TARGET
            || self.extents.len() == FRAME_EXTENTS_MAX;
        if block.0 < end || is_full {
            self.close_frame()?;
        }
        match self.extents.last_mut().filter(|last| last.range.end() == block && last.kind == kind) {
            Some(last) if last.range.count.0 < u64::from(u32::MAX) => last.range.count.0 += 1,
            _ => self.extents.push(Extent { range: BlockRange::new(block.0, 1), kind }),
        }
        if kind == ExtentKind::Data {
            self.plain.extend_from_slice(bytes);
        }
        self.blocks += 1;
        Ok(())
    }

    /// Says that the disk was compared up to its end.
    ///
    /// # Errors
    /// The log takes nothing.
    pub fn compared(&mut self, end: BlockIndex) -> Result<(), LogWriterError> {
        self.close_frame()?;
        let sealed = seal_scan(self.next, &ScanRecord { scanned_to: end, complete: true })?;
        self.push(sealed)
    }

    /// Ends the interval with a cut.
    ///
    /// # Errors
    /// The log takes nothing.
    pub fn cut(&mut self, record: &CutRecord) -> Result<(), LogWriterError> {
        self.close_frame()?;
        let sealed = seal_cut(self.next, record)?;
        self.push(sealed)?;
        self.next.interval.0 += 1;
        Ok(())
    }

    /// Waits until everything is durable.
    ///
    /// # Errors
    /// It is not.
    pub fn settle(&mut self) -> Result<Sequence, LogWriterError> {
        self.close_frame()?;
        self.hand_over()?;
        Ok(self.runtime.block_on(self.sink.settle())?)
    }

    fn close_frame(&mut self) -> Result<(), LogWriterError> {
        if self.extents.is_empty() {
            return Ok(());
        }
        let sealed = self.sealer.seal_data(self.next, &self.extents, &self.plain)?;
        self.extents.clear();
        self.plain.clear();
        self.push(sealed)
    }

    fn push(&mut self, sealed: Bytes) -> Result<(), LogWriterError> {
        self.sealed_bytes += sealed.len();
        self.sealed.push(Frame::verify(sealed)?);
        self.next.sequence = self.next.sequence.next();
        if self.sealed_bytes >= PENDING_BYTES_MAX { self.hand_over() } else { Ok(()) }
    }

    fn hand_over(&mut self) -> Result<(), LogWriterError> {
        if self.sealed.is_empty() {
            return Ok(());
        }
        self.sealed_bytes = 0;
        Ok(self.runtime.block_on(self.sink.append(std::mem::take(&mut self.sealed)))?)
    }
}

/// Whether there are only zeroes.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.first().is_none_or(|first| *first == 0)
        && bytes.iter().zip(bytes.iter().skip(1)).all(|(a, b)| a == b)
}

/// What an agent compresses with, unless it is told otherwise.
const COMPRESSION_LEVEL: i32 = 1;
/// Sealed frames that wait.
const PENDING_BYTES_MAX: usize = 4 << 20;
