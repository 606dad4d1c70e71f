//! Names in a FAT file system, as an EFI system partition is one.
//!
//! Owns the decoding of directories; reads no file. Hostile chains of clusters end after [`CLUSTERS_MAX`].
//! Format: Microsoft's FAT specification 1.03: BPB at 0, FAT12, 16 and 32 by the number of clusters, entries of 32 bytes, long
//! names passed over (all that firmware starts has a short one but for case).

use super::bytes::{Source, number};

/// Most clusters of one directory.
const CLUSTERS_MAX: usize = 256;
const ENTRY: usize = 32;
const IS_FOLDER: u8 = 0x10;
const IS_LABEL: u8 = 0x08;

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
    /// Short name in capitals, with its dot ("BOOTX64.EFI").
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
    let used = folder.chunks_exact(ENTRY).take_while(|entry| entry.first() != Some(&0));
    let used = used.filter(|entry| entry.first() != Some(&0xe5));
    let named = used.filter_map(|entry| {
        let kind = entry.get(11).copied()?;
        if kind & IS_LABEL != 0 {
            return None;
        }
        let part =
            |range| String::from_utf8_lossy(entry.get(range).unwrap_or_default()).trim_end().to_owned();
        let (stem, extension) = (part(0..8), part(8..11));
        let name = if extension.is_empty() { stem } else { format!("{stem}.{extension}") };
        let cluster = number(entry, 20..22) << 16 | number(entry, 26..28);
        Some(Entry { name: name.to_ascii_uppercase(), is_folder: kind & IS_FOLDER != 0, cluster })
    });
    named.collect()
}
