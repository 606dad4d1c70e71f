//! A qcow2 image of ours that is made the image of another point of its disk, in place.
//!
//! Owns the layout then. Invariants: a cluster that the image holds stays where it is; until the header is written, last and after
//! all else is durable, the old tables are whole, so that an interrupted update finds every cluster again.
//!
//! ```text
//!   header | holes, once the old tables | data clusters | data clusters new to the image | tables as of a fresh image
//! ```
//! Clusters whose data became zero keep their place and are holes of the file.

use std::{
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    os::unix::fs::FileExt as _,
};

use holdfast_common::durable;

use super::{
    BLOCK_ENTRIES, CLUSTER, CLUSTER_BYTES, COPIED, ClusterMap, Layout, MAGIC, OFFSET, TABLE_ENTRIES, Tables,
};
use crate::compute::image::target::punch;

/// The layout.
#[derive(Debug)]
pub(in crate::compute::image) struct Qcow2Update {
    /// The image, to look up what it holds.
    file: File,
    /// Offset of each L2 table; zero: none.
    l1: Vec<u64>,
    /// Clusters of the disk that the image holds.
    held: ClusterMap,
    /// Those of the new point that it does not hold.
    added: ClusterMap,
    /// The first cluster of the file that the image does not use: where the added ones begin.
    added_at: u64,
}

impl Qcow2Update {
    /// Looks into an image, for the new point's map.
    ///
    /// # Errors
    /// It cannot be read, or is no image as a writer of ours leaves it.
    pub(in crate::compute::image) fn open(file: File, map: &ClusterMap) -> io::Result<Self> {
        let header = Header::read(&file, map.size_bytes())?;
        let l1: Vec<u64> = read_table(&file, header.l1_at, map.clusters().div_ceil(TABLE_ENTRIES).max(1))?
            .iter()
            .map(|entry| entry & OFFSET)
            .collect();
        let blocks = read_table(&file, header.refcounts_at, header.refcount_table_clusters * TABLE_ENTRIES)?;
        let mut highest = blocks.iter().chain(&l1).copied().max().unwrap_or(0).max(header.end());
        let held = ClusterMap::of(map.size_bytes(), |add| {
            each_held(&file, &l1, |cluster, place| {
                add(cluster);
                highest = highest.max(place);
            })
        })?;
        let added = ClusterMap::of(map.size_bytes(), |add| {
            map.data().filter(|cluster| !held.is_data(*cluster)).for_each(add);
            io::Result::Ok(())
        })?;
        Ok(Self { file, l1, held, added, added_at: highest / CLUSTER + 1 })
    }

    /// The place of a cluster that the image holds.
    fn held_place(&self, cluster: u64) -> io::Result<u64> {
        let table = usize::try_from(cluster / TABLE_ENTRIES).ok().and_then(|table| self.l1.get(table));
        let at = table.filter(|at| **at != 0).ok_or_else(|| unusual("a table is missing"))?;
        let mut entry = [0; 8];
        self.file.read_exact_at(&mut entry, at + cluster % TABLE_ENTRIES * 8)?;
        Ok(u64::from_be_bytes(entry) & OFFSET)
    }

    fn added_place(&self, cluster: u64) -> u64 {
        (self.added_at + self.added.rank(cluster)) * CLUSTER
    }

    fn tables(&self) -> io::Result<Tables> {
        let all = ClusterMap::of(self.held.size_bytes(), |add| {
            self.held.data().chain(self.added.data()).for_each(add);
            io::Result::Ok(())
        })?;
        Ok(Tables::new(self.added_at + self.added.data_clusters(), &all, 0))
    }

    /// Which clusters of the file are in use once `tables` are.
    fn in_use(&self, tables: &Tables) -> io::Result<ClusterMap> {
        ClusterMap::of(tables.clusters() * CLUSTER, |add| {
            add(0);
            each_held(&self.file, &self.l1, |_, place| add(place / CLUSTER))?;
            (self.added_at..tables.clusters()).for_each(add);
            Ok(())
        })
    }
}

impl Layout for Qcow2Update {
    fn place(&self, _map: &ClusterMap, bytes: Range<u64>) -> io::Result<(Option<u64>, u64)> {
        let (cluster, within) = (bytes.start / CLUSTER, bytes.start % CLUSTER);
        let place = if self.held.is_data(cluster) {
            Some(self.held_place(cluster)? + within)
        } else {
            self.added.is_data(cluster).then(|| self.added_place(cluster) + within)
        };
        Ok((place, (CLUSTER - within).min(bytes.end - bytes.start)))
    }

    fn file_bytes(&self, _map: &ClusterMap) -> u64 {
        (self.added_at + self.added.data_clusters()) * CLUSTER
    }

