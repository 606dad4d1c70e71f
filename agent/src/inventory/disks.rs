//! Whole disks: what they are, what identifies them, and what lives on them.
//!
//! Owns the making of [`DiskInventory`]. Does not know protection. Invariant: partitions, mapped and assembled devices (LVM,
//! md) are not disks here; a copy that shall boot is a copy of whole disks.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use holdfast_common::wire::{
    DiskIdentity, DiskInventory, FileSystemInventory, PartitionInventory, PartitionTable,
    limits::DISKS_PER_MACHINE_MAX,
};

use super::{
    Roots,
    block::BlockNode,
    read,
    stack::Stack,
    table::{HEAD_BYTES, Table},
};

/// Kernel names of devices that are no disks: memory, optical and floppy drives, and what is built of other devices.
const NOT_DISKS: [&str; 7] = ["ram", "zram", "sr", "fd", "dm-", "md", "nbd"];

/// All whole disks, by name.
pub(super) fn disks(roots: &Roots, stack: &Stack) -> Vec<DiskInventory> {
    let disks = stack.graph.nodes().filter(|node| is_disk(node)).take(DISKS_PER_MACHINE_MAX);
    disks.map(|node| disk(roots, stack, node)).collect()
}

/// A plain file as a disk, for `scan` capture without root; `None` if it is no file.
pub(super) fn image_file(path: &Path) -> Option<DiskInventory> {
    let path = fs::canonicalize(path).ok()?;
    let metadata = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
    let table = read_table(&path, 512);
    let name = path.to_str()?.to_owned();
    let identity =
        DiskIdentity { table_id: table.id, backing_file: Some(name.clone()), ..DiskIdentity::default() };
    Some(DiskInventory {
        path: name,
        identity,
        size_bytes: metadata.len(),
        logical_block_bytes: 512,
        read_only: false,
        model: "disk image".to_owned(),
        driver: "file".to_owned(),
        table: table.kind,
        partitions: table.partitions,
        file_systems: Vec::new(),
    })
}

fn is_disk(node: &BlockNode) -> bool {
    let loop_without_file = node.name.starts_with("loop") && node.backing_file.is_none();
    node.partition.is_none()
        && node.size_bytes > 0
        && !loop_without_file
        && !NOT_DISKS.iter().any(|prefix| node.name.starts_with(prefix))
}

fn disk(roots: &Roots, stack: &Stack, node: &BlockNode) -> DiskInventory {
    let sector_bytes = read::number(&node.folder.join("queue/logical_block_size")).unwrap_or(512);
    let path = node.path();
    let mut table = read_table(&roots.dev.join(path.strip_prefix("/dev").unwrap_or(&path)), sector_bytes);
    let kernels = kernel_partitions(stack, node, &table);
    if !kernels.is_empty() {
        table.partitions = kernels;
    }
    DiskInventory {
        identity: identity(node, &table),
        path: path.display().to_string(),
        size_bytes: node.size_bytes,
        logical_block_bytes: u32::try_from(sector_bytes).unwrap_or(512),
        read_only: read::flag(&node.folder.join("ro")) || read::flag(&node.folder.join("removable")),
        model: read::text(&node.folder.join("device/model")).unwrap_or_default(),
        driver: driver(node),
        table: table.kind,
        partitions: table.partitions,
        file_systems: file_systems(stack, node),
    }
}

/// The partitions that the kernel uses, with the types that the table gives them. They include logical ones, and are
/// known for a disk that may not be opened.
fn kernel_partitions(stack: &Stack, node: &BlockNode, table: &Table) -> Vec<PartitionInventory> {
    let mut partitions: Vec<PartitionInventory> = stack
        .graph
        .above(&node.name)
        .filter_map(|upper| {
            let place = upper.partition.as_ref()?;
            let known = table.partitions.iter().find(|known| known.number == place.number);
            Some(PartitionInventory {
                number: place.number,
                start_bytes: place.start_bytes,
                size_bytes: upper.size_bytes,
                kind: known.map(|known| known.kind.clone()).unwrap_or_default(),
            })
        })
        .collect();
    partitions.sort_by_key(|partition| partition.number);
    partitions
}

