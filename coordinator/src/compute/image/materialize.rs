//! One image from begin to end: fresh, continued, made out of an older one, or found complete.
//!
//! Owns the order of things. Invariant: the image gets its final name only after all of it is durable, and an existing file
//! that is not this owner's is never touched, unless it is an unchanged image of ours that is to be updated. Blocks; runs
//! on a blocking thread.
//!
//! ```text
//!   record {written_to: 0} -> partial file -> ... sync, record {written_to: n} ... -> metadata -> sync
//!     -> record {complete} -> rename partial to image
//!   update: rename image to partial -> record {new point, base: old point, written_to: 0} -> ... as above
//! ```
//! A kill between any two arrows is continued from there by the next call.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
};

use holdfast_common::{
    durable,
    units::{BlockCount, BlockRange},
};

use super::{
    copy::{Copy, CopyError, Layout, RUN_CLUSTERS, no_place, places, read_run},
    map::{CLUSTER, CLUSTER_BYTES, ClusterMap},
    qcow2::{Qcow2, update::Qcow2Update},
    raw::Raw,
    record::{self, ImagePaths, ImageRecord},
    target::Target,
    update,
};
use crate::{
    compute::port::{ComputeError, ImageFile, ImageFormat, ImageRequest, Task},
    points::view::{Changes, ViewError},
};

/// Writes the image of a request.
///
/// # Errors
/// See [`ComputeError`]; what was written so far is continued by the next call.
pub(super) fn materialize(
    request: &ImageRequest,
    task: &Task,
    threads: usize,
) -> Result<ImageFile, ComputeError> {
    let folder = &request.folder;
    durable::create_folder(folder).map_err(|source| cannot("create folder", folder, source))?;
    let view = request.disk.view.as_ref();
    let map = ClusterMap::scan(view, &request.disk.name, task)?;
    let paths = ImagePaths::of(request);
    let wanted = wanted(request, &map);
    let found = ImageRecord::load(&paths.record).map_err(|source| cannot("read", &paths.record, source))?;
    let continued =
        found.as_ref().filter(|found| found.owner == wanted.owner && found.is_same_image(&wanted));
    let record = match (continued, &found) {
        (Some(continued), _) => continued.clone(),
        (None, Some(found)) if request.update && update::is_there(found, &paths) => {
            if found.is_same_image(&wanted) && paths.image.exists() {
                update::check(request, found, &paths)?;
                return Ok(image_file(&paths, found));
            }
            update::begin(request, found, &paths, wanted.clone())?
        }
        (None, Some(found)) if found.owner != wanted.owner && paths.partial.exists() => {
            return Err(ComputeError::Exists { path: paths.partial });
        }
        _ => wanted.clone(),
    };
    if paths.image.exists() {
        let ours = record.complete && !paths.partial.exists();
        if !ours {
            return Err(ComputeError::Exists { path: paths.image });
        }
        task.add_total_bytes(map.block_bytes_below(map.clusters()));
        task.add_resumed_bytes(map.block_bytes_below(map.clusters()));
        return Ok(image_file(&paths, &record));
    }
    let image = Image { request, paths: &paths, map: &map, task, threads };
    image.write(record)?;
    Ok(image_file(&paths, &wanted))
}

fn wanted(request: &ImageRequest, map: &ClusterMap) -> ImageRecord {
    ImageRecord {
        version: record::VERSION,
        owner: request.owner.clone(),
        point: request.point,
        disk: request.disk.disk,
        format: request.format,
        size_bytes: map.size_bytes(),
        data_bytes: map.data_clusters() * CLUSTER,
        map: map.digest().to_hex().to_string(),
        written_to: 0,
        complete: false,
        cut: request
            .disk
            .view
            .history_place()
            .filter(|place| place.point == request.point)
            .map(|place| place.cut),
        base: None,
        modified_ns: None,
    }
}

fn image_file(paths: &ImagePaths, record: &ImageRecord) -> ImageFile {
    ImageFile {
        disk: record.disk,
        path: paths.image.clone(),
        size_bytes: record.size_bytes,
        data_bytes: record.data_bytes,
    }
}

/// An image being written.
struct Image<'a> {
    request: &'a ImageRequest,
    paths: &'a ImagePaths,
    map: &'a ClusterMap,
    task: &'a Task,
    threads: usize,
}

