//! What a machine is made of, and the command line that says so to QEMU.
//!
//! Pure. Owns the choice of devices from the inventory, the operator's overrides, and QEMU's arguments. Does not start anything.
//! Invariant: the devices are those that the guest has a driver for, so that no conversion is needed before it boots: what its agent
//! told of last, unless a look into its replica has found that what lies there does not start on that (the agent may run on the host
//! of a guest, and tells of the host). What could not be kept is in the remarks.
//! Format: options of qemu-system-x86_64 7.2 and later.

use std::{
    path::{Path, PathBuf},
    slice,
};

use holdfast_common::{
    ids::DiskId,
    wire::{DiskInventory, Firmware, Inventory},
};
use serde::{Deserialize, Serialize};

use crate::compute::{machines::MachineRequest, port::Endpoint};

/// An IDE controller has no more disks.
const IDE_DISKS_MAX: usize = 4;
/// Longest time that the guest's reads wait for the coordinator to serve its disks again, in seconds.
const RECONNECT_SECONDS: u32 = 3600;
/// Serial numbers of virtio disks have no more bytes.
const VIRTIO_SERIAL_MAX: usize = 20;
/// A machine without known memory gets so much.
const MEMORY_MIB_DEFAULT: u64 = 2048;
/// What the host keeps of its memory for itself.
const MEMORY_MIB_KEPT: u64 = 256;
/// Less does not boot anything of today.
const MEMORY_MIB_MIN: u64 = 128;

/// Controller that disks hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskModel {
    /// virtio-blk.
    Virtio,
    /// virtio-scsi.
    VirtioScsi,
    /// NVMe.
    Nvme,
    /// SATA (AHCI).
    Sata,
    /// IDE (PIIX), four disks at most.
    Ide,
    /// VMware's paravirtual SCSI.
    Pvscsi,
    /// LSI SAS 1068, as VMware and others have it.
    Lsi,
}

/// Network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82574L.
    E1000e,
    /// VMware's vmxnet3.
    Vmxnet3,
}

/// What an operator wants otherwise than the inventory says: `hardware/MACHINE.toml` in the data folder, MACHINE being its
/// host name or id. Whatever is not named follows the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Overrides {
    /// Processors.
    pub processors: Option<u32>,
    /// Memory in MiB.
    pub memory_mib: Option<u64>,
    /// QEMU's model of the processor ("host", "max", "Westmere").
    pub cpu: Option<String>,
    /// How it boots.
    pub firmware: Option<Firmware>,
    /// Controller of all disks.
    pub disk_model: Option<DiskModel>,
    /// Model of all network cards.
    pub network_model: Option<NetworkModel>,
    /// Networks of its cards, in their order ("user" or a bridge's name); the coordinator's setting for those that are not
    /// named. Not for tests, whose machines are apart.
    pub networks: Vec<String>,
}

/// How guests' processors are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// KVM if this host has it and is no virtual machine itself, TCG otherwise. KVM inside a virtual machine is not trusted unasked:
    /// where it is broken, guests hang without a message.
    Auto,
    /// KVM.
    Kvm,
    /// Emulation, which is slow and works everywhere.
    Tcg,
}

/// What the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Whether KVM is used.
    pub kvm: bool,
    /// Processors.
    pub processors: u32,
    /// Memory in MiB, if it is known.
    pub memory_mib: Option<u64>,
    /// Network of machines that are no tests: "user" or a bridge's name.
    pub network: String,
    /// Code and pristine variables of UEFI, if they are installed.
    pub uefi: Option<(PathBuf, PathBuf)>,
}

/// A machine, worked out. Persisted beside its overlays: fields are only ever added, with a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// For windows and logs.
    pub name: String,
    /// Processors.
    pub processors: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// QEMU's model of the processor.
    pub cpu: String,
    /// Whether KVM is used.
    pub kvm: bool,
    /// The code of UEFI; BIOS if none.
    pub uefi_code: Option<PathBuf>,
    /// Identity of the system for its software's licences; empty for none.
    pub uuid: String,
    /// Controller of its disks.
    pub disk_model: DiskModel,
    /// Disks, in the order of booting.
    pub disks: Vec<Disk>,
    /// Network cards.
    pub cards: Vec<Card>,
    /// What the operator should know.
    pub remarks: Vec<String>,
}

