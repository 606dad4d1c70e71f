//! Which machine and which disk is meant.
//!
//! Owns the matching of names, ids and disk identities. Pure. Invariant: two disks are the same if the first field of
//! their identities that both have is equal; identities with no field in common never match.

use std::str::FromStr as _;

use holdfast_common::{
    ids::MachineId,
    wire::{DiskIdentity, DiskInventory},
};

use super::RegistryError;
use crate::catalog::record::MachineRecord;

/// Fewest digits of an id that are taken as its beginning.
const PREFIX_DIGITS_MIN: usize = 4;

/// The machine that an operator means: an id, a name, or the beginning of an id.
///
/// # Errors
/// None or several fit.
pub fn resolve<'a>(
    machines: impl Iterator<Item = &'a MachineRecord>,
    given: &str,
) -> Result<MachineId, RegistryError> {
    let machines: Vec<&MachineRecord> = machines.collect();
    if let Ok(id) = MachineId::from_str(given) {
        let known = machines.iter().find(|machine| machine.id == id);
        return known.map(|machine| machine.id).ok_or_else(|| unknown(given));
    }
    let named: Vec<MachineId> =
        machines.iter().filter(|machine| machine.name == given).map(|machine| machine.id).collect();
    if !named.is_empty() {
        return only(&named, given);
    }
    if given.len() < PREFIX_DIGITS_MIN {
        return Err(unknown(given));
    }
    let lower = given.to_ascii_lowercase();
    let begun: Vec<MachineId> =
        machines.iter().map(|machine| machine.id).filter(|id| id.to_string().starts_with(&lower)).collect();
    only(&begun, given)
}

fn only(found: &[MachineId], given: &str) -> Result<MachineId, RegistryError> {
    match found {
        [] => Err(unknown(given)),
        [one] => Ok(*one),
        several => Err(RegistryError::MachineAmbiguous {
            given: given.to_owned(),
            candidates: several.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

fn unknown(given: &str) -> RegistryError {
    RegistryError::MachineUnknown { given: given.chars().take(80).collect() }
}

/// Whether two identities are of the same disk.
#[must_use]
pub fn same_disk(a: &DiskIdentity, b: &DiskIdentity) -> bool {
    let pairs = [
        (&a.wwid, &b.wwid),
        (&a.serial, &b.serial),
        (&a.table_id, &b.table_id),
        (&a.backing_file, &b.backing_file),
        (&a.bus_path, &b.bus_path),
    ];
    pairs.iter().find_map(|pair| match pair {
        (Some(a), Some(b)) => Some(a == b),
        _ => None,
    }) == Some(true)
}

/// Whether the identity says anything.
#[must_use]
pub fn is_telling(identity: &DiskIdentity) -> bool {
    *identity != DiskIdentity::default()
}

/// The disk of an inventory that an operator means by a device node or by its backing file.
#[must_use]
pub fn find_disk<'a>(disks: &'a [DiskInventory], given: &str) -> Option<&'a DiskInventory> {
    disks
        .iter()
        .find(|disk| disk.path == given)
        .or_else(|| disks.iter().find(|disk| disk.identity.backing_file.as_deref() == Some(given)))
}
