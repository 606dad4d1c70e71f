//! Opening: from bytes to a verified frame, and to its plain bytes.
//!
//! Owns verification and bounded decompression. Does not know where frames come from.
//! Invariant: a [`Frame`] has passed its digest; plain bytes come out only of such a frame, and never more of them
//! than its header says.

use std::{fmt, sync::Arc};

use bytes::{Bytes, BytesMut};
use zstd::zstd_safe::WriteBuf;

use super::{
    cut::{CutRecord, ScanRecord},
    extent::{Extent, parse_table},
    header::{Compression, FRAME_DIGESTED_HEADER_BYTES, FRAME_HEADER_BYTES, FrameError, FrameHeader},
    seal::digest,
};
use crate::codec;

/// Bytes of the digest in a header.
const DIGEST_BYTES: usize = FRAME_HEADER_BYTES - FRAME_DIGESTED_HEADER_BYTES;

/// Checks the digest of the frame at the front of `bytes`, keeping nothing.
///
/// # Errors
/// What is wrong with the frame.
pub fn check_in_place(bytes: &mut [u8]) -> Result<FrameHeader, FrameError> {
    let header = FrameHeader::parse(bytes)?;
    let (have, need) = (bytes.len(), header.frame_bytes());
    let frame = bytes.get_mut(..need).ok_or(FrameError::Torn { have, need })?;
    if digest_in_place(frame) == header.digest { Ok(header) } else { Err(FrameError::Digest) }
}

/// The digest that a frame should have. One piece of memory is hashed at the processor's full width, several pieces are not:
/// so the digest changes places with what stands in front of it, and back.
fn digest_in_place(frame: &mut [u8]) -> [u8; 32] {
    let turn = |frame: &mut [u8], by: usize| {
        if let Some(header) = frame.get_mut(..FRAME_HEADER_BYTES) {
            header.rotate_right(by);
        }
    };
    turn(frame, DIGEST_BYTES);
    let found = blake3::hash(frame.get(DIGEST_BYTES..).unwrap_or_default());
    turn(frame, FRAME_DIGESTED_HEADER_BYTES);
    *found.as_bytes()
}

/// The header of bytes that are exactly one frame.
fn parse_whole(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let header = FrameHeader::parse(bytes)?;
    let (have, need) = (bytes.len(), header.frame_bytes());
    if have == need { Ok(header) } else { Err(FrameError::Torn { have, need }) }
}

/// A verified frame.
#[derive(Clone, Debug)]
pub struct Frame {
    header: FrameHeader,
    extents: Arc<[Extent]>,
    bytes: Bytes,
}

impl Frame {
    /// Takes exactly one frame's bytes and verifies structure and digest. CPU-bound: 5 GB/s per core.
    ///
    /// # Errors
    /// What is wrong; [`FrameError::Digest`] if only the bytes are damaged.
    pub fn verify(bytes: Bytes) -> Result<Self, FrameError> {
        let header = parse_whole(&bytes)?;
        let (head, body) = bytes.split_at(FRAME_HEADER_BYTES);
        let (table, stored) = body.split_at(header.table_bytes());
        let found = digest(head, table, stored);
        Self::of(header, found, bytes)
    }

    /// Like [`Self::verify`], for bytes that nobody else sees: they are hashed as one piece, which is faster.
    ///
    /// # Errors
    /// As those of [`Self::verify`].
    pub fn verify_mut(mut bytes: BytesMut) -> Result<Self, FrameError> {
        let header = parse_whole(&bytes)?;
        let found = digest_in_place(&mut bytes);
        Self::of(header, found, bytes.freeze())
    }

    fn of(header: FrameHeader, found: [u8; 32], bytes: Bytes) -> Result<Self, FrameError> {
        if found != header.digest {
            return Err(FrameError::Digest);
        }
        let table = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.table_bytes());
        let extents: Arc<[Extent]> = parse_table(table.unwrap_or_default())?.into();
        let plain: u64 = extents.iter().map(Extent::plain_bytes).sum();
        if !extents.is_empty() && plain != u64::from(header.plain_bytes) {
            return Err(FrameError::Field { field: "plain bytes", value: u64::from(header.plain_bytes) });
        }
        Ok(Self { header, extents, bytes })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The extents, ascending; empty for cut and scan frames.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// The frame's memory, to be used again.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The whole frame as it is sent and stored.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The payload as stored.
    #[must_use]
    pub fn stored(&self) -> &[u8] {
        self.bytes.get(FRAME_HEADER_BYTES + self.header.table_bytes()..).unwrap_or_default()
    }

    /// The record of a cut frame.
    ///
    /// # Errors
    /// [`FrameError::Payload`] if the payload is not a cut record.
    pub fn cut_record(&self) -> Result<CutRecord, FrameError> {
        CutRecord::decode(self.stored()).map_err(|_| FrameError::Payload)
    }

    /// The record of a scan frame.
    ///
    /// # Errors
    /// [`FrameError::Payload`] if the payload is not a scan record.
    pub fn scan_record(&self) -> Result<ScanRecord, FrameError> {
        codec::decode(self.stored()).map_err(|_| FrameError::Payload)
    }
}

/// Decompresses frames; keeps its context from frame to frame. One per thread.
#[derive(Default)]
pub struct PlainReader {
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
}

impl fmt::Debug for PlainReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainReader")
    }
}

impl PlainReader {
    /// A reader without buffers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the contents of `plain` by the frame's plain bytes: the data extents' bytes, one after the other.
    ///
    /// # Errors
    /// [`FrameError::Payload`] if the stored bytes do not decompress to exactly the stated size; `plain` is empty then.
    pub fn read(&mut self, frame: &Frame, plain: &mut Vec<u8>) -> Result<(), FrameError> {
        let expected = frame.header.plain_bytes as usize;
        plain.clear();
        // Memory is not zeroed only to be written over.
        plain.reserve_exact(expected);
        let stored = frame.stored();
        match frame.header.compression {
            Compression::None => plain.extend_from_slice(stored),
            Compression::Zstd => {
                let _bytes = self.decompress(stored, plain)?;
            }
        }
        if plain.len() != expected {
            plain.clear();
            return Err(FrameError::Payload);
        }
        Ok(())
    }

    /// Puts the frame's plain bytes into the front of `output` and says how many there are.
    ///
    /// # Errors
    /// [`FrameError::Payload`] if the stored bytes do not decompress to exactly the stated size, or `output` has no room.
    pub fn read_to(&mut self, frame: &Frame, output: &mut [u8]) -> Result<usize, FrameError> {
        let expected = frame.header.plain_bytes as usize;
        let output = output.get_mut(..expected).ok_or(FrameError::Payload)?;
        let stored = frame.stored();
        match frame.header.compression {
            Compression::None if stored.len() == expected => output.copy_from_slice(stored),
            Compression::Zstd if self.decompress(stored, output)? == expected => {}
            Compression::None | Compression::Zstd => return Err(FrameError::Payload),
        }
        Ok(expected)
    }

    /// Gives the number of bytes; they are no more than `output` has room for.
    fn decompress<O: WriteBuf + ?Sized>(
        &mut self,
        stored: &[u8],
        output: &mut O,
    ) -> Result<usize, FrameError> {
        let decompressor = match &mut self.decompressor {
            Some(decompressor) => decompressor,
            empty => empty.insert(zstd::bulk::Decompressor::new().map_err(|_| FrameError::Payload)?),
        };
        decompressor.decompress_to_buffer(stored, output).map_err(|_| FrameError::Payload)
    }
}
