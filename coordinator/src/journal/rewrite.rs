//! A segment made of what is still needed of others, beside them.
//!
//! Owns the copying of whole frames, verified and not decompressed, into a sealed segment under a name of its own. Does
//! not know which frames are needed, nor how the new segment takes the others' place. Invariant: the new segment is
//! durable and sealed when it is given back; the others are not touched.
//! Limit: one group of [`GROUP_BYTES_MAX`] bytes in memory.

use std::path::Path;

use holdfast_common::{
    frame::Frame,
    ids::{DiskId, Sequence},
};

use super::{
    format::SegmentHeader,
    segment::{SealedSegment, SegmentError},
    writer::{GROUP_BYTES_MAX, GROUP_FRAMES_MAX, SegmentWriter, WriteError},
};

/// Why no segment was made.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// A frame that is needed cannot be read.
    #[error("frame {0} cannot be read")]
    Read(Sequence, #[source] SegmentError),
    /// The new segment cannot be written.
    #[error("the new segment cannot be written")]
    Write(#[from] WriteError),
    /// The new segment cannot be created.
    #[error("the new segment cannot be created")]
    Create(#[source] std::io::Error),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Writes the frames of `sources` that `needed` names into a new, sealed segment at `path`, and gives its size. `pace` is
/// called with the bytes of each group before it is written; `false` stops.
///
/// # Errors
/// No segment is needed by anybody then; what is at `path` can be deleted.
pub fn rewrite(
    path: &Path,
    header: SegmentHeader,
    sources: &[(&SealedSegment, Vec<Sequence>)],
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, RewriteError> {
    let mut writer = SegmentWriter::create(path, header).map_err(RewriteError::Create)?;
    let mut group: Vec<Frame> = Vec::new();
    let mut bytes = 0;
    for (source, frames) in sources {
        for sequence in frames {
            let frame = source.read(*sequence).map_err(|error| RewriteError::Read(*sequence, error))?;
            if bytes + frame.bytes().len() > GROUP_BYTES_MAX || group.len() == GROUP_FRAMES_MAX {
                flush(&mut writer, &mut group, &mut bytes, pace)?;
            }
            bytes += frame.bytes().len();
            group.push(frame);
        }
    }
    flush(&mut writer, &mut group, &mut bytes, pace)?;
    writer.seal()?;
    Ok(writer.file_bytes())
}

fn flush(
    writer: &mut SegmentWriter,
    group: &mut Vec<Frame>,
    bytes: &mut usize,
    pace: &mut dyn FnMut(u64) -> bool,
) -> Result<(), RewriteError> {
    if group.is_empty() {
        return Ok(());
    }
    if !pace(*bytes as u64) {
        return Err(RewriteError::Stopped);
    }
    writer.append_group(group)?;
    group.clear();
    *bytes = 0;
    Ok(())
}

/// The header of a segment that takes the place of `first`.
#[must_use]
pub fn header_like(source: &SealedSegment, disk: DiskId, first: Sequence) -> SegmentHeader {
    source.header().unwrap_or(SegmentHeader {
        disk,
        first_sequence: first,
        base_interval: holdfast_common::ids::Interval(0),
        base_generation: holdfast_common::ids::Generation(0),
    })
}
