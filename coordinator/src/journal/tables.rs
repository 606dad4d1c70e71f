//! What is known of a segment's frames without their payload: where they are, and their heads.
//!
//! Owns the entries and heads of a footer, in memory as they lie on disk. Does not know files.
//! Invariant: entry `i` and head `i` are of the same frame; sequences and offsets ascend.
//! Limit: about 100 bytes and the table for each frame of one segment. Format: see [`super::format`].

use bytes::Bytes;

use holdfast_common::{
    frame::{
        Extent, FRAME_HEADER_BYTES, Frame, FrameHeader, FrameKind,
        extent::{extents_of, parse_table},
        header::FrameError,
    },
    ids::Sequence,
};

use super::format::ENTRY_BYTES;

/// Where a frame lies in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameEntry {
    /// Its sequence minus the segment's first sequence.
    pub delta: u32,
    /// Offset of its header in the file.
    pub offset: u32,
}

/// A frame without its payload. What it says is only as good as the digest it came with: the frame's own if it was
/// just verified, the footer's otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// The header.
    pub header: FrameHeader,
    /// The extents of a data frame.
    pub extents: Vec<Extent>,
    /// The payload of a cut or scan frame; empty for a data frame.
    pub record: Bytes,
}

impl FrameHead {
    /// Reads one head from the front of `bytes`; also says how many bytes it took.
    ///
    /// # Errors
    /// The bytes are no head.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), FrameError> {
        let head = HeadPlace::parse(bytes)?;
        Ok((head.to_head()?, head.bytes()))
    }
}

/// A head where it lies among others.
#[derive(Clone, Copy, Debug)]
pub struct HeadPlace<'a> {
    /// The header.
    pub header: FrameHeader,
    /// The table or the record.
    body: &'a [u8],
}

impl<'a> HeadPlace<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let header = FrameHeader::parse(bytes)?;
        let need = head_bytes(&header);
        let torn = FrameError::Torn { have: bytes.len(), need };
        let body = bytes.get(FRAME_HEADER_BYTES..need).ok_or(torn)?;
        Ok(Self { header, body })
    }

    const fn bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.body.len()
    }

    /// The extents of a data frame; none of another one.
    ///
    /// # Errors
    /// The table is none.
    pub fn extents(&self) -> Result<impl Iterator<Item = Result<Extent, FrameError>> + 'a, FrameError> {
        let table = if self.header.kind == FrameKind::Data { self.body } else { &[] };
        extents_of(table)
    }

    /// The head on its own.
    ///
    /// # Errors
    /// The table is none.
    pub fn to_head(&self) -> Result<FrameHead, FrameError> {
        let (extents, record) = match self.header.kind {
            FrameKind::Data => (parse_table(self.body)?, Bytes::new()),
            FrameKind::Cut | FrameKind::Scan => (Vec::new(), Bytes::copy_from_slice(self.body)),
        };
        Ok(FrameHead { header: self.header, extents, record })
    }
}

impl From<&Frame> for FrameHead {
    fn from(frame: &Frame) -> Self {
        let record = match frame.header().kind {
            FrameKind::Data => Bytes::new(),
            FrameKind::Cut | FrameKind::Scan => Bytes::copy_from_slice(frame.stored()),
        };
        Self { header: *frame.header(), extents: frame.extents().to_vec(), record }
    }
}

/// Size of a frame's head.
const fn head_bytes(header: &FrameHeader) -> usize {
    match header.kind {
        FrameKind::Data => FRAME_HEADER_BYTES + header.table_bytes(),
        FrameKind::Cut | FrameKind::Scan => header.frame_bytes(),
    }
}

/// The entries and heads of one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentTables {
    first_sequence: Sequence,
    entries: Vec<FrameEntry>,
    heads: Vec<u8>,
    head_starts: Vec<u32>,
    frame_bytes: u64,
}

impl SegmentTables {
    /// Tables of an empty segment.
    #[must_use]
    pub fn new(first_sequence: Sequence) -> Self {
        Self { first_sequence, ..Self::default() }
    }

    /// Adds a frame that lies at `offset`; `None` if it does not fit the format (the segment must be sealed first).
    pub fn push(&mut self, frame: &Frame, offset: u64) -> Option<()> {
        let header = frame.header();
        let delta = header.sequence.0.checked_sub(self.first_sequence.0)?;
        let entry = FrameEntry { delta: u32::try_from(delta).ok()?, offset: u32::try_from(offset).ok()? };
        let start = u32::try_from(self.heads.len()).ok()?;
        self.heads.extend_from_slice(frame.bytes().get(..head_bytes(header))?);
        self.head_starts.push(start);
        self.entries.push(entry);
        self.frame_bytes += header.frame_bytes() as u64;
        Some(())
    }

    /// Reads entries and heads as a footer holds them.
    ///
    /// # Errors
    /// They do not fit together.
    pub fn parse(first_sequence: Sequence, entries: &[u8], heads: Vec<u8>) -> Result<Self, FrameError> {
        let mut tables = Self::new(first_sequence);
        tables.entries = parse_entries(entries);
        let mut at = 0;
        for entry in &tables.entries {
            let rest = heads.get(at..).unwrap_or_default();
            let header = FrameHeader::parse(rest)?;
            if header.sequence.0 != first_sequence.0.saturating_add(u64::from(entry.delta)) {
                return Err(FrameError::Field { field: "sequence", value: header.sequence.0 });
            }
            tables.head_starts.push(u32::try_from(at).map_err(|_| FrameError::Digest)?);
            tables.frame_bytes += header.frame_bytes() as u64;
            at += head_bytes(&header);
        }
        if at != heads.len() {
            return Err(FrameError::Torn { have: heads.len(), need: at });
        }
        tables.heads = heads;
        Ok(tables)
    }

