//! Why the store cannot do something: kinds that a caller acts on.

use std::{
    io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use holdfast_common::{
    causes::in_one_line,
    frame::FrameError,
    ids::{DiskId, Sequence},
    wire::{Refusal, RefusalCode},
};

use crate::journal::{rewrite::RewriteError, segment::SegmentError, writer::WriteError};

/// Why the store cannot do something.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file or folder cannot be used.
    #[error("{operation} {} failed", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// File or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Another process holds the store.
    #[error("{} is in use by another process; one coordinator writes to a store at a time", .0.display())]
    Locked(PathBuf),
    /// A disk's manifest cannot be used.
    #[error("{} cannot be used: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk has no log here.
    #[error("disk {0} has no log in this store")]
    UnknownDisk(DiskId),
    /// A disk of that id exists and is another one.
    #[error("disk {0} exists with another machine or size")]
    DiskExists(DiskId),
    /// The file system is nearly full.
    #[error(
        "only {free_bytes} bytes are free in the store, less than its reserve of {reserve_bytes}; free or add space, \
         replication then goes on by itself"
    )]
    Full {
        /// Free bytes.
        free_bytes: u64,
        /// Bytes kept free.
        reserve_bytes: u64,
    },
    /// A segment cannot be read.
    #[error("segment {} cannot be read", path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: SegmentError,
    },
    /// A segment cannot be written.
    #[error("segment {} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: WriteError,
    },
    /// A segment cannot be written again without its needless frames.
    #[error("segment {} cannot be made", path.display())]
    Rewrite {
        /// The new file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: RewriteError,
    },
    /// A frame passed its digest, yet does not decompress: its writer was at fault.
    #[error("frame {sequence} cannot be decompressed")]
    Payload {
        /// The frame.
        sequence: Sequence,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// No segment holds this frame.
    #[error("frame {0} is not in the log")]
    Missing(Sequence),
    /// The frame does not follow the last one.
    #[error("frame {found} does not follow {last}")]
    Sequence {
        /// Last accepted frame.
        last: Sequence,
        /// Frame that came.
        found: Sequence,
    },
    /// The frame is another disk's, or of an older generation.
    #[error("frame {0} is of another disk or of an older generation than the log")]
    Foreign(Sequence),
    /// The log failed and must be opened anew.
    #[error("the log stopped: {0}")]
    Stopped(String),
}

impl StoreError {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { operation, path: path.to_owned(), source }
    }

    pub(crate) fn manifest(path: &Path, reason: &str) -> Self {
        Self::Manifest { path: path.to_owned(), reason: reason.to_owned() }
    }

    /// Whether stored bytes are damaged, as opposed to unreachable.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Segment { source, .. } => source.is_damage(),
            Self::Missing(_) | Self::Payload { .. } => true,
            _ => false,
        }
    }

    /// What the agent is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Sequence { .. } => RefusalCode::SEQUENCE,
            Self::Foreign(_) => RefusalCode::FENCED,
            Self::UnknownDisk(_) => RefusalCode::UNAUTHORIZED,
            _ => RefusalCode::STORAGE,
        };
        Refusal::new(code, in_one_line(self))
    }
}
