//! What sources are told, against a model of both sides: whoever looks only at what he is told to ends with the point's disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use holdfast_common::{
    clock::SystemClock,
    frame::{Frame, PlainReader, witness_digest},
    ids::{DiskId, Generation, Interval, MachineId, Sequence},
    units::{BLOCK_BYTES, BlockCount, BlockIndex, BlockRange},
    wire::{BlockDigest, Capture, DiskIdentity, WriteBackReply, WriteBackRequest, WrittenBack},
};
use proptest::prelude::*;

use super::{Apart, Desk, RoundDisk, RoundEnd};
use crate::{
    compute::port::Task,
    ingest::port::WriteBackDesk as _,
    points::view::{BlockView, Changes, ViewError, ViewExtent},
    registry::lifecycle::SourceLine,
};

const BLOCKS: u64 = 24;
const DISK: DiskId = DiskId::from_bytes([1; 16]);
const MACHINE: MachineId = MachineId::from_bytes([2; 16]);

/// A disk of one byte per block.
#[derive(Debug)]
struct Filled(Vec<u8>);

impl BlockView for Filled {
    fn size_bytes(&self) -> u64 {
        (self.0.len() * BLOCK_BYTES) as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        for (at, byte) in (usize::try_from(offset).unwrap()..).zip(buffer) {
            *byte = self.0[at / BLOCK_BYTES];
        }
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        Ok(vec![ViewExtent { range, hole: false }])
    }
}

/// Blocks that were written; a few are told at a time.
#[derive(Debug)]
struct Changed(BTreeSet<u64>);

impl Changes for Changed {
    fn changed(&self, range: BlockRange) -> Result<(Vec<BlockRange>, u64), ViewError> {
        let end = range.end().0.min(range.start.0 + 5);
        let here = self.0.range(range.start.0..end);
        Ok((here.map(|block| BlockRange::new(*block, 1)).collect(), end))
    }
}

fn capture(generation: u32, durable: u64) -> Capture {
    Capture {
        disk: DISK,
        identity: DiskIdentity::default(),
        path: "/dev/source".into(),
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
        generation: Generation(generation),
        durable: Sequence(durable),
        interval: Interval(0),
        scanned_to: BlockIndex(0),
        scan_complete: false,
        replica_empty: false,
    }
}

/// What a source asks for, and what it is told: the blocks, and whether they are all of the disk.
fn told(of: &RoundDisk, hold: u64, basis: Option<(u32, u64)>, marked: u64) -> (BTreeSet<u64>, bool) {
    let (generation, brought_to) = basis.unwrap_or_default();
    let (mut blocks, mut whole, mut from) = (BTreeSet::new(), false, Some(BlockIndex(0)));
    while let Some(at) = from {
        let asked = WriteBackRequest::RangesSince {
            round: 1,
            disk: DISK,
            from: at,
            hold,
            generation: Generation(generation),
            brought_to: Sequence(brought_to),
            marked: BlockCount(marked),
        };
        let WriteBackReply::Ranges { ranges, next, known } = of.answer(asked, &Task::default()) else {
            panic!("no ranges")
        };
        assert!(next.is_none_or(|next| next > at));
        blocks.extend(ranges.iter().flat_map(|range| range.start.0..range.end().0));
        whole |= !known;
        from = next;
    }
    (blocks, whole)
}

