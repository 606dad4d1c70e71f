//! `Attach` over NBD: one unix socket per name, one export per disk.
//!
//! Owns the running servers, their sockets' folder and that of branches: `NAME/DISK.branch` of each that is written to, and
//! `NAME/sealed` once they take no more writes. Does not know jobs: names come from the caller.
//! Invariant: a name is served by at most one server; a repeated attach gives the same endpoints.
//! Limit: a socket's path has at most `SOCKET_PATH_BYTES_MAX` bytes.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use holdfast_common::units::BLOCK_BYTES;
use tokio::sync::Mutex;

use super::{
    probe,
    server::{DamageSink, ExportHandle, Listening, NbdServer, Settings},
};
use crate::{
    compute::{
        branch::{Branch, Origin},
        port::{Attach, BoxFuture, Branches, ComputeError, DiskView, Endpoint, ServedBranch},
    },
    points::{
        read_ahead::ReadAhead,
        view::{BlockView, ViewError},
    },
};

/// Serves views on unix sockets in one folder.
#[derive(Debug)]
pub struct NbdAttach {
    folder: PathBuf,
    branches: PathBuf,
    settings: Settings,
    alarm: Arc<dyn DamageSink>,
    served: Mutex<HashMap<String, Served>>,
}

#[derive(Debug)]
struct Served {
    endpoints: Vec<Endpoint>,
    handles: Vec<ExportHandle>,
    branches: Vec<ServedBranch>,
    /// Ends listening when dropped.
    _listening: Listening,
}

impl NbdAttach {
    /// Sockets go into `folder`, which must exist and be open only to those who may read the disks. What is written to
    /// disks goes into `branches`, which is made when it is needed.
    #[must_use]
    pub fn new(folder: PathBuf, branches: PathBuf, settings: Settings, alarm: Arc<dyn DamageSink>) -> Self {
        Self { folder, branches, settings, alarm, served: Mutex::default() }
    }

    /// The branch of a disk.
    async fn branch(
        &self,
        name: &str,
        disk: &str,
        base: Arc<dyn BlockView>,
        origin: Origin,
    ) -> Result<Arc<Branch>, ComputeError> {
        let folder = self.branches.join(name);
        let path = folder.join(format!("{disk}.branch"));
        let opened = tokio::task::spawn_blocking(move || {
            let made = holdfast_common::durable::create_folder(&folder);
            made.map_err(|source| cannot("make the folder", &folder, source))?;
            // Where it cannot be read, what was not flushed counts as lost.
            let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
            let branch = Branch::open(&path, origin, base, boot.trim())?;
            let mark = folder.join(SEALED);
            branch.seal(mark.try_exists().map_err(|source| cannot("look for", &mark, source))?);
            Ok(branch)
        });
        let opened = opened.await.map_err(|error| ComputeError::Invalid { detail: error.to_string() })?;
        opened.map(Arc::new)
    }

    fn socket_path(&self, name: &str) -> Result<PathBuf, ComputeError> {
        let invalid = |detail: String| ComputeError::Invalid { detail };
        if !is_plain(name) {
            return Err(invalid(format!("`{name}` is no name for a socket")));
        }
        let path = self.folder.join(format!("{name}.sock"));
        if path.as_os_str().as_bytes().len() > SOCKET_PATH_BYTES_MAX {
            return Err(invalid(format!(
                "the path {} is too long for a unix socket (at most {SOCKET_PATH_BYTES_MAX} bytes); \
                 set a shorter folder for sockets",
                path.display()
            )));
        }
        Ok(path)
    }

    async fn start(
        &self,
        name: &str,
        disks: Vec<DiskView>,
        writable: Option<Origin>,
    ) -> Result<Served, ComputeError> {
        let path = self.socket_path(name)?;
        let alarm = Named { attachment: name.to_owned(), alarm: Arc::clone(&self.alarm) };
        let server = NbdServer::new(self.settings.clone(), Arc::new(alarm));
        let (mut handles, mut endpoints, mut branches) = (Vec::new(), Vec::new(), Vec::new());
        for disk in disks {
            if !is_plain(&disk.name) {
                return Err(ComputeError::Invalid {
                    detail: format!("`{}` is no name for an export", disk.name),
                });
            }
            let size_bytes = disk.view.size_bytes();
            let uri = format!("nbd+unix:///{}?socket={}", disk.name, path.display());
            let text = format!("disk {} of {name}", disk.disk);
            let view = ReadAhead::new(disk.view).map_err(|source| cannot("read ahead for", &path, source))?;
            let view: Arc<dyn BlockView> = Arc::new(view);
            let added = match writable {
                None => server.export(&disk.name, &text, view),
                Some(origin) => {
                    let branch = self.branch(name, &disk.name, view, origin).await?;
                    branches.push(ServedBranch { disk: disk.disk, branch: Arc::clone(&branch) });
                    server.export_writable(&disk.name, &text, branch)
                }
            };
            let handle = added.map_err(|error| ComputeError::Invalid { detail: error.to_string() })?;
            handles.push(handle);
            endpoints.push(Endpoint { disk: disk.disk, name: disk.name, uri, size_bytes });
        }
        let listening = server.listen_unix(&path).map_err(|source| cannot("listen on", &path, source))?;
        for endpoint in &endpoints {
            let bytes = u32::try_from(endpoint.size_bytes.min(BLOCK_BYTES as u64)).unwrap_or(0);
            if bytes == 0 {
                continue;
            }
            let error = probe::first_read(&path, &endpoint.name, bytes)
                .await
                .map_err(|source| cannot("read through", &path, source))?;
            if error != 0 {
                tracing::warn!(
                    disk = endpoint.name,
                    error,
                    "the first block of an attached disk cannot be read"
                );
            }
        }
        Ok(Served { endpoints, handles, branches, _listening: listening })
    }
}