    fn finish(&self, map: &ClusterMap, file: &File) -> io::Result<()> {
        let tables = self.tables()?;
        let in_use = self.in_use(&tables)?;
        // What an earlier attempt left in the way reads as zero.
        file.set_len(tables.at * CLUSTER)?;
        file.set_len(tables.clusters() * CLUSTER)?;
        tables.write_refcounts(file, |cluster| in_use.is_data(cluster))?;
        tables.write_mapping(file, |table, entries| {
            let at = usize::try_from(table).ok().and_then(|table| self.l1.get(table)).copied().unwrap_or(0);
            match at {
                0 => entries.resize(CLUSTER_BYTES / 8, 0),
                at => entries.extend(read_table(&self.file, at, TABLE_ENTRIES)?),
            }
            for (cluster, entry) in (table * TABLE_ENTRIES..).zip(entries) {
                if self.added.is_data(cluster) {
                    *entry = self.added_place(cluster) | COPIED;
                }
            }
            Ok(())
        })?;
        durable::sync_data(file)?;
        file.write_all_at(&tables.header(map.size_bytes())?, 0)?;
        durable::sync_data(file)?;
        // The old tables. What cannot be given back only takes space.
        let mut cluster = 1;
        while cluster < self.added_at {
            let free = (cluster..self.added_at).take_while(|at| !in_use.is_data(*at)).count() as u64;
            if free > 0 {
                let _punched = punch(file, cluster * CLUSTER, free * CLUSTER);
            }
            cluster += free + 1;
        }
        Ok(())
    }
}

/// What is looked up in a header; positions in bytes.
struct Header {
    l1_at: u64,
    l1_entries: u64,
    refcounts_at: u64,
    refcount_table_clusters: u64,
}

impl Header {
    /// Reads the header of an image as [`Tables::header`] writes it, and refuses any other.
    fn read(file: &File, size_bytes: u64) -> io::Result<Self> {
        let mut bytes = [0; 112];
        file.read_exact_at(&mut bytes, 0)?;
        let long = |at: usize| {
            bytes.get(at..at + 8).and_then(|some| some.try_into().ok()).map_or(0, u64::from_be_bytes)
        };
        let word = |at: usize| {
            bytes.get(at..at + 4).and_then(|some| some.try_into().ok()).map_or(0, u32::from_be_bytes)
        };
        let header = Self {
            l1_at: long(40),
            l1_entries: word(36).into(),
            refcounts_at: long(48),
            refcount_table_clusters: word(56).into(),
        };
        let entries = size_bytes.div_ceil(CLUSTER).div_ceil(TABLE_ENTRIES).max(1);
        let as_ours = word(0) == MAGIC
            && word(4) == 3
            && long(8) == 0
            && word(20) == CLUSTER.trailing_zeros()
            && long(24) == size_bytes.next_multiple_of(512)
            && word(32) == 0
            && word(60) == 0
            && long(72) == 0
            && word(96) == 4;
        // No table of ours is larger than what its disk needs.
        let most = header.l1_at / CLUSTER + entries + file.metadata()?.len() / CLUSTER;
        if !as_ours
            || header.l1_entries != entries
            || header.refcount_table_clusters > most.div_ceil(BLOCK_ENTRIES).div_ceil(TABLE_ENTRIES).max(1)
        {
            return Err(unusual("its header is not as Holdfast writes it"));
        }
        Ok(header)
    }

    /// The last byte of the L1 and the refcount table.
    fn end(&self) -> u64 {
        let l1 = self.l1_at + self.l1_entries * 8;
        l1.max(self.refcounts_at + self.refcount_table_clusters * CLUSTER) - 1
    }
}

/// All clusters that an image holds, ascending, and their places.
fn each_held(file: &File, l1: &[u64], mut held: impl FnMut(u64, u64)) -> io::Result<()> {
    for (table, at) in (0..).zip(l1).filter(|(_, at)| **at != 0) {
        for (cluster, entry) in (table * TABLE_ENTRIES..).zip(read_table(file, *at, TABLE_ENTRIES)?) {
            if entry & !OFFSET & !COPIED != 0 {
                return Err(unusual("it has compressed or zeroed clusters"));
            }
            if entry != 0 {
                held(cluster, entry & OFFSET);
            }
        }
    }
    Ok(())
}

/// So many entries of 8 bytes.
fn read_table(file: &File, at: u64, entries: u64) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; usize::try_from(entries * 8).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, at)?;
    let (entries, _) = bytes.as_chunks::<8>();
    Ok(entries.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
}

fn unusual(what: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("the qcow2 image cannot be updated: {what}; choose another folder"),
    )
}
