//! The way to ship: bounded and in order.
//!
//! Owns the two seams: [`HandOver`], what the engine gives numbered frames to, and [`FrameSink`], where sealed ones
//! go. Does not know what a batch contains. Invariant: frames reach the sink in the order of submission.
//! Limit: [`HandOver::room`] frames; who submits more waits.

use bytes::Bytes;
use holdfast_common::frame::{Extent, FrameIdentity};
use thiserror::Error;

use super::ReadFrame;
use crate::ship::port::OutgoingFrame;

/// The way to ship has ended: the link was stopped, or sealing failed. The agent ends; nothing is lost, since
/// what is not acknowledged stays marked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("frames cannot be handed over any more: {reason}")]
pub struct SinkClosed {
    /// Why.
    pub reason: String,
}

/// Where sealed frames go.
pub trait FrameSink: Send {
    /// Hands a frame over; waits while the budget of what is unacknowledged is used up.
    ///
    /// # Errors
    /// The link was stopped.
    fn push(&mut self, frame: OutgoingFrame) -> Result<(), SinkClosed>;
}

/// What a numbered frame holds.
#[derive(Debug)]
pub enum Payload {
    /// Blocks that were read; still to be compressed and hashed.
    Blocks(ReadFrame),
    /// Zeroes only; still to be sealed.
    Zeroes(Vec<Extent>),
    /// A sealed frame (cut or scan).
    Sealed(Bytes),
}

/// What the engine gives numbered frames to.
pub trait HandOver: Send {
    /// Frames that [`Self::submit`] takes now without waiting.
    ///
    /// # Errors
    /// The way has ended.
    fn room(&self) -> Result<usize, SinkClosed>;

    /// Takes the next frame.
    ///
    /// # Errors
    /// The way has ended.
    fn submit(&mut self, identity: FrameIdentity, payload: Payload) -> Result<(), SinkClosed>;

    /// Plain bytes that were submitted and have not reached the sink (an estimate).
    fn waiting_bytes(&self) -> u64;
}
