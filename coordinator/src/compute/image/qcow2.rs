//! Qcow2 images, version 3: uncompressed clusters, no backing file, no snapshots.
//!
//! Owns the layout and the metadata. Knows no view. Invariant: every cluster of the file is used by exactly one thing and
//! has the reference count 1; the header is written last, so a file cut short is no qcow2.
//!
//! Format: docs/interop/qcow2.txt of QEMU. All integers are big endian. The file is, in clusters of 64 KiB:
//!
//! ```text
//!   header | refcount table | refcount blocks | L1 table | L2 tables that have data | data clusters in the disk's order
//! ```

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::{
    copy::Layout,
    map::{CLUSTER, CLUSTER_BYTES, ClusterMap},
};

/// Where everything is. All positions and counts are in clusters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Qcow2 {
    refcount_table_clusters: u64,
    refcount_blocks: u64,
    l1_entries: u64,
    l1_clusters: u64,
    /// Numbers of the L2 tables that have data, ascending.
    l2_tables: Vec<u64>,
    data_clusters: u64,
}

impl Qcow2 {
    /// The layout for a disk.
    pub(super) fn new(map: &ClusterMap) -> Self {
        // Also a disk of no bytes has a table.
        let l1_entries = map.clusters().div_ceil(TABLE_ENTRIES).max(1);
        let l2_tables = (0..l1_entries)
            .filter(|table| {
                let run = map.next_run(table * TABLE_ENTRIES, 1);
                run.is_some_and(|run| run.start < (table + 1) * TABLE_ENTRIES)
            })
            .collect();
        let mut layout = Self {
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries,
            l1_clusters: l1_entries.div_ceil(TABLE_ENTRIES),
            l2_tables,
            data_clusters: map.data_clusters(),
        };
        layout.settle();
        layout
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
        REFCOUNT_TABLE_AT + self.refcount_table_clusters
    }

    fn l1_at(&self) -> u64 {
        self.refcount_blocks_at() + self.refcount_blocks
    }

    fn l2_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters
    }

    fn data_at(&self) -> u64 {
        self.l2_at() + self.l2_tables.len() as u64
    }

    fn clusters(&self) -> u64 {
        self.data_at() + self.data_clusters
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

    fn write_refcounts(&self, file: &File) -> io::Result<()> {
        let blocks = self.refcount_blocks_at();
        let table = (blocks..blocks + self.refcount_blocks).map(|cluster| cluster * CLUSTER);
        Self::write_table(file, REFCOUNT_TABLE_AT, table)?;
        // Every cluster of the file is referenced once. The last block ends with the file.
        let ones = 1_u16.to_be_bytes().repeat(CLUSTER_BYTES / 2);
        for block in 0..self.refcount_blocks {
            let here = (self.clusters().saturating_sub(block * BLOCK_ENTRIES)).min(BLOCK_ENTRIES);
            let bytes = usize::try_from(here * 2).unwrap_or(0);
            file.write_all_at(ones.get(..bytes).unwrap_or_default(), (blocks + block) * CLUSTER)?;
        }
        Ok(())
    }

    fn write_mapping(&self, map: &ClusterMap, file: &File) -> io::Result<()> {
        let mut tables = self.l2_tables.iter().zip(self.l2_at()..).peekable();
        let l1 = (0..self.l1_entries).map(|entry| match tables.next_if(|(table, _)| **table == entry) {
            Some((_, at)) => (at * CLUSTER) | COPIED,
            None => 0,
        });
        Self::write_table(file, self.l1_at(), l1)?;
        for (table, at) in self.l2_tables.iter().zip(self.l2_at()..) {
            let first = table * TABLE_ENTRIES;
            let mut place = self.place(map, first);
            let l2 = (first..first + TABLE_ENTRIES).map(|cluster| {
                if !map.is_data(cluster) {
                    return 0;
                }
                let entry = place | COPIED;
                place += CLUSTER;
                entry
            });
            Self::write_table(file, at, l2)?;
        }
        Ok(())
    }

    /// The header: see the table in the code, then the end of header extensions (8 zero bytes).
    fn header(&self, map: &ClusterMap) -> io::Result<Vec<u8>> {
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
        long(map.size_bytes().next_multiple_of(512));
        header.extend_from_slice(&0_u32.to_be_bytes()); // 32: encryption
        header.extend_from_slice(&narrow(self.l1_entries)?.to_be_bytes()); // 36: L1 entries
        header.extend_from_slice(&(self.l1_at() * CLUSTER).to_be_bytes()); // 40: L1 offset
        header.extend_from_slice(&(REFCOUNT_TABLE_AT * CLUSTER).to_be_bytes()); // 48: refcount table
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

impl Layout for Qcow2 {
    fn place(&self, map: &ClusterMap, cluster: u64) -> u64 {
        (self.data_at() + map.rank(cluster)) * CLUSTER
    }

    fn file_bytes(&self, _map: &ClusterMap) -> u64 {
        self.clusters() * CLUSTER
    }

    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()> {
        self.write_refcounts(file)?;
        self.write_mapping(map, file)?;
        file.write_all_at(&self.header(map)?, 0)
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
/// The cluster after the header.
const REFCOUNT_TABLE_AT: u64 = 1;
/// Flag of a mapping: the reference count is exactly one.
const COPIED: u64 = 1 << 63;

#[cfg(test)]
mod tests;
