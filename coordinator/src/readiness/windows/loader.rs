//! What the firmware starts, and what that needs to start Windows.
//!
//! Owns the rules for Windows' boot manager: its own file and its list of systems (BCD). Whether firmware finds a loader at all is
//! [`crate::readiness::boot`]'s.

use holdfast_common::wire::Firmware;

use super::super::{
    Report,
    fat::Fat,
    ntfs::NtfsVolume,
    volumes::{Disk, Volume},
};

pub(super) fn look(disks: &[Disk], firmware: Option<Firmware>, report: &mut Report) {
    match firmware {
        Some(Firmware::Uefi) => uefi(disks, report),
        Some(Firmware::Bios) => bios(disks, report),
        None => {}
    }
}

fn uefi(disks: &[Disk], report: &mut Report) {
    let volumes = disks.iter().flat_map(|disk| &disk.volumes);
    let systems = volumes.filter(|volume| volume.partition.as_ref().is_some_and(|found| found.is_efi));
    let mut lacks = vec!["bootmgfw.efi", "BCD"];
    for volume in systems {
        let listed = Fat::open(&volume.part).and_then(|fat| fat.list(&["EFI", "MICROSOFT", "BOOT"]));
        // One that cannot be read was told of already.
        let entries = listed.ok().flatten().unwrap_or_default();
        lacks.retain(|name| !entries.iter().any(|entry| entry.name.eq_ignore_ascii_case(name)));
        if lacks.is_empty() {
            report.seen.push(format!(r"the boot manager of Windows and its BCD on {}", volume.path));
            return;
        }
    }
    report.critical(
        format!(
            r"no EFI system partition has {} in \EFI\Microsoft\Boot: Windows' boot manager finds no system",
            lacks.join(" and ")
        ),
        r"make them anew on the source: `mountvol S: /S`, then `bcdboot C:\Windows /s S: /f UEFI`",
    );
}

fn bios(disks: &[Disk], report: &mut Report) {
    let with_mbr = disks.iter().filter(|disk| disk.table.as_ref().is_ok_and(|table| table.kind == "mbr"));
    let mut volumes = with_mbr.flat_map(|disk| &disk.volumes);
    let active = volumes.find(|volume| volume.partition.as_ref().is_some_and(|found| found.is_active));
    let Some(active) = active else {
        report.critical(
            "it boots by BIOS, and no partition is marked as active: Windows' boot code starts nothing",
            "mark the partition with `bootmgr` as active on the source (`diskpart`, `active`)",
        );
        return;
    };
    match lacking(active) {
        Err(error) => report.not_looked_into.push(format!("the active partition {}: {error}", active.path)),
        Ok(lacks) if lacks.is_empty() => {
            report
                .seen
                .push(format!("the boot manager of Windows and its BCD on {}, which is active", active.path));
        }
        Ok(lacks) => report.critical(
            format!(
                "the active partition {} has no {}: Windows will not start",
                active.path,
                lacks.join(" and no ")
            ),
            r"make them anew on the source: `bcdboot C:\Windows /s S: /f BIOS`, S: being that partition",
        ),
    }
}

/// What of the boot manager is not there.
fn lacking(volume: &Volume) -> Result<Vec<&'static str>, String> {
    let paths = ["bootmgr", r"Boot\BCD"];
    let mut lacks = Vec::new();
    if volume.identity.kind == "ntfs" {
        let files = NtfsVolume::open(&volume.part)?;
        for path in paths {
            if !files.has(path)? {
                lacks.push(path);
            }
        }
        return Ok(lacks);
    }
    let fat = Fat::open(&volume.part)?;
    for (path, folder, name) in [(paths[0], &[][..], "BOOTMGR"), (paths[1], &["BOOT"][..], "BCD")] {
        let entries = fat.list(folder)?.unwrap_or_default();
        if !entries.iter().any(|entry| entry.name == name) {
            lacks.push(path);
        }
    }
    Ok(lacks)
}
