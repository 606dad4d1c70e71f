//! From a range of blocks to where their bytes are.
//!
//! Owns the resolution over layers, newest first. Does not read frames. Invariant: the pieces cover the range exactly,
//! ascending; each block comes from the newest layer that has it.
//! Limit: a resolution looks at about [`WINDOW_ENTRIES`] entries per layer, whatever the range.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use holdfast_common::{ids::Sequence, units::BlockRange};

use super::{
    entry::{IndexEntry, Packed},
    merge::Layer,
    run::{Run, overlapping, position},
};

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
    /// Runs could not be synced; what the system says of their bytes cannot be relied on any more.
    #[error("index files in {} cannot be synced; they will be made again from the journal", path.display())]
    Unsynced {
        /// The folder.
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
            Self::Damaged { .. } | Self::Unsynced { .. } => true,
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

impl PieceSource {
    /// The frame that wrote the blocks; zero if none did.
    #[must_use]
    pub const fn sequence(&self) -> Sequence {
        match self {
            Self::Frame { sequence, .. } | Self::Zero(sequence) => *sequence,
            Self::Hole => Sequence(0),
        }
    }
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
        let layers: Vec<Layer<'_>> = self.runs.iter().map(|run| Layer::Run(run)).collect();
        resolve(&layers, range)
    }
}

/// Resolves over layers, newest first.
pub(super) fn resolve(layers: &[Layer<'_>], range: BlockRange) -> Result<Vec<Piece>, IndexError> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let end = window_end(layers, range)?;
    let mut open = vec![(range.start.0, end)];
    let mut pieces = Vec::new();
    for layer in layers {
        if open.is_empty() {
            break;
        }
        open = cover(open, &mut pieces, *layer)?;
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
fn window_end(layers: &[Layer<'_>], range: BlockRange) -> Result<u64, IndexError> {
    let mut end = range.end().0;
    if range.count.0 <= WINDOW_ENTRIES as u64 {
        return Ok(end);
    }
    for layer in layers {
        let stop = match layer {
            Layer::Table(table) => {
                table.get(position(table, range.start.0) + WINDOW_ENTRIES).map(Packed::start)
            }
            Layer::Run(run) => {
                let position = run.position(range.start.0)?;
                run.entry(position + WINDOW_ENTRIES as u64)?.map(|entry| entry.start)
            }
        };
        end = stop.map_or(end, |stop| stop.min(end));
    }
    Ok(end)
}

impl Layer<'_> {
    /// Calls `found` with each entry that shares blocks with `range`, ascending.
    fn overlapping(&self, range: BlockRange, found: &mut dyn FnMut(IndexEntry)) -> Result<(), IndexError> {
        match self {
            Self::Run(run) => run.overlapping(range, found),
            Self::Table(table) => {
                overlapping(table, range, found);
                Ok(())
            }
        }
    }
}

/// Takes from one layer what it has of the open stretches; gives what is still open.
fn cover(
    open: Vec<(u64, u64)>,
    pieces: &mut Vec<Piece>,
    layer: Layer<'_>,
) -> Result<Vec<(u64, u64)>, IndexError> {
    let mut left = Vec::with_capacity(open.len());
    for (start, end) in open {
        let mut at = start;
        layer.overlapping(BlockRange::new(start, end - start), &mut |entry| {
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
