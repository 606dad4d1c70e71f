//! What is mounted, and where swap lies.
//!
//! Owns the parsing of `/proc/self/mountinfo` and `/proc/swaps` (proc(5)), and of btrfs's member lists. Knows no
//! devices beyond their names. Invariant: a line that cannot be understood is an error, because a file system that is
//! overlooked would not be frozen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    path::{Path, PathBuf},
};

use super::{DeviceNumber, Roots, read};

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Identity of the mount (not of the file system).
    pub id: u64,
    /// Number of the file system; all mounts of one superblock share it. Major 0 if it has no device of its own.
    pub number: DeviceNumber,
    /// Folder of the file system that is mounted; other than `/` for bind mounts and subvolumes.
    pub root: PathBuf,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Type ("ext4").
    pub kind: String,
    /// What it was mounted from ("/dev/sda1").
    pub source: String,
    /// Options of the superblock, shared by all its mounts ("rw,errors=remount-ro").
    pub super_options: String,
}

impl Mount {
    /// Whether the file system as a whole is read-only (a mount of a writable one may be read-only too).
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.super_options.split(',').any(|option| option == "ro")
    }

    /// Values of an option of the superblock ("logdev").
    pub(crate) fn option<'mount>(&'mount self, key: &'mount str) -> impl Iterator<Item = &'mount str> {
        self.super_options.split(',').filter_map(move |option| option.strip_prefix(key)?.strip_prefix('='))
    }
}

/// A swap area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Device node or file.
    pub path: PathBuf,
    /// Whether it is a device.
    pub is_device: bool,
}

/// Devices (kernel names) of each btrfs, by its UUID.
pub type BtrfsMembers = BTreeMap<String, BTreeSet<String>>;

/// Reads the mount table of this process.
///
/// # Errors
/// It cannot be read or understood.
pub fn mounts(roots: &Roots) -> io::Result<Vec<Mount>> {
    parse_mounts(&read::bytes(&mounts_path(roots))?)
}

/// Where the mount table is.
pub(crate) fn mounts_path(roots: &Roots) -> PathBuf {
    roots.proc.join("self/mountinfo")
}

/// Reads the swap areas.
///
/// # Errors
/// The table exists but cannot be understood. (A kernel without swap has none.)
pub fn swaps(roots: &Roots) -> io::Result<Vec<Swap>> {
    match read::bytes(&roots.proc.join("swaps")) {
        Ok(table) => parse_swaps(&table),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Reads which devices belong to which btrfs.
#[must_use]
pub fn btrfs_members(roots: &Roots) -> BtrfsMembers {
    let folder = roots.sys.join("fs/btrfs");
    let with_devices = read::names(&folder).into_iter().map(|uuid| {
        let devices = read::names(&folder.join(&uuid).join("devices")).into_iter().collect();
        (uuid, devices)
    });
    with_devices.filter(|(_, devices): &(String, BTreeSet<String>)| !devices.is_empty()).collect()
}

/// Mounts by their mount points, the last mounted of those with the same one.
#[derive(Clone, Debug, Default)]
pub struct MountPoints<'mounts>(HashMap<&'mounts Path, &'mounts Mount>);

impl<'mounts> MountPoints<'mounts> {
    /// The mounts of a table, which has them in the order in which they were mounted.
    #[must_use]
    pub fn new(mounts: &'mounts [Mount]) -> Self {
        Self(mounts.iter().map(|mount| (mount.mount_point.as_path(), mount)).collect())
    }

    /// The mount that a path is reached through: that of the longest mount point above it.
    #[must_use]
    pub fn of(&self, path: &Path) -> Option<&'mounts Mount> {
        path.ancestors().find_map(|folder| self.0.get(folder).copied())
    }
}

/// Parses `mountinfo`.
pub(crate) fn parse_mounts(table: &[u8]) -> io::Result<Vec<Mount>> {
    let lines = table.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| parse_mount(line).ok_or_else(|| not_understood("mount", line))).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNT_POINT OPTIONS [TAGS...] - TYPE SOURCE SUPER_OPTIONS`. The source may be empty.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let field_text =
        |index: usize| -> Option<String> { String::from_utf8(read::unescape(fields.get(index)?)).ok() };
    let lossy = |index: usize| -> Option<String> {
        Some(String::from_utf8_lossy(&read::unescape(fields.get(index)?)).into_owned())
    };
    Some(Mount {
        id: field_text(0)?.parse().ok()?,
        number: DeviceNumber::parse(&field_text(2)?)?,
        root: read::path_from(read::unescape(fields.get(3)?)),
        mount_point: read::path_from(read::unescape(fields.get(4)?)),
        kind: field_text(dash + 1)?,
        source: lossy(dash + 2)?,
        super_options: lossy(dash + 3)?,
    })
}

/// Parses `swaps`: a heading, then `FILENAME TYPE SIZE USED PRIORITY`.
pub(crate) fn parse_swaps(table: &[u8]) -> io::Result<Vec<Swap>> {
    let lines = table.split(|&byte| byte == b'\n').skip(1).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let mut fields = line.split(|byte| byte.is_ascii_whitespace()).filter(|field| !field.is_empty());
            let (Some(path), Some(kind)) = (fields.next(), fields.next()) else {
                return Err(not_understood("swap", line));
            };
            Ok(Swap { path: read::path_from(read::unescape(path)), is_device: kind == b"partition" })
        })
        .collect()
}

fn not_understood(what: &str, line: &[u8]) -> io::Error {
    let line = String::from_utf8_lossy(line);
    io::Error::new(io::ErrorKind::InvalidData, format!("line of the {what} table is not understood: {line}"))
}
