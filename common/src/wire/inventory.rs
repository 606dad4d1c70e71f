//! What an agent tells about its machine at every connect.

use serde::{Deserialize, Serialize};

/// The machine as the agent sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Host name.
    pub host_name: String,
    /// Operating system as /etc/os-release names it ("Debian GNU/Linux 12 (bookworm)").
    pub operating_system: String,
    /// Kernel release ("6.1.0-25-amd64").
    pub kernel: String,
    /// Identity of this boot (/proc/sys/kernel/random/boot_id); tracking does not outlive it.
    pub boot_id: String,
    /// How the machine boots.
    pub firmware: Firmware,
    /// What it runs on.
    pub platform: Platform,
    /// SMBIOS manufacturer and product ("QEMU Standard PC"), empty if not readable.
    pub hardware: String,
    /// SMBIOS system UUID, empty if not readable.
    pub hardware_uuid: String,
    /// Logical processors.
    pub processors: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Network cards, without loopback and purely virtual ones.
    pub network_cards: Vec<NetworkCard>,
    /// Whole disks, loop devices with a backing file included.
    pub disks: Vec<DiskInventory>,
    /// Storage and network drivers in use ("virtio_blk"), sorted.
    pub drivers: Vec<String>,
}

/// How a machine boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// PC BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// What a machine runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Platform {
    /// Real hardware.
    Physical,
    /// Microsoft Hyper-V.
    HyperV,
    /// VMware.
    Vmware,
    /// KVM, or QEMU without it.
    Kvm,
    /// Some other hypervisor.
    OtherVirtual,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCard {
    /// Interface name.
    pub name: String,
    /// Hardware address ("52:54:00:12:34:56").
    pub mac: String,
    /// Driver ("virtio_net"), empty if unknown.
    pub driver: String,
    /// Addresses with prefix length.
    pub addresses: Vec<String>,
}

/// What identifies a disk across reboots and renaming, most telling first. Two identities are the same disk if the
/// first field that both have is equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// World-wide name or NVMe EUI/NGUID.
    pub wwid: Option<String>,
    /// Serial number.
    pub serial: Option<String>,
    /// UUID of the GPT or signature of the MBR.
    pub table_id: Option<String>,
    /// Backing file of a loop device, or the path of an image file.
    pub backing_file: Option<String>,
    /// Bus address ("pci-0000:00:04.0").
    pub bus_path: Option<String>,
}

/// A whole disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskInventory {
    /// Device node now ("/dev/vda"); may change at the next boot.
    pub path: String,
    /// What identifies it.
    pub identity: DiskIdentity,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Logical block size in bytes.
    pub logical_block_bytes: u32,
    /// Whether it is removable or read-only.
    pub read_only: bool,
    /// Model name, empty if unknown.
    pub model: String,
    /// Driver, empty if unknown.
    pub driver: String,
    /// Kind of partition table.
    pub table: PartitionTable,
    /// Partitions, by number.
    pub partitions: Vec<PartitionInventory>,
    /// File systems and mounts on the disk as a whole or anywhere in the stack above it.
    pub file_systems: Vec<FileSystemInventory>,
}

/// Kind of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartitionTable {
    /// None found.
    None,
    /// MBR.
    Mbr,
    /// GPT.
    Gpt,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionInventory {
    /// Number from 1.
    pub number: u32,
    /// First byte on the disk.
    pub start_bytes: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Type: GPT type UUID or MBR type byte in hexadecimal.
    pub kind: String,
}

/// A file system that lives on a disk, directly or through a stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystemInventory {
    /// Block device it is mounted from ("/dev/mapper/vg-root").
    pub device: String,
    /// Type ("ext4", "swap").
    pub kind: String,
    /// Where it is mounted; empty for swap.
    pub mount_points: Vec<String>,
}
