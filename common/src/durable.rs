//! Creating, replacing and syncing files so that they survive power loss.
//!
//! The only module that calls fsync or rename (clippy holds us to it). Does not know what is stored.
//! Invariant: when [`replace`] returns, readers see either the old or the new content, whole, also after power loss.
//! A failed sync is final for that file: the kernel may have dropped the pages, so the caller must treat everything
//! since its last successful sync as lost and reopen (Rebello et al., "Can Applications Recover from fsync
//! Failures?", USENIX ATC 2020).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    ops::Range,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use memmap2::MmapOptions;

/// Mode of files that hold keys.
pub const MODE_SECRET: u32 = 0o600;
/// Mode of other files.
pub const MODE_PRIVATE: u32 = 0o640;

/// Writes `content` to `path` as a whole: to a temporary neighbour, synced, renamed over, folder synced.
///
/// # Errors
/// Any step failed; `path` then still has its old content (or does not exist).
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    // A leftover of an earlier crash may have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Moves a file over another name in the same file system and makes that durable. The file's content must have been
/// synced before.
///
/// # Errors
/// The rename or the sync of the folder failed.
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_parent(to)
}

/// Moves a file over another name in the same file system; [`sync_parent`] makes that durable, for many at once. The file's
/// content must have been synced before.
///
/// # Errors
/// The rename failed.
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn rename_unsynced(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// Makes data written to `file` durable, with the metadata needed to read it back (fdatasync).
///
/// # Errors
/// Final for this file: see the module's text.
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()
}

/// Makes the data of a range of `file` durable, with the metadata needed to read it back. What was written elsewhere may stay in
/// memory: there it can still become one write with its neighbours. A part behind the file's end is left out.
///
/// There is no fdatasync of a range; msync of a mapping is one (msync(2), `MS_SYNC`). The mapping is not touched, so it costs no memory.
///
/// # Errors
/// The file is not open for reading and writing; a failed sync is final for this file, see the module's text.
pub fn sync_range(file: &File, range: Range<u64>) -> io::Result<()> {
    let end = range.end.min(file.metadata()?.len());
    // A mapping begins at a page; memmap2 sees to that.
    let Some(bytes) = end.checked_sub(range.start).filter(|bytes| *bytes > 0) else { return Ok(()) };
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    MmapOptions::new().offset(range.start).len(bytes).map_raw(file)?.flush()
}

/// Makes data and all metadata of `file` durable (fsync).
///
/// # Errors
/// Final for this file: see the module's text.
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn sync_all(file: &File) -> io::Result<()> {
    file.sync_all()
}

/// Makes the names in the folder of `path` durable.
///
/// # Errors
/// The folder cannot be opened or synced.
#[expect(clippy::disallowed_methods, reason = "the one place that renames and syncs")]
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Creates a folder and its parents, and makes their names durable.
///
/// # Errors
/// A folder cannot be created or synced.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    sync_parent(path)
}
