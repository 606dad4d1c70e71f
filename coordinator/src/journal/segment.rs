//! A segment opened for reading: its tables, and its frames one by one.
//!
//! Owns the file handle for reads. Does not know the writer or other segments.
//! Invariant: nothing is handed out unverified: tables passed the footer's digest (or every frame its own, where there is
//! no footer), frames pass theirs on every read. Reading changes nothing.
//! Limit: tables are read in pieces of one segment; a frame read takes one frame's memory.

use std::{fs::File, io, sync::Arc};

use bytes::BytesMut;
use thiserror::Error;

use holdfast_common::{
    frame::{FRAME_HEADER_BYTES, Frame, FrameHeader, header::FrameError},
    ids::{DiskId, Sequence},
};

use super::{
    format::{
        ENTRY_BYTES, FormatError, MARK_BYTES, SEGMENT_BYTES_MAX, SEGMENT_HEADER_BYTES, SegmentHeader,
        TRAILER_BYTES, Trailer,
    },
    source::ReadAt,
    tables::{FrameEntry, SegmentTables, find_entry, parse_entries},
    walk::{Part, Walk},
};

/// Why something of a segment cannot be had.
#[derive(Debug, Error)]
pub enum SegmentError {
    /// A part is damaged or newer.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A frame is damaged.
    #[error("frame {sequence} at offset {offset} is damaged")]
    Frame {
        /// The frame.
        sequence: Sequence,
        /// Where it should begin.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: FrameError,
    },
    /// The segment does not hold this frame.
    #[error("frame {0} is not in this segment")]
    Missing(Sequence),
    /// The segment is of another disk or of another place in the log.
    #[error("segment belongs to disk {disk}, first sequence {first_sequence}")]
    Foreign {
        /// The disk it names.
        disk: DiskId,
        /// The first sequence it names.
        first_sequence: Sequence,
    },
    /// The file cannot be read.
    #[error("reading failed")]
    Io(#[from] io::Error),
}

impl SegmentError {
    /// Whether the bytes are at fault, and not the system or the program's age.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Format(error) => matches!(error, FormatError::Damaged { .. }),
            Self::Frame { .. } | Self::Missing(_) | Self::Foreign { .. } => true,
            Self::Io(error) => error.kind() == io::ErrorKind::UnexpectedEof,
        }
    }
}

/// A sealed segment.
#[derive(Debug)]
pub struct SealedSegment {
    file: File,
    disk: DiskId,
    first_sequence: Sequence,
    last_sequence: Option<Sequence>,
    frame_bytes: u64,
    entries: Vec<FrameEntry>,
    heads: Heads,
}

/// Where the heads come from.
#[derive(Debug)]
enum Heads {
    /// From the footer.
    Footer(Trailer),
    /// From a walk, because the footer is damaged.
    Walked(Arc<SegmentTables>),
}

impl SealedSegment {
    /// Opens a segment of `disk`: reads header, trailer and entries. If these are damaged, the frames are read and verified
    /// one by one instead.
    ///
    /// # Errors
    /// The file is a newer version's, another disk's, or cannot be read.
    pub fn open(file: File, disk: DiskId, first_sequence: Sequence) -> Result<Self, SegmentError> {
        check_header(&file, disk, first_sequence)?;
        match read_footer(&file, first_sequence) {
            Ok((trailer, entries)) => Ok(Self {
                file,
                disk,
                first_sequence,
                last_sequence: Some(trailer.last_sequence).filter(|last| *last >= first_sequence),
                frame_bytes: trailer.frame_bytes,
                entries,
                heads: Heads::Footer(trailer),
            }),
            Err(error) if error.is_damage() => {
                let tables = walk_tables(&file, disk, first_sequence)?;
                Ok(Self {
                    file,
                    disk,
                    first_sequence,
                    last_sequence: tables.last_sequence(),
                    frame_bytes: tables.frame_bytes(),
                    entries: tables.entries().to_vec(),
                    heads: Heads::Walked(Arc::new(tables)),
                })
            }
            Err(error) => Err(error),
        }
    }

    /// If the file has a whole footer: the last sequence it accounts for, and the header of its last frame.
    ///
    /// # Errors
    /// The file is a newer version's, another disk's, or cannot be read.
    pub fn open_sealed(
        file: &File,
        disk: DiskId,
        first_sequence: Sequence,
    ) -> Result<Option<(Sequence, Option<FrameHeader>)>, SegmentError> {
        let (trailer, _) = match read_footer(file, first_sequence) {
            Err(error) if error.is_damage() => return Ok(None),
            other => other?,
        };
        let segment = Self::open(file.try_clone()?, disk, first_sequence)?;
        Ok(Some((trailer.last_sequence, segment.tables()?.last_head())))
    }

