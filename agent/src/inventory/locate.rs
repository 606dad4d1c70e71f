//! Finding a disk again, after a reboot or a renaming.
//!
//! Owns the comparison of identities. Pure but for the device's number. Invariant: it names a disk only if there is no
//! other that it could be; protecting the wrong disk would replace a good copy with another disk's content.

use std::path::{Path, PathBuf};

use holdfast_common::wire::{DiskIdentity, DiskInventory, Inventory};
use thiserror::Error;

use super::{DiskDevice, Roots, block::BlockGraph};

/// A disk that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Located {
    /// A block device.
    Device {
        /// The device.
        device: DiskDevice,
        /// Size of its sectors in bytes.
        logical_block_bytes: u32,
    },
    /// A plain file that stands for a disk; only `scan` capture works on it.
    ImageFile {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
    },
}

/// Why a disk was not found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LocateError {
    /// No disk matches.
    #[error("no disk here is the one that was {path} ({sought}); attach it, or unprotect it")]
    Missing {
        /// Device node when it was protected.
        path: String,
        /// What was looked for.
        sought: String,
    },
    /// Several disks match.
    #[error(
        "{} could all be the disk that was {path} ({sought}); give them different serial numbers or partition \
         table ids, or detach all but one",
        candidates.join(", ")
    )]
    Ambiguous {
        /// Device node when it was protected.
        path: String,
        /// What was looked for.
        sought: String,
        /// Device nodes that match.
        candidates: Vec<String>,
    },
}

/// Finds the disk that has this identity. `path` is its node when it was protected; it decides only where the identity is
/// empty.
///
/// # Errors
/// None or several match; nothing may be protected then.
pub fn locate(
    roots: &Roots,
    identity: &DiskIdentity,
    path: &str,
    inventory: &Inventory,
) -> Result<Located, LocateError> {
    let missing = || LocateError::Missing { path: path.to_owned(), sought: describe(identity) };
    let candidates = candidates(identity, path, &inventory.disks);
    match candidates[..] {
        [] => Err(missing()),
        [disk] => found(roots, disk).ok_or_else(missing),
        _ => Err(LocateError::Ambiguous {
            path: path.to_owned(),
            sought: describe(identity),
            candidates: candidates.iter().map(|disk| disk.path.clone()).collect(),
        }),
    }
}

/// Disks that match by the first field that both have. Where several do (copies of one image have the same table id), only
/// those that no later field speaks against.
fn candidates<'disks>(
    identity: &DiskIdentity,
    path: &str,
    disks: &'disks [DiskInventory],
) -> Vec<&'disks DiskInventory> {
    if fields(identity).iter().all(|(_, value)| value.is_none()) {
        return disks.iter().filter(|disk| disk.path == path).collect();
    }
    let matching: Vec<&DiskInventory> =
        disks.iter().filter(|disk| compared(identity, &disk.identity).first() == Some(&true)).collect();
    if matching.len() <= 1 {
        return matching;
    }
    let in_all = |disk: &&DiskInventory| compared(identity, &disk.identity).iter().all(|same| *same);
    let narrowed: Vec<&DiskInventory> = matching.iter().copied().filter(in_all).collect();
    if narrowed.len() == 1 { narrowed } else { matching }
}

/// For each field that both have, most telling first, whether it is equal.
fn compared(one: &DiskIdentity, other: &DiskIdentity) -> Vec<bool> {
    let pairs = fields(one).into_iter().zip(fields(other));
    pairs.filter_map(|((_, one), (_, other))| Some(one? == other?)).collect()
}

fn fields(identity: &DiskIdentity) -> [(&'static str, Option<&str>); 5] {
    [
        ("world-wide name", identity.wwid.as_deref()),
        ("serial number", identity.serial.as_deref()),
        ("partition table", identity.table_id.as_deref()),
        ("file", identity.backing_file.as_deref()),
        ("bus address", identity.bus_path.as_deref()),
    ]
}

fn describe(identity: &DiskIdentity) -> String {
    let first = fields(identity).into_iter().find_map(|(name, value)| Some(format!("{name} {}", value?)));
    first.unwrap_or_else(|| "known by its path only".to_owned())
}

fn found(roots: &Roots, disk: &DiskInventory) -> Option<Located> {
    let path = Path::new(&disk.path);
    if disk.driver == "file" {
        return Some(Located::ImageFile { path: path.to_owned(), size_bytes: disk.size_bytes });
    }
    let number = BlockGraph::read(roots).ok()?.at(path)?.number;
    Some(Located::Device {
        device: DiskDevice { path: path.to_owned(), number, size_bytes: disk.size_bytes },
        logical_block_bytes: disk.logical_block_bytes,
    })
}
