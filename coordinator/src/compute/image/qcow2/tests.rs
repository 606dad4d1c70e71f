//! The layout's arithmetic; whether QEMU agrees is tested with QEMU.

use super::{BLOCK_ENTRIES, Qcow2, TABLE_ENTRIES};

#[test]
fn counts_cover_all_clusters_also_at_the_borders() {
    for data_clusters in (32_700..32_800).chain([0, 1, 8192 * 32_768 - 20_000, 9_000 * 32_768]) {
        let mut layout = Qcow2 {
            refcount_table_clusters: 1,
            refcount_blocks: 1,
            l1_entries: 1,
            l1_clusters: 1,
            l2_tables: vec![0],
            data_clusters,
        };
        layout.settle();
        assert!(layout.refcount_blocks * BLOCK_ENTRIES >= layout.clusters());
        assert!((layout.refcount_blocks - 1) * BLOCK_ENTRIES < layout.clusters(), "no block too many");
        assert!(layout.refcount_table_clusters * TABLE_ENTRIES >= layout.refcount_blocks);
    }
}
