//! Whether a machine will boot is told from its replica: what is sound is ready, and each fault is named with what to do.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use holdfast_common::{
    entropy::{Entropy as _, SeededEntropy},
    wire::{Firmware, Inventory, NetworkCard},
};
use holdfast_coordinator::{
    compute::machines::{Controller, Planned, PlannedCard},
    points::view::BlockView,
    readiness::{self, Report, Subject, Verdict, initramfs},
};
use holdfast_tests::{
    memory_view::MemoryView,
    samples,
    system_disk::{KERNEL, Packed, SystemDisk, initramfs},
};

fn inventory() -> Inventory {
    let card = NetworkCard {
        name: "ens192".to_owned(),
        mac: "52:54:00:12:34:56".to_owned(),
        driver: "vmxnet3".to_owned(),
        addresses: Vec::new(),
    };
    Inventory { kernel: KERNEL.to_owned(), network_cards: vec![card], ..samples::inventory() }
}

/// What a machine on this controller is made of.
fn planned(model: &str, drivers: &[&str], prefix: &str, firmware: Firmware) -> Planned {
    Planned {
        firmware: Some(firmware),
        disk_model: model.to_owned(),
        disk_drivers: drivers.iter().map(|name| (*name).to_owned()).collect(),
        node_prefix: prefix.to_owned(),
        cards: vec![PlannedCard { mac: String::new(), drivers: vec!["virtio_net".to_owned()] }],
        remarks: Vec::new(),
    }
}

fn virtio(firmware: Firmware) -> Planned {
    planned("virtio", &["virtio_pci", "virtio_blk"], "vd", firmware)
}

fn look(disk: Vec<u8>, planned: Planned) -> Report {
    let view: Arc<dyn BlockView> = Arc::new(MemoryView::from_bytes(disk));
    let disks = vec![("/dev/sda".to_owned(), view)];
    let controllers = [
        ("virtio", ["virtio_pci", "virtio_blk"]),
        ("sata", ["ahci", "sd_mod"]),
        ("pvscsi", ["vmw_pvscsi", "sd_mod"]),
    ];
    let controllers = controllers.map(|(model, drivers)| Controller {
        model: model.to_owned(),
        drivers: drivers.map(str::to_owned).to_vec(),
    });
    let controllers = controllers.to_vec();
    readiness::look(&Subject { inventory: inventory(), planned: Ok(planned), controllers, disks })
}

fn check(what: &str, disk: &SystemDisk, planned: Planned, verdict: Verdict, says: &[&str]) -> Result<()> {
    let report = look(disk.make()?, planned);
    ensure!(report.verdict == verdict, "{what}: {report:#?}");
    let text = format!("{report:?}");
    for says in says {
        ensure!(text.contains(says), "{what} does not say {says}: {report:#?}");
    }
    ensure!(report.findings.iter().all(|finding| !finding.advice.is_empty()), "{what}: {report:#?}");
    Ok(())
}

#[test]
fn a_sound_machine_is_ready_and_each_fault_is_named() -> Result<()> {
    let sound = SystemDisk::default();
    let (bios, uefi) = (Firmware::Bios, Firmware::Uefi);
    check(
        "sound",
        &sound,
        virtio(bios),
        Verdict::Ready,
        &["root=UUID=", "drivers for disks on virtio", "DHCP"],
    )?;
    let no_virtio = SystemDisk { early: vec!["vmw_pvscsi", "sd_mod"], ..sound.clone() };
    check(
        "no driver",
        &no_virtio,
        virtio(bios),
        Verdict::NotReady,
        &["lacks virtio_pci, virtio_blk", "disk_model"],
    )?;
    let pvscsi = planned("pvscsi", &["vmw_pvscsi", "sd_mod"], "sd", bios);
    check(
        "pvscsi",
        &no_virtio,
        pvscsi.clone(),
        Verdict::Ready,
        &["no virtio driver", "pvscsi, which it has"],
    )?;
    let by_name = SystemDisk {
        root: "/dev/sda1".to_owned(),
        fstab: "/dev/sda1 / ext4 defaults 0 1\n".to_owned(),
        ..sound.clone()
    };
    check(
        "other names",
        &by_name,
        virtio(bios),
        Verdict::NotReady,
        &["root is /dev/sda1, a name that there will not be", "mounts /dev/sda1 on /"],
    )?;
    check("same names", &by_name, pvscsi, Verdict::Doubtful, &["goes by the order of disks"])?;
    let more =
        format!("{}UUID=ffff-0000 /data ext4 defaults 0 2\nLABEL=gone /old ext4 nofail 0 2\n", sound.fstab);
    let missing = SystemDisk { fstab: more, ..sound.clone() };
    check(
        "missing",
        &missing,
        virtio(bios),
        Verdict::NotReady,
        &["mounts UUID=ffff-0000 on /data, which is on no", "LABEL=gone"],
    )?;
    let by_slot = SystemDisk {
        interfaces: "auto ens192\niface ens192 inet static\n address 10.0.0.2/24\n".to_owned(),
        ..sound.clone()
    };
    check(
        "slots",
        &by_slot,
        virtio(bios),
        Verdict::Doubtful,
        &["settings are for ens192", "fixed addresses"],
    )?;
    let card = SystemDisk { installed: vec!["vmxnet3"], ..sound.clone() };
    check("card", &card, virtio(bios), Verdict::Doubtful, &["needs virtio_net"])?;
    let efi = SystemDisk { efi: Some(true), ..sound.clone() };
    check(
        "uefi",
        &efi,
        virtio(uefi),
        Verdict::Ready,
        &["BOOTX64.EFI on /dev/sda1", "GPT with 2 partitions"],
    )?;
    check("uefi as bios", &efi, virtio(bios), Verdict::NotReady, &["no protected disk has boot code"])?;
    let debian = SystemDisk { efi: Some(false), ..sound.clone() };
    check(
        "no loader",
        &debian,
        virtio(uefi),
        Verdict::NotReady,
        &["below \\\\EFI is DEBIAN", "force extra"],
    )?;
    check(
        "bios as uefi",
        &sound,
        virtio(uefi),
        Verdict::NotReady,
        &["no protected disk has an EFI system partition"],
    )
}