#[test]
fn less_than_all_is_looked_at_only_where_marks_count_from_a_frame_that_the_log_has() {
    let changes = |blocks: &[u64]| Arc::new(Changed(blocks.iter().copied().collect()));
    let line = SourceLine { generation: Generation(3), end: Sequence(40) };
    let disk = |begins, line| RoundDisk {
        capture: capture(5, 90),
        view: Arc::new(Filled(vec![0; usize::try_from(BLOCKS).unwrap()])),
        since: Some((77, changes(&[9]))),
        apart: Some(Apart { begins: Sequence(begins), changes: changes(&[2, 11]), line }),
    };
    let is_known = |disk: &RoundDisk, basis| !told(disk, 1, basis, 0).1;
    let usual = disk(30, Some(line));
    assert_eq!(told(&usual, 1, Some((3, 0)), 0), ([2, 11].into(), false));
    assert_eq!(told(&usual, 77, None, 0), ([9].into(), false));
    assert_eq!(told(&usual, 1, None, 0), ((0..BLOCKS).collect(), true));
    // Another line than the source's last one, or a branch that begins behind it.
    assert!(!is_known(&usual, Some((2, 0))) && !is_known(&usual, Some((5, 0))));
    assert!(is_known(&disk(40, Some(line)), Some((3, 0))));
    assert!(!is_known(&disk(41, Some(line)), Some((3, 0))));
    assert!(!is_known(&disk(30, None), Some((3, 0))));
    // Brought to a frame of the target's line, behind the beginning of the branch and not behind the round's point.
    assert!(is_known(&usual, Some((5, 30))) && is_known(&usual, Some((5, 90))));
    assert!(!is_known(&usual, Some((5, 29))) && !is_known(&usual, Some((5, 91))));
    assert!(!is_known(&usual, Some((4, 60))) && !is_known(&usual, Some((3, 60))));
}

/// What happens, in an order of chance.
#[derive(Clone, Debug)]
enum Happening {
    /// Somebody writes to the source's disk.
    Write(u64, u8),
    /// The same, while nothing is tracked.
    WriteUnseen(u64, u8),
    /// The source sends what is marked, and a cut; the acknowledgement may be lost.
    Send(bool),
    /// The machine writes at its target.
    WriteThere(u64, u8),
    /// The target's point is made, and written back; the agent may be killed after some blocks.
    Round(Option<usize>),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let block = 0..BLOCKS;
    prop::collection::vec(
        prop_oneof![
            4 => (block.clone(), any::<u8>()).prop_map(|(block, byte)| Happening::Write(block, byte)),
            1 => (block.clone(), any::<u8>()).prop_map(|(block, byte)| Happening::WriteUnseen(block, byte)),
            3 => any::<bool>().prop_map(Happening::Send),
            3 => (block, any::<u8>()).prop_map(|(block, byte)| Happening::WriteThere(block, byte)),
            2 => prop::option::of(0..12_usize).prop_map(Happening::Round),
        ],
        1..40,
    )
}

/// Both sides of a machine.
#[derive(Default)]
struct Model {
    disk: Vec<u8>,
    marked: BTreeSet<u64>,
    basis: Option<(u32, u64)>,
    /// Sequence, block and content.
    log: Vec<(u64, u64, u8)>,
    last: u64,
    cuts: Vec<u64>,
}

impl Model {
    fn state(&self, sequence: u64) -> Vec<u8> {
        let mut state = vec![0; usize::try_from(BLOCKS).unwrap()];
        for (_, block, byte) in self.log.iter().filter(|(at, ..)| *at <= sequence) {
            state[usize::try_from(*block).unwrap()] = *byte;
        }
        state
    }

    fn append(&mut self, block: u64, byte: u8) {
        self.last += 1;
        self.log.push((self.last, block, byte));
    }

    fn write(&mut self, block: u64, byte: u8) {
        self.disk[usize::try_from(block).unwrap()] = byte;
        self.marked.insert(block);
    }

    fn lose_track(&mut self, block: u64, byte: u8) {
        self.disk[usize::try_from(block).unwrap()] = byte;
        self.marked.clear();
        self.basis = None;
    }
}

