//! Machines are made of what the guest has drivers for.

use std::collections::BTreeMap;

use holdfast_common::{
    ids::{DiskId, MachineId, PointId},
    wire::{DiskIdentity, DiskInventory, NetworkCard, PartitionTable, Platform},
};

use super::*;
use crate::compute::machines::Suited;

fn inventory(drivers: &[&str], card: &str) -> Inventory {
    Inventory {
        host_name: "web-1".into(),
        operating_system: String::new(),
        kernel: String::new(),
        boot_id: String::new(),
        firmware: Firmware::Bios,
        platform: Platform::Vmware,
        hardware: String::new(),
        hardware_uuid: "564d1111-2222-3333-4444-555566667777".into(),
        processors: 4,
        memory_bytes: 3 << 30,
        network_cards: vec![NetworkCard {
            name: "eth0".into(),
            mac: "52:54:00:12:34:56".into(),
            driver: card.into(),
            addresses: Vec::new(),
        }],
        disks: vec![DiskInventory {
            path: "/dev/sda".into(),
            identity: DiskIdentity {
                serial: Some("a serial, of some length".into()),
                ..DiskIdentity::default()
            },
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
            read_only: false,
            model: String::new(),
            driver: "sd".into(),
            table: PartitionTable::Gpt,
            partitions: Vec::new(),
            file_systems: Vec::new(),
        }],
        drivers: drivers.iter().map(ToString::to_string).collect(),
    }
}

fn request(inventory: Inventory) -> MachineRequest {
    let disk = |name: &str| Endpoint {
        disk: DiskId::from_bytes([1; 16]),
        name: name.into(),
        uri: format!("nbd+unix:///{name}?socket=/run/holdfast/{name},1.sock"),
        size_bytes: 1 << 30,
    };
    MachineRequest {
        owner: "job-1".into(),
        machine: MachineId::from_bytes([2; 16]),
        point: PointId::from_bytes([3; 16]),
        name: "web-1".into(),
        inventory,
        suited: Suited::default(),
        disks: vec![disk("sda"), disk("sdb")],
        networks: BTreeMap::new(),
        writable: false,
        isolated: false,
    }
}

fn host() -> Host {
    Host {
        kvm: false,
        processors: 2,
        memory_mib: None,
        network: "br0".into(),
        uefi: Some(("/code".into(), "/variables".into())),
    }
}

fn files() -> Files {
    Files { folder: "/vm/job-1".into(), control: "/s/vm.qmp".into(), console: "/s/vm.console".into() }
}

fn of(drivers: &[&str], card: &str) -> Definition {
    Definition::of(&request(inventory(drivers, card)), &Overrides::default(), &host()).unwrap()
}

