//! All names and paths of the store.
//!
//! Owns every rule about names; nothing else builds a path. Does not know contents.
//!
//! ```text
//! <store>/lock                                     held by the one process that writes
//! <store>/disks/<disk>/manifest                    what the disk is
//! <store>/disks/<disk>/damaged.json                frames known to be damaged; see `bad_frames`
//! <store>/disks/<disk>/differs.json                ranges known to differ from the source; see `differences`
//! <store>/disks/<disk>/checks.json                 how far the log was checked; see `check_record`
//! <store>/disks/<disk>/journal/<first>.segment     first sequence, 16 hexadecimal digits
//! <store>/disks/<disk>/kept, kept.copy             what is missing on purpose; see `store::kept`
//! <store>/disks/<disk>/journal/<first>.segment.beside   a segment in the making; deleted at start
//! <store>/disks/<disk>/index/...                   derived; see `index::run_format`
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use holdfast_common::ids::{DiskId, Sequence};

/// Paths of the store.
#[derive(Clone, Debug)]
pub struct StoreLayout {
    root: PathBuf,
}

/// Paths of one disk.
#[derive(Clone, Debug)]
pub struct DiskLayout {
    root: PathBuf,
}

impl StoreLayout {
    /// Paths under a store's folder.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The store's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file whose lock says that a process writes here.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The folder of all disks.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// Paths of one disk.
    #[must_use]
    pub fn disk(&self, disk: DiskId) -> DiskLayout {
        DiskLayout { root: self.disks().join(disk.to_string()) }
    }

    /// The disks that have a folder; names that are no disk's are left alone.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn list_disks(&self) -> io::Result<Vec<DiskId>> {
        let mut disks = Vec::new();
        for entry in fs::read_dir(self.disks())? {
            disks.extend(entry?.file_name().to_str().and_then(|name| name.parse::<DiskId>().ok()));
        }
        disks.sort_unstable();
        Ok(disks)
    }
}

impl DiskLayout {
    /// The disk's folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the disk is.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.root.join("manifest")
    }

    /// The list of frames that are known to be damaged.
    #[must_use]
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged.json")
    }

    /// The list of ranges that are known to differ from the source.
    #[must_use]
    pub fn differs(&self) -> PathBuf {
        self.root.join("differs.json")
    }

    /// The record of what is kept, and its copy.
    #[must_use]
    pub fn kept(&self) -> [PathBuf; 2] {
        [self.root.join("kept"), self.root.join("kept.copy")]
    }

    /// A segment in the making that will take the place of the one that begins at `first`.
    #[must_use]
    pub fn segment_beside(&self, first: Sequence) -> PathBuf {
        self.segment(first).with_extension("segment.beside")
    }

    /// Deletes segments in the making that a crash left; they hold nothing that is not elsewhere.
    ///
    /// # Errors
    /// The folder cannot be listed, or a file cannot be deleted.
    pub fn clear_beside(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.journal())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "beside") {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// How far the disk was compared with its source.
    #[must_use]
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit.json")
    }

    /// How far the log was checked.
    #[must_use]
    pub fn checks(&self) -> PathBuf {
        self.root.join("checks.json")
    }

    /// The folder of the segments.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// The folder of the index.
    #[must_use]
    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }

    /// The segment whose frames begin at `first`.
    #[must_use]
    pub fn segment(&self, first: Sequence) -> PathBuf {
        self.journal().join(format!("{:016x}.segment", first.0))
    }

    /// The segments that there are: first sequence and size in bytes, ascending.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn list_segments(&self) -> io::Result<Vec<(Sequence, u64)>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(self.journal())? {
            let entry = entry?;
            let name = entry.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(".segment"));
            let first =
                digits.filter(|digits| digits.len() == 16).and_then(|d| u64::from_str_radix(d, 16).ok());
            if let Some(first) = first {
                segments.push((Sequence(first), entry.metadata()?.len()));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }
}