/// A disk: what the coordinator serves, or an overlay over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The protected disk that it is made of; `None` in what was made before this was noted.
    #[serde(default)]
    pub disk: Option<DiskId>,
    /// Its name for people.
    pub name: String,
    /// Serial number.
    pub serial: String,
    /// What is served, as QEMU's URI.
    pub served: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Whether the machine writes to what is served, instead of to an overlay.
    #[serde(default)]
    pub writable: bool,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    /// Model.
    pub model: NetworkModel,
    /// Hardware address.
    pub mac: String,
    /// "isolated", "user" or a bridge's name.
    pub network: String,
}

/// Files of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// Folder of overlays and logs.
    pub folder: PathBuf,
    /// Socket of the control channel.
    pub control: PathBuf,
    /// Socket of the serial console.
    pub console: PathBuf,
}

impl Files {
    /// The overlay of the disk with this number.
    #[must_use]
    pub fn overlay(&self, number: usize) -> PathBuf {
        self.folder.join(format!("disk{number}.qcow2"))
    }

    /// Socket of the second control channel: QEMU serves one client per channel, and a stop must not wait for a copy.
    #[must_use]
    pub fn second_control(&self) -> PathBuf {
        self.control.with_extension("qmp2")
    }

    /// What the serial console printed.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn process_id(&self) -> PathBuf {
        self.folder.join("qemu.pid")
    }

    /// What a disk has held at an instant and was written over since, while the instant is read.
    #[must_use]
    pub fn fleece(&self, number: usize) -> PathBuf {
        self.folder.join(format!("disk{number}.instant.qcow2"))
    }

    /// Where the disks of an instant are read.
    #[must_use]
    pub fn instant_socket(&self) -> PathBuf {
        self.control.with_extension("nbd")
    }

    /// Control channel of who reads the images of a machine that does not run.
    #[must_use]
    pub fn reader_control(&self) -> PathBuf {
        self.control.with_extension("read")
    }

    /// Its process id.
    #[must_use]
    pub fn reader_id(&self) -> PathBuf {
        self.folder.join("reader.pid")
    }

    /// Is there if the machine is not to be started.
    #[must_use]
    pub fn sealed(&self) -> PathBuf {
        self.folder.join("sealed")
    }

    /// Variables of its UEFI.
    #[must_use]
    pub fn uefi_variables(&self) -> PathBuf {
        self.folder.join("uefi-variables.fd")
    }
}

impl DiskModel {
    /// All of them, the faster ones first.
    pub(super) const ALL: [Self; 7] =
        [Self::Virtio, Self::VirtioScsi, Self::Nvme, Self::Sata, Self::Pvscsi, Self::Lsi, Self::Ide];

    /// Its name in hardware files.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::VirtioScsi => "virtio-scsi",
            Self::Nvme => "nvme",
            Self::Sata => "sata",
            Self::Ide => "ide",
            Self::Pvscsi => "pvscsi",
            Self::Lsi => "lsi",
        }
    }

    /// Whether OVMF as it is usually built finds a system there. (BIOS reads all of them.)
    const fn is_read_by_uefi(self) -> bool {
        !matches!(self, Self::Pvscsi | Self::Lsi)
    }

    /// The controller of the disk that is booted from; where its driver is none of a controller's (a loop device), one whose
    /// driver was in use at all.
    fn of_first(request: &MachineRequest) -> Option<Self> {
        let inventory = &request.inventory;
        let first = request.disks.first().and_then(|disk| known(disk, inventory));
        first
            .and_then(|first| Self::of(slice::from_ref(&first.driver)))
            .or_else(|| Self::of(&inventory.drivers))
    }

    /// The controller that a guest with these drivers in use has booted from.
    fn of(drivers: &[String]) -> Option<Self> {
        let has = |name: &str| drivers.iter().any(|driver| driver.replace('-', "_") == name);
        [
            ("virtio_blk", Self::Virtio),
            ("virtio_scsi", Self::VirtioScsi),
            ("nvme", Self::Nvme),
            ("vmw_pvscsi", Self::Pvscsi),
            ("mptsas", Self::Lsi),
            ("mptspi", Self::Lsi),
            ("ahci", Self::Sata),
            ("ata_piix", Self::Ide),
        ]
        .into_iter()
        .find_map(|(driver, model)| has(driver).then_some(model))
    }
}