/// Tells whose export it was: `NAME/EXPORT`.
#[derive(Debug)]
struct Named {
    attachment: String,
    alarm: Arc<dyn DamageSink>,
}

impl DamageSink for Named {
    fn cannot_read(&self, export: &str, bytes: Range<u64>, error: &ViewError) {
        self.alarm.cannot_read(&format!("{}/{export}", self.attachment), bytes, error);
    }
}

impl Attach for NbdAttach {
    fn attach(
        &self,
        name: String,
        disks: Vec<DiskView>,
        writable: Option<Origin>,
    ) -> BoxFuture<'_, Result<Vec<Endpoint>, ComputeError>> {
        Box::pin(async move {
            if let Some(served) = self.served.lock().await.get(&name) {
                return Ok(served.endpoints.clone());
            }
            // Not under the lock: a slow first read must not hold up other jobs. A job attaches its own name only.
            let started = self.start(&name, disks, writable).await?;
            let endpoints = started.endpoints.clone();
            self.served.lock().await.insert(name, started);
            Ok(endpoints)
        })
    }

    fn detach(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let Some(served) = self.served.lock().await.remove(&name) else { return Ok(()) };
            for handle in served.handles {
                handle.remove().await;
            }
            Ok(())
        })
    }

    fn discard(&self, name: String) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            self.detach(name.clone()).await?;
            if !is_plain(&name) {
                // Nothing is ever kept under such a name, and the path would lead elsewhere.
                return Ok(());
            }
            let folder = self.branches.join(name);
            let path = folder.clone();
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
            match removed.map_err(io::Error::other).flatten() {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("remove", &path, error)),
                _ => Ok(()),
            }
        })
    }
}

impl Branches for NbdAttach {
    fn served(&self, name: String) -> BoxFuture<'_, Vec<ServedBranch>> {
        Box::pin(async move {
            self.served.lock().await.get(&name).map(|served| served.branches.clone()).unwrap_or_default()
        })
    }

    fn clients(&self, name: String) -> BoxFuture<'_, usize> {
        Box::pin(async move {
            let served = self.served.lock().await;
            let handles = served.get(&name).map(|served| served.handles.as_slice()).unwrap_or_default();
            handles.iter().map(ExportHandle::clients).sum()
        })
    }

    fn seal(&self, name: String, sealed: bool) -> BoxFuture<'_, Result<(), ComputeError>> {
        Box::pin(async move {
            let branches = self.served(name.clone()).await;
            if !is_plain(&name) {
                return Ok(());
            }
            let folder = self.branches.join(name);
            let sealing = tokio::task::spawn_blocking(move || {
                let mark = folder.join(SEALED);
                // Before the branches when it begins and after them when it ends: a restart in between errs towards sealed.
                if sealed {
                    holdfast_common::durable::replace(&mark, b"", holdfast_common::durable::MODE_PRIVATE)
                        .map_err(|source| cannot("write", &mark, source))?;
                }
                for served in branches {
                    served.branch.seal(sealed);
                }
                if sealed {
                    return Ok(());
                }
                match std::fs::remove_file(&mark) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(cannot("remove", &mark, error))
                    }
                    _ => Ok(()),
                }
            });
            sealing.await.map_err(|error| ComputeError::Invalid { detail: error.to_string() })?
        })
    }
}

fn cannot(action: &'static str, path: &Path, source: io::Error) -> ComputeError {
    ComputeError::Io { action, path: path.into(), source }
}

/// Whether a name can stand in a path and a URI as it is.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with('.') && name.bytes().all(plain)
}

/// What the system allows (`sun_path` with its closing zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Stands beside branches that take no more writes.
const SEALED: &str = "sealed";
/// Identity of the system's present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Names of disks and sockets.
const NAME_BYTES_MAX: usize = 64;