impl Image<'_> {
    fn write(&self, mut record: ImageRecord) -> Result<(), ComputeError> {
        let changes = self.changes(&mut record)?;
        let (file, layout) = self.open(&mut record)?;
        if !record.complete {
            self.count(&record, changes.as_deref())?;
            let target = Target::new(file, &self.paths.partial);
            self.copy(&target, layout.as_ref(), &mut record, changes.as_deref())?;
            self.finish(target.file(), layout.as_ref(), &mut record)?;
        }
        durable::rename(&self.paths.partial, &self.paths.image)
            .map_err(|source| cannot("name", &self.paths.image, source))
    }

    /// What differs from the point whose image is being updated. If that cannot be told any more, the image is begun anew.
    fn changes(&self, record: &mut ImageRecord) -> Result<Option<Arc<dyn Changes>>, ComputeError> {
        let Some(base) = record.base else { return Ok(None) };
        let changes =
            self.request.disk.view.changes_from(base.into()).map_err(|error| self.view_failed(error))?;
        if changes.is_none() {
            tracing::warn!(path = %self.paths.partial.display(), point = %base.point,
                "a half-updated image is begun anew: its old point is no longer in the history");
            (record.base, record.written_to) = (None, 0);
        }
        Ok(changes)
    }

    /// States how much there is to do, and refuses at once what cannot fit.
    fn count(&self, record: &ImageRecord, changes: Option<&dyn Changes>) -> Result<(), ComputeError> {
        let Some(changes) = changes else {
            let (all, done) = (self.map.clusters(), record.written_to);
            self.task.add_total_bytes(self.map.block_bytes_below(all));
            self.task.add_resumed_bytes(self.map.block_bytes_below(done));
            return self.check_space((self.map.data_clusters() - self.map.rank(done)) * CLUSTER);
        };
        let blocks = BlockCount::covering(self.map.size_bytes()).0;
        let mut at = BlockRange::covering(0, record.written_to * CLUSTER).end().0;
        while at < blocks {
            let rest = BlockRange::new(at, blocks - at);
            let (changed, end) = changes.changed(rest).map_err(|error| self.view_failed(error))?;
            self.task.add_total_bytes(changed.iter().map(|range| range.bytes()).sum());
            at = end;
        }
        Ok(())
    }

    /// The partial file and its layout, and in the record from where it has to be continued.
    fn open(&self, record: &mut ImageRecord) -> Result<(File, Box<dyn Layout>), ComputeError> {
        let partial = &self.paths.partial;
        let open_failed = |source| cannot("open", partial, source);
        if record.written_to > 0 || record.complete || record.base.is_some() {
            match OpenOptions::new().read(true).write(true).open(partial) {
                Ok(file) => match self.layout(record, &file) {
                    Ok(layout)
                        if record.complete
                            || self.tail_is_good(&file, layout.as_ref(), record.written_to)? =>
                    {
                        return Ok((file, layout));
                    }
                    Ok(_) => {
                        tracing::warn!(path = %partial.display(), "a half-written image is not what it should be; it is begun anew")
                    }
                    Err(error) => {
                        tracing::warn!(path = %partial.display(), %error, "an image that was to be updated is begun anew")
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(open_failed(error)),
            }
        }
        (record.written_to, record.complete, record.base) = (0, false, None);
        self.save(record)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(partial)
            .map_err(open_failed)?;
        let layout = self.layout(record, &file).map_err(open_failed)?;
        file.set_len(layout.file_bytes(self.map)).map_err(open_failed)?;
        Ok((file, layout))
    }

    /// The layout of a fresh image, or of one that was another point's.
    fn layout(&self, record: &ImageRecord, file: &File) -> io::Result<Box<dyn Layout>> {
        Ok(match (self.request.format, record.base) {
            (ImageFormat::Raw, _) => Box::new(Raw),
            (ImageFormat::Qcow2, None) => Box::new(Qcow2::new(self.map)),
            (ImageFormat::Qcow2, Some(_)) => Box::new(Qcow2Update::open(file.try_clone()?, self.map)?),
        })
    }

    /// Whether the last data below `written_to` is in the file as the view has it.
    fn tail_is_good(&self, file: &File, layout: &dyn Layout, written_to: u64) -> Result<bool, ComputeError> {
        let view = self.request.disk.view.as_ref();
        let mut expected = vec![0; RUN_CLUSTERS * CLUSTER_BYTES];
        let mut found = expected.clone();
        let file_bytes = layout.file_bytes(self.map);
        let mut from = written_to.saturating_sub(TAIL_CLUSTERS);
        while let Some(run) = self.map.next_run(from, RUN_CLUSTERS as u64) {
            if run.start >= written_to {
                break;
            }
            let run = run.start..run.end.min(written_to);
            from = run.end;
            let bytes = read_run(view, &run, &mut expected)
                .map_err(|source| self.copy_failed(CopyError::View(source)))?;
            let mut good = true;
            let compared =
                places(layout, self.map, run.start * CLUSTER..run.end * CLUSTER, &mut |place, within| {
                    let place = place.ok_or_else(no_place)?;
                    // The last cluster of a raw file may end early.
                    let end = within.start
                        + usize::try_from(file_bytes.saturating_sub(place)).unwrap_or(usize::MAX);
                    let within = within.start..within.end.min(end);
                    let (Some(found), Some(bytes)) = (found.get_mut(within.clone()), bytes.get(within))
                    else {
                        good = false;
                        return Ok(());
                    };
                    file.read_exact_at(found, place)?;
                    good &= found == bytes;
                    Ok(())
                });
            // What is missing reads as an error, and begins anew.
            if compared.is_err() || !good {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn copy(
        &self,
        target: &Target,
        layout: &dyn Layout,
        record: &mut ImageRecord,
        changes: Option<&dyn Changes>,
    ) -> Result<(), ComputeError> {
        let copy = Copy {
            view: self.request.disk.view.as_ref(),
            map: self.map,
            layout,
            target,
            task: self.task,
            threads: self.threads,
            changes,
        };
        let mut reached = record.written_to;
        let copied = copy.run(record.written_to, CHECKPOINT_BYTES, |cluster| {
            reached = cluster;
            ImageRecord { written_to: cluster, ..record.clone() }.save(&self.paths.record)
        });
        record.written_to = reached;
        copied.map_err(|error| self.copy_failed(error))
    }

    fn finish(&self, file: &File, layout: &dyn Layout, record: &mut ImageRecord) -> Result<(), ComputeError> {
        let failed = |source| self.copy_failed(CopyError::Write(source));
        layout.finish(self.map, file).map_err(failed)?;
        durable::sync_all(file).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        record.modified_ns = record::modified_ns(&metadata);
        (record.written_to, record.complete, record.base) = (self.map.clusters(), true, None);
        self.save(record)
    }

    /// Refuses at once what cannot fit; the file system may still fill up meanwhile.
    fn check_space(&self, left_bytes: u64) -> Result<(), ComputeError> {
        let Ok(space) = rustix::fs::statvfs(&self.request.folder) else { return Ok(()) };
        let used = fs::metadata(&self.paths.partial)
            .map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
            .unwrap_or(0);
        let free = space.f_bavail.saturating_mul(space.f_frsize).saturating_add(used);
        // What lies beyond the last checkpoint is in `used` and gets written again in place.
        if free < left_bytes {
            let missing_bytes = left_bytes - free;
            return Err(ComputeError::NoSpace { path: self.paths.partial.clone(), missing_bytes });
        }
        Ok(())
    }

    fn save(&self, record: &ImageRecord) -> Result<(), ComputeError> {
        record.save(&self.paths.record).map_err(|error| self.copy_failed(CopyError::Write(error)))
    }

    fn copy_failed(&self, error: CopyError) -> ComputeError {
        match error {
            CopyError::Cancelled => ComputeError::Cancelled,
            CopyError::View(source) => self.view_failed(source),
            CopyError::Write(error) if is_full(&error) => {
                let progress = self.task.progress(std::time::Duration::ZERO);
                let missing_bytes = progress.total_bytes - progress.done_bytes;
                ComputeError::NoSpace { path: self.paths.partial.clone(), missing_bytes }
            }
            CopyError::Write(source) => cannot("write", &self.paths.partial, source),
        }
    }

    fn view_failed(&self, source: ViewError) -> ComputeError {
        ComputeError::View { name: self.request.disk.name.clone(), source }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

pub(super) fn cannot(action: &'static str, path: &Path, source: io::Error) -> ComputeError {
    ComputeError::Io { action, path: path.into(), source }
}

/// Bytes written between two checkpoints: what a kill costs at most.
const CHECKPOINT_BYTES: u64 = 256 << 20;
/// Clusters below a checkpoint that are compared again before an image is continued.
const TAIL_CLUSTERS: u64 = 1024;