proptest! {
    #[test]
    fn who_looks_at_what_he_is_told_ends_with_the_point(
        before in happenings(),
        chosen in any::<prop::sample::Index>(),
        after in happenings(),
    ) {
        let blocks = usize::try_from(BLOCKS).unwrap();
        let mut model = Model { disk: vec![0; blocks], basis: Some((1, 0)), last: 1, cuts: vec![1], ..Model::default() };
        for happening in before {
            match happening {
                Happening::Write(block, byte) => model.write(block, byte),
                Happening::Send(acknowledged) => {
                    for block in model.marked.clone() {
                        model.append(block, model.disk[usize::try_from(block).unwrap()]);
                    }
                    model.last += 1;
                    model.cuts.push(model.last);
                    if acknowledged {
                        model.marked.clear();
                    }
                }
                _ => {}
            }
        }
        // The source's line ends, perhaps in the middle of an interval.
        if let Some(block) = model.marked.first().copied() {
            model.append(block, model.disk[usize::try_from(block).unwrap()]);
        }
        let line = SourceLine { generation: Generation(1), end: Sequence(model.last) };
        let begins = *chosen.get(&model.cuts);
        let mut target = model.state(begins);
        for happening in after {
            match happening {
                Happening::Write(block, byte) => model.write(block, byte),
                Happening::WriteUnseen(block, byte) => model.lose_track(block, byte),
                Happening::WriteThere(block, byte) => target[usize::try_from(block).unwrap()] = byte,
                Happening::Send(_) => {}
                Happening::Round(killed_after) => {
                    let newest = model.state(model.last);
                    for (block, byte) in (0..).zip(&target) {
                        if newest[usize::try_from(block).unwrap()] != *byte {
                            model.append(block, *byte);
                        }
                    }
                    model.last += 1;
                    let point = model.last;
                    let written = model.log.iter().filter(|(at, ..)| *at > begins && *at <= point);
                    let changes: BTreeSet<u64> = written.map(|(_, block, _)| *block).collect();
                    let round = RoundDisk {
                        capture: capture(2, point),
                        view: Arc::new(Filled(target.clone())),
                        since: None,
                        apart: Some(Apart {
                            begins: Sequence(begins),
                            changes: Arc::new(Changed(changes)),
                            line: Some(line),
                        }),
                    };
                    let (mut looked_at, whole) = told(&round, 1, model.basis, model.marked.len() as u64);
                    prop_assert_eq!(whole, model.basis.is_none());
                    looked_at.extend(model.marked.iter().copied());
                    for block in looked_at.into_iter().take(killed_after.unwrap_or(blocks)) {
                        let at = usize::try_from(block).unwrap();
                        if model.disk[at] != target[at] {
                            model.write(block, target[at]);
                        }
                    }
                    if killed_after.is_none() {
                        prop_assert_eq!(&model.disk, &target);
                        model.marked.clear();
                        model.basis = Some((2, point));
                    }
                }
            }
        }
        // Let in, it goes on if the log ends with what it was brought to: then nothing but what is marked can differ.
        if model.basis == Some((2, model.last)) {
            let newest = model.state(model.last);
            for (block, (here, there)) in (0..).zip(model.disk.iter().zip(&newest)) {
                prop_assert!(here == there || model.marked.contains(&block));
            }
        }
    }
}

fn source(fenced: bool) -> Desk {
    Desk::new(Arc::new(move |_| fenced), Arc::new(SystemClock::new()))
}

fn plain(frame: Vec<u8>) -> BTreeMap<u64, u8> {
    let frame = Frame::verify(frame.into()).unwrap();
    let mut plain = Vec::new();
    PlainReader::new().read(&frame, &mut plain).unwrap();
    let mut bytes = plain.as_chunks::<BLOCK_BYTES>().0.iter();
    let blocks = frame.extents().iter().flat_map(|extent| {
        let is_data = extent.plain_bytes() > 0;
        (extent.range.start.0..extent.range.end().0).map(move |block| (block, is_data))
    });
    blocks.map(|(block, is_data)| (block, if is_data { bytes.next().unwrap()[0] } else { 0 })).collect()
}

