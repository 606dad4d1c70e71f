//! What failover uses of compute: attaching views as devices and writing them out as images.
//!
//! Owns the contracts only; knows neither NBD nor an image format's bytes. Invariant: every operation may be repeated
//! with the same arguments, and its reversal may be repeated too, also when the operation never ran or ran half.

use std::{
    fmt,
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use holdfast_common::ids::{DiskId, PointId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::branch::{Branch, Origin};
use crate::points::view::BlockView;

/// A future of a contract that is used behind `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A disk of a point, opened.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// The disk.
    pub disk: DiskId,
    /// Its name for people and files (for example `sda`): letters, digits, `.`, `_`, `-` only; unique in its machine.
    pub name: String,
    /// Its bytes.
    pub view: Arc<dyn BlockView>,
}

/// Where an attached disk can be reached. Persisted in jobs' logs: fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The disk.
    pub disk: DiskId,
    /// Its name for people.
    pub name: String,
    /// What a client opens (for example `nbd+unix:///sda?socket=...`).
    pub uri: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// Serves views as devices.
pub trait Attach: fmt::Debug + Send + Sync {
    /// Serves these disks under this name until [`detach`](Self::detach), and has read the first block of each
    /// through the device when it returns. Repeated: the same endpoints again. With `writable` clients may write to them:
    /// what they write is kept until [`discard`](Self::discard), over restarts, and goes on where the origin says the same.
    fn attach(
        &self,
        name: String,
        disks: Vec<DiskView>,
        writable: Option<Origin>,
    ) -> BoxFuture<'_, Result<Vec<Endpoint>, ComputeError>>;

    /// Ends serving; clients lose their connections. Nothing to do is success.
    fn detach(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>>;

    /// Ends serving, and gives up what was written. Nothing to do is success.
    fn discard(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>>;
}

/// A disk that is served for clients that write.
#[derive(Clone, Debug)]
pub struct ServedBranch {
    /// The disk.
    pub disk: DiskId,
    /// What is written.
    pub branch: Arc<Branch>,
}

/// What becomes of the disks that are served for clients that write.
pub trait Branches: fmt::Debug + Send + Sync {
    /// The branches that are served under this name, in the order of its disks; empty if nothing is, or read-only.
    fn served(&self, name: String) -> BoxFuture<'_, Vec<ServedBranch>>;

    /// How many clients are connected to what is served under this name.
    fn clients(&self, name: String) -> BoxFuture<'_, usize>;

    /// From now on every write to what is served under this name fails, also after a restart; or, with `false`, none does
    /// any more. No write is under way when this returns.
    fn seal(&self, name: String, sealed: bool) -> BoxFuture<'_, Result<(), ComputeError>>;
}

/// Formats of images. Persisted in jobs' logs: variants are only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageFormat {
    /// The bytes of the disk, with holes.
    Raw,
    /// QEMU's format, version 3, uncompressed.
    Qcow2,
}

/// An image to write.
#[derive(Clone, Debug)]
pub struct ImageRequest {
    /// Who writes it (a job's id): [`WriteImage::discard`] goes by it.
    pub owner: String,
    /// The point that the disk's view is of: a half-written image is continued only for the same one.
    pub point: PointId,
    /// The disk.
    pub disk: DiskView,
    /// Folder of the image; created if it does not exist. The file is named after the disk.
    pub folder: PathBuf,
    /// Its format.
    pub format: ImageFormat,
    /// Whether a complete and unchanged image of another point of the disk, left there by any owner, is to be made this one,
    /// by writing only what differs. It loses its name until that is done.
    pub update: bool,
}

/// A written image. Persisted in jobs' logs: fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFile {
    /// The disk.
    pub disk: DiskId,
    /// The file.
    pub path: PathBuf,
    /// Size of the disk in it.
    pub size_bytes: u64,
    /// Bytes of data written, without holes.
    pub data_bytes: u64,
}

/// Writes views out.
pub trait WriteImage: fmt::Debug + Send + Sync {
    /// Writes the image, continuing a half-written one of the same point. A file with the final name is always
    /// complete and durable. Repeated after success: the same answer at once.
    fn write(&self, request: ImageRequest, task: Arc<Task>)
    -> BoxFuture<'_, Result<ImageFile, ComputeError>>;

    /// Removes what [`write`](Self::write) made in this folder for this owner, half-written or complete, and nothing
    /// else. Waits for a write that has not ended yet. Nothing there is success.
    fn discard(&self, folder: PathBuf, owner: String) -> BoxFuture<'_, Result<(), ComputeError>>;
}

/// Progress and cancellation of one long piece of work, shared by who does it and who watches.
#[derive(Debug, Default)]
pub struct Task {
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    resumed_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Task {
    /// States how much there is to do in all.
    pub fn set_total_bytes(&self, bytes: u64) {
        self.total_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Adds to what there is to do.
    pub fn add_total_bytes(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds to what is done.
    pub fn add_done_bytes(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Adds to what is done, as found from an earlier try: it does not count for the rate.
    pub fn add_resumed_bytes(&self, bytes: u64) {
        self.resumed_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Asks the work to end soon, with [`ComputeError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the work should end.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// How far the work is after running for `elapsed`.
    #[must_use]
    pub fn progress(&self, elapsed: Duration) -> Progress {
        let done_bytes = self.done_bytes.load(Ordering::Relaxed);
        let total_bytes = self.total_bytes.load(Ordering::Relaxed).max(done_bytes);
        let worked = done_bytes.saturating_sub(self.resumed_bytes.load(Ordering::Relaxed));
        let millis = elapsed.as_millis().max(1);
        let rate = u64::try_from(u128::from(worked) * 1000 / millis).unwrap_or(u64::MAX);
        let left_ms = (rate > 0).then(|| (total_bytes - done_bytes).saturating_mul(1000) / rate);
        Progress { done_bytes, total_bytes, bytes_per_second: rate, left_ms }
    }
}

/// How far a piece of work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done, those of earlier tries included.
    pub done_bytes: u64,
    /// Bytes to do in all; zero if there is nothing to count.
    pub total_bytes: u64,
    /// Bytes per second of this try.
    pub bytes_per_second: u64,
    /// Milliseconds left at that rate, if it is known.
    pub left_ms: Option<u64>,
}

/// Why compute could not do its work. The text says what to do.
#[derive(Debug, Error)]
pub enum ComputeError {
    /// Asked to end; what was done so far can be continued or discarded.
    #[error("cancelled")]
    Cancelled,
    /// The target is full.
    #[error(
        "no space left for {}: {missing_bytes} more bytes are needed; make room and retry, the work goes on where it stopped",
        path.display()
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes that still have to be written.
        missing_bytes: u64,
    },
    /// A file of that name is there and is not ours.
    #[error("{} exists and was not written by this job; move it away or choose another folder", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Stored bytes of the point cannot be read.
    #[error("disk {name} cannot be read")]
    View {
        /// The disk's name.
        name: String,
        /// Which range, and why.
        #[source]
        source: crate::points::view::ViewError,
    },
    /// The request makes no sense.
    #[error("{detail}")]
    Invalid {
        /// What is wrong and what to do.
        detail: String,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// File or socket.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}