    /// The tables, read now and verified; falls back to the frames themselves if the footer's heads are damaged.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn tables(&self) -> Result<Arc<SegmentTables>, SegmentError> {
        self.tables_into(Vec::new())
    }

    /// Like [`Self::tables`], with memory for the heads that is there already.
    ///
    /// # Errors
    /// As [`Self::tables`].
    pub fn tables_into(&self, spare: Vec<u8>) -> Result<Arc<SegmentTables>, SegmentError> {
        match &self.heads {
            Heads::Walked(tables) => Ok(Arc::clone(tables)),
            Heads::Footer(trailer) => match self.read_heads(trailer, spare) {
                Err(error) if error.is_damage() => {
                    Ok(Arc::new(walk_tables(&self.file, self.disk, self.first_sequence)?))
                }
                other => other.map(Arc::new),
            },
        }
    }

    fn read_heads(&self, trailer: &Trailer, mut heads: Vec<u8>) -> Result<SegmentTables, SegmentError> {
        let damaged = FormatError::Damaged { what: "segment footer" };
        let count = self.footer_heads_bytes(trailer)?.filter(|count| *count < SEGMENT_BYTES_MAX);
        let count = count.and_then(|count| usize::try_from(count).ok()).ok_or_else(|| damaged.clone())?;
        heads.resize(count, 0);
        ReadAt::read_exact_at(&self.file, trailer.heads_offset, &mut heads)?;
        if blake3::hash(&heads).as_bytes() != &trailer.heads_digest {
            return Err(damaged.into());
        }
        let mut entries = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for entry in &self.entries {
            entries.extend_from_slice(&entry.delta.to_le_bytes());
            entries.extend_from_slice(&entry.offset.to_le_bytes());
        }
        SegmentTables::parse(self.first_sequence, &entries, heads).map_err(|_| damaged.into())
    }

    fn footer_heads_bytes(&self, trailer: &Trailer) -> io::Result<Option<u64>> {
        let end = self.file.length()?.saturating_sub(TRAILER_BYTES as u64);
        Ok(end.checked_sub(trailer.heads_offset))
    }

    /// Bytes of heads that [`Self::tables`] would read now; `None` if the footer does not say.
    ///
    /// # Errors
    /// The file's size cannot be read.
    pub fn heads_bytes(&self) -> io::Result<Option<u64>> {
        match &self.heads {
            Heads::Footer(trailer) => self.footer_heads_bytes(trailer),
            Heads::Walked(_) => Ok(None),
        }
    }

    /// Whether the footer is whole; if not, what is known was read from the frames.
    #[must_use]
    pub const fn has_footer(&self) -> bool {
        matches!(self.heads, Heads::Footer(_))
    }

    /// Where the frames begin, ascending.
    #[must_use]
    pub fn entries(&self) -> &[FrameEntry] {
        &self.entries
    }

    /// The file, for reading several frames at once.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Offset behind the last frame.
    ///
    /// # Errors
    /// The file's size cannot be read.
    pub fn frames_end(&self) -> io::Result<u64> {
        match &self.heads {
            Heads::Footer(trailer) => Ok(trailer.entries_offset),
            Heads::Walked(tables) => Ok(tables
                .last_sequence()
                .and_then(|last| tables.extent_of(last))
                .map_or(0, |(offset, bytes)| offset + bytes)),
        }
    }

    /// Last sequence that the segment accounts for, if it holds any.
    #[must_use]
    pub const fn last_sequence(&self) -> Option<Sequence> {
        self.last_sequence
    }

    /// Size of all frames together.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Bytes that the entries take in memory.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let walked = match &self.heads {
            Heads::Walked(tables) => tables.heads().len() + tables.entries().len() * 12,
            Heads::Footer(_) => 0,
        };
        size_of::<Self>() + self.entries.len() * size_of::<FrameEntry>() + walked
    }

    /// What the file's header says, if it is whole.
    #[must_use]
    pub fn header(&self) -> Option<SegmentHeader> {
        SegmentHeader::parse(&self.file.read_up_to(0, SEGMENT_HEADER_BYTES).ok()?).ok()
    }

    /// The frames, ascending, and about how many bytes each takes (the mark of a group counts with the frame before it).
    pub fn frames(&self) -> impl Iterator<Item = (Sequence, u64)> + '_ {
        let end = match &self.heads {
            Heads::Footer(trailer) => trailer.entries_offset.saturating_sub(MARK_BYTES as u64),
            Heads::Walked(tables) => tables
                .last_sequence()
                .and_then(|last| tables.extent_of(last))
                .map_or(0, |(offset, bytes)| offset + bytes),
        };
        let ends = self.entries.iter().skip(1).map(|next| u64::from(next.offset)).chain([end]);
        self.entries.iter().zip(ends).map(|(entry, end)| {
            let sequence = Sequence(self.first_sequence.0 + u64::from(entry.delta));
            (sequence, end.saturating_sub(u64::from(entry.offset)))
        })
    }

    /// Reads and verifies one frame.
    ///
    /// # Errors
    /// The frame is damaged, not here, or cannot be read.
    pub fn read(&self, sequence: Sequence) -> Result<Frame, SegmentError> {
        self.read_into(sequence, BytesMut::new())
    }

    /// Like [`Self::read`], into memory that is there already.
    ///
    /// # Errors
    /// The frame is damaged, not here, or cannot be read.
    pub fn read_into(&self, sequence: Sequence, buffer: BytesMut) -> Result<Frame, SegmentError> {
        let offset = find_entry(&self.entries, self.first_sequence, sequence)
            .ok_or(SegmentError::Missing(sequence))?;
        let next = self.entries.partition_point(|entry| u64::from(entry.offset) <= offset);
        let limit = self.entries.get(next).map(|entry| u64::from(entry.offset) - offset);
        read_frame_into(&self.file, self.disk, sequence, (offset, limit), buffer)
    }
}

