//! All logs of a coordinator.
//!
//! Owns the store's folder and its lock, and opens the disks' logs. Does not know machines' owners or sessions.
//! Invariant: while a [`Store`] lives, no other process writes to its folder. A disk that cannot be opened does not keep
//! the others from opening.
//! Limit: [`OPENING_THREADS_MAX`] disks are recovered at a time.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread,
};

use tokio::sync::Semaphore;

use holdfast_common::{durable, ids::DiskId};

use super::{
    error::StoreError,
    layout::StoreLayout,
    log::{DiskLog, Found},
    manifest::DiskManifest,
    settings::StoreSettings,
};
use crate::journal::recovery::Damage;

/// Disks that are recovered at a time.
const OPENING_THREADS_MAX: usize = 4;

/// What opening a disk's log found.
#[derive(Debug)]
pub struct DiskRecovery {
    /// The disk.
    pub disk: DiskId,
    /// Bytes cut off behind the last acknowledged frame; the agent sends them again.
    pub torn_bytes: u64,
    /// Damaged parts of segments. A disk with lost frames needs a new generation and a scan.
    pub damage: Vec<(PathBuf, Damage)>,
    /// Damaged files beside the segments, each with what became of it, for people.
    pub records: Vec<String>,
    /// Why the log cannot be used at all, if so.
    pub error: Option<StoreError>,
}

/// All logs of a coordinator.
#[derive(Debug)]
pub struct Store {
    layout: StoreLayout,
    settings: StoreSettings,
    queue: Arc<Semaphore>,
    disks: RwLock<BTreeMap<DiskId, Arc<DiskLog>>>,
    /// Held until the store is dropped.
    _lock: File,
}

impl Store {
    /// Opens a store, creating its folder if need be, and recovers every disk's log.
    ///
    /// # Errors
    /// The folder cannot be written, or another process has it. A single disk's trouble is in its [`DiskRecovery`].
    pub fn open(
        folder: &Path,
        settings: StoreSettings,
    ) -> Result<(Arc<Self>, Vec<DiskRecovery>), StoreError> {
        let layout = StoreLayout::new(folder);
        let disks = layout.disks();
        durable::create_folder(&disks).map_err(|error| StoreError::io("creating", &disks, error))?;
        let lock = lock(&layout)?;
        let queue = Arc::new(Semaphore::new(settings.store_queue_bytes));
        let store = Self { layout, settings, queue, disks: RwLock::default(), _lock: lock };
        let found = store.recover_all()?;
        Ok((Arc::new(store), found))
    }

    fn recover_all(&self) -> Result<Vec<DiskRecovery>, StoreError> {
        let folder = self.layout.disks();
        let listed = self.layout.list_disks().map_err(|error| StoreError::io("listing", &folder, error))?;
        let listed: Vec<DiskId> = listed.into_iter().filter(|disk| !self.is_unfinished(*disk)).collect();
        let next = Mutex::new(listed.iter().copied());
        let results = Mutex::new(Vec::with_capacity(listed.len()));
        thread::scope(|scope| {
            for _ in 0..OPENING_THREADS_MAX.min(listed.len()) {
                scope.spawn(|| {
                    loop {
                        let disk = next.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(disk) = disk else { break };
                        let recovery = self.recover(disk);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(recovery);
                    }
                });
            }
        });
        let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        results.sort_by_key(|recovery| recovery.disk);
        Ok(results)
    }

    /// Whether creating the disk was cut short: the manifest is written last, and nothing can have been stored before. Creating it
    /// again finishes it.
    fn is_unfinished(&self, disk: DiskId) -> bool {
        let layout = self.layout.disk(disk);
        let missing = |path: &Path| path.try_exists().is_ok_and(|exists| !exists);
        let unfinished = missing(&layout.manifest())
            && (missing(&layout.journal())
                || layout.list_segments().is_ok_and(|segments| segments.is_empty()));
        if unfinished {
            tracing::warn!(%disk, "creating this disk was cut short; it holds nothing and is passed over");
        }
        unfinished
    }

    fn recover(&self, disk: DiskId) -> DiskRecovery {
        match self.open_log(disk) {
            Ok((log, found)) => {
                self.disks.write().unwrap_or_else(PoisonError::into_inner).insert(disk, Arc::new(log));
                let Found { torn_bytes, damage, records } = found;
                DiskRecovery { disk, torn_bytes, damage, records, error: None }
            }
            Err(error) => DiskRecovery {
                disk,
                torn_bytes: 0,
                damage: Vec::new(),
                records: Vec::new(),
                error: Some(error),
            },
        }
    }

    fn open_log(&self, disk: DiskId) -> Result<(DiskLog, Found), StoreError> {
        DiskLog::open(self.layout.disk(disk), &self.settings, Arc::clone(&self.queue))
    }

    /// The log of a disk, if it is open.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> Option<Arc<DiskLog>> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner).get(&disk).cloned()
    }

    /// All open logs.
    #[must_use]
    pub fn disks(&self) -> Vec<Arc<DiskLog>> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The log of a disk, created if there is none yet.
    ///
    /// # Errors
    /// A disk of that id exists and is another one, or its log cannot be created or opened.
    pub fn create_disk(&self, manifest: &DiskManifest) -> Result<Arc<DiskLog>, StoreError> {
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = disks.get(&manifest.disk) {
            let same = log.manifest() == manifest;
            return if same { Ok(Arc::clone(log)) } else { Err(StoreError::DiskExists(manifest.disk)) };
        }
        let layout = self.layout.disk(manifest.disk);
        for folder in [layout.journal(), layout.index()] {
            durable::create_folder(&folder).map_err(|error| StoreError::io("creating", &folder, error))?;
        }
        let path = layout.manifest();
        if path.exists() {
            if DiskManifest::load(&path)? != *manifest {
                return Err(StoreError::DiskExists(manifest.disk));
            }
        } else {
            manifest.store(&path)?;
        }
        let (log, _) = self.open_log(manifest.disk)?;
        let log = Arc::new(log);
        disks.insert(manifest.disk, Arc::clone(&log));
        Ok(log)
    }

    /// The store's paths.
    #[must_use]
    pub const fn layout(&self) -> &StoreLayout {
        &self.layout
    }

    /// Free and total bytes of the store's file system.
    ///
    /// # Errors
    /// The file system does not answer.
    pub fn space(&self) -> Result<StoreSpace, StoreError> {
        let root = self.layout.root();
        let space =
            rustix::fs::statvfs(root).map_err(|error| StoreError::io("asking", root, error.into()))?;
        Ok(StoreSpace {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            reserve_bytes: self.settings.reserve_bytes,
        })
    }
}

/// Space of the store's file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreSpace {
    /// Free bytes.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// Free bytes below which nothing is taken.
    pub reserve_bytes: u64,
}

/// Takes the lock that says that this process writes here.
fn lock(layout: &StoreLayout) -> Result<File, StoreError> {
    let path = layout.lock();
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| StoreError::io("opening", &path, error))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::Locked(layout.root().to_owned())),
        Err(error) => Err(StoreError::io("locking", &path, error.into())),
    }
}
