//! Cuts a data stream into frames.
//!
//! Owns the bytes that are not a whole frame yet. Does not verify digests.
//! Invariant: a header's lengths are checked before anything is kept for them.
//! Limit: one frame of the largest size, and one block of [`BLOCK_BYTES`].

use bytes::BytesMut;
use holdfast_common::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};

/// Memory is taken in pieces of this size, which several frames share.
const BLOCK_BYTES: usize = 512 << 10;

/// Collects bytes and gives out whole frames.
#[derive(Debug, Default)]
pub struct FrameCutter {
    bytes: BytesMut,
}

impl FrameCutter {
    /// Adds bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.bytes.capacity() - self.bytes.len() < bytes.len() {
            self.bytes.reserve(BLOCK_BYTES.max(bytes.len()));
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, unverified; `None` if more bytes are needed.
    ///
    /// # Errors
    /// What comes next is no frame; the stream cannot be read on.
    #[expect(clippy::should_implement_trait, reason = "more may come after None, unlike with an iterator")]
    pub fn next(&mut self) -> Result<Option<BytesMut>, FrameError> {
        if self.bytes.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let need = FrameHeader::parse(&self.bytes)?.frame_bytes();
        if self.bytes.len() < need {
            return Ok(None);
        }
        Ok(Some(self.bytes.split_to(need)))
    }

    /// Bytes of a frame that has not arrived whole.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_common::{
        frame::{Extent, Frame, FrameIdentity, FrameSealer},
        ids::{DiskId, Generation, Interval, Sequence},
        units::BlockRange,
    };

    use super::FrameCutter;

    fn frame(sequence: u64, blocks: u64) -> Vec<u8> {
        let identity = FrameIdentity {
            disk: DiskId::from_bytes([1; 16]),
            generation: Generation(1),
            sequence: Sequence(sequence),
            interval: Interval(1),
        };
        let plain = vec![sequence as u8; blocks as usize * 4096];
        let extents = [Extent::data(BlockRange::new(0, blocks))];
        FrameSealer::new(None).unwrap().seal_data(identity, &extents, &plain).unwrap().to_vec()
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let stream: Vec<u8> = (1..=40).flat_map(|number| frame(number, number)).collect();
        for step in [1, 95, 96, 97, 1200, 100_000] {
            let mut cutter = FrameCutter::default();
            let mut seen = 0;
            for piece in stream.chunks(step) {
                cutter.push(piece);
                while let Some(bytes) = cutter.next().unwrap() {
                    seen += 1;
                    assert_eq!(Frame::verify_mut(bytes).unwrap().header().sequence, Sequence(seen));
                }
            }
            assert_eq!((seen, cutter.pending()), (40, 0), "pieces of {step}");
        }
    }

    #[test]
    fn garbage_and_oversized_lengths_are_refused_at_the_header() {
        let mut cutter = FrameCutter::default();
        cutter.push(&[0x55; 96]);
        assert!(cutter.next().is_err());
        let mut large = frame(1, 1);
        large[52..56].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut cutter = FrameCutter::default();
        cutter.push(&large[..96]);
        assert!(cutter.next().is_err());
    }
}
