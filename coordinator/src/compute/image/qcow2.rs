//! Qcow2 images, version 3: uncompressed clusters, no backing file, no snapshots.
//!
//! Owns the layout and the metadata. Knows no view. Invariant: every cluster of the file is used by exactly one thing and
//! has the reference count 1, or by nothing and has 0; the header is written last, so a file cut short is no qcow2.
//!
//! Format: docs/interop/qcow2.txt of QEMU. All integers are big endian. A fresh file is, in clusters of 64 KiB:
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 table | L2 tables that have data | data clusters in the disk's order
//! ```

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _};

use super::{
    copy::Layout,
    map::{CLUSTER, CLUSTER_BYTES, ClusterMap},
};

/// Where the tables are. All positions and counts are in clusters.
#[derive(Debug, PartialEq, Eq)]
struct Tables {
    /// Where they begin.
    at: u64,
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    l1_clusters: u64,
    /// Numbers of the L2 tables that have data, ascending.
    l2_tables: Vec<u64>,
    /// Clusters of data behind the tables.
    data_behind: u64,
}

impl Tables {
    /// Tables from the cluster `at` on for all data of a map, of which so many clusters lie behind them.
    fn new(at: u64, map: &ClusterMap, data_behind: u64) -> Self {
        // Also a disk of no bytes has a table.
        let l1_entries = map.clusters().div_ceil(TABLE_ENTRIES).max(1);
        let l2_tables = (0..l1_entries)
            .filter(|table| {
                let run = map.next_run(table * TABLE_ENTRIES, 1);
                run.is_some_and(|run| run.start < (table + 1) * TABLE_ENTRIES)
            })
            .collect();
        let mut tables = Self {
            at,
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries,
            l1_clusters: l1_entries.div_ceil(TABLE_ENTRIES),
            l2_tables,
            data_behind,
        };
        tables.settle();
        tables
    }

    /// Grows the refcount structures until they count themselves too.
    fn settle(&mut self) {
        loop {
            let blocks = self.clusters().div_ceil(BLOCK_ENTRIES);
            let table = blocks.div_ceil(TABLE_ENTRIES);
            if blocks <= self.refcount_blocks && table <= self.refcount_table_clusters {
                return;
            }
            (self.refcount_blocks, self.refcount_table_clusters) = (blocks, table);
        }
    }

    fn refcount_blocks_at(&self) -> u64 {
        self.at + self.refcount_table_clusters
    }

    fn l1_at(&self) -> u64 {
        self.refcount_blocks_at() + self.refcount_blocks
    }

    fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters
    }

    /// The first cluster behind the tables.
    fn end(&self) -> u64 {
        self.l2_at() + self.l2_tables.len() as u64
    }

    /// Clusters of the file.
    fn clusters(&self) -> u64 {
        self.end() + self.data_behind
    }

    /// Entries of one table, as whole clusters.
    fn write_table(file: &File, at: u64, entries: impl Iterator<Item = u64>) -> io::Result<()> {
        let mut cluster = Vec::with_capacity(CLUSTER_BYTES);
        let mut position = at * CLUSTER;
        for entry in entries {
            cluster.extend_from_slice(&entry.to_be_bytes());
            if cluster.len() == CLUSTER_BYTES {
                file.write_all_at(&cluster, position)?;
                position += CLUSTER;
                cluster.clear();
            }
        }
        // The rest of the last cluster is zero already: the file began as one hole.
        file.write_all_at(&cluster, position)
    }

    /// Every cluster of the file that is in use is referenced once.
    fn write_refcounts(&self, file: &File, in_use: impl Fn(u64) -> bool) -> io::Result<()> {
        let blocks = self.refcount_blocks_at();
        let table = (blocks..blocks + self.refcount_blocks).map(|cluster| cluster * CLUSTER);
        Self::write_table(file, self.at, table)?;
        let mut counts = Vec::with_capacity(CLUSTER_BYTES);
        for block in 0..self.refcount_blocks {
            let first = block * BLOCK_ENTRIES;
            let last = self.clusters().min(first + BLOCK_ENTRIES);
            counts.clear();
            counts.extend((first..last).flat_map(|cluster| u16::from(in_use(cluster)).to_be_bytes()));
            // The last block ends with the file.
            file.write_all_at(&counts, (blocks + block) * CLUSTER)?;
        }
        Ok(())
    }

    /// The L1 table, and each L2 table with what `entries` puts into it.
    fn write_mapping(
        &self,
        file: &File,
        mut entries: impl FnMut(u64, &mut Vec<u64>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut tables = self.l2_tables.iter().zip(self.l2_at()..).peekable();
        let l1 = (0..self.l1_entries).map(|entry| match tables.next_if(|(table, _)| **table == entry) {
            Some((_, at)) => (at * CLUSTER) | COPIED,
            None => 0,
        });
        Self::write_table(file, self.l1_at(), l1)?;
        let mut l2 = Vec::new();
        for (table, at) in self.l2_tables.iter().zip(self.l2_at()..) {
            l2.clear();
            entries(*table, &mut l2)?;
            Self::write_table(file, at, l2.iter().copied())?;
        }
        Ok(())
    }

    /// The header: see the table in the code, then the end of header extensions (8 zero bytes).
    fn header(&self, size_bytes: u64) -> io::Result<Vec<u8>> {
        let narrow = |value: u64| u32::try_from(value).map_err(io::Error::other);
        let mut header = Vec::with_capacity(HEADER_BYTES as usize + 8);
        let mut word = |value: u32| header.extend_from_slice(&value.to_be_bytes());
        word(MAGIC); // 0: magic
        word(3); // 4: version
        word(0); // 8: backing file's offset, high half
        word(0); // 12: low half
        word(0); // 16: backing file's name length
        word(CLUSTER.trailing_zeros()); // 20: cluster bits
        let mut long = |value: u64| header.extend_from_slice(&value.to_be_bytes());
        // 24: size; QEMU counts in sectors.
        long(size_bytes.next_multiple_of(512));
        header.extend_from_slice(&0_u32.to_be_bytes()); // 32: encryption
        header.extend_from_slice(&narrow(self.l1_entries)?.to_be_bytes()); // 36: L1 entries
        header.extend_from_slice(&(self.l1_at() * CLUSTER).to_be_bytes()); // 40: L1 offset
        header.extend_from_slice(&(self.at * CLUSTER).to_be_bytes()); // 48: refcount table
        header.extend_from_slice(&narrow(self.refcount_table_clusters)?.to_be_bytes()); // 56: its clusters
        header.extend_from_slice(&0_u32.to_be_bytes()); // 60: snapshots
        header.extend_from_slice(&[0; 8]); // 64: snapshots' offset
        header.extend_from_slice(&[0; 24]); // 72: incompatible, compatible, autoclear features
        header.extend_from_slice(&4_u32.to_be_bytes()); // 96: refcount order: 16 bits
        header.extend_from_slice(&HEADER_BYTES.to_be_bytes()); // 100: header length
        header.extend_from_slice(&[0; 8]); // 104: end of extensions
        Ok(header)
    }
}

/// The layout of a fresh image.
#[derive(Debug)]
pub(super) struct Qcow2 {
    tables: Tables,
}

impl Qcow2 {
    /// The layout for a disk.
    pub(super) fn new(map: &ClusterMap) -> Self {
        Self { tables: Tables::new(1, map, map.data_clusters()) }
    }

    fn data_place(&self, map: &ClusterMap, cluster: u64) -> u64 {
        (self.tables.end() + map.rank(cluster)) * CLUSTER
    }
}

impl Layout for Qcow2 {
    fn place(&self, map: &ClusterMap, bytes: Range<u64>) -> io::Result<(Option<u64>, u64)> {
        // Neighbouring data clusters are neighbours in the file too.
        let place = self.data_place(map, bytes.start / CLUSTER) + bytes.start % CLUSTER;
        Ok((Some(place), bytes.end - bytes.start))
    }

    fn file_bytes(&self, _map: &ClusterMap) -> u64 {
        self.tables.clusters() * CLUSTER
    }

    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()> {
        self.tables.write_refcounts(file, |_| true)?;
        self.tables.write_mapping(file, |table, entries| {
            let first = table * TABLE_ENTRIES;
            let mut place = self.data_place(map, first);
            entries.extend((first..first + TABLE_ENTRIES).map(|cluster| {
                if !map.is_data(cluster) {
                    return 0;
                }
                let entry = place | COPIED;
                place += CLUSTER;
                entry
            }));
            Ok(())
        })?;
        file.write_all_at(&self.tables.header(map.size_bytes())?, 0)
    }
}

/// "QFI\xfb".
const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 3 header without optional fields.
const HEADER_BYTES: u32 = 104;
/// Entries of 8 bytes in a cluster: of L1, L2 and refcount tables.
const TABLE_ENTRIES: u64 = CLUSTER / 8;
/// Counts of 2 bytes in a refcount block.
const BLOCK_ENTRIES: u64 = CLUSTER / 2;
/// Flag of a mapping: the reference count is exactly one.
const COPIED: u64 = 1 << 63;
/// The bits of a mapping that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

// Clusters that stay where they are, and new tables.
pub(super) mod update;

#[cfg(test)]
mod tests;
