//! Whether an image that is there can be made the image of another point, and the first step of that.
//!
//! Owns the refusals. Writes no block. Invariant: an image is taken for an update only if it is complete, of the same disk
//! and format, and nobody has written to it since; from the first step on it has no final name until it is the new one.

use std::fs;

use holdfast_common::durable;

use super::{
    materialize::cannot,
    record::{self, ImagePaths, ImageRecord},
};
use crate::compute::port::{ComputeError, ImageRequest};

/// Whether a complete image is there, under its name or, if an update was interrupted right at its begin, without it.
pub(super) fn is_there(found: &ImageRecord, paths: &ImagePaths) -> bool {
    found.complete && (paths.image.exists() != paths.partial.exists())
}

/// Whether the image that is there can be relied on.
///
/// # Errors
/// [`ComputeError::Invalid`] says why not, and what to do.
pub(super) fn check(
    request: &ImageRequest,
    found: &ImageRecord,
    paths: &ImagePaths,
) -> Result<(), ComputeError> {
    let refuse = |why: String| {
        let path = paths.image.display();
        Err(ComputeError::Invalid { detail: format!("{path} {why}; choose another folder, or move it away") })
    };
    if found.disk != request.disk.disk {
        return refuse(format!("is of another disk ({})", found.disk));
    }
    if found.format != request.format || found.size_bytes != request.disk.view.size_bytes() {
        return refuse("has another format or size than is asked for".into());
    }
    let path = if paths.image.exists() { &paths.image } else { &paths.partial };
    let metadata = fs::metadata(path).map_err(|source| cannot("look at", path, source))?;
    if found.modified_ns.is_none() || record::modified_ns(&metadata) != found.modified_ns {
        return refuse("was changed since it was written".into());
    }
    Ok(())
}

/// Takes the final name off a complete image and writes down what it is to become. Gives the record to go on with.
///
/// # Errors
/// The image cannot be updated; it is as it was then.
pub(super) fn begin(
    request: &ImageRequest,
    found: &ImageRecord,
    paths: &ImagePaths,
    wanted: ImageRecord,
) -> Result<ImageRecord, ComputeError> {
    check(request, found, paths)?;
    let path = paths.image.display();
    let invalid = |detail: String| ComputeError::Invalid { detail };
    let base = found.as_base().ok_or_else(|| {
        invalid(format!(
            "{path} was written by an older version, which did not note enough; choose another folder"
        ))
    })?;
    let changes = request.disk.view.changes_from(base.into());
    let known =
        changes.map_err(|source| ComputeError::View { name: request.disk.name.clone(), source })?.is_some();
    if !known {
        return Err(invalid(format!(
            "{path} shows point {}, which is no longer in the history; choose another folder",
            base.point
        )));
    }
    if paths.image.exists() {
        durable::rename(&paths.image, &paths.partial)
            .map_err(|source| cannot("take the name of", &paths.image, source))?;
    }
    let record = ImageRecord { base: Some(base), ..wanted };
    record.save(&paths.record).map_err(|source| cannot("write", &paths.record, source))?;
    Ok(record)
}
