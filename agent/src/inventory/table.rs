//! Partition tables, read defensively.
//!
//! Owns the parsing of MBR and GPT (UEFI specification 2.10, section 5). Does not know devices: it is given the first bytes
//! of a disk. Invariant: no table makes it panic, allocate beyond its limits, or believe a checksum that is wrong.
//! Limits: [`HEAD_BYTES`] of the disk, [`ENTRIES_MAX`] entries of a GPT. Logical partitions inside an extended MBR
//! partition are not followed; the kernel names those.

use holdfast_common::wire::{PartitionInventory, PartitionTable};
use uuid::Uuid;

/// First bytes of a disk that are looked at: MBR, GPT header and 128 entries, with sectors of up to 4 KiB.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// Most entries of a GPT.
const ENTRIES_MAX: usize = 256;

/// Size of an entry in every GPT seen; larger ones are allowed by the format and read by their first bytes.
const ENTRY_BYTES_MIN: usize = 128;
const ENTRY_BYTES_MAX: usize = 1024;

/// Type byte of the MBR entry that covers a disk with a GPT.
const KIND_PROTECTIVE: u8 = 0xEE;

/// What the first bytes of a disk say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Kind.
    pub(super) kind: PartitionTable,
    /// UUID of a GPT; signature of an MBR in hexadecimal.
    pub(super) id: Option<String>,
    /// Partitions, by number.
    pub(super) partitions: Vec<PartitionInventory>,
}

impl Table {
    /// No table.
    pub(super) fn none() -> Self {
        Self { kind: PartitionTable::None, id: None, partitions: Vec::new() }
    }

    /// Reads the table of a disk with sectors of this size from its first bytes.
    pub(super) fn parse(head: &[u8], sector_bytes: u64) -> Self {
        let Some(entries) = mbr_entries(head) else { return Self::none() };
        if entries.iter().any(|entry| entry.kind == KIND_PROTECTIVE)
            && let Some(table) = parse_gpt(head, sector_bytes)
        {
            return table;
        }
        let used: Vec<PartitionInventory> = (1..)
            .zip(&entries)
            .filter(|(_, entry)| entry.kind != 0 && entry.kind != KIND_PROTECTIVE && entry.sectors > 0)
            .map(|(number, entry)| PartitionInventory {
                number,
                start_bytes: u64::from(entry.first) * sector_bytes,
                size_bytes: u64::from(entry.sectors) * sector_bytes,
                kind: format!("{:02x}", entry.kind),
            })
            .collect();
        // The boot sector of a FAT or NTFS file system bears the same mark as an MBR, but no entries that make sense.
        if used.is_empty() || !entries.iter().all(|entry| matches!(entry.status, 0 | 0x80)) {
            return Self::none();
        }
        let id = number_at(head, 440).filter(|&id| id != 0).map(|id| format!("{id:08x}"));
        Self { kind: PartitionTable::Mbr, id, partitions: used }
    }
}

/// Byte 0: status; 4: type; 8 - 11: first sector; 12 - 15: number of sectors.
struct MbrEntry {
    status: u8,
    kind: u8,
    first: u32,
    sectors: u32,
}

/// The four entries at byte 446, if the sector bears the mark 55 AA at its end.
fn mbr_entries(head: &[u8]) -> Option<Vec<MbrEntry>> {
    if head.get(510..512)? != [0x55, 0xAA] {
        return None;
    }
    let entry = |bytes: &[u8]| {
        Some(MbrEntry {
            status: *bytes.first()?,
            kind: *bytes.get(4)?,
            first: number_at(bytes, 8)?,
            sectors: number_at(bytes, 12)?,
        })
    };
    head.get(446..510)?.chunks_exact(16).map(entry).collect()
}

/// The primary GPT: header in the second sector, entries where it says. Byte 12 - 15: header size; 16 - 19: its
/// checksum, taken with this field zero; 56 - 71: UUID; 72 - 79: first sector of the entries; 80 - 83: their number;
/// 84 - 87: size of one; 88 - 91: checksum of all.
fn parse_gpt(head: &[u8], sector_bytes: u64) -> Option<Table> {
    let header_at = usize::try_from(sector_bytes).ok()?;
    let size = usize::try_from(number_at(head, header_at + 12)?).ok()?;
    if !(92..=4096).contains(&size) {
        return None;
    }
    let mut header = head.get(header_at..header_at + size)?.to_vec();
    let expected = number_at(&header, 16)?;
    header.get_mut(16..20)?.fill(0);
    if !header.starts_with(b"EFI PART") || crc32(&header) != expected {
        return None;
    }
    let count = usize::try_from(number_at(&header, 80)?).ok()?;
    let entry_bytes = usize::try_from(number_at(&header, 84)?).ok()?;
    if count > ENTRIES_MAX || !(ENTRY_BYTES_MIN..=ENTRY_BYTES_MAX).contains(&entry_bytes) {
        return None;
    }
    let entries_at = usize::try_from(long_at(&header, 72)?.checked_mul(sector_bytes)?).ok()?;
    let entries = head.get(entries_at..entries_at.checked_add(count * entry_bytes)?)?;
    if crc32(entries) != number_at(&header, 88)? {
        return None;
    }
    let partitions = (1..)
        .zip(entries.chunks_exact(entry_bytes))
        .filter_map(|(number, entry)| gpt_partition(number, entry, sector_bytes))
        .collect();
    Some(Table { kind: PartitionTable::Gpt, id: Some(uuid_at(&header, 56)?.to_string()), partitions })
}

/// Byte 0 - 15: type; 32 - 39: first sector; 40 - 47: last sector.
fn gpt_partition(number: u32, entry: &[u8], sector_bytes: u64) -> Option<PartitionInventory> {
    let kind = uuid_at(entry, 0).filter(|kind| !kind.is_nil())?;
    let (first, last) = (long_at(entry, 32)?, long_at(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    Some(PartitionInventory {
        number,
        start_bytes: first.checked_mul(sector_bytes)?,
        size_bytes: sectors.checked_mul(sector_bytes)?,
        kind: kind.to_string(),
    })
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A UUID in the mixed byte order of GPT.
fn uuid_at(bytes: &[u8], at: usize) -> Option<Uuid> {
    Some(Uuid::from_bytes_le(*bytes.get(at..)?.first_chunk()?))
}

/// CRC-32 as GPT uses it (IEEE 802.3, reflected). Bit by bit: it covers 16 KiB once per disk.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
