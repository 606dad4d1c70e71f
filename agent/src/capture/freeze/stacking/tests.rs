//! Tests of the order of freezing on machines made of files.

use holdfast_common::units::BlockRange;

use super::Stacking;
use crate::inventory::{DeviceNumber, fixture::Fixture, stack::Stack};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

fn stack(machine: &Fixture) -> Stack {
    Stack::read(&machine.roots()).unwrap()
}

/// Mount points of what would be frozen for these disks, in order.
fn order(machine: &Fixture, disks: &[(u32, u32)]) -> Vec<String> {
    let disks: Vec<DeviceNumber> =
        disks.iter().map(|&(major, minor)| DeviceNumber { major, minor }).collect();
    let plan = Stacking::plan(&stack(machine), &disks).unwrap();
    plan.file_systems.iter().map(|planned| planned.mounts[0].1.display().to_string()).collect()
}

fn swap(machine: &Fixture, major: u32, minor: u32) -> Vec<BlockRange> {
    let disk = DeviceNumber { major, minor };
    Stacking::plan(&stack(machine), &[disk]).unwrap().swap.remove(&disk).unwrap()
}

/// A disk with an EFI partition, a root, and swap; a second disk with nothing to do with it.
fn plain_machine() -> Fixture {
    let mut machine = Fixture::new();
    let place = "pci0000:00/0000:00:04.0/virtio1";
    machine.disk(place, "vda", "254:0", 10 * GIB);
    machine.partition(place, "vda", "vda1", "254:1", (1, MIB, 100 * MIB));
    machine.partition(place, "vda", "vda2", "254:2", (2, 101 * MIB, 8 * GIB));
    machine.partition(place, "vda", "vda3", "254:3", (3, 101 * MIB + 8 * GIB + 512, GIB));
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.mount("20 1 254:2 / / rw,relatime shared:1 - ext4 /dev/root rw,errors=remount-ro");
    machine.mount("21 20 254:1 / /boot/efi rw shared:2 - vfat /dev/vda1 rw,fmask=0077");
    machine.mount("22 20 254:16 / /data\\040two rw shared:3 - xfs /dev/vdb rw,noquota");
    machine.mount("23 20 0:22 / /proc rw - proc proc rw");
    machine.swap("/dev/vda3", "partition");
    machine
}

#[test]
fn file_systems_on_partitions_are_found_and_others_left_alone() {
    let machine = plain_machine();
    assert_eq!(order(&machine, &[(254, 0)]), ["/boot/efi", "/"]);
    assert_eq!(order(&machine, &[(254, 16)]), ["/data two"]);
}

#[test]
fn swap_is_named_without_the_blocks_its_neighbours_share() {
    let machine = plain_machine();
    let start = 101 * MIB + 8 * GIB;
    assert_eq!(swap(&machine, 254, 0), [BlockRange::new(start / 4096 + 1, GIB / 4096 - 1)]);
    assert_eq!(swap(&machine, 254, 16), []);
}

#[test]
fn bind_mounts_are_frozen_once_and_through_the_whole_file_system() {
    let mut machine = plain_machine();
    machine.mount("30 20 254:16 /sub /srv/sub rw - xfs /dev/vdb rw,noquota");
    let plan = Stacking::plan(&stack(&machine), &[DeviceNumber { major: 254, minor: 16 }]).unwrap();
    assert_eq!(plan.file_systems.len(), 1);
    assert_eq!(plan.file_systems[0].mounts.iter().map(|mount| mount.0).collect::<Vec<_>>(), [22, 30]);

    // The other way round: the part was mounted first.
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.mount("30 20 254:16 /sub /srv/sub rw - xfs /dev/vdb rw");
    machine.mount("31 20 254:16 / /srv/all rw - xfs /dev/vdb rw");
    assert_eq!(order(&machine, &[(254, 16)]), ["/srv/all"]);
}

#[test]
fn read_only_superblocks_are_left_out_but_read_only_mounts_of_writable_ones_are_not() {
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.disk("pci0000:00/0000:00:06.0/virtio3", "vdc", "254:32", GIB);
    machine.mount("30 20 254:16 / /frozen ro - ext4 /dev/vdb ro,noload");
    machine.mount("31 20 254:32 / /busy ro - ext4 /dev/vdc rw");
    assert_eq!(order(&machine, &[(254, 16), (254, 32)]), ["/busy"]);
}

