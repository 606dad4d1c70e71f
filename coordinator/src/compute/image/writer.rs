//! `WriteImage`: images on blocking threads, one at a time per folder.
//!
//! Owns the folders' locks. Knows no format. Invariant: in one folder, writing and discarding never overlap, also not with
//! a write whose caller has gone away.
//! Limit: `ImageWriter::new`'s number of copying threads per image.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    task,
};

use super::{
    materialize::materialize,
    record::{ImagePaths, ImageRecord},
};
use crate::compute::port::{BoxFuture, ComputeError, ImageFile, ImageRequest, Task, WriteImage};

/// Writes images into folders of this host.
#[derive(Debug)]
pub struct ImageWriter {
    threads: usize,
    folders: Mutex<HashMap<PathBuf, Arc<AsyncMutex<()>>>>,
}

impl ImageWriter {
    /// A writer that copies on this many threads per image (the number of cores is right).
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self { threads, folders: Mutex::default() }
    }

    /// The right to change files in a folder, held until the work itself has ended.
    async fn turn(&self, folder: &Path) -> OwnedMutexGuard<()> {
        let lock = {
            let mut folders = self.folders.lock().unwrap_or_else(PoisonError::into_inner);
            folders.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(folders.entry(folder.into()).or_default())
        };
        lock.lock_owned().await
    }
}

impl WriteImage for ImageWriter {
    fn write(
        &self,
        request: ImageRequest,
        task: Arc<Task>,
    ) -> BoxFuture<'_, Result<ImageFile, ComputeError>> {
        Box::pin(async move {
            let turn = self.turn(&request.folder).await;
            let threads = self.threads;
            let folder = request.folder.clone();
            let work = move || {
                let _turn = turn;
                materialize(&request, &task, threads)
            };
            blocking(folder, work).await
        })
    }

    fn discard(&self, folder: PathBuf, owner: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let turn = self.turn(&folder).await;
            let place = folder.clone();
            let work = move || {
                let _turn = turn;
                discard(&place, &owner).map_err(|source| ComputeError::Io {
                    action: "remove images from",
                    path: place,
                    source,
                })
            };
            blocking(folder, work).await
        })
    }
}

async fn blocking<T: Send + 'static>(
    folder: PathBuf,
    work: impl FnOnce() -> Result<T, ComputeError> + Send + 'static,
) -> Result<T, ComputeError> {
    let ended = task::spawn_blocking(work).await;
    ended.unwrap_or_else(|error| {
        Err(ComputeError::Io { action: "work in", path: folder, source: io::Error::other(error) })
    })
}

/// Removes all images of an owner, each record last, so that an interrupted removal is found again.
fn discard(folder: &Path, owner: &str) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        let Some(paths) = ImagePaths::of_record(&path) else { continue };
        let Some(record) = ImageRecord::load(&path)? else { continue };
        if record.owner != owner {
            continue;
        }
        remove(&paths.partial)?;
        if record.complete {
            // Before it was complete, a file of that name was not ours.
            remove(&paths.image)?;
        }
        remove(&paths.record)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