#[tokio::test]
async fn a_round_gives_what_differs_of_its_own_disks_while_it_is_open() {
    let desk = Arc::new(source(true));
    assert!(!desk.is_standing_by(MACHINE));
    let mut content = vec![7; usize::try_from(BLOCKS).unwrap()];
    content[3] = 0;
    let disk =
        RoundDisk { capture: capture(2, 9), view: Arc::new(Filled(content)), since: None, apart: None };
    let rounds = Arc::clone(&desk);
    let waiting =
        tokio::spawn(async move { rounds.round(MACHINE, vec![disk], Arc::new(Task::default())).await });
    let round = loop {
        match desk.answer(MACHINE, WriteBackRequest::Work).await {
            WriteBackReply::Round { round, disks } => {
                assert_eq!(disks, [capture(2, 9)]);
                break round;
            }
            other => assert_eq!(other, WriteBackReply::Wait),
        }
    };
    assert!(desk.is_standing_by(MACHINE));
    let digest = |byte| witness_digest(&[byte; BLOCK_BYTES]);
    let block = |block, byte| BlockDigest { block: BlockIndex(block), digest: digest(byte) };
    let fetch = |round, blocks| WriteBackRequest::Fetch { round, disk: DISK, blocks };
    let asked = fetch(round, vec![block(2, 7), block(3, 7), block(4, 1)]);
    let WriteBackReply::Blocks(frame) = desk.answer(MACHINE, asked).await else { panic!("no blocks") };
    assert_eq!(plain(frame), [(3, 0), (4, 7)].into());
    assert_eq!(
        desk.answer(MACHINE, fetch(round, vec![block(2, 7)])).await,
        WriteBackReply::Blocks(Vec::new())
    );
    for wrong in [vec![block(4, 1), block(3, 1)], vec![block(BLOCKS, 1)]] {
        let refused = desk.answer(MACHINE, fetch(round, wrong)).await;
        assert!(matches!(refused, WriteBackReply::Failed(_)), "{refused:?}");
    }
    // Of another round, of another machine, of a disk that is not of it.
    assert_eq!(desk.answer(MACHINE, fetch(round + 1, Vec::new())).await, WriteBackReply::Over);
    let other = MachineId::from_bytes([9; 16]);
    assert_eq!(desk.answer(other, fetch(round, Vec::new())).await, WriteBackReply::Over);
    let other = WriteBackRequest::Fetch { round, disk: DiskId::from_bytes([9; 16]), blocks: Vec::new() };
    assert!(matches!(desk.answer(MACHINE, other).await, WriteBackReply::Failed(_)));
    let written = WrittenBack { compared: 3, written: 2, received_bytes: 1 };
    let done = WriteBackRequest::Done { round, disk: DISK, hold: 5, result: Ok(written) };
    assert_eq!(desk.answer(MACHINE, done).await, WriteBackReply::Noted);
    assert_eq!(waiting.await.unwrap(), Some(RoundEnd::Done([(DISK, (5, written))].into())));
    assert_eq!(desk.answer(MACHINE, fetch(round, Vec::new())).await, WriteBackReply::Over);
}

#[tokio::test]
async fn a_source_that_is_not_fenced_is_let_in_and_gets_nothing() {
    let desk = source(false);
    assert_eq!(desk.answer(MACHINE, WriteBackRequest::Work).await, WriteBackReply::LetIn);
    let asked = WriteBackRequest::Fetch { round: 1, disk: DISK, blocks: Vec::new() };
    assert_eq!(desk.answer(MACHINE, asked).await, WriteBackReply::Over);
    assert!(!desk.is_standing_by(MACHINE));
}

#[tokio::test]
async fn a_disk_that_cannot_be_written_ends_the_round_with_the_source_s_words() {
    let desk = Arc::new(source(true));
    let disk = RoundDisk {
        capture: capture(2, 9),
        view: Arc::new(Filled(vec![0; usize::try_from(BLOCKS).unwrap()])),
        since: None,
        apart: None,
    };
    let rounds = Arc::clone(&desk);
    let task = Arc::new(Task::default());
    let waiting = tokio::spawn({
        let (disk, task) = (disk.clone(), Arc::clone(&task));
        async move { rounds.round(MACHINE, vec![disk], task).await }
    });
    let round = loop {
        if let WriteBackReply::Round { round, .. } = desk.answer(MACHINE, WriteBackRequest::Work).await {
            break round;
        }
    };
    let result = Err("it is in use".to_owned());
    let done = WriteBackRequest::Done { round, disk: DISK, hold: 0, result };
    assert_eq!(desk.answer(MACHINE, done).await, WriteBackReply::Noted);
    assert_eq!(waiting.await.unwrap(), Some(RoundEnd::Failed("it is in use".into())));
    // A round that is cancelled ends without one.
    task.cancel();
    assert_eq!(desk.round(MACHINE, vec![disk], task).await, None);
}