impl NetworkModel {
    fn of(driver: &str) -> Option<Self> {
        match driver.replace('-', "_").as_str() {
            "virtio_net" => Some(Self::Virtio),
            "e1000" => Some(Self::E1000),
            "e1000e" | "igb" => Some(Self::E1000e),
            "vmxnet3" => Some(Self::Vmxnet3),
            _ => None,
        }
    }

    const fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
        }
    }
}

impl Definition {
    /// Works out a machine.
    ///
    /// # Errors
    /// It cannot be made here as it is wanted; the text says what to do.
    pub fn of(request: &MachineRequest, overrides: &Overrides, host: &Host) -> Result<Self, String> {
        let inventory = &request.inventory;
        let mut remarks = Vec::new();
        let wanted = overrides.processors.unwrap_or(inventory.processors).max(1);
        let processors = if host.kvm { wanted } else { wanted.min(host.processors.max(1)) };
        if processors < wanted {
            remarks.push(format!("{wanted} processors cannot be emulated on this host; it has {processors}"));
        }
        let told =
            if inventory.memory_bytes == 0 { MEMORY_MIB_DEFAULT } else { inventory.memory_bytes >> 20 };
        let memory_mib = overrides.memory_mib.unwrap_or(told).max(MEMORY_MIB_MIN);
        if let Some(has) = host.memory_mib.filter(|has| memory_mib + MEMORY_MIB_KEPT > *has) {
            return Err(format!(
                "the machine has {memory_mib} MiB of memory and this host {has} MiB, of which {MEMORY_MIB_KEPT} stay its own; set \
                 memory_mib in the machine's hardware file to less"
            ));
        }
        let uefi_code = match firmware(request, overrides, &mut remarks) {
            Firmware::Bios => None,
            Firmware::Uefi => {
                let (code, _) = host
                    .uefi
                    .as_ref()
                    .ok_or("the machine boots by UEFI, which is not installed on this host (Debian: ovmf)")?;
                Some(code.clone())
            }
        };
        let disk_model = disk_model(request, overrides, uefi_code.is_some(), &mut remarks);
        if uefi_code.is_some() && overrides.disk_model.is_none() && !disk_model.is_read_by_uefi() {
            return Err(format!(
                "the machine boots by UEFI from {}, whose disks the UEFI of this host is not known to read (Debian's does not); set \
                 disk_model in its hardware file to one that its initramfs has a driver for (virtio, nvme, sata)",
                disk_model.name()
            ));
        }
        if disk_model == DiskModel::Ide && request.disks.len() > IDE_DISKS_MAX {
            return Err(
                "an IDE controller has four disks at most; set disk_model in its hardware file".to_owned()
            );
        }
        let disk = |disk| Disk { writable: request.writable, ..served(disk, inventory, disk_model) };
        let disks = request.disks.iter().map(disk).collect();
        Ok(Self {
            name: request.name.clone(),
            processors,
            memory_mib,
            cpu: overrides.cpu.clone().unwrap_or_else(|| if host.kvm { "host" } else { "max" }.to_owned()),
            kvm: host.kvm,
            uefi_code,
            uuid: inventory.hardware_uuid.clone(),
            disk_model,
            disks,
            cards: cards(request, overrides, host, &mut remarks),
            remarks,
        })
    }

