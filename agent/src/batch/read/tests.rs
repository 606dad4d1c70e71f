//! Reads of plain files; loop devices are read by the tests with real parts.
#![expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]

use std::{fs, os::unix::fs::FileExt as _, sync::Arc};

use holdfast_common::units::{BLOCK_BYTES, BlockIndex, BlockRange};

use super::{DiskFile, ReadFrame, ReaderPool};
use crate::{
    batch::{BatchShape, BufferPool, FramePlan, plan_batch},
    capture::BlockSet,
};

fn frames(pool: &BufferPool, plans: Vec<FramePlan>) -> Vec<ReadFrame> {
    plans.into_iter().map(|plan| ReadFrame::new(plan, pool.take().unwrap())).collect()
}

fn plan(ranges: &[(u64, u64)]) -> FramePlan {
    FramePlan { runs: ranges.iter().map(|(start, count)| BlockRange::new(*start, *count)).collect() }
}

#[test]
fn reads_in_parallel_and_keeps_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let blocks = 1000_u64;
    let content: Vec<u8> = (0..blocks).flat_map(|block| vec![(block % 251) as u8; BLOCK_BYTES]).collect();
    fs::write(&path, &content).unwrap();
    let disk = Arc::new(DiskFile::open(&path).unwrap());
    let readers = ReaderPool::new(4).unwrap();
    let pool = BufferPool::new(100, 0);
    let mut set = BlockSet::new(disk.size());
    set.insert(BlockRange::new(0, blocks));
    let plans = plan_batch(&mut set, BlockIndex(0), BatchShape::full(100));
    let read = readers.reader(Arc::clone(&disk)).read(frames(&pool, plans.clone())).unwrap();
    assert_eq!(read.len(), plans.len());
    for (frame, plan) in read.iter().zip(&plans) {
        assert_eq!(&frame.plan, plan);
        let start = plan.runs[0].start.byte_offset() as usize;
        let bytes = frame.buffer.bytes(plan.blocks());
        assert!(bytes == &content[start..start + bytes.len()]);
    }
}

#[test]
fn notes_zero_blocks_and_pads_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, []).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[7; 100], 2 * BLOCK_BYTES as u64).unwrap();
    let disk = Arc::new(DiskFile::open(&path).unwrap());
    assert_eq!(disk.size().0, 3);
    let pool = BufferPool::new(1, 0);
    // The buffer starts full of ones, so padding shows.
    let readers = ReaderPool::new(1).unwrap();
    let read = readers.reader(disk).read(frames(&pool, vec![plan(&[(0, 1), (2, 1)])])).unwrap();
    assert_eq!(read[0].zero_blocks, 0b01);
    let last = &read[0].buffer.bytes(2)[BLOCK_BYTES..];
    assert!(last[..100] == [7; 100] && last[100..].iter().all(|byte| *byte == 0));
}

#[test]
fn an_error_names_disk_and_range() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    fs::write(&path, vec![1; 64 * BLOCK_BYTES]).unwrap();
    let disk = Arc::new(DiskFile::open(&path).unwrap());
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(32 * BLOCK_BYTES as u64).unwrap();
    let pool = BufferPool::new(4, 0);
    let readers = ReaderPool::new(2).unwrap();
    let batch = frames(&pool, vec![plan(&[(0, 16)]), plan(&[(40, 8)])]);
    let error = readers.reader(disk).read(batch).unwrap_err();
    assert_eq!(error.range, BlockRange::new(40, 8));
    assert!(error.to_string().contains("blocks 40..48") && error.to_string().contains("disk"));
    assert_eq!(pool.available(), 4, "buffers are back");
}

#[test]
fn runs_that_lie_near_each_other_are_read_with_what_is_between_them() {
    let runs = |ranges: &[(u64, u64)]| plan(ranges).runs;
    let parts = |ranges: &[(u64, u64)]| -> Vec<usize> {
        super::near_runs(&runs(ranges)).map(<[BlockRange]>::len).collect()
    };
    assert_eq!(
        parts(&[(0, 1), (2, 1), (11, 1), (20, 2)]),
        [3, 1],
        "the last gap would be one too many in all"
    );
    assert_eq!(parts(&[(0, 1), (9, 1), (10, 1), (20, 1)]), [3, 1], "nine blocks are too long a gap");
    assert_eq!(parts(&[]), [0_usize; 0]);
}

#[test]
fn frames_of_scattered_blocks_hold_what_the_disk_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let content: Vec<u8> =
        (0..500_u64).flat_map(|block| (block + 1).to_le_bytes().repeat(BLOCK_BYTES / 8)).collect();
    // The last block is a partial one.
    fs::write(&path, &content[..content.len() - 100]).unwrap();
    let disk = Arc::new(DiskFile::open(&path).unwrap());
    let readers = ReaderPool::new(3).unwrap();
    let pool = BufferPool::new(100, 0);
    let mut set = BlockSet::new(disk.size());
    (0..500)
        .filter(|block| block * 7 % 5 < 2 || *block == 499)
        .for_each(|block| set.insert(BlockRange::new(block, 1)));
    let plans = plan_batch(&mut set, BlockIndex(0), BatchShape::full(100));
    assert!(plans.iter().any(|plan| plan.runs.len() > 5), "the blocks are scattered");
    for frame in readers.reader(disk).read(frames(&pool, plans)).unwrap() {
        let blocks = frame.plan.runs.iter().flat_map(|run| run.start.0..run.end().0);
        for (block, read) in blocks.zip(frame.buffer.bytes(16).chunks(BLOCK_BYTES)) {
            let length = if block == 499 { BLOCK_BYTES - 100 } else { BLOCK_BYTES };
            let expected = &content[block as usize * BLOCK_BYTES..][..length];
            assert!(
                read[..length] == *expected && read[length..].iter().all(|byte| *byte == 0),
                "block {block}"
            );
        }
    }
}