fn read_table(path: &Path, sector_bytes: u64) -> Table {
    let mut head = vec![0; HEAD_BYTES];
    let read = File::open(path).and_then(|file| file.read_at(&mut head, 0));
    match read {
        Ok(bytes) => Table::parse(head.get(..bytes).unwrap_or_default(), sector_bytes),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "partition table cannot be read");
            Table { kind: PartitionTable::None, ..Table::none() }
        }
    }
}

fn identity(node: &BlockNode, table: &Table) -> DiskIdentity {
    let attribute = |names: &[&str]| names.iter().find_map(|name| read::text(&node.folder.join(name)));
    DiskIdentity {
        wwid: attribute(&["wwid", "device/wwid"]),
        serial: attribute(&["serial", "device/serial"]).or_else(|| scsi_serial(node)),
        table_id: table.id.clone(),
        backing_file: node.backing_file.as_ref().map(|file| file.display().to_string()),
        bus_path: bus_path(node),
    }
}

/// SCSI's page of the serial number: 4 bytes of heading, then text.
fn scsi_serial(node: &BlockNode) -> Option<String> {
    let page = read::bytes(&node.folder.join("device/vpd_pg80")).ok()?;
    let text = String::from_utf8(page.get(4..)?.to_vec()).ok()?;
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// The disk's place on its bus, in parts that do not depend on the order of discovery.
fn bus_path(node: &BlockNode) -> Option<String> {
    let parts: Vec<&str> = node.folder.iter().filter_map(|part| part.to_str()).collect();
    let mut path = parts.iter().rev().find_map(|part| bus_address(part))?;
    // HOST:CHANNEL:TARGET:LUN; the host's number depends on the order of discovery.
    if let Some((_, place)) =
        parts.iter().find(|part| is_scsi_address(part)).and_then(|part| part.split_once(':'))
    {
        path.push_str("-scsi-");
        path.push_str(place);
    }
    if let Some(namespace) = read::text(&node.folder.join("nsid")) {
        path.push_str("-nvme-");
        path.push_str(&namespace);
    }
    Some(path)
}

/// A PCI function, a VMBus device, or a memory-mapped virtio device.
fn bus_address(part: &str) -> Option<String> {
    let hexadecimal = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let pci: Vec<&str> = part.split([':', '.']).collect();
    if part.len() >= 12 && pci.len() == 4 && pci.iter().all(|field| hexadecimal(field)) {
        return Some(format!("pci-{part}"));
    }
    if uuid::Uuid::try_parse(part).is_ok() {
        return Some(format!("vmbus-{part}"));
    }
    part.starts_with("virtio-mmio.").then(|| format!("platform-{part}"))
}

fn is_scsi_address(part: &str) -> bool {
    part.split(':').count() == 4 && part.split(':').all(|field| field.parse::<u64>().is_ok())
}

/// Driver of the disk's controller ("virtio_blk", "nvme", "ahci").
fn driver(node: &BlockNode) -> String {
    if node.name.starts_with("loop") {
        return "loop".to_owned();
    }
    // The nearest driver above the disk that is not the generic one for SCSI disks.
    let places = node.folder.ancestors().filter_map(|place| read::link_name(&place.join("driver")));
    let mut places = places.filter(|driver| driver != "sd" && driver != "pcieport");
    places.next().unwrap_or_default()
}

fn file_systems(stack: &Stack, node: &BlockNode) -> Vec<FileSystemInventory> {
    let above = stack.above(&[&node.name]);
    let mounted = above.superblocks.iter().map(|superblock| FileSystemInventory {
        device: superblock.source.clone(),
        kind: superblock.kind.clone(),
        mount_points: superblock.mounts.iter().map(|mount| mount.1.display().to_string()).collect(),
    });
    let swap = stack.swaps.iter().filter(|swap| {
        swap.is_device
            && stack.graph.at(&swap.path).is_some_and(|area| above.devices.contains(area.name.as_str()))
    });
    let swap = swap.map(|swap| FileSystemInventory {
        device: swap.path.display().to_string(),
        kind: "swap".to_owned(),
        mount_points: Vec::new(),
    });
    mounted.chain(swap).collect()
}
