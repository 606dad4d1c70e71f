//! What the firmware will find to start.
//!
//! Owns the rules for BIOS and UEFI. A machine at the target has fresh UEFI variables, so only the path that every firmware
//! tries without any (`\EFI\BOOT\BOOTX64.EFI`) counts.

use holdfast_common::wire::Firmware;

use super::{
    Report,
    fat::{Entry, Fat},
    volumes::{Disk, Volume},
};

pub(super) fn look(disks: &[Disk], firmware: Option<Firmware>, report: &mut Report) {
    if disks.iter().all(|disk| disk.table.is_err()) {
        return;
    }
    match firmware {
        Some(Firmware::Uefi) => uefi(disks, report),
        Some(Firmware::Bios) => bios(disks, report),
        None => {}
    }
}

/// The firmware that finds something to start. A boot sector with a GPT and no place for GRUB's core is what UEFI systems
/// have there too, and counts if there is nothing else.
pub(super) fn firmware(disks: &[Disk]) -> Vec<Firmware> {
    let tables =
        || disks.iter().filter_map(|disk| disk.table.as_ref().ok()).filter(|table| table.has_boot_code);
    let has_core =
        tables().any(|table| table.kind != "gpt" || table.partitions.iter().any(|found| found.is_bios_boot));
    let by_uefi = systems(disks).iter().any(|volume| {
        let names = Fat::open(&volume.part).and_then(|fat| fat.list(&["EFI", "BOOT"]));
        names.is_ok_and(|names| names.is_some_and(|names| names.iter().any(is_loader)))
    });
    let by_bios = has_core || (!by_uefi && tables().next().is_some());
    [(by_bios, Firmware::Bios), (by_uefi, Firmware::Uefi)]
        .into_iter()
        .filter_map(|(starts, firmware)| starts.then_some(firmware))
        .collect()
}

/// EFI system partitions.
fn systems(disks: &[Disk]) -> Vec<&Volume> {
    let volumes = disks.iter().flat_map(|disk| &disk.volumes);
    volumes.filter(|volume| volume.partition.as_ref().is_some_and(|found| found.is_efi)).collect()
}

/// The loader that firmware starts without stored variables.
fn is_loader(entry: &Entry) -> bool {
    entry.name == "BOOTX64.EFI"
}

fn bios(disks: &[Disk], report: &mut Report) {
    let starts = disks.iter().find(|disk| disk.table.as_ref().is_ok_and(|table| table.has_boot_code));
    match starts {
        Some(disk) => report.seen.push(format!("boot code for a BIOS on {}", disk.path)),
        None => report.critical(
            "it boots by BIOS, and no protected disk has boot code",
            "protect the disk that it boots from as well, or set `firmware = \"uefi\"` in its hardware file",
        ),
    }
    let lacks_core = |disk: &&Disk| {
        disk.table.as_ref().is_ok_and(|table| {
            table.has_boot_code
                && table.kind == "gpt"
                && !table.partitions.iter().any(|found| found.is_bios_boot)
        })
    };
    if let Some(disk) = disks.iter().find(lacks_core) {
        report.note(
            format!("{} has a GPT and boots by BIOS without a partition for GRUB's core", disk.path),
            "look whether its boot loader needs one",
        );
    }
}

fn uefi(disks: &[Disk], report: &mut Report) {
    let systems = systems(disks);
    if systems.is_empty() {
        report.critical(
            "it boots by UEFI, and no protected disk has an EFI system partition",
            "protect the disk that it boots from as well, or set `firmware = \"bios\"` in its hardware file",
        );
    }
    let mut others = Vec::new();
    for volume in &systems {
        let fat = Fat::open(&volume.part);
        let names = |path: &[&str]| match &fat {
            Ok(fat) => fat.list(path).map(Option::unwrap_or_default),
            Err(error) => Err(error.clone()),
        };
        let found = names(&["EFI", "BOOT"]);
        let folders = names(&["EFI"]);
        let (Ok(found), Ok(folders)) = (&found, &folders) else {
            let error = found.err().or(folders.err()).unwrap_or_default();
            report.warning(
                format!("the EFI system partition {} cannot be read: {error}", volume.path),
                "check it on the source (fsck.vfat), and compare the disk with `holdfast compare start`",
            );
            return;
        };
        if found.iter().any(is_loader) {
            report.seen.push(format!("the loader \\EFI\\BOOT\\BOOTX64.EFI on {}", volume.path));
            return;
        }
        others.extend(
            folders
                .iter()
                .filter(|entry| entry.is_folder && !entry.name.starts_with('.'))
                .map(|entry| entry.name.clone()),
        );
    }
    if !systems.is_empty() {
        let others = if others.is_empty() { "nothing".to_owned() } else { others.join(", ") };
        report.critical(
            format!(
                "its EFI system partition has no \\EFI\\BOOT\\BOOTX64.EFI (below \\EFI is {others}); firmware without its \
                 stored variables starts nothing else"
            ),
            "install the loader there too: on Debian `dpkg-reconfigure grub-efi-amd64` with \"force extra installation\", \
             else `grub-install --removable`; on Windows `bcdboot C:\\Windows /s S: /f UEFI` (S: by `mountvol S: /S`)",
        );
    }
}
