use std::{collections::BTreeSet, sync::Arc};

use holdfast_common::ids::{DiskId, Sequence};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Run, visible_in, visible_on};
use crate::index::{
    entry::IndexEntry, merge::Layer, merge::merge, records::RunRecords, run_format::RunName,
    run_writer::RunWriter,
};

const DISK: DiskId = DiskId::from_bytes([3; 16]);

/// A run of entries: how many blocks lie between each and the one before, and how many it has. Every third frame is new.
fn run(folder: &TempDir, number: u64, steps: &[(u64, u64)]) -> Arc<Run> {
    let name = RunName {
        part: false,
        level: 0,
        last_cut: number + 1,
        from: Sequence(number * 100),
        to: Sequence(number * 100 + 100),
    };
    let mut writer = RunWriter::create(folder.path(), DISK, name).unwrap();
    let mut start = 0;
    for (at, (gap, count)) in (0..).zip(steps) {
        start += gap;
        let sequence = Sequence(number * 100 + 1 + at / 3);
        writer.push(IndexEntry { start, count: *count, sequence, plain: None }).unwrap();
        start += count;
    }
    writer.finish(&RunRecords::default()).unwrap().settle().unwrap();
    Arc::new(Run::open(folder.path(), DISK, name).unwrap())
}

proptest! {
    #[test]
    fn the_same_frames_as_a_merge_names(
        runs in prop::collection::vec(prop::collection::vec((0u64..4, 1u64..6), 0..60), 1..8),
        window in 1u64..200, threads in 1u64..5,
    ) {
        let folder = TempDir::new().unwrap();
        let runs: Vec<_> = (0u64..8).zip(&runs).map(|(number, steps)| run(&folder, number, steps)).collect();
        let runs: Vec<_> = runs.into_iter().rev().collect();
        let mut found = BTreeSet::new();
        visible_in(window, (0, u64::MAX), &runs, &mut |sequence| { found.insert(sequence); }).unwrap();
        let layers: Vec<_> = runs.iter().map(|run| Layer::Run(run)).collect();
        let mut expected = BTreeSet::new();
        merge(&layers, &mut |entry| { expected.insert(entry.sequence); Ok(()) }).unwrap();
        prop_assert_eq!(&found, &expected);
        let shared = visible_on(threads, &runs, Sequence(3)).unwrap();
        prop_assert!(shared.iter().eq(expected.into_iter().filter(|sequence| sequence.0 > 3)));
    }
}
