//! Names in a FAT file system, as an EFI system partition is one.
//!
//! Owns the decoding of directories; reads no file. Hostile chains of clusters end after [`CLUSTERS_MAX`].
//! Format: Microsoft's FAT specification 1.03: BPB at 0, FAT12, 16 and 32 by the number of clusters, entries of 32 bytes. A long name
//! is in entries of kind 0x0f before the short one's, last part first: 0 u8 part from 1, 0x40 in the last; 13 u8 sum of the
//! short name; 13 UTF-16 letters at 1, 14 and 28, ended by 0.

use super::bytes::{Source, number, utf16_units};

/// Most clusters of one directory.
const CLUSTERS_MAX: usize = 256;
const ENTRY: usize = 32;
const IS_FOLDER: u8 = 0x10;
const IS_LABEL: u8 = 0x08;
const IS_LONG: u8 = 0x0f;
/// Most parts of a long name.
const PARTS_MAX: usize = 20;

/// A FAT file system.
#[derive(Debug)]
pub struct Fat<'a, S> {
    source: &'a S,
    cluster_bytes: u64,
    table: u64,
    /// Where the fixed root directory is and its bytes; none in FAT32.
    root: Option<(u64, u64)>,
    root_cluster: u64,
    data: u64,
    /// Bits of an entry of the table.
    bits: u64,
    clusters: u64,
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name in capitals, the long one if it has one ("BOOTX64.EFI", "MICROSOFT").
    pub name: String,
    /// Whether it is a directory.
    pub is_folder: bool,
    cluster: u64,
}

impl<'a, S: Source> Fat<'a, S> {
    /// Opens it.
    ///
    /// # Errors
    /// It is no FAT, or contradicts itself.
    pub fn open(source: &'a S) -> Result<Self, String> {
        let boot: [u8; 512] = source.array(0)?;
        let sector = number(&boot, 11..13);
        let per_cluster = number(&boot, 13..14);
        let reserved = number(&boot, 14..16);
        let tables = number(&boot, 16..17);
        let roots = number(&boot, 17..19);
        let either = |small: u64, large: u64| if small == 0 { large } else { small };
        let sectors = either(number(&boot, 19..21), number(&boot, 32..36));
        let table_sectors = either(number(&boot, 22..24), number(&boot, 36..40));
        let sound =
            matches!(sector, 512 | 1024 | 2048 | 4096) && per_cluster.is_power_of_two() && reserved > 0;
        if !sound || !(1..=2).contains(&tables) || table_sectors == 0 {
            return Err("it is no FAT file system".to_owned());
        }
        let root_bytes = (roots * ENTRY as u64).next_multiple_of(sector);
        let table = reserved * sector;
        let after_tables = table + tables * table_sectors * sector;
        let data = after_tables + root_bytes;
        let clusters = (sectors * sector).saturating_sub(data) / (sector * per_cluster);
        let bits = if clusters < 4085 {
            12
        } else if clusters < 65_525 {
            16
        } else {
            32
        };
        Ok(Self {
            source,
            cluster_bytes: sector * per_cluster,
            table,
            root: (bits != 32).then_some((after_tables, root_bytes)),
            root_cluster: number(&boot, 44..48),
            data,
            bits,
            clusters,
        })
    }

    /// The entries of a directory, given as names in capitals from the root; none if there is no such directory.
    ///
    /// # Errors
    /// It cannot be read, or contradicts itself.
    pub fn list(&self, path: &[&str]) -> Result<Option<Vec<Entry>>, String> {
        let mut entries = match self.root {
            Some((start, bytes)) => {
                let mut folder = vec![0; usize::try_from(bytes).unwrap_or(0)];
                self.source.read(start, &mut folder)?;
                entries(&folder)
            }
            None => entries(&self.chain(self.root_cluster)?),
        };
        for name in path {
            let Some(found) = entries.into_iter().find(|entry| entry.is_folder && entry.name == *name) else {
                return Ok(None);
            };
            entries = self::entries(&self.chain(found.cluster)?);
        }
        Ok(Some(entries))
    }

    fn chain(&self, first: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        let mut cluster = first;
        for _ in 0..CLUSTERS_MAX {
            if !(2..self.clusters + 2).contains(&cluster) {
                return Ok(bytes);
            }
            let at = bytes.len();
            bytes.resize(at + usize::try_from(self.cluster_bytes).unwrap_or(0), 0);
            let start = self.data + (cluster - 2) * self.cluster_bytes;
            self.source.read(start, bytes.get_mut(at..).unwrap_or_default())?;
            cluster = self.next(cluster)?;
        }
        Err("a directory of its FAT has no end".to_owned())
    }

    /// The cluster after this one; what is none of the file system's ends the chain.
    fn next(&self, cluster: u64) -> Result<u64, String> {
        let at = self.table + cluster * self.bits / 8;
        Ok(match self.bits {
            12 => {
                let pair = number(&self.source.array::<2>(at)?, 0..2);
                if cluster.is_multiple_of(2) { pair & 0xfff } else { pair >> 4 }
            }
            16 => number(&self.source.array::<2>(at)?, 0..2),
            _ => number(&self.source.array::<4>(at)?, 0..4) & 0x0fff_ffff,
        })
    }
}

fn entries(folder: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    // Parts of a long name, in the order in which they lie there.
    let mut parts: Vec<&[u8]> = Vec::new();
    for entry in folder.chunks_exact(ENTRY).take_while(|entry| entry.first() != Some(&0)) {
        let kind = entry.get(11).copied().unwrap_or(0);
        if entry.first() == Some(&0xe5) {
            parts.clear();
        } else if kind & 0x3f == IS_LONG {
            if entry.first().is_some_and(|order| order & 0x40 != 0) || parts.len() == PARTS_MAX {
                parts.clear();
            }
            parts.push(entry);
        } else if kind & IS_LABEL == 0 {
            let name = long_name(&parts, entry).unwrap_or_else(|| short_name(entry));
            parts.clear();
            let cluster = number(entry, 20..22) << 16 | number(entry, 26..28);
            found.push(Entry { name: name.to_uppercase(), is_folder: kind & IS_FOLDER != 0, cluster });
        }
    }
    found
}

fn short_name(entry: &[u8]) -> String {
    let part = |range| String::from_utf8_lossy(entry.get(range).unwrap_or_default()).trim_end().to_owned();
    let (stem, extension) = (part(0..8), part(8..11));
    if extension.is_empty() { stem } else { format!("{stem}.{extension}") }
}

/// The name that the parts before an entry give it; `None` if they are none of its.
fn long_name(parts: &[&[u8]], entry: &[u8]) -> Option<String> {
    let short = entry.get(..11)?;
    let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units = Vec::new();
    for (part, order) in parts.iter().rev().zip(1..) {
        if part.get(13) != Some(&sum) || part.first().is_none_or(|first| first & 0x3f != order) {
            return None;
        }
        for range in [1..11, 14..26, 28..32] {
            units.extend(utf16_units(part.get(range)?));
        }
    }
    let name: Vec<u16> = units.into_iter().take_while(|unit| *unit != 0).collect();
    (!name.is_empty()).then(|| String::from_utf16_lossy(&name))
}
