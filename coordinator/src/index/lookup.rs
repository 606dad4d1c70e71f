//! From a range of blocks to where their bytes are.
//!
//! Owns the resolution over layers, newest first. Does not read frames. Invariant: the pieces cover the range exactly,
//! ascending; each block comes from the newest layer that has it.
//! Limit: a resolution looks at about [`WINDOW_ENTRIES`] entries per layer, whatever the range.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use holdfast_common::{ids::Sequence, units::BlockRange};

use super::{entry::IndexEntry, memtable::Memtable, run::Run};

/// Entries of one layer that one resolution looks at before it stops short.
pub const WINDOW_ENTRIES: usize = 4096;

/// Why the index cannot answer. It can always be rebuilt from the journal.
#[derive(Debug, Error)]
pub enum IndexError {
    /// A run's bytes are damaged.
    #[error("index file {} is damaged; it will be rebuilt from the journal", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A run cannot be read or written.
    #[error("index file {} cannot be used", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be read.
    #[error("the journal cannot be read")]
    Journal(#[from] crate::store::StoreError),
    /// The log is longer than the index's format allows.
    #[error("frame {0} is beyond the highest sequence of the index")]
    Sequence(Sequence),
    /// There is no such cut.
    #[error("there is no cut at frame {0}")]
    NoCut(Sequence),
}

impl IndexError {
    /// Whether a run's bytes are at fault.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Journal(_) | Self::Sequence(_) | Self::NoCut(_) => false,
        }
    }
}

/// Some blocks of a disk and where their bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The blocks.
    pub range: BlockRange,
    /// Where their bytes are.
    pub source: PieceSource,
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceSource {
    /// Nowhere: never written; they read as zeroes.
    Hole,
    /// Nowhere: written as zeroes by this frame.
    Zero(Sequence),
    /// In a frame.
    Frame {
        /// The frame.
        sequence: Sequence,
        /// Offset of the first block in the frame's plain bytes, in blocks.
        plain_block: u32,
    },
}

/// What knows where a disk's blocks are, at a cut or now.
pub trait BlockMap: Send + Sync + std::fmt::Debug {
    /// Where the blocks of `range` are: ascending and without gaps from its start. May stop short of its end, but gives at
    /// least one piece unless the range is empty.
    ///
    /// # Errors
    /// A run is damaged or cannot be read.
    fn resolve(&self, range: BlockRange) -> Result<Vec<Piece>, IndexError>;
}

/// The runs of one cut, newest first.
#[derive(Clone, Debug)]
pub struct CutMap {
    pub(super) runs: Vec<Arc<Run>>,
}

impl CutMap {
    /// Number of runs that are looked through.
    #[must_use]
    pub fn run_count(&self) -> usize {
        self.runs.len()
    }
}

impl BlockMap for CutMap {
    fn resolve(&self, range: BlockRange) -> Result<Vec<Piece>, IndexError> {
        resolve(None, &self.runs, range)
    }
}

/// Resolves over a memory table (newest) and runs, newest first.
pub(super) fn resolve(
    memtable: Option<&Memtable>,
    runs: &[Arc<Run>],
    range: BlockRange,
) -> Result<Vec<Piece>, IndexError> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let end = window_end(memtable, runs, range)?;
    let mut open = vec![(range.start.0, end)];
    let mut pieces = Vec::new();
    if let Some(memtable) = memtable {
        open = cover(open, &mut pieces, &mut |range, found| {
            memtable.overlapping(range).for_each(found);
            Ok(())
        })?;
    }
    for run in runs {
        if open.is_empty() {
            break;
        }
        open = cover(open, &mut pieces, &mut |range, found| run.overlapping(range, found))?;
    }
    pieces.extend(
        open.into_iter().map(|(start, end)| Piece {
            range: BlockRange::new(start, end - start),
            source: PieceSource::Hole,
        }),
    );
    pieces.sort_unstable_by_key(|piece| piece.range.start);
    Ok(pieces)
}

/// Where to stop, so that no layer has to show more than [`WINDOW_ENTRIES`] entries.
fn window_end(memtable: Option<&Memtable>, runs: &[Arc<Run>], range: BlockRange) -> Result<u64, IndexError> {
    let mut end = range.end().0;
    if range.count.0 <= WINDOW_ENTRIES as u64 {
        return Ok(end);
    }
    if let Some(entry) = memtable.and_then(|memtable| memtable.overlapping(range).nth(WINDOW_ENTRIES)) {
        end = end.min(entry.start);
    }
    for run in runs {
        let position = run.position(range.start.0)?;
        if let Some(entry) = run.entry(position + WINDOW_ENTRIES as u64)? {
            end = end.min(entry.start);
        }
    }
    Ok(end)
}

type Overlapping<'a> = dyn FnMut(BlockRange, &mut dyn FnMut(IndexEntry)) -> Result<(), IndexError> + 'a;

/// Takes from one layer what it has of the open stretches; gives what is still open.
fn cover(
    open: Vec<(u64, u64)>,
    pieces: &mut Vec<Piece>,
    overlapping: &mut Overlapping<'_>,
) -> Result<Vec<(u64, u64)>, IndexError> {
    let mut left = Vec::with_capacity(open.len());
    for (start, end) in open {
        let mut at = start;
        overlapping(BlockRange::new(start, end - start), &mut |entry| {
            let part = entry.part(entry.start.max(start), entry.end().min(end));
            if part.start > at {
                left.push((at, part.start));
            }
            at = part.end();
            pieces.push(Piece::of(part));
        })?;
        if at < end {
            left.push((at, end));
        }
    }
    Ok(left)
}

impl Piece {
    fn of(entry: IndexEntry) -> Self {
        let source = match entry.plain {
            None => PieceSource::Zero(entry.sequence),
            Some(plain_block) => PieceSource::Frame { sequence: entry.sequence, plain_block },
        };
        Self { range: entry.range(), source }
    }
}
