//! The data folder: its layout, its lock, and the errors that an operator can act on.
//!
//! Owns all names below it (the store's own excepted). Invariant: one process at a time works on it.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use holdfast_common::durable;

use crate::registry::description::Description;

/// Mode of the folder: its owner only.
const FOLDER_MODE: u32 = 0o700;

/// A data folder that this process has locked.
#[derive(Debug)]
pub(super) struct DataFolder {
    root: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if need be, and locks it.
    pub(super) fn open(root: &Path) -> Result<Self> {
        let trouble = |error: std::io::Error| explain(root, error);
        durable::create_folder(root).map_err(trouble)?;
        let lock = File::options().write(true).create(true).truncate(false).open(root.join("lock"));
        let lock = lock.map_err(trouble)?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                "another coordinator works on {}; stop it first, or give another folder with --data",
                root.display()
            ),
            Err(error) => return Err(trouble(error.into())),
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(FOLDER_MODE);
        fs::set_permissions(root, mode).map_err(trouble)?;
        for folder in ["authority", "machines", "readiness", "drills"] {
            durable::create_folder(&root.join(folder)).map_err(trouble)?;
        }
        // Finds a full or failing file system here, where it can be explained, and not in the database.
        durable::replace(&root.join("probe"), b"holdfast\n", durable::MODE_PRIVATE).map_err(trouble)?;
        fs::remove_file(root.join("probe")).map_err(trouble)?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    pub(super) fn authority(&self) -> PathBuf {
        self.root.join("authority")
    }

    pub(super) fn catalog(&self) -> PathBuf {
        self.root.join("catalog.sqlite")
    }

    pub(super) fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub(super) fn machines(&self) -> PathBuf {
        self.root.join("machines")
    }

    /// What drills have shown.
    pub(super) fn drills(&self) -> PathBuf {
        self.root.join("drills")
    }

    /// What looks at machines' replicas have found.
    pub(super) fn readiness(&self) -> PathBuf {
        self.root.join("readiness")
    }

    /// What is written to attached disks.
    pub(super) fn branches(&self) -> PathBuf {
        self.root.join("branches")
    }

    /// Machines that run here.
    pub(super) fn virtual_machines(&self) -> PathBuf {
        self.root.join("vm")
    }

    /// What operators want of machines' hardware.
    pub(super) fn hardware(&self) -> PathBuf {
        self.root.join("hardware")
    }

    /// Copies of recovery plans.
    pub(super) fn plans(&self) -> PathBuf {
        self.root.join("plans")
    }

    /// Where it stands who may use the interface over the network.
    pub(super) fn operators(&self) -> PathBuf {
        self.root.join("operators.json")
    }

    /// Descriptions of all machines; a file that cannot be read is named beside them.
    pub(super) fn descriptions(&self) -> Result<(Vec<Description>, Vec<String>)> {
        let (mut found, mut unreadable) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.machines()).context("the folder of machines cannot be read")? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).map_err(|error| error.to_string());
            match read.and_then(|bytes| Description::parse(&bytes)) {
                Ok(description) => found.push(description),
                Err(error) => unreadable.push(format!("{} is left out: {error}", path.display())),
            }
        }
        found.sort_by_key(|description| description.machine);
        Ok((found, unreadable))
    }
}

fn explain(root: &Path, error: std::io::Error) -> anyhow::Error {
    let root = root.display();
    let text = match error.kind() {
        ErrorKind::ReadOnlyFilesystem => format!(
            "the data folder {root} is on a read-only file system; mount it writable, or give another with --data"
        ),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            format!("the file system of the data folder {root} is full; free or add space and start again")
        }
        ErrorKind::PermissionDenied => format!(
            "no permission to write the data folder {root}; run as its owner, or give another with --data"
        ),
        _ => format!("the data folder {root} cannot be used"),
    };
    anyhow!(error).context(text)
}
