//! Tests of the inventory on machines made of files, and of its parsers on hostile bytes.

use holdfast_common::wire::{DiskIdentity, Firmware, Inventory, PartitionTable, Platform};
use proptest::prelude::{any, prop, prop_assert, proptest};

use super::{
    LocateError, Located, collect,
    fixture::Fixture,
    locate, machine,
    mounts::{parse_mounts, parse_swaps},
    table::{Table, crc32},
};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";

fn inventory(machine: &Fixture) -> Inventory {
    collect(&machine.roots(), &[]).unwrap()
}

fn mbr(signature: u32, entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut head = vec![0; 4096];
    head[440..444].copy_from_slice(&signature.to_le_bytes());
    for (index, (kind, first, sectors)) in entries.iter().enumerate() {
        let at = 446 + index * 16;
        head[at + 4] = *kind;
        head[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        head[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    head[510..512].copy_from_slice(&[0x55, 0xAA]);
    head
}

/// A GPT with one partition of 1 MiB at 1 MiB.
fn gpt(disk: u128, sector: usize) -> Vec<u8> {
    let mut head = mbr(0, &[(0xEE, 1, u32::MAX)]);
    head.resize(64 << 10, 0);
    let mut entries = vec![0; 128 * 128];
    entries[..16].copy_from_slice(&uuid::Uuid::parse_str(LINUX).unwrap().to_bytes_le());
    entries[32..40].copy_from_slice(&((MIB / sector as u64).to_le_bytes()));
    entries[40..48].copy_from_slice(&((2 * MIB / sector as u64 - 1).to_le_bytes()));
    let mut header = vec![0; 92];
    header[..8].copy_from_slice(b"EFI PART");
    header[12..16].copy_from_slice(&92_u32.to_le_bytes());
    header[56..72].copy_from_slice(&uuid::Uuid::from_u128(disk).to_bytes_le());
    header[72..80].copy_from_slice(&2_u64.to_le_bytes());
    header[80..84].copy_from_slice(&128_u32.to_le_bytes());
    header[84..88].copy_from_slice(&128_u32.to_le_bytes());
    header[88..92].copy_from_slice(&crc32(&entries).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    head[sector..sector + 92].copy_from_slice(&header);
    head[2 * sector..2 * sector + entries.len()].copy_from_slice(&entries);
    head
}

#[test]
fn the_checksum_is_the_one_of_gpt() {
    assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
}

#[test]
fn gpt_is_read_with_small_and_large_sectors_and_not_believed_when_damaged() {
    for sector in [512, 4096] {
        let mut head = gpt(7, sector);
        let table = Table::parse(&head, sector as u64);
        assert_eq!(table.kind, PartitionTable::Gpt);
        assert_eq!(table.id.as_deref(), Some("00000000-0000-0000-0000-000000000007"));
        let [partition] = &table.partitions[..] else { panic!("{table:?}") };
        assert_eq!((partition.start_bytes, partition.size_bytes), (MIB, MIB));
        assert_eq!(partition.kind, LINUX);
        head[2 * sector + 40] ^= 1;
        assert_eq!(Table::parse(&head, sector as u64), Table::none());
    }
}

#[test]
fn mbr_is_read_and_a_boot_sector_is_not_taken_for_one() {
    let table = Table::parse(&mbr(0xDEAD_BEEF, &[(0x83, 2048, 4096), (0, 0, 0), (0x82, 8192, 16)]), 512);
    assert_eq!((table.kind, table.id.as_deref()), (PartitionTable::Mbr, Some("deadbeef")));
    let numbers: Vec<u32> = table.partitions.iter().map(|partition| partition.number).collect();
    assert_eq!(numbers, [1, 3]);
    let mut fat = mbr(0, &[(0x83, 1, 1)]);
    fat[446] = 0x20;
    assert_eq!(Table::parse(&fat, 512), Table::none());
}

proptest! {
    #[test]
    fn no_table_makes_the_parser_panic(mut head in prop::collection::vec(any::<u8>(), 0..70_000), whole in any::<bool>(), at in 0_usize..1000, byte in any::<u8>()) {
        if whole {
            head = gpt(9, 512);
            head[at] = byte;
        } else if head.len() > 600 {
            head[510..512].copy_from_slice(&[0x55, 0xAA]);
            head[450] = 0xEE;
            head[512..520].copy_from_slice(b"EFI PART");
        }
        let table = Table::parse(&head, 512);
        prop_assert!(table.partitions.len() <= 256);
    }

    #[test]
    fn no_mount_table_makes_the_parsers_panic(table in prop::collection::vec(any::<u8>(), 0..300)) {
        let _either = (parse_mounts(&table).is_ok(), parse_swaps(&table).is_ok());
    }
}

#[test]
fn escapes_in_the_mount_table_are_undone() {
    let line =
        b"36 35 98:0 /a\\011b /mnt/x\\040y\\134z rw master:1 propagate_from:2 - ext4 /dev/a\\040b rw\n";
    let mounts = parse_mounts(line).unwrap();
    assert_eq!(mounts[0].mount_point.to_str(), Some("/mnt/x y\\z"));
    assert_eq!(mounts[0].root.to_str(), Some("/a\tb"));
    assert_eq!(mounts[0].source, "/dev/a b");
    assert!(parse_mounts(b"36 35 98:0 / /mnt rw - ext4").is_err());
}

#[test]
fn platforms_are_told_apart() {
    let cases = [
        ("", "", None, Platform::Physical),
        ("Dell Inc.", "PowerEdge R640", None, Platform::Physical),
        ("Microsoft Corporation", "Virtual Machine", Some("Microsoft Hv"), Platform::HyperV),
        ("VMware, Inc.", "VMware7,1", Some("VMwareVMware"), Platform::Vmware),
        ("VMware, Inc.", "VMware7,1", None, Platform::Vmware),
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", Some("KVMKVMKVM"), Platform::Kvm),
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", Some("TCGTCGTCGTCG"), Platform::Kvm),
        ("QEMU", "Standard PC (Q35 + ICH9, 2009)", Some("Microsoft Hv"), Platform::Kvm),
        ("", "", Some("KVMKVMKVM"), Platform::Kvm),
        ("Xen", "HVM domU", Some("XenVMMXenVMM"), Platform::OtherVirtual),
    ];
    for (vendor, product, leaf, expected) in cases {
        let machine = Fixture::new();
        machine.file("sys/class/dmi/id/sys_vendor", vendor).file("sys/class/dmi/id/product_name", product);
        assert_eq!(machine::platform(&machine.roots(), leaf), expected, "{vendor} {product} {leaf:?}");
    }
}

#[test]
fn a_physical_nvme_server() {
    let mut machine = Fixture::new();
    let place = "pci0000:00/0000:00:1d.0/0000:03:00.0/nvme/nvme0";
    machine.disk(place, "nvme0n1", "259:0", 100 * GIB);
    let disk = format!("sys/devices/{place}/block/nvme0n1");
    machine.file(&format!("{disk}/wwid"), "eui.0025385b71b0f2a1\n").file(&format!("{disk}/nsid"), "1\n");
    machine.file(&format!("sys/devices/{place}/serial"), "S4EWNX0R  \n");
    machine.file(&format!("sys/devices/{place}/model"), "Samsung SSD 970\n");
    machine.driver("pci0000:00/0000:00:1d.0/0000:03:00.0", "nvme");
    machine.driver("pci0000:00/0000:00:1d.0", "pcieport");
    machine.partition(place, "nvme0n1", "nvme0n1p1", "259:1", (1, MIB, MIB));
    machine.file("dev/nvme0n1", gpt(5, 512));
    machine.file("sys/firmware/efi/fw_platform_size", "64");
    machine
        .file("sys/class/dmi/id/sys_vendor", "Dell Inc.\n")
        .file("sys/class/dmi/id/product_name", "R640\n");
    machine.file("sys/class/dmi/id/product_uuid", "4C4C4544-0035\n");
    machine.file("etc/os-release", "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n");
    machine.file("proc/sys/kernel/hostname", "one\n").file("proc/sys/kernel/osrelease", "6.1.0-25-amd64\n");
    machine.file("proc/meminfo", "MemTotal:       16314380 kB\nMemFree: 1 kB\n");
    machine.file("sys/devices/system/cpu/online", "0-3,6\n");
    machine.link("sys/class/net/eno1", "sys/devices/pci0000:00/0000:04:00.0/net/eno1");
    machine.file("sys/devices/pci0000:00/0000:04:00.0/net/eno1/address", "52:54:00:12:34:56\n");
    machine.file("sys/class/net/lo/address", "00:00:00:00:00:00\n");
    machine.link("sys/class/net/eno1/device", "sys/devices/pci0000:00/0000:04:00.0");
    machine.driver("pci0000:00/0000:04:00.0", "ixgbe");
    machine.file(
        "proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
         eno1\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\n\
         eno1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n",
    );
    machine.file("proc/net/fib_trie", "Local:\n  |-- 127.0.0.1\n   /32 host LOCAL\n  |-- 192.168.1.7\n   /32 host LOCAL\n  |-- 192.168.1.255\n   /32 link BROADCAST\n");
    machine.file(
        "proc/net/if_inet6",
        "fe800000000000005054 02 40 20 80 eno1\nfe800000000000000000000000000001 02 40 20 80 eno1\n",
    );
    machine.mount("20 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw");

    let found = inventory(&machine);
    assert_eq!(found.host_name, "one");
    assert_eq!(found.operating_system, "Debian GNU/Linux 12 (bookworm)");
    assert_eq!(
        (found.firmware, found.processors, found.memory_bytes),
        (Firmware::Uefi, 5, 16_314_380 * 1024)
    );
    assert_eq!((found.hardware.as_str(), found.hardware_uuid.as_str()), ("Dell Inc. R640", "4c4c4544-0035"));
    assert_eq!(found.drivers, ["ixgbe", "nvme"]);
    let [card] = &found.network_cards[..] else { panic!("{:?}", found.network_cards) };
    assert_eq!((card.mac.as_str(), card.driver.as_str()), ("52:54:00:12:34:56", "ixgbe"));
    assert_eq!(card.addresses, ["192.168.1.7/24", "fe80::1/64"]);
    let [disk] = &found.disks[..] else { panic!("{:?}", found.disks) };
    assert_eq!(disk.path, "/dev/nvme0n1");
    assert_eq!(disk.identity.wwid.as_deref(), Some("eui.0025385b71b0f2a1"));
    assert_eq!(disk.identity.serial.as_deref(), Some("S4EWNX0R"));
    assert_eq!(disk.identity.table_id.as_deref(), Some("00000000-0000-0000-0000-000000000005"));
    assert_eq!(disk.identity.bus_path.as_deref(), Some("pci-0000:03:00.0-nvme-1"));
    assert_eq!((disk.model.as_str(), disk.driver.as_str()), ("Samsung SSD 970", "nvme"));
    assert_eq!(disk.partitions[0].kind, LINUX);
    assert_eq!(disk.file_systems[0].mount_points, ["/"]);
}

#[test]
fn hyper_v_and_vmware_guests_keep_their_places_when_hosts_are_renumbered() {
    for host in [0, 5] {
        let machine = Fixture::new();
        let bus = "LNXSYSTM:00/LNXSYBUS:00/VMBUS:01/f8b3781a-1e82-4818-a1c3-63d806ec15bb";
        let place = format!("{bus}/host{host}/target{host}:0:0/{host}:0:0:1");
        machine.disk(&place, "sda", "8:0", GIB);
        machine.driver(&place, "sd").driver(bus, "hv_storvsc");
        let pci = "pci0000:00/0000:00:15.0/0000:03:00.0";
        let place = format!("{pci}/host{host}/target{host}:0:2/{host}:0:2:0");
        machine.disk(&place, "sdb", "8:16", GIB);
        machine.driver(&place, "sd").driver(pci, "vmw_pvscsi");
        let page = b"\x00\x80\x00\x086000c29f\0";
        machine.file(&format!("sys/devices/{place}/vpd_pg80"), page);
        machine.stacked("dm-0", "253:0", GIB, &["sdb"]).mapper("dm-0", "vg-root");
        machine.file("proc/self/mountinfo", "20 1 253:0 / / rw - xfs /dev/mapper/vg-root rw\n");
        let found = inventory(&machine);
        let [hyper_v, vmware] = &found.disks[..] else { panic!("{:?}", found.disks) };
        let place = "vmbus-f8b3781a-1e82-4818-a1c3-63d806ec15bb-scsi-0:0:1";
        assert_eq!(hyper_v.identity.bus_path.as_deref(), Some(place));
        assert_eq!(hyper_v.driver, "hv_storvsc");
        assert_eq!(vmware.identity.bus_path.as_deref(), Some("pci-0000:03:00.0-scsi-0:2:0"));
        assert_eq!(vmware.identity.serial.as_deref(), Some("6000c29f"));
        assert_eq!(
            (vmware.driver.as_str(), &vmware.file_systems[0].device[..]),
            ("vmw_pvscsi", "/dev/mapper/vg-root")
        );
    }
}

/// A KVM guest with two disks and a loop device on a file.
fn plain_guest(first: &str, second: &str) -> Fixture {
    let mut machine = Fixture::new();
    machine.disk("pci0000:00/0000:00:04.0/virtio1", first, "254:0", GIB);
    machine.disk("pci0000:00/0000:00:05.0/virtio2", second, "254:16", 2 * GIB);
    machine.loop_file("loop0", "7:0", GIB, "/srv/disk.img");
    machine.stacked("loop1", "7:1", 0, &[]);
    machine.mount("20 1 0:22 / /proc rw - proc proc rw");
    machine
}

#[test]
fn a_disk_is_found_again_by_what_identifies_it() {
    let machine = plain_guest("vda", "vdb");
    let before = inventory(&machine);
    let data = before.disks.iter().find(|disk| disk.path == "/dev/vdb").unwrap().clone();
    assert_eq!(data.identity.bus_path.as_deref(), Some("pci-0000:00:05.0"));
    // The next boot names them the other way round.
    let machine = plain_guest("vdb", "vda");
    let found = locate(&machine.roots(), &data.identity, &data.path, &inventory(&machine)).unwrap();
    let Located::Device { device, .. } = found else { panic!("{found:?}") };
    assert_eq!((device.path.to_str(), device.number.minor), (Some("/dev/vda"), 16));
    assert_eq!(device.size_bytes, 2 * GIB);
}

#[test]
fn a_disk_that_could_be_another_is_refused() {
    let machine = plain_guest("vda", "vdb");
    machine.file("dev/vda", gpt(5, 512)).file("dev/vdb", gpt(5, 512));
    let found = inventory(&machine);
    let table_id = found.disks[1].identity.table_id.clone();
    assert!(table_id.is_some());
    let only_table = DiskIdentity { table_id: table_id.clone(), ..DiskIdentity::default() };
    let refused = locate(&machine.roots(), &only_table, "/dev/vda", &found);
    assert!(
        matches!(&refused, Err(LocateError::Ambiguous { candidates, .. }) if candidates.len() == 2),
        "{refused:?}"
    );
    // Copies of one image on different buses are told apart by the next field.
    let with_bus = DiskIdentity { table_id, bus_path: Some("pci-0000:00:05.0".to_owned()), ..only_table };
    assert!(locate(&machine.roots(), &with_bus, "/dev/vda", &found).is_ok());
    let gone = DiskIdentity { serial: None, wwid: Some("eui.1".to_owned()), ..DiskIdentity::default() };
    assert!(matches!(locate(&machine.roots(), &gone, "/dev/vda", &found), Err(LocateError::Missing { .. })));
    assert!(locate(&machine.roots(), &DiskIdentity::default(), "/dev/vdb", &found).is_ok());
}

#[test]
fn loop_devices_with_a_file_and_image_files_are_disks() {
    let machine = plain_guest("vda", "vdb");
    machine.file("disk.img", gpt(6, 512));
    let image = machine.path("disk.img");
    let found = collect(&machine.roots(), std::slice::from_ref(&image)).unwrap();
    let paths: Vec<&str> = found.disks.iter().map(|disk| disk.path.as_str()).collect();
    assert_eq!(paths[..3], ["/dev/loop0", "/dev/vda", "/dev/vdb"]);
    assert_eq!(found.disks[0].identity.backing_file.as_deref(), Some("/srv/disk.img"));
    let identity = found.disks[3].identity.clone();
    let located = locate(&machine.roots(), &identity, "/elsewhere", &found).unwrap();
    let Located::ImageFile { path, size_bytes } = located else { panic!("{located:?}") };
    assert_eq!((path, size_bytes), (image.canonicalize().unwrap(), 64 << 10));
}

#[test]
fn this_machine_can_be_described() {
    let found = collect(&super::Roots::default(), &[]).unwrap();
    assert!(found.processors > 0 && found.memory_bytes > 0, "{found:?}");
    assert!(!found.kernel.is_empty() && !found.boot_id.is_empty(), "{found:?}");
}
