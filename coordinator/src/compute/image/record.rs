//! The file beside an image that says what the image is and how far it has got: `NAME.holdfast.json`.
//!
//! Owns the names of all files of an image and the record's format. Invariant: everything below `written_to` is durable in
//! the image before the record says so.
//! Format: a JSON object, fields as at `ImageRecord`. A reader refuses newer versions and then starts over; a record that
//! cannot be read counts as absent. Version history: 2, `cut`, `base` and `modified_ns`, for updates; 1, the first.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use holdfast_common::{
    durable,
    ids::{DiskId, PointId, Sequence},
};
use serde::{Deserialize, Serialize};

use crate::{
    compute::port::{ImageFormat, ImageRequest},
    points::view::HistoryPlace,
};

/// What is known about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// Format of this record: [`VERSION`].
    pub version: u32,
    /// Who writes it (a job's id).
    pub owner: String,
    /// The point it shows.
    pub point: PointId,
    /// The disk.
    pub disk: DiskId,
    /// The image's format.
    pub format: ImageFormat,
    /// Size of the disk.
    pub size_bytes: u64,
    /// Bytes of data in the finished image.
    pub data_bytes: u64,
    /// Digest of the map of data clusters, in hex: where every cluster lies depends on it.
    pub map: String,
    /// Clusters of the disk below this one are durable in the image.
    pub written_to: u64,
    /// Whether the image is complete and durable.
    pub complete: bool,
    /// The point's cut in the disk's log, if the view knows it.
    #[serde(default)]
    pub cut: Option<Sequence>,
    /// While the image of another point is being made this one: that other point. The image is neither then.
    #[serde(default)]
    pub base: Option<Base>,
    /// When the complete image was last written to, in nanoseconds since 1970: later means that somebody changed it.
    #[serde(default)]
    pub modified_ns: Option<i64>,
}

/// The point that an image showed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    /// The point.
    pub point: PointId,
    /// Its cut in the disk's log.
    pub cut: Sequence,
}

impl From<Base> for HistoryPlace {
    fn from(base: Base) -> Self {
        Self { point: base.point, cut: base.cut }
    }
}

/// The version that this program writes.
pub(super) const VERSION: u32 = 2;

/// Names of an image's files.
#[derive(Clone, Debug)]
pub(super) struct ImagePaths {
    /// The finished image.
    pub image: PathBuf,
    /// The image while it is written.
    pub partial: PathBuf,
    /// The record.
    pub record: PathBuf,
}

impl ImagePaths {
    /// The files of the image that a request asks for.
    pub(super) fn of(request: &ImageRequest) -> Self {
        let extension = match request.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        };
        Self::beside(request.folder.join(format!("{}.{extension}", request.disk.name)))
    }

    fn beside(image: PathBuf) -> Self {
        let with = |suffix: &str| {
            let mut name = image.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        Self { partial: with(PARTIAL_SUFFIX), record: with(RECORD_SUFFIX), image }
    }

    /// The files that belong to a record, if the path has a record's name.
    pub(super) fn of_record(record: &Path) -> Option<Self> {
        let name = record.file_name()?.to_str()?.strip_suffix(RECORD_SUFFIX)?;
        Some(Self::beside(record.with_file_name(name)))
    }
}

impl ImageRecord {
    /// The record in a file; `None` if there is none that this program understands.
    pub(super) fn load(path: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let record: Option<Self> = serde_json::from_slice(&bytes).ok();
        Ok(record.filter(|record| (1..=VERSION).contains(&record.version)))
    }

    /// Stores the record as a whole.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        durable::replace(path, &bytes, durable::MODE_PRIVATE)
    }

    /// What a complete image can be the base of; `None` if it is not known well enough.
    pub(super) fn as_base(&self) -> Option<Base> {
        let cut = self.cut.filter(|_| self.complete)?;
        Some(Base { point: self.point, cut })
    }

    /// Whether both are about the same image with every cluster in the same place.
    pub(super) fn is_same_image(&self, other: &Self) -> bool {
        (self.point, self.disk, self.format, &self.map) == (other.point, other.disk, other.format, &other.map)
    }
}

/// When a file was last written to, as [`ImageRecord::modified_ns`] says it.
pub(super) fn modified_ns(metadata: &fs::Metadata) -> Option<i64> {
    use std::os::unix::fs::MetadataExt as _;
    metadata.mtime().checked_mul(1_000_000_000)?.checked_add(metadata.mtime_nsec())
}

/// Ending of an image that is not complete.
const PARTIAL_SUFFIX: &str = ".partial";
/// Ending of a record.
const RECORD_SUFFIX: &str = ".holdfast.json";

#[cfg(test)]
mod tests;