#[test]
fn golden_arguments_of_a_virtio_guest() {
    let definition = of(&["virtio_blk", "virtio_net"], "virtio_net");
    let said = definition.arguments(&files(), &[true, false]).join("\n");
    let expected = "\
-name
web-1
-machine
q35
-accel
tcg,thread=multi
-cpu
max
-smp
2
-m
3072
-uuid
564d1111-2222-3333-4444-555566667777
-nodefaults
-no-user-config
-daemonize
-display
none
-device
VGA
-pidfile
/vm/job-1/qemu.pid
-qmp
unix:/s/vm.qmp,server=on,wait=off
-qmp
unix:/s/vm.qmp2,server=on,wait=off
-chardev
socket,id=console,path=/s/vm.console,server=on,wait=off,logfile=/vm/job-1/console.log,logappend=on
-serial
chardev:console
-device
virtio-rng-pci
-blockdev
{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"export\":\"sda\",\"reconnect-delay\":3600,\"server\":{\"path\":\"/run/holdfast/sda,1.sock\",\"type\":\"unix\"}},\"node-name\":\"base0\",\"read-only\":true}
-blockdev
{\"backing\":\"base0\",\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/vm/job-1/disk0.qcow2\"},\"node-name\":\"disk0\"}
-device
virtio-blk-pci,drive=disk0,serial=aserial,,ofsomelengt,bootindex=1,rerror=stop,werror=stop
-blockdev
{\"backing\":null,\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/vm/job-1/disk1.qcow2\"},\"node-name\":\"disk1\"}
-device
virtio-blk-pci,drive=disk1,serial=holdfast1,bootindex=2,rerror=stop,werror=stop
-netdev
bridge,id=net0,br=br0
-device
virtio-net-pci,netdev=net0,mac=52:54:00:12:34:56,romfile=";
    assert_eq!(said, expected.replace("ofsomelengt", "ofsomelength"));
}

#[test]
fn golden_arguments_of_who_reads_images() {
    let definition = of(&["virtio_blk", "virtio_net"], "virtio_net");
    let said = definition.reader_arguments(&files(), &[false, true]).join("\n");
    let expected = "\
-machine
none
-nodefaults
-no-user-config
-daemonize
-display
none
-pidfile
/vm/job-1/reader.pid
-qmp
unix:/s/vm.read,server=on,wait=off
-blockdev
{\"backing\":null,\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/vm/job-1/disk0.qcow2\"},\"node-name\":\"disk0\",\"read-only\":true}
-blockdev
{\"driver\":\"raw\",\"file\":{\"driver\":\"nbd\",\"export\":\"sdb\",\"reconnect-delay\":3600,\"server\":{\"path\":\"/run/holdfast/sdb,1.sock\",\"type\":\"unix\"}},\"node-name\":\"base1\",\"read-only\":true}
-blockdev
{\"backing\":\"base1\",\"discard\":\"unmap\",\"driver\":\"qcow2\",\"file\":{\"discard\":\"unmap\",\"driver\":\"file\",\"filename\":\"/vm/job-1/disk1.qcow2\"},\"node-name\":\"disk1\",\"read-only\":true}";
    assert_eq!(said, expected);
}

#[test]
fn disks_hang_on_what_the_guest_booted_from() {
    for (drivers, model, device) in [
        (&["nvme"][..], DiskModel::Nvme, "nvme,drive=disk1"),
        (&["sd_mod", "virtio_scsi"], DiskModel::VirtioScsi, "scsi-hd,bus=disks.0,scsi-id=1,drive=disk1"),
        (&["vmw_pvscsi", "vmxnet3"], DiskModel::Pvscsi, "scsi-hd,bus=disks.0,scsi-id=1,drive=disk1"),
        (&["mptspi"], DiskModel::Lsi, "scsi-hd,bus=disks.0,scsi-id=1,drive=disk1"),
        (&["ahci", "sd_mod"], DiskModel::Sata, "ide-hd,bus=disks.1,drive=disk1"),
        (&["ata_piix"], DiskModel::Ide, "ide-hd,bus=ide.0,unit=1,drive=disk1"),
    ] {
        let definition = of(drivers, "vmxnet3");
        assert_eq!(definition.disk_model, model, "{drivers:?}");
        let arguments = definition.arguments(&files(), &[true, true]);
        assert!(arguments.iter().any(|argument| argument.starts_with(device)), "{arguments:?}");
        assert!(
            arguments.iter().any(|argument| argument.starts_with("vmxnet3,netdev=net0")),
            "{arguments:?}"
        );
        assert_eq!(definition.remarks, ["4 processors cannot be emulated on this host; it has 2"]);
    }
}

#[test]
fn what_the_system_on_the_disks_starts_on_goes_before_what_was_told() {
    let suited = |firmware: &[Firmware], models: &[&str]| Suited {
        firmware: firmware.to_vec(),
        disk_models: models.iter().map(ToString::to_string).collect(),
    };
    let (bios, uefi) = (Firmware::Bios, Firmware::Uefi);
    for (told, drivers, suited, model, by_uefi, says) in [
        // What was told is kept where it is among them, or nothing is known.
        (
            bios,
            &["sd_mod", "ahci"][..],
            suited(&[bios, uefi], &["virtio", "sata"]),
            DiskModel::Sata,
            false,
            "",
        ),
        (uefi, &["ahci"], suited(&[], &[]), DiskModel::Sata, true, ""),
        // An agent that runs on the host of a guest tells of the host.
        (
            bios,
            &["virtio_blk"],
            suited(&[bios], &["nvme", "sata"]),
            DiskModel::Nvme,
            false,
            "virtio was told",
        ),
        (bios, &["virtio_blk"], suited(&[uefi], &["virtio"]), DiskModel::Virtio, true, "it boots by UEFI"),
        (uefi, &["ahci"], suited(&[bios], &["lsi"]), DiskModel::Lsi, false, "it boots by BIOS"),
        (
            bios,
            &["hv_storvsc"],
            suited(&[bios], &["ide"]),
            DiskModel::Ide,
            false,
            "no driver of a controller",
        ),
        // UEFI does not read from there, and the system has drivers for more.
        (
            uefi,
            &["vmw_pvscsi"],
            suited(&[uefi], &["sata", "pvscsi"]),
            DiskModel::Sata,
            true,
            "pvscsi was told",
        ),
    ] {
        let mut request = request(inventory(drivers, "e1000"));
        request.inventory.firmware = told;
        request.suited = suited;
        let made = Definition::of(&request, &Overrides::default(), &host()).unwrap();
        let remarks = made.remarks.join("; ");
        assert_eq!((made.disk_model, made.uefi_code.is_some()), (model, by_uefi), "{drivers:?} {remarks}");
        assert!(
            remarks.contains(says)
                && remarks.contains("told") != (says.is_empty() || says.starts_with("no driver")),
            "{remarks}"
        );
        // The operator has the last word.
        let wanted = Overrides {
            disk_model: Some(DiskModel::VirtioScsi),
            firmware: Some(bios),
            ..Overrides::default()
        };
        let made = Definition::of(&request, &wanted, &host()).unwrap();
        assert_eq!((made.disk_model, made.uefi_code), (DiskModel::VirtioScsi, None));
    }
    let mut five = request(inventory(&["virtio_blk"], "e1000"));
    five.disks = vec![five.disks[0].clone(); 5];
    five.suited = suited(&[bios], &["ide"]);
    let made = Definition::of(&five, &Overrides::default(), &host()).unwrap();
    assert_eq!(made.disk_model, DiskModel::Virtio, "an IDE controller has no room for five");
}

#[test]
fn what_cannot_be_kept_is_said() {
    let definition = of(&["hv_storvsc", "hv_netvsc"], "hv_netvsc");
    assert_eq!(definition.disk_model, DiskModel::Virtio);
    assert_eq!(definition.cards[0].model, NetworkModel::E1000e);
    assert!(
        definition.remarks.iter().any(|remark| remark.contains("disk_model")),
        "{:?}",
        definition.remarks
    );
    assert!(definition.remarks.iter().any(|remark| remark.contains("hv_netvsc")), "{:?}", definition.remarks);

    let mut uefi = inventory(&["nvme"], "e1000");
    uefi.firmware = Firmware::Uefi;
    let without = Host { uefi: None, ..host() };
    let error = Definition::of(&request(uefi.clone()), &Overrides::default(), &without).unwrap_err();
    assert!(error.contains("ovmf"), "{error}");
    let definition = Definition::of(&request(uefi), &Overrides::default(), &host()).unwrap();
    let said = definition.arguments(&files(), &[]).join(" ");
    assert!(
        said.contains("readonly=on,file=/code") && said.contains("/vm/job-1/uefi-variables.fd"),
        "{said}"
    );
}

#[test]
fn tests_are_apart_and_operators_have_the_last_word() {
    let overrides: Overrides = toml::from_str(
        "processors = 1\nmemory_mib = 512\ncpu = \"Westmere\"\ndisk_model = \"sata\"\nnetwork_model = \"e1000\"\nnetworks = [\"user\"]",
    )
    .unwrap();
    let mut request = request(inventory(&["virtio_blk"], "virtio_net"));
    let definition = Definition::of(&request, &overrides, &host()).unwrap();
    assert_eq!((definition.processors, definition.memory_mib, definition.cpu.as_str()), (1, 512, "Westmere"));
    assert_eq!((definition.disk_model, definition.cards[0].model), (DiskModel::Sata, NetworkModel::E1000));
    assert_eq!(definition.cards[0].network, "user");
    assert!(definition.remarks.is_empty(), "{:?}", definition.remarks);
    request.isolated = true;
    let definition = Definition::of(&request, &overrides, &host()).unwrap();
    let said = definition.arguments(&files(), &[]).join(" ");
    assert!(said.contains("user,id=net0,restrict=on") && !said.contains("br0"), "{said}");

    let error = toml::from_str::<Overrides>("memory_mib = 512\nprocesors = 1").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("procesors"), "{error}");
}

/// Whatever else is in use: data disks, or a disk with an installer on it.
#[test]
fn the_controller_is_that_of_the_disk_that_is_booted_from() {
    let mut inventory = inventory(&["virtio_blk", "vmw_pvscsi"], "vmxnet3");
    inventory.disks[0].driver = "vmw_pvscsi".into();
    let definition = Definition::of(&request(inventory), &Overrides::default(), &host()).unwrap();
    assert_eq!(definition.disk_model, DiskModel::Pvscsi);
}

/// Debian's UEFI has no driver for them: the machine would start, and read nothing.
#[test]
fn uefi_from_a_controller_that_it_does_not_read_is_refused_until_another_is_set() {
    let mut request = request(inventory(&["vmw_pvscsi"], "vmxnet3"));
    request.inventory.firmware = Firmware::Uefi;
    let error = Definition::of(&request, &Overrides::default(), &host()).unwrap_err();
    assert!(error.contains("pvscsi") && error.contains("disk_model"), "{error}");
    let set = |disk_model| Overrides { disk_model: Some(disk_model), ..Overrides::default() };
    for model in [DiskModel::Sata, DiskModel::Pvscsi] {
        let definition = Definition::of(&request, &set(model), &host()).unwrap();
        assert_eq!(definition.disk_model, model);
    }
    request.inventory.firmware = Firmware::Bios;
    assert!(Definition::of(&request, &Overrides::default(), &host()).is_ok());
}

/// What a plan says of networks goes before everything else, also in a test, whose machines else have no way out.
#[test]
fn a_plan_maps_networks_by_the_names_of_cards() {
    let mut request = request(inventory(&["virtio_blk"], "virtio_net"));
    let overrides = Overrides { networks: vec!["br7".into()], ..Overrides::default() };
    let network = |request: &MachineRequest| {
        Definition::of(request, &overrides, &host()).unwrap().cards.first().unwrap().network.clone()
    };
    assert_eq!(network(&request), "br7");
    request.networks = BTreeMap::from([("*".to_owned(), "user".to_owned())]);
    assert_eq!(network(&request), "user");
    request.networks.insert("eth0".to_owned(), "br1".to_owned());
    assert_eq!(network(&request), "br1");
    request.isolated = true;
    assert_eq!(network(&request), "br1");
    request.networks.clear();
    assert_eq!(network(&request), "isolated");
}

#[test]
fn a_machine_that_the_host_has_no_memory_for_is_refused_with_advice() {
    let small = |memory_mib| Host { memory_mib: Some(memory_mib), ..host() };
    let wanted = Overrides { memory_mib: Some(4096), ..Overrides::default() };
    let error = Definition::of(&request(inventory(&["virtio_blk"], "virtio_net")), &wanted, &small(4096))
        .unwrap_err();
    assert!(error.contains("4096 MiB") && error.contains("memory_mib"), "{error}");
    assert!(
        Definition::of(&request(inventory(&["virtio_blk"], "virtio_net")), &wanted, &small(8192)).is_ok()
    );
}