    /// QEMU's arguments. `backed` says of each disk whether its overlay still needs what is served.
    #[must_use]
    pub fn arguments(&self, files: &Files, backed: &[bool]) -> Vec<String> {
        let mut arguments = Arguments::default();
        let accelerator = if self.kvm { "kvm" } else { "tcg,thread=multi" };
        let machine = if self.disk_model == DiskModel::Ide { "pc" } else { "q35" };
        let control = format!("unix:{},server=on,wait=off", escaped(&files.control));
        let console = format!(
            "socket,id=console,path={},server=on,wait=off,logfile={},logappend=on",
            escaped(&files.console),
            escaped(&files.console_log())
        );
        arguments.pair("-name", self.name.replace(',', ",,"));
        arguments.pair("-machine", machine);
        arguments.pair("-accel", accelerator);
        arguments.pair("-cpu", &self.cpu);
        arguments.pair("-smp", self.processors.to_string());
        arguments.pair("-m", self.memory_mib.to_string());
        if is_uuid(&self.uuid) {
            arguments.pair("-uuid", &self.uuid);
        }
        for flag in ["-nodefaults", "-no-user-config", "-daemonize"] {
            arguments.one(flag);
        }
        arguments.pair("-display", "none");
        arguments.pair("-device", "VGA");
        arguments.pair("-pidfile", files.process_id().display().to_string());
        arguments.pair("-qmp", control);
        let second = escaped(&files.second_control());
        arguments.pair("-qmp", format!("unix:{second},server=on,wait=off"));
        arguments.pair("-chardev", console);
        arguments.pair("-serial", "chardev:console");
        arguments.pair("-device", "virtio-rng-pci");
        if let Some(code) = &self.uefi_code {
            arguments.pair("-drive", format!("if=pflash,format=raw,readonly=on,file={}", escaped(code)));
            let variables = escaped(&files.uefi_variables());
            arguments.pair("-drive", format!("if=pflash,format=raw,file={variables}"));
        }
        self.disk_arguments(files, backed, &mut arguments);
        for (number, card) in self.cards.iter().enumerate() {
            let network = match card.network.as_str() {
                ISOLATED => format!("user,id=net{number},restrict=on"),
                USER => format!("user,id=net{number}"),
                bridge => format!("bridge,id=net{number},br={}", bridge.replace(',', ",,")),
            };
            arguments.pair("-netdev", network);
            let device = card.model.device();
            arguments.pair("-device", format!("{device},netdev=net{number},mac={},romfile=", card.mac));
        }
        arguments.0
    }

    fn disk_arguments(&self, files: &Files, backed: &[bool], arguments: &mut Arguments) {
        match self.disk_model {
            DiskModel::VirtioScsi => arguments.pair("-device", "virtio-scsi-pci,id=disks"),
            DiskModel::Pvscsi => arguments.pair("-device", "pvscsi,id=disks"),
            DiskModel::Lsi => arguments.pair("-device", "mptsas1068,id=disks"),
            DiskModel::Sata => arguments.pair("-device", "ich9-ahci,id=disks"),
            DiskModel::Virtio | DiskModel::Nvme | DiskModel::Ide => {}
        }
        for (number, disk) in self.disks.iter().enumerate() {
            if disk.writable {
                let node = serde_json::json!({
                    "driver": "raw", "node-name": format!("disk{number}"), "discard": "unmap",
                    "file": served_node(&disk.served),
                });
                arguments.pair("-blockdev", node.to_string());
                self.device_arguments(number, disk, arguments);
                continue;
            }
            overlay_arguments(files, number, disk, backed, false, arguments);
            self.device_arguments(number, disk, arguments);
        }
    }

    /// Arguments of a QEMU without a machine, which only reads the overlays.
    #[must_use]
    pub fn reader_arguments(&self, files: &Files, backed: &[bool]) -> Vec<String> {
        let mut arguments = Arguments::default();
        arguments.pair("-machine", "none");
        for flag in ["-nodefaults", "-no-user-config", "-daemonize"] {
            arguments.one(flag);
        }
        arguments.pair("-display", "none");
        arguments.pair("-pidfile", files.reader_id().display().to_string());
        arguments.pair("-qmp", format!("unix:{},server=on,wait=off", escaped(&files.reader_control())));
        for (number, disk) in self.disks.iter().enumerate() {
            overlay_arguments(files, number, disk, backed, true, &mut arguments);
        }
        arguments.0
    }

