//! Progress under answers in any order, disconnects and resumption.

use holdfast_common::{
    frame::ScanRecord,
    ids::DiskId,
    units::{BlockCount, BlockIndex, BlockRange},
    wire::{
        ScanAnswer,
        limits::{SCAN_CHUNK_BLOCKS, SCAN_QUESTIONS_MAX},
    },
};
use proptest::prelude::*;

use super::{RECORD_BLOCKS, STEP_BLOCKS, ScanProgress, ScanStep, chunks};

fn answer(question: u64, differs: Vec<bool>) -> ScanAnswer {
    ScanAnswer { question, disk: DiskId::from_bytes([1; 16]), differs }
}

#[test]
fn an_empty_replica_is_never_asked() {
    let size = STEP_BLOCKS * 2 + 5;
    let mut scan = ScanProgress::new(BlockCount(size), BlockIndex(0), true);
    let mut read = 0;
    while let ScanStep::Read(range) = scan.step(false) {
        assert_eq!(range.start.0, read);
        read = range.end().0;
        scan.sent(range);
    }
    assert_eq!(read, size);
    let record = ScanRecord { scanned_to: BlockIndex(size), complete: true };
    assert_eq!(scan.step(false), ScanStep::Record(record));
    scan.recorded(&record);
    assert_eq!(scan.step(false), ScanStep::Done);
}

#[test]
fn nothing_is_recorded_while_found_blocks_wait() {
    let size = STEP_BLOCKS;
    let mut scan = ScanProgress::new(BlockCount(size), BlockIndex(0), false);
    let number = scan.asked(BlockRange::new(0, size));
    let mut differs = vec![false; 64];
    differs[3] = true;
    let found = scan.answered(&answer(number, differs));
    assert_eq!(found, [BlockRange::new(3 * SCAN_CHUNK_BLOCKS, SCAN_CHUNK_BLOCKS)]);
    assert_eq!(scan.step(true), ScanStep::AwaitAnswers);
    assert!(matches!(scan.step(false), ScanStep::Record(ScanRecord { complete: true, .. })));
}

#[test]
fn progress_is_recorded_every_so_often() {
    let mut scan = ScanProgress::new(BlockCount(RECORD_BLOCKS * 3), BlockIndex(0), true);
    while let ScanStep::Read(range) = scan.step(false) {
        scan.sent(range);
    }
    let ScanStep::Record(record) = scan.step(false) else { panic!("a record is due") };
    assert_eq!(record, ScanRecord { scanned_to: BlockIndex(RECORD_BLOCKS), complete: false });
    scan.recorded(&record);
    assert!(matches!(scan.step(false), ScanStep::Read(_)));
}

#[test]
fn an_answer_of_the_wrong_length_means_all_differs() {
    let mut scan = ScanProgress::new(BlockCount(STEP_BLOCKS), BlockIndex(0), false);
    let range = BlockRange::new(0, STEP_BLOCKS);
    let number = scan.asked(range);
    assert_eq!(scan.answered(&answer(number, vec![false])), [range]);
    assert!(scan.answered(&answer(number, vec![true])).is_empty(), "answered once only");
}

#[test]
fn a_resumed_scan_starts_at_a_chunk() {
    let scan = ScanProgress::new(BlockCount(1000), BlockIndex(SCAN_CHUNK_BLOCKS + 1), false);
    assert_eq!(scan.scanned_to(), BlockIndex(SCAN_CHUNK_BLOCKS));
    assert_eq!(chunks(BlockRange::new(SCAN_CHUNK_BLOCKS, 65)).len(), 2);
}

proptest! {
    /// Whatever the order of answers and disconnects, every chunk is answered before it counts as scanned.
    #[test]
    fn scanned_means_answered(size in 1..STEP_BLOCKS * 20, choices in prop::collection::vec(0_u8..8, 0..400)) {
        let mut scan = ScanProgress::new(BlockCount(size), BlockIndex(0), false);
        let mut open: Vec<(u64, BlockRange)> = Vec::new();
        let mut compared = crate::capture::BlockSet::new(BlockCount(size));
        for choice in choices.into_iter().chain(std::iter::repeat_n(1, 2000)) {
            match (choice, scan.step(false)) {
                (0, _) => {
                    scan.disconnected();
                    open.clear();
                }
                (1..=4, ScanStep::Read(range)) => open.push((scan.asked(range), range)),
                (_, ScanStep::Record(record)) => scan.recorded(&record),
                (_, ScanStep::Done) => break,
                _ if open.is_empty() => {}
                _ => {
                    let (number, range) = open.swap_remove(usize::from(choice) % open.len());
                    scan.answered(&answer(number, vec![false; chunks(range).len()]));
                    compared.insert(range);
                }
            }
            prop_assert!(open.len() <= SCAN_QUESTIONS_MAX);
            for block in 0..scan.scanned_to().0.min(size) {
                prop_assert!(compared.contains(BlockIndex(block)));
            }
        }
        prop_assert_eq!(scan.step(false), ScanStep::Done);
        prop_assert_eq!(compared.count().0, size);
    }
}