/// Reads and verifies the frame that begins at `offset`. `limit` is how many bytes it can have at most, if known; then
/// one read is enough for most frames.
///
/// # Errors
/// The frame is damaged, another one, or cannot be read.
pub fn read_frame<S: ReadAt + ?Sized>(
    source: &S,
    disk: DiskId,
    sequence: Sequence,
    offset: u64,
    limit: Option<u64>,
) -> Result<Frame, SegmentError> {
    read_frame_into(source, disk, sequence, (offset, limit), BytesMut::new())
}

/// Like [`read_frame`], into `buffer`'s memory.
///
/// # Errors
/// The frame is damaged, another one, or cannot be read.
pub fn read_frame_into<S: ReadAt + ?Sized>(
    source: &S,
    disk: DiskId,
    sequence: Sequence,
    (offset, limit): (u64, Option<u64>),
    mut buffer: BytesMut,
) -> Result<Frame, SegmentError> {
    let damaged = |source| SegmentError::Frame { sequence, offset, source };
    let size_max = FRAME_HEADER_BYTES
        + holdfast_common::frame::FRAME_STORED_BYTES_MAX
        + holdfast_common::frame::FRAME_EXTENTS_MAX * holdfast_common::frame::extent::EXTENT_BYTES;
    match limit.and_then(|limit| usize::try_from(limit).ok()) {
        // Behind the frame a mark may lie, no more.
        Some(limit) if limit <= size_max + super::format::MARK_BYTES => {
            source.read_up_to_into(offset, limit, &mut buffer)?;
        }
        _ => {
            let front = source.read_up_to(offset, FRAME_HEADER_BYTES)?;
            let header = FrameHeader::parse(&front).map_err(damaged)?;
            source.read_up_to_into(offset, header.frame_bytes(), &mut buffer)?;
        }
    }
    let header = FrameHeader::parse(&buffer).map_err(damaged)?;
    buffer.truncate(header.frame_bytes());
    let frame = Frame::verify_mut(buffer).map_err(damaged)?;
    if header.disk != disk || header.sequence != sequence {
        return Err(damaged(FrameError::Field { field: "sequence", value: header.sequence.0 }));
    }
    Ok(frame)
}

/// Reads and checks a segment's header. A damaged header is let pass: file name and frames say the same.
fn check_header(file: &File, disk: DiskId, first_sequence: Sequence) -> Result<(), SegmentError> {
    match SegmentHeader::parse(&file.read_up_to(0, SEGMENT_HEADER_BYTES)?) {
        Ok(header) if header.disk != disk || header.first_sequence != first_sequence => {
            Err(SegmentError::Foreign { disk: header.disk, first_sequence: header.first_sequence })
        }
        Ok(_) | Err(FormatError::Damaged { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Reads and checks trailer and entries.
///
/// # Errors
/// There is no footer, or it is damaged or newer.
pub fn read_footer<S: ReadAt + ?Sized>(
    source: &S,
    first_sequence: Sequence,
) -> Result<(Trailer, Vec<FrameEntry>), SegmentError> {
    let damaged = || SegmentError::from(FormatError::Damaged { what: "segment footer" });
    let at = source.length()?.checked_sub(TRAILER_BYTES as u64).ok_or_else(damaged)?;
    let trailer = Trailer::parse(&source.read_up_to(at, TRAILER_BYTES)?)?;
    let count = trailer.frame_count as usize * ENTRY_BYTES;
    let fits = trailer.first_sequence == first_sequence
        && trailer.entries_offset.checked_add(count as u64) == Some(trailer.heads_offset)
        && trailer.heads_offset <= at;
    if !fits {
        return Err(damaged());
    }
    let mut entries = vec![0; count];
    source.read_exact_at(trailer.entries_offset, &mut entries)?;
    if blake3::hash(&entries).as_bytes() != &trailer.entries_digest {
        return Err(damaged());
    }
    Ok((trailer, parse_entries(&entries)))
}

/// Tables from the frames themselves.
fn walk_tables(file: &File, disk: DiskId, first: Sequence) -> Result<SegmentTables, SegmentError> {
    let mut tables = SegmentTables::new(first);
    let mut walk = Walk::new(file, disk, Sequence(first.0.saturating_sub(1)))?;
    while let Some(part) = walk.next_part()? {
        if let Part::Frame { offset, frame } = part {
            // A segment that its own writer would have sealed earlier is not ours to understand further.
            tables.push(&frame, offset).ok_or(FormatError::Damaged { what: "segment" })?;
        }
    }
    Ok(tables)
}