#[test]
fn an_initramfs_is_read_however_it_is_packed() -> Result<()> {
    for packed in [Packed::Plain, Packed::Gzip, Packed::Xz, Packed::Zstd] {
        let bytes = initramfs(&["virtio_blk", "sd-mod"], packed)?;
        let found =
            initramfs::modules(&bytes).map_err(anyhow::Error::msg).with_context(|| format!("{packed:?}"))?;
        let names: Vec<String> = found.files.into_iter().collect();
        ensure!(names == ["sd_mod", "virtio_blk"], "{packed:?}: {names:?}");
        let half = bytes.len() - 60;
        ensure!(
            initramfs::modules(&bytes[..half]).is_err() || packed == Packed::Plain,
            "{packed:?}: half of it is good"
        );
    }
    let unknown = [b"\x02\x21\x4c\x18".as_slice(), &[7; 100]].concat();
    let error = initramfs::modules(&unknown).unwrap_err();
    ensure!(error.contains("not known here"), "{error}");
    Ok(())
}

#[test]
fn what_cannot_be_looked_into_is_said_to_be_so() -> Result<()> {
    // The same disk with a superblock of XFS where its root was.
    let mut disk = SystemDisk::default().make()?;
    disk[1 << 20..(1 << 20) + 2048].fill(0);
    disk[1 << 20..(1 << 20) + 4].copy_from_slice(b"XFSB");
    let report = look(disk, virtio(Firmware::Bios));
    ensure!(report.verdict == Verdict::Unknown, "{report:#?}");
    ensure!(format!("{report:?}").contains("/dev/sda1: xfs cannot be looked into"), "{report:#?}");
    ensure!(report.against().is_none(), "{report:#?}");
    // Data without a system is nobody's fault.
    let report = look(vec![0; 4 << 20], virtio(Firmware::Bios));
    ensure!(report.verdict == Verdict::Unknown && report.against().is_none(), "{report:#?}");
    Ok(())
}

#[test]
fn what_a_system_starts_on_is_told_whatever_is_planned() -> Result<()> {
    let (bios, uefi) = (Firmware::Bios, Firmware::Uefi);
    let sound = SystemDisk::default();
    let vmware = SystemDisk { early: vec!["vmw_pvscsi", "sd_mod"], ..sound.clone() };
    let by_uefi = SystemDisk { efi: Some(true), ..sound.clone() };
    let no_loader = SystemDisk { efi: Some(false), ..sound.clone() };
    for (what, disk, firmware, models) in [
        ("sound", &sound, &[bios][..], &["virtio", "pvscsi"][..]),
        ("as on VMware", &vmware, &[bios], &["pvscsi"]),
        ("by UEFI", &by_uefi, &[uefi], &["virtio", "pvscsi"]),
        ("by nothing", &no_loader, &[], &["virtio", "pvscsi"]),
    ] {
        for planned in [virtio(bios), planned("sata", &["ahci", "sd_mod"], "sd", uefi)] {
            let suited = look(disk.make()?, planned).suited;
            ensure!(suited.firmware == firmware && suited.disk_models == models, "{what}: {suited:?}");
        }
    }
    Ok(())
}

/// Copies of a sound disk, each changed at random where the structures lie, are looked at.
pub(crate) fn damaged(sound: &[u8], copies: usize, entropy: &SeededEntropy, look: impl Fn(Vec<u8>)) {
    let random = |below: usize| usize::try_from(entropy.next_u64() % below as u64).unwrap_or(0);
    let used: Vec<usize> = (0..sound.len() / 4096)
        .filter(|block| sound[block * 4096..][..4096].iter().any(|byte| *byte != 0))
        .collect();
    for _ in 0..copies {
        let mut disk = sound.to_vec();
        for _ in 0..=random(40) {
            let at = used[random(used.len())] * 4096 + random(4096 - 8);
            let value = entropy.next_u64().to_le_bytes();
            match random(3) {
                0 => disk[at..at + 8].fill(0xff),
                1 => disk[at..at + 8].copy_from_slice(&value),
                _ => disk[at] ^= value[0] | 1,
            }
        }
        look(disk);
    }
}

/// Every look ends, with whatever it says.
#[test]
fn damaged_disks_are_looked_at_to_an_end() -> Result<()> {
    let entropy = SeededEntropy::new(20_261_127);
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let efi = (firmware == Firmware::Uefi).then_some(true);
        let sound = SystemDisk { efi, ..SystemDisk::default() }.make()?;
        damaged(&sound, 40, &entropy, |disk| {
            let _whatever = look(disk, virtio(firmware));
        });
    }
    Ok(())
}