    fn device_arguments(&self, number: usize, disk: &Disk, arguments: &mut Arguments) {
        let device = match self.disk_model {
            DiskModel::Virtio => "virtio-blk-pci".to_owned(),
            DiskModel::Nvme => "nvme".to_owned(),
            DiskModel::VirtioScsi | DiskModel::Pvscsi | DiskModel::Lsi => {
                format!("scsi-hd,bus=disks.0,scsi-id={number}")
            }
            DiskModel::Sata => format!("ide-hd,bus=disks.{number}"),
            DiskModel::Ide => format!("ide-hd,bus=ide.{},unit={}", number / 2, number % 2),
        };
        let serial = disk.serial.replace(',', ",,");
        let serial = if serial.is_empty() { format!("holdfast{number}") } else { serial };
        // A read that cannot be answered now stops the machine until it can, rather than failing in the guest.
        let errors = if self.disk_model == DiskModel::Nvme { "" } else { ",rerror=stop,werror=stop" };
        arguments.pair(
            "-device",
            format!("{device},drive=disk{number},serial={serial},bootindex={}{errors}", number + 1),
        );
    }
}

/// What it boots by: what was told, unless nothing on its disks starts by that and something does otherwise.
fn firmware(request: &MachineRequest, overrides: &Overrides, remarks: &mut Vec<String>) -> Firmware {
    let (told, suited) = (request.inventory.firmware, &request.suited.firmware);
    let name = |firmware| if firmware == Firmware::Uefi { "UEFI" } else { "BIOS" };
    match (overrides.firmware, suited.first()) {
        (Some(wanted), _) => wanted,
        (None, Some(other)) if !suited.contains(&told) => {
            remarks.push(format!(
                "it boots by {}: its disks have nothing that {}, which was told of its source, would start",
                name(*other),
                name(told)
            ));
            *other
        }
        _ => told,
    }
}

/// What its disks hang on: what was told, unless the system on them has no driver for that and has one for another.
fn disk_model(
    request: &MachineRequest,
    overrides: &Overrides,
    by_uefi: bool,
    remarks: &mut Vec<String>,
) -> DiskModel {
    let works = |model: &DiskModel| {
        (!by_uefi || model.is_read_by_uefi())
            && (*model != DiskModel::Ide || request.disks.len() <= IDE_DISKS_MAX)
    };
    let suits = |model: &DiskModel| {
        works(model) && request.suited.disk_models.iter().any(|name| name == model.name())
    };
    let told = DiskModel::of_first(request);
    match (overrides.disk_model, told, DiskModel::ALL.into_iter().find(suits)) {
        (Some(model), ..) | (None, Some(model), None) => model,
        (None, Some(told), Some(_)) if suits(&told) => told,
        (None, told, Some(other)) => {
            let told = told.map_or_else(
                || "no driver of a controller that QEMU has was in use at its source".to_owned(),
                |told| format!("{} was told of its source, which they could not boot from here", told.name()),
            );
            remarks.push(format!(
                "disks hang on {}, which the system on them has a driver for at boot ({told})",
                other.name()
            ));
            other
        }
        (None, None, None) => {
            remarks.push(
                "no driver of a controller that QEMU has was in use; disks hang on virtio (disk_model in its \
                 hardware file changes that)"
                    .to_owned(),
            );
            DiskModel::Virtio
        }
    }
}

