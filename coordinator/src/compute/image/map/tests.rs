//! The map against a plain list.

use holdfast_common::units::{BLOCK_BYTES, BlockRange};
use proptest::prelude::*;

use super::{CLUSTER, ClusterMap};
use crate::{
    compute::port::Task,
    points::view::{BlockView, ViewError, ViewExtent},
};

#[derive(Debug)]
struct Blocks(Vec<bool>);

impl BlockView for Blocks {
    fn size_bytes(&self) -> u64 {
        (self.0.len() * BLOCK_BYTES) as u64
    }

    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), ViewError> {
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        let blocks = range.start.0..range.end().0.min(range.start.0 + 5);
        let extent = |block: u64| ViewExtent {
            range: BlockRange::new(block, 1),
            hole: !self.0[usize::try_from(block).unwrap()],
        };
        Ok(blocks.map(extent).collect())
    }
}

proptest! {
    #[test]
    fn agrees_with_a_list(
        runs in prop::collection::vec((any::<bool>(), 1_usize..900), 0..8),
        from in 0_u64..400,
        most in 1_u64..40,
    ) {
        let blocks: Vec<bool> = runs.iter().flat_map(|(data, count)| vec![*data; *count]).collect();
        let map = ClusterMap::scan(&Blocks(blocks.clone()), "sda", &Task::default()).unwrap();
        let per_cluster = usize::try_from(CLUSTER).unwrap() / BLOCK_BYTES;
        let clusters: Vec<bool> = blocks.chunks(per_cluster).map(|part| part.contains(&true)).collect();
        prop_assert_eq!(map.clusters(), clusters.len() as u64);
        let mut rank = 0;
        for (cluster, data) in (0..).zip(&clusters) {
            prop_assert_eq!(map.is_data(cluster), *data);
            prop_assert_eq!(map.rank(cluster), rank);
            rank += u64::from(*data);
        }
        prop_assert_eq!(map.data_clusters(), rank);
        let start = (from..clusters.len() as u64).find(|cluster| map.is_data(*cluster));
        let run = map.next_run(from, most);
        prop_assert_eq!(run.as_ref().map(|run| run.start), start);
        if let Some(run) = run {
            prop_assert!(run.end - run.start <= most && run.clone().all(|cluster| map.is_data(cluster)));
            prop_assert!(run.end - run.start == most || !map.is_data(run.end));
        }
    }
}