    /// The entries as a footer holds them.
    #[must_use]
    pub fn entry_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.delta.to_le_bytes());
            bytes.extend_from_slice(&entry.offset.to_le_bytes());
        }
        bytes
    }

    /// The heads as a footer holds them.
    #[must_use]
    pub fn heads(&self) -> &[u8] {
        &self.heads
    }

    /// The memory of the heads, for those of another segment.
    #[must_use]
    pub fn into_heads(self) -> Vec<u8> {
        self.heads
    }

    /// The entries, ascending.
    #[must_use]
    pub fn entries(&self) -> &[FrameEntry] {
        &self.entries
    }

    /// Size of all frames together.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        self.frame_bytes
    }

    /// Size of the frames after `sequence`.
    #[must_use]
    pub fn frame_bytes_after(&self, sequence: Sequence) -> u64 {
        let from = self.position_after(sequence);
        self.head_starts
            .iter()
            .skip(from)
            .filter_map(|start| self.header_at(*start))
            .map(|header| header.frame_bytes() as u64)
            .sum()
    }

    /// Where a frame begins, and its size.
    #[must_use]
    pub fn extent_of(&self, sequence: Sequence) -> Option<(u64, u64)> {
        let delta = u32::try_from(sequence.0.checked_sub(self.first_sequence.0)?).ok()?;
        let position = self.entries.binary_search_by_key(&delta, |entry| entry.delta).ok()?;
        let bytes = self.header_at(*self.head_starts.get(position)?)?.frame_bytes() as u64;
        Some((u64::from(self.entries.get(position)?.offset), bytes))
    }

    /// Sequence of the last frame.
    #[must_use]
    pub fn last_sequence(&self) -> Option<Sequence> {
        let entry = self.entries.last()?;
        Some(Sequence(self.first_sequence.0 + u64::from(entry.delta)))
    }

    /// Heads of the frames after `after`, in order, as many as have at most `bytes_max` bytes together, but at least
    /// one if there is one.
    ///
    /// # Errors
    /// A head is no head; cannot happen to heads whose digest was checked.
    pub fn heads_after(&self, after: Sequence, bytes_max: usize) -> Result<Vec<FrameHead>, FrameError> {
        let mut found = Vec::new();
        self.each_head_after(after, bytes_max, &mut |head| {
            found.push(head.to_head()?);
            Ok(true)
        })?;
        Ok(found)
    }

    /// Calls `found` with the same heads where they lie, until it says `false`. Gives the last one's sequence. Making a table for
    /// each frame takes longer than reading it.
    ///
    /// # Errors
    /// As [`Self::heads_after`], and those of `found`.
    pub fn each_head_after(
        &self,
        after: Sequence,
        bytes_max: usize,
        found: &mut impl FnMut(&HeadPlace<'_>) -> Result<bool, FrameError>,
    ) -> Result<Option<Sequence>, FrameError> {
        let (mut last, mut taken) = (None, 0);
        for start in self.head_starts.iter().skip(self.position_after(after)) {
            let head = HeadPlace::parse(self.heads.get(*start as usize..).unwrap_or_default())?;
            taken += head.bytes();
            if taken > bytes_max && last.is_some() {
                break;
            }
            last = Some(head.header.sequence);
            if !found(&head)? {
                break;
            }
        }
        Ok(last)
    }

    /// Sequence of the frame at a position.
    #[must_use]
    pub fn sequence_at(&self, position: usize) -> Option<Sequence> {
        Some(Sequence(self.first_sequence.0 + u64::from(self.entries.get(position)?.delta)))
    }

    /// Header of the last frame.
    #[must_use]
    pub fn last_head(&self) -> Option<FrameHeader> {
        self.header_at(*self.head_starts.last()?)
    }

    /// Forgets all but the first `count` frames.
    pub fn truncate(&mut self, count: usize) {
        for start in self.head_starts.get(count..).unwrap_or_default() {
            let bytes = self.header_at(*start).map_or(0, |header| header.frame_bytes() as u64);
            self.frame_bytes = self.frame_bytes.saturating_sub(bytes);
        }
        if let Some(start) = self.head_starts.get(count) {
            self.heads.truncate(*start as usize);
        }
        self.head_starts.truncate(count);
        self.entries.truncate(count);
    }

    fn position_after(&self, sequence: Sequence) -> usize {
        self.entries.partition_point(|entry| self.first_sequence.0 + u64::from(entry.delta) <= sequence.0)
    }

    fn header_at(&self, start: u32) -> Option<FrameHeader> {
        FrameHeader::parse(self.heads.get(start as usize..)?).ok()
    }
}

/// Reads entries; a broken rest is left out.
#[must_use]
pub fn parse_entries(bytes: &[u8]) -> Vec<FrameEntry> {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    let (chunks, _) = bytes.as_chunks::<ENTRY_BYTES>();
    chunks
        .iter()
        .map(|chunk| {
            let (delta, offset) = chunk.split_at(4);
            FrameEntry { delta: number(delta), offset: number(offset) }
        })
        .collect()
}

/// Where a frame begins, by its sequence.
#[must_use]
pub fn find_entry(entries: &[FrameEntry], first: Sequence, sequence: Sequence) -> Option<u64> {
    let delta = u32::try_from(sequence.0.checked_sub(first.0)?).ok()?;
    let position = entries.binary_search_by_key(&delta, |entry| entry.delta).ok()?;
    Some(u64::from(entries.get(position)?.offset))
}
