//! Sealing: from extents and bytes to a frame.
//!
//! Owns the compression context and its output buffer. Does not know where the bytes come from or go to.
//! Invariant: what does not shrink is stored raw, so a frame never exceeds header + table + plain bytes.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::IntoBytes;

use super::{
    FRAME_EXTENTS_MAX, FRAME_PLAIN_BYTES_MAX,
    cut::{CutRecord, ScanRecord},
    extent::{EXTENT_BYTES, Extent},
    header::{
        Compression, FRAME_DIGESTED_HEADER_BYTES, FRAME_HEADER_BYTES, FrameError, FrameHeader, FrameKind,
        invalid,
    },
};
use crate::{
    codec::{self, CodecError},
    ids::{DiskId, Generation, Interval, Sequence},
};

/// Where a frame stands: its disk, its line of history, its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameIdentity {
    /// The disk.
    pub disk: DiskId,
    /// The disk's generation.
    pub generation: Generation,
    /// Position in the disk's log.
    pub sequence: Sequence,
    /// Interval that the frame belongs to.
    pub interval: Interval,
}

/// Makes frames; keeps its compression context and buffers from frame to frame. One per thread.
pub struct FrameSealer {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    scratch: Vec<u8>,
}

impl fmt::Debug for FrameSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameSealer").field("compresses", &self.compressor.is_some()).finish()
    }
}

impl FrameSealer {
    /// A sealer that compresses with zstd at `level`, or stores raw if `None`.
    ///
    /// # Errors
    /// zstd refuses the level or has no memory.
    pub fn new(level: Option<i32>) -> std::io::Result<Self> {
        let compressor = level.map(zstd::bulk::Compressor::new).transpose()?;
        Ok(Self { compressor, scratch: Vec::new() })
    }

    /// Changes the compression level, or stops compressing with `None`.
    ///
    /// # Errors
    /// zstd refuses the level.
    pub fn set_level(&mut self, level: Option<i32>) -> std::io::Result<()> {
        match (&mut self.compressor, level) {
            (Some(compressor), Some(level)) => compressor.set_compression_level(level),
            (compressor, level) => {
                *compressor = level.map(zstd::bulk::Compressor::new).transpose()?;
                Ok(())
            }
        }
    }

    /// Seals changed blocks. `plain` holds the bytes of the data extents, one after the other.
    ///
    /// # Errors
    /// [`FrameError::Field`] or [`FrameError::Extent`] if extents and bytes do not fit together or exceed a limit.
    pub fn seal_data(
        &mut self,
        identity: FrameIdentity,
        extents: &[Extent],
        plain: &[u8],
    ) -> Result<Bytes, FrameError> {
        let expected: u64 = extents.iter().map(Extent::plain_bytes).sum();
        if plain.len() > FRAME_PLAIN_BYTES_MAX || expected != plain.len() as u64 {
            return Err(invalid("plain bytes", plain.len() as u64));
        }
        if extents.is_empty() || extents.len() > FRAME_EXTENTS_MAX {
            return Err(invalid("extent count", extents.len() as u64));
        }
        let mut table = Vec::with_capacity(extents.len() * EXTENT_BYTES);
        let mut end = 0;
        for (index, extent) in extents.iter().enumerate() {
            let raw = extent.to_raw().filter(|_| extent.range.start.0 >= end);
            table.extend_from_slice(raw.ok_or(FrameError::Extent { index })?.as_bytes());
            end = extent.range.end().0;
        }
        let compressed = self.compress(plain);
        let (compression, stored) = match compressed.and_then(|bytes| self.scratch.get(..bytes)) {
            Some(shrunk) => (Compression::Zstd, shrunk),
            None => (Compression::None, plain),
        };
        assemble(identity, FrameKind::Data, compression, (&table, extents.len()), plain.len(), stored)
    }

    /// Compresses into `scratch` and says how many bytes that gave, if it saves at least a sixteenth.
    fn compress(&mut self, plain: &[u8]) -> Option<usize> {
        let compressor = self.compressor.as_mut().filter(|_| !plain.is_empty())?;
        let bound = zstd::zstd_safe::compress_bound(plain.len());
        // Only ever grows: filling it with zeroes for every frame would cost more than hashing the frame.
        if self.scratch.len() < bound {
            self.scratch.resize(bound, 0);
        }
        let bytes = compressor.compress_to_buffer(plain, self.scratch.as_mut_slice()).ok()?;
        (bytes <= plain.len() - plain.len() / 16).then_some(bytes)
    }
}

/// Seals the end of an interval.
///
/// # Errors
/// The record is too large to encode.
pub fn seal_cut(identity: FrameIdentity, record: &CutRecord) -> Result<Bytes, CodecError> {
    seal_record(identity, FrameKind::Cut, &record.encode()?)
}

/// Seals a scan's progress.
///
/// # Errors
/// The record is too large to encode.
pub fn seal_scan(identity: FrameIdentity, record: &ScanRecord) -> Result<Bytes, CodecError> {
    seal_record(identity, FrameKind::Scan, &codec::encode(record)?)
}

fn seal_record(identity: FrameIdentity, kind: FrameKind, record: &[u8]) -> Result<Bytes, CodecError> {
    assemble(identity, kind, Compression::None, (&[], 0), record.len(), record)
        .map_err(|_| CodecError::TooLarge { bytes: record.len() })
}

fn assemble(
    identity: FrameIdentity,
    kind: FrameKind,
    compression: Compression,
    (table, extent_count): (&[u8], usize),
    plain_bytes: usize,
    stored: &[u8],
) -> Result<Bytes, FrameError> {
    let length = |field, value: usize| u32::try_from(value).map_err(|_| invalid(field, value as u64));
    let mut raw = FrameHeader {
        kind,
        compression,
        disk: identity.disk,
        generation: identity.generation,
        sequence: identity.sequence,
        interval: identity.interval,
        extent_count: length("extent count", extent_count)?,
        plain_bytes: length("plain bytes", plain_bytes)?,
        stored_bytes: length("stored bytes", stored.len())?,
        digest: [0; 32],
    }
    .to_raw();
    raw.digest = digest(raw.as_bytes(), table, stored);
    let mut bytes = BytesMut::with_capacity(FRAME_HEADER_BYTES + table.len() + stored.len());
    bytes.put_slice(raw.as_bytes());
    bytes.put_slice(table);
    bytes.put_slice(stored);
    Ok(bytes.freeze())
}

/// BLAKE3 over the digested part of the header, the table and the stored bytes.
pub(super) fn digest(header: &[u8], table: &[u8], stored: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let digested = header.get(..FRAME_DIGESTED_HEADER_BYTES).unwrap_or(header);
    hasher.update(digested).update(table).update(stored);
    *hasher.finalize().as_bytes()
}
