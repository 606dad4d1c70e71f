//! Partition tables: GPT, and MBR with its chain of logical partitions.
//!
//! Owns the decoding. Does not know what partitions hold. Damaged tables give an error, never a panic; a chain of logical
//! partitions ends after [`PARTITIONS_MAX`].
//! Format: GPT of UEFI 2.10, part 5 (header at block 1, entries of 128 bytes and more); MBR: four entries of 16 bytes at 446,
//! signature 55 AA at 510.

use super::bytes::{Source, number, utf16_units};

/// Most partitions that are looked at.
pub const PARTITIONS_MAX: usize = 128;
const SECTOR: u64 = 512;
/// Type of an EFI system partition, as GPT stores it.
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
/// Type of the partition that GRUB's core lives in, on a GPT disk that boots by BIOS.
const BIOS_BOOT: &[u8; 16] = b"Hah!IdontNeedEFI";

/// What divides a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// "gpt", "mbr", or nothing: the disk is one file system, or empty.
    pub kind: &'static str,
    /// Whether its first block holds code that a BIOS would start.
    pub has_boot_code: bool,
    /// Its partitions, in the table's order.
    pub partitions: Vec<Partition>,
}

/// A partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// Number from 1.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Its own identity, as PARTUUID names it.
    pub id: String,
    /// Its name, as PARTLABEL names it.
    pub label: String,
    /// Whether it is an EFI system partition.
    pub is_efi: bool,
    /// Whether it is for GRUB's core.
    pub is_bios_boot: bool,
    /// Whether an MBR marks it as the one to start from.
    pub is_active: bool,
}

/// Reads the table of a disk.
///
/// # Errors
/// It cannot be read, or contradicts itself.
pub fn read(disk: &impl Source) -> Result<Table, String> {
    let first: [u8; 512] = disk.array(0)?;
    let signed = first.get(510..512) == Some(&[0x55, 0xaa]);
    let code = first.get(..440).unwrap_or_default();
    let has_boot_code = signed && code.iter().any(|byte| *byte != 0);
    let is_protective = (0..4).any(|entry| first.get(450 + entry * 16) == Some(&0xee));
    if signed && is_protective {
        return Ok(Table { kind: "gpt", has_boot_code, partitions: gpt(disk)? });
    }
    // A FAT or NTFS without a table has the signature too, and text where the table would be.
    let plausible = (0..4).all(|entry| matches!(first.get(446 + entry * 16), Some(0 | 0x80)));
    if !signed || !plausible {
        return Ok(Table::default());
    }
    let disk_id = number(&first, 440..444);
    let partitions = mbr(disk, &first, disk_id)?;
    if partitions.is_empty() {
        Ok(Table::default())
    } else {
        Ok(Table { kind: "mbr", has_boot_code, partitions })
    }
}

fn gpt(disk: &impl Source) -> Result<Vec<Partition>, String> {
    // Disks of 4 KiB blocks have the header there.
    for block in [SECTOR, 4096] {
        let header: [u8; 92] = disk.array(block)?;
        if header.starts_with(b"EFI PART") {
            return gpt_entries(disk, &header, block);
        }
    }
    Err("its GPT has no header".to_owned())
}

fn gpt_entries(disk: &impl Source, header: &[u8], block: u64) -> Result<Vec<Partition>, String> {
    let (first, count, size) = (number(header, 72..80), number(header, 80..84), number(header, 84..88));
    if !(128..=4096).contains(&size) {
        return Err(format!("its GPT has entries of {size} bytes"));
    }
    let start = first.checked_mul(block).ok_or("its GPT's entries lie nowhere")?;
    let mut partitions = Vec::new();
    for entry in 0..count.min(PARTITIONS_MAX as u64) {
        let bytes: [u8; 128] = disk.array(start.saturating_add(entry * size))?;
        let kind = bytes.get(..16).unwrap_or_default();
        if kind.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (from, to) = (number(&bytes, 32..40), number(&bytes, 40..48));
        let blocks = to.checked_sub(from).and_then(|blocks| blocks.checked_add(1));
        let place = blocks.and_then(|blocks| blocks.checked_mul(block)).zip(from.checked_mul(block));
        let (size, start) =
            place.ok_or_else(|| format!("partition {} of its GPT ends before it begins", entry + 1))?;
        let name = utf16_units(bytes.get(56..128).unwrap_or_default());
        let name: Vec<u16> = name.take_while(|unit| *unit != 0).collect();
        let id: [u8; 16] = bytes.get(16..32).and_then(|id| id.try_into().ok()).unwrap_or_default();
        partitions.push(Partition {
            number: u32::try_from(entry + 1).unwrap_or(u32::MAX),
            start,
            size,
            id: uuid::Uuid::from_bytes_le(id).to_string(),
            label: String::from_utf16_lossy(&name),
            is_efi: kind == EFI_SYSTEM,
            is_bios_boot: kind == BIOS_BOOT,
            is_active: false,
        });
    }
    Ok(partitions)
}

/// An entry of an MBR: type, first sector, sectors.
fn entry(sector: &[u8], index: usize) -> Option<(u8, u64, u64)> {
    let at = 446 + index * 16;
    let kind = *sector.get(at + 4)?;
    let (first, count) = (number(sector, at + 8..at + 12), number(sector, at + 12..at + 16));
    (kind != 0 && count != 0).then_some((kind, first, count))
}

const fn is_extended(kind: u8) -> bool {
    matches!(kind, 0x05 | 0x0f | 0x85)
}

fn mbr(disk: &impl Source, first: &[u8], disk_id: u64) -> Result<Vec<Partition>, String> {
    let partition = |number: u32, kind: u8, start: u64, count: u64| Partition {
        number,
        start: start * SECTOR,
        size: count * SECTOR,
        id: format!("{disk_id:08x}-{number:02x}"),
        is_efi: kind == 0xef,
        ..Partition::default()
    };
    let mut partitions = Vec::new();
    let mut extended = None;
    for (index, number) in (0..4).zip(1..) {
        match entry(first, index) {
            Some((kind, start, _)) if is_extended(kind) => extended = Some(start),
            Some((kind, start, count)) => {
                let is_active = first.get(446 + index * 16) == Some(&0x80);
                partitions.push(Partition { is_active, ..partition(number, kind, start, count) });
            }
            None => {}
        }
    }
    let Some(base) = extended else { return Ok(partitions) };
    let mut next = Some(base);
    for number in 5..5 + PARTITIONS_MAX {
        let Some(at) = next else { return Ok(partitions) };
        let sector: [u8; 512] = disk.array(at * SECTOR)?;
        if let Some((kind, start, count)) = entry(&sector, 0) {
            partitions.push(partition(u32::try_from(number).unwrap_or(u32::MAX), kind, at + start, count));
        }
        next = entry(&sector, 1).filter(|(kind, ..)| is_extended(*kind)).map(|(_, start, _)| base + start);
    }
    Err("its logical partitions have no end".to_owned())
}