/// An overlay, and what it needs of what is served.
fn overlay_arguments(
    files: &Files,
    number: usize,
    disk: &Disk,
    backed: &[bool],
    read_only: bool,
    arguments: &mut Arguments,
) {
    let backing = if backed.get(number).copied().unwrap_or(true) {
        let served = serde_json::json!({
            "driver": "raw", "node-name": format!("base{number}"), "read-only": true,
            "file": served_node(&disk.served),
        });
        arguments.pair("-blockdev", served.to_string());
        serde_json::Value::from(format!("base{number}"))
    } else {
        serde_json::Value::Null
    };
    let mut overlay = serde_json::json!({
        "driver": "qcow2", "node-name": format!("disk{number}"), "discard": "unmap", "backing": backing,
        "file": {"driver": "file", "filename": files.overlay(number), "discard": "unmap"},
    });
    if let Some(overlay) = overlay.as_object_mut().filter(|_| read_only) {
        overlay.insert("read-only".to_owned(), true.into());
    }
    arguments.pair("-blockdev", overlay.to_string());
}

/// Network without a way out.
const ISOLATED: &str = "isolated";
/// QEMU's own network, behind this host's addresses.
pub const USER: &str = "user";

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn one(&mut self, argument: &str) {
        self.0.push(argument.to_owned());
    }

    fn pair(&mut self, name: &str, value: impl AsRef<str>) {
        self.0.push(name.to_owned());
        self.0.push(value.as_ref().to_owned());
    }
}

/// What the inventory says of a disk.
fn known<'a>(disk: &Endpoint, inventory: &'a Inventory) -> Option<&'a DiskInventory> {
    let path = format!("/dev/{}", disk.name);
    inventory.disks.iter().find(|known| known.path == path)
}

fn served(disk: &Endpoint, inventory: &Inventory, model: DiskModel) -> Disk {
    let mut serial =
        known(disk, inventory).and_then(|known| known.identity.serial.clone()).unwrap_or_default();
    serial.retain(|letter| letter.is_ascii_graphic());
    if model == DiskModel::Virtio {
        serial.truncate(VIRTIO_SERIAL_MAX);
    }
    let (name, served, size_bytes) = (disk.name.clone(), disk.uri.clone(), disk.size_bytes);
    Disk { disk: Some(disk.disk), name, serial, served, size_bytes, writable: false }
}

fn cards(
    request: &MachineRequest,
    overrides: &Overrides,
    host: &Host,
    remarks: &mut Vec<String>,
) -> Vec<Card> {
    let has_virtio = request.inventory.drivers.iter().any(|driver| driver.starts_with("virtio"));
    let network = |number: usize, name: &str| {
        if let Some(network) = request.networks.get(name).or_else(|| request.networks.get("*")) {
            return network.clone();
        }
        if request.isolated {
            return ISOLATED.to_owned();
        }
        overrides.networks.get(number).unwrap_or(&host.network).clone()
    };
    let known = request.inventory.network_cards.iter().filter(|card| is_mac(&card.mac));
    known
        .enumerate()
        .map(|(number, card)| {
            let same = overrides.network_model.or_else(|| NetworkModel::of(&card.driver));
            let model = same.unwrap_or_else(|| {
                let model = if has_virtio { NetworkModel::Virtio } else { NetworkModel::E1000e };
                remarks.push(format!(
                    "{} was driven by {}, which QEMU has no card for; it is an {}",
                    card.name,
                    if card.driver.is_empty() { "an unknown driver" } else { &card.driver },
                    model.device()
                ));
                model
            });
            Card { model, mac: card.mac.clone(), network: network(number, &card.name) }
        })
        .collect()
}

/// The node of a served disk, which waits for the coordinator when that is started again.
fn served_node(uri: &str) -> serde_json::Value {
    let (path, socket) =
        uri.strip_prefix("nbd+unix:///").and_then(|rest| rest.split_once("?socket=")).unwrap_or((uri, ""));
    serde_json::json!({
        "driver": "nbd", "export": path, "reconnect-delay": RECONNECT_SECONDS,
        "server": {"type": "unix", "path": socket},
    })
}

/// A comma ends an option's value unless it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn is_mac(text: &str) -> bool {
    text.split(':').count() == 6
        && text.split(':').all(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

#[cfg(test)]
mod tests;