#[test]
fn lvm_over_two_disks_and_dm_crypt_and_md_are_walked() {
    let mut machine = Fixture::new();
    let place = "pci0000:00/0000:03:00.0/host0/target0:0:0/0:0:0:0";
    machine.disk(place, "sda", "8:0", 10 * GIB);
    machine.partition(place, "sda", "sda5", "8:5", (5, MIB, 9 * GIB));
    machine.disk("pci0000:00/0000:03:00.0/host0/target0:0:1/0:0:1:0", "sdb", "8:16", 10 * GIB);
    machine.stacked("dm-0", "253:0", 8 * GIB, &["sda5", "sdb"]).mapper("dm-0", "vg-root");
    machine.stacked("dm-1", "253:1", GIB, &["sda5"]).mapper("dm-1", "vg-swap");
    machine.disk("pci0000:00/0000:04:00.0/nvme/nvme0", "nvme0n1", "259:0", GIB);
    machine.disk("pci0000:00/0000:05:00.0/nvme/nvme1", "nvme1n1", "259:1", GIB);
    machine.stacked("md0", "9:0", GIB, &["nvme0n1", "nvme1n1"]);
    machine.stacked("dm-2", "253:2", GIB, &["md0"]).mapper("dm-2", "secret");
    machine.mount("20 1 253:0 / / rw - ext4 /dev/mapper/vg-root rw");
    machine.mount("21 20 253:2 / /secret rw - xfs /dev/mapper/secret rw");
    machine.swap("/dev/dm-1", "partition");
    assert_eq!(order(&machine, &[(8, 16)]), ["/"]);
    assert_eq!(order(&machine, &[(259, 1)]), ["/secret"]);
    // The area shares its physical volume with the root: no block of the disk is known to be swap only.
    assert_eq!(swap(&machine, 8, 0), []);
}

#[test]
fn encrypted_swap_on_a_partition_of_its_own_is_harmless() {
    let mut machine = Fixture::new();
    let place = "pci0000:00/0000:00:04.0/virtio1";
    machine.disk(place, "vda", "254:0", 4 * GIB);
    machine.partition(place, "vda", "vda1", "254:1", (1, MIB, GIB));
    machine.stacked("dm-0", "253:0", GIB, &["vda1"]).mapper("dm-0", "swap_crypt");
    machine.swap("/dev/mapper/swap_crypt", "partition");
    machine.mount("20 1 0:22 / /proc rw - proc proc rw");
    assert_eq!(swap(&machine, 254, 0), [BlockRange::new(256, GIB / 4096)]);
}

#[test]
fn btrfs_over_two_disks_is_found_from_either() {
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.disk("pci0000:00/0000:00:06.0/virtio3", "vdc", "254:32", GIB);
    machine.btrfs("0a1b", &["vdb", "vdc"]);
    machine.mount("40 20 0:45 /@home /home rw - btrfs /dev/vdb rw,space_cache=v2,subvol=/@home");
    machine.mount("41 20 0:45 /@ / rw - btrfs /dev/vdb rw,space_cache=v2,subvol=/@");
    assert_eq!(order(&machine, &[(254, 32)]), ["/home"]);
    assert_eq!(order(&machine, &[(254, 16)]), ["/home"]);
}

#[test]
fn an_external_log_counts_as_part_of_its_file_system() {
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.disk("pci0000:00/0000:00:06.0/virtio3", "vdc", "254:32", GIB);
    machine.mount("40 20 254:16 / /data rw - xfs /dev/vdb rw,logdev=/dev/vdc,noquota");
    assert_eq!(order(&machine, &[(254, 32)]), ["/data"]);
}

#[test]
fn what_lies_on_a_file_is_frozen_before_what_carries_the_file() {
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:05.0/virtio2", "vdb", "254:16", GIB);
    machine.mount("20 1 254:0 / / rw - ext4 /dev/vda rw");
    machine.mount("40 20 254:16 / /srv rw - xfs /dev/vdb rw");
    machine.loop_file("loop3", "7:3", MIB, "/srv/images/one.img");
    machine.stacked("dm-0", "253:0", MIB, &["loop3"]).mapper("dm-0", "inner");
    machine.mount("41 20 253:0 / /mnt/inner rw - ext4 /dev/mapper/inner rw");
    machine.loop_file("loop4", "7:4", MIB, "/mnt/inner/two.img (deleted)");
    machine.mount("42 20 7:4 / /mnt/innermost rw - ext4 /dev/loop4 rw");
    machine.loop_file("loop5", "7:5", MIB, "/elsewhere/three.img");
    machine.mount("43 20 7:5 / /mnt/other rw - ext4 /dev/loop5 rw");
    assert_eq!(order(&machine, &[(254, 16)]), ["/mnt/innermost", "/mnt/inner", "/srv"]);
    // A loop device alone never pulls in the file system that carries its file.
    assert_eq!(order(&machine, &[(7, 3)]), ["/mnt/innermost", "/mnt/inner"]);
}

#[test]
fn a_missing_disk_is_named() {
    let machine = plain_machine();
    let gone = DeviceNumber { major: 8, minor: 0 };
    assert_eq!(Stacking::plan(&stack(&machine), &[gone]), Err(gone));
}
