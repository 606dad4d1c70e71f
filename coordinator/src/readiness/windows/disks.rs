//! Whether further disks come up, and under which letters.
//!
//! Owns the rules for the SAN policy and for drive letters. Format of a letter's value in `MountedDevices`: 12 bytes, the MBR's
//! signature (u32) and the partition's first byte (u64); or 24, "DMIO:ID:" and the id of a GPT's partition; others name devices
//! that can be taken out.

use super::{super::Report, Windows};
use crate::readiness::bytes::number;

/// Disks come up.
const ONLINE_ALL: u32 = 1;
/// Disks on a bus that others may be on too stay offline; what servers are delivered with.
const OFFLINE_SHARED: u32 = 2;
const OFFLINE_ALL: u32 = 3;
const OFFLINE_INTERNAL: u32 = 4;

pub(super) fn look(windows: &Windows<'_>, report: &mut Report) -> Result<(), String> {
    san_policy(windows, report)?;
    letters(windows, report)
}

fn san_policy(windows: &Windows<'_>, report: &mut Report) -> Result<(), String> {
    let set = windows.system.number(&windows.setting(r"Services\partmgr\Parameters"), "SanPolicy")?;
    let delivered = if windows.installation.starts_with("Server") { OFFLINE_SHARED } else { ONLINE_ALL };
    let policy = set.filter(|policy| *policy != 0).unwrap_or(delivered);
    let (name, which) = match policy {
        ONLINE_ALL => ("OnlineAll", ""),
        OFFLINE_SHARED => ("OfflineShared", "disks on a SAS or SCSI controller may"),
        OFFLINE_ALL => ("OfflineAll", "all disks but the one it boots from will"),
        OFFLINE_INTERNAL => ("OfflineInternal", "disks on an internal controller will"),
        _ => {
            report.not_looked_into.push(format!("what the SAN policy {policy} means"));
            return Ok(());
        }
    };
    let by = if set.is_some() { "" } else { " (not set; what it is delivered with)" };
    report.seen.push(format!("SAN policy {name}{by}"));
    let others: Vec<&str> = windows
        .disks
        .iter()
        .filter(|disk| !disk.volumes.iter().any(|volume| std::ptr::eq(volume, windows.volume)))
        .map(|disk| disk.path.as_str())
        .collect();
    if !which.is_empty() && !others.is_empty() {
        report.warning(
            format!(
                "its SAN policy is {name}: to Windows the disks will be new ones, and {which} stay offline ({}), without drive letters",
                others.join(", ")
            ),
            "set it on the source: `diskpart`, `san policy=OnlineAll` (or `Set-StorageSetting -NewDiskPolicy OnlineAll`)",
        );
    }
    Ok(())
}

/// Where a drive letter leads.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A partition of a GPT, by its id.
    Gpt(String),
    /// A partition of an MBR, by the disk's signature and its first byte.
    Mbr(String, u64),
}

fn letters(windows: &Windows<'_>, report: &mut Report) -> Result<(), String> {
    let Some(mounted) = windows.system.key("MountedDevices")? else { return Ok(()) };
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for value in mounted.values()? {
        let Some(letter) = value.name.strip_prefix(r"\DosDevices\") else { continue };
        let Some(place) = place(&value.data) else { continue };
        let mut volumes = windows.disks.iter().flat_map(|disk| &disk.volumes);
        match volumes.find(|volume| volume.partition.as_ref().is_some_and(|part| is_at(part, &place))) {
            Some(volume) => found.push(format!("{letter} {}", volume.path)),
            None => missing.push(letter.to_owned()),
        }
    }
    found.sort();
    missing.sort();
    if !found.is_empty() {
        report.seen.push(format!("drive letters: {}", found.join(", ")));
    }
    if !missing.is_empty() {
        report.note(
            format!(
                "the drives {} are on no protected disk (or on one that it once had)",
                missing.join(", ")
            ),
            "protect their disks too if they are in use",
        );
    }
    Ok(())
}

fn place(data: &[u8]) -> Option<Place> {
    match (data.len(), data.strip_prefix(b"DMIO:ID:")) {
        (24, Some(id)) => Some(Place::Gpt(uuid::Uuid::from_bytes_le(id.try_into().ok()?).to_string())),
        (12, None) => Some(Place::Mbr(format!("{:08x}", number(data, 0..4)), number(data, 4..12))),
        _ => None,
    }
}

fn is_at(partition: &crate::readiness::table::Partition, place: &Place) -> bool {
    match place {
        Place::Gpt(id) => partition.id == *id,
        Place::Mbr(signature, start) => {
            partition.start == *start
                && partition.id.strip_prefix(signature.as_str()).is_some_and(|rest| rest.starts_with('-'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, place};

    /// Golden bytes, as Windows writes them.
    #[test]
    fn letters_lead_to_partitions() {
        let mbr = [0x78, 0x56, 0x34, 0x12, 0, 0, 0x10, 0, 0, 0, 0, 0];
        assert_eq!(place(&mbr), Some(Place::Mbr("12345678".to_owned(), 1 << 20)));
        let gpt = [b"DMIO:ID:".as_slice(), &[3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]].concat();
        assert_eq!(place(&gpt), Some(Place::Gpt("00010203-0405-0607-0809-0a0b0c0d0e0f".to_owned())));
        let removable: Vec<u8> = r"\??\SCSI#CdRom".encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!((place(&removable), place(&[])), (None, None));
    }
}
