//! The tables' arithmetic; whether QEMU agrees is tested with QEMU.

use super::{BLOCK_ENTRIES, TABLE_ENTRIES, Tables};

#[test]
fn counts_cover_all_clusters_also_at_the_borders() {
    for data_behind in (32_700..32_800).chain([0, 1, 8192 * 32_768 - 20_000, 9_000 * 32_768]) {
        let mut tables = Tables {
            at: 1,
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries: 1,
            l1_clusters: 1,
            l2_tables: vec![0],
            data_behind,
        };
        tables.settle();
        assert!(tables.refcount_blocks * BLOCK_ENTRIES >= tables.clusters());
        assert!((tables.refcount_blocks - 1) * BLOCK_ENTRIES < tables.clusters(), "no block too many");
        assert!(tables.refcount_table_clusters * TABLE_ENTRIES >= tables.refcount_blocks);
    }
}
