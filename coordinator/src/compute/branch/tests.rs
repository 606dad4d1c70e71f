//! A branch against a model in memory, over ends of the program and losses of power.

use std::{fs, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use holdfast_common::{
    ids::PointId,
    units::{BLOCK_BYTES, BlockRange},
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::{Branch, Header, Layout, Origin, WriteError};
use crate::{
    compute::port::ComputeError,
    points::view::{BlockView, ViewError, ViewExtent},
};

/// More than two words of the map, and a last block that is not whole.
const SIZE: usize = 150 * BLOCK_BYTES + 1000;
const POINT: PointId = PointId::from_bytes([7; 16]);

/// A view whose bytes are known, without holes; one block of it may be damaged.
#[derive(Debug)]
struct Known {
    bytes: Vec<u8>,
    damaged: Option<u64>,
}

impl Known {
    fn new() -> Self {
        let bytes =
            (0..SIZE).map(|at| u8::try_from((at / 7 + at / BLOCK_BYTES) % 251).unwrap() | 1).collect();
        Self { bytes, damaged: None }
    }
}

impl BlockView for Known {
    fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let blocks = BlockRange::covering(offset, buffer.len() as u64);
        if self.damaged.is_some_and(|block| blocks.contains(holdfast_common::units::BlockIndex(block))) {
            let source = std::io::Error::other("damaged for the test");
            return Err(ViewError::Io { place: "known".into(), source });
        }
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        Ok(())
    }

    fn extents(&self, range: BlockRange) -> Result<Vec<ViewExtent>, ViewError> {
        // No more than ten blocks at a time, so that who asks has to ask again.
        let range = BlockRange::new(range.start.0, range.count.0.min(10));
        Ok(vec![ViewExtent { range, hole: true }])
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, usize, u8),
    Zero(usize, usize, bool),
    Flush,
    /// The program is killed and starts again.
    Killed,
    /// The power fails; the seed says which pages had reached the disk.
    PowerLost(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range =
        || (0..SIZE, prop_oneof![1..300_usize, Just(BLOCK_BYTES), 1..80 * BLOCK_BYTES], any::<bool>());
    let op = prop_oneof![
        6 => (range(), any::<u8>()).prop_map(|((at, count, whole), byte)| {
            let (at, count) = aligned(at, count, whole);
            Op::Write(at, count, byte)
        }),
        2 => (range(), any::<bool>()).prop_map(|((at, count, whole), keep)| {
            let (at, count) = aligned(at, count, whole);
            Op::Zero(at, count, keep)
        }),
        2 => Just(Op::Flush),
        1 => Just(Op::Killed),
        1 => any::<u64>().prop_map(Op::PowerLost),
    ];
    prop::collection::vec(op, 1..40)
}

/// Inside the disk; of whole blocks if wanted.
fn aligned(at: usize, count: usize, whole: bool) -> (usize, usize) {
    let at = if whole { at / BLOCK_BYTES * BLOCK_BYTES } else { at };
    let count = if whole { count.next_multiple_of(BLOCK_BYTES) } else { count };
    (at, count.min(SIZE - at))
}

struct Site {
    _folder: TempDir,
    path: PathBuf,
    boot: u32,
}

impl Site {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("sda.branch");
        Self { _folder: folder, path, boot: 0 }
    }

    fn open(&self, turn: Option<u32>) -> Result<Branch, ComputeError> {
        let origin = Origin { point: POINT, turn };
        Branch::open(&self.path, origin, Arc::new(Known::new()), &format!("boot-{}", self.boot))
    }
}

fn content(branch: &Branch) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    branch.read(0, &mut bytes).unwrap();
    bytes
}

/// All blocks of which some byte is not the view's are named.
fn check_written(branch: &Branch, known: &[u8], touched: &[bool]) {
    let written = branch.written();
    assert!(written.windows(2).all(|pair| pair[0].end() < pair[1].start), "{written:?}");
    let mut expected = vec![false; touched.len()];
    for range in &written {
        for block in range.start.0..range.end().0 {
            expected[usize::try_from(block).unwrap()] = true;
        }
    }
    assert_eq!(expected, touched);
    let bytes = content(branch);
    for (block, _) in touched.iter().enumerate().filter(|(_, touched)| !**touched) {
        let part = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(SIZE);
        assert!(bytes[part.clone()] == known[part], "block {block} was not written and differs");
    }
    let mut block = 0;
    while block < touched.len() as u64 {
        let extents = branch.extents(BlockRange::new(block, touched.len() as u64 - block)).unwrap();
        for extent in extents {
            assert_eq!(extent.range.start.0, block);
            block = extent.range.end().0;
            for at in extent.range.start.0..block {
                assert_eq!(extent.hole, !touched[usize::try_from(at).unwrap()], "block {at}");
            }
        }
    }
}

/// Mixes the pages of two states of a file as a loss of power may.
fn torn(then: &[u8], now: &[u8], mut seed: u64) -> Vec<u8> {
    let mut mixed = Vec::with_capacity(now.len());
    for (old, new) in then.chunks(BLOCK_BYTES).zip(now.chunks(BLOCK_BYTES)) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        mixed.extend_from_slice(if seed >> 63 == 0 { old } else { new });
    }
    mixed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn a_branch_is_what_was_written_over_the_view(ops in ops()) {
        let mut site = Site::new();
        let known = Known::new().bytes;
        let mut branch = site.open(Some(0)).unwrap();
        let (mut model, mut touched) = (known.clone(), vec![false; SIZE.div_ceil(BLOCK_BYTES)]);
        // What it was at the last flush, and the file then.
        let (mut safe, mut safe_touched) = (model.clone(), touched.clone());
        let mut safe_file = fs::read(&site.path).unwrap();
        for op in ops {
            match op {
                Op::Write(at, count, byte) => {
                    let bytes: Vec<u8> = (0..count).map(|n| byte.wrapping_add(u8::try_from(n % 200).unwrap())).collect();
                    branch.write(at as u64, &bytes).unwrap();
                    model[at..at + count].copy_from_slice(&bytes);
                    touched[at / BLOCK_BYTES..(at + count).div_ceil(BLOCK_BYTES)].fill(true);
                }
                Op::Zero(at, count, keep) => {
                    branch.write_zeroes(at as u64, count as u64, keep).unwrap();
                    model[at..at + count].fill(0);
                    touched[at / BLOCK_BYTES..(at + count).div_ceil(BLOCK_BYTES)].fill(true);
                }
                Op::Flush => {
                    branch.flush().unwrap();
                    (safe, safe_touched) = (model.clone(), touched.clone());
                    safe_file = fs::read(&site.path).unwrap();
                }
                Op::Killed => {
                    drop(branch);
                    branch = site.open(None).unwrap();
                }
                Op::PowerLost(seed) => {
                    drop(branch);
                    let now = fs::read(&site.path).unwrap();
                    fs::write(&site.path, torn(&safe_file, &now, seed)).unwrap();
                    site.boot += 1;
                    branch = site.open(None).unwrap();
                    let found = content(&branch);
                    for block in 0..touched.len() {
                        let part = block * BLOCK_BYTES..((block + 1) * BLOCK_BYTES).min(SIZE);
                        let found = &found[part.clone()];
                        prop_assert!(
                            found == &safe[part.clone()] || found == &model[part],
                            "block {block} is neither as flushed nor as written"
                        );
                    }
                    (model, touched) = (found, safe_touched.clone());
                    safe = model.clone();
                    safe_file = fs::read(&site.path).unwrap();
                }
            }
            prop_assert!(content(&branch) == model);
            check_written(&branch, &known, &touched);
        }
    }
}

#[test]
fn what_is_there_goes_on_and_is_never_begun_anew_by_itself() {
    let site = Site::new();
    let missing = site.open(None).unwrap_err().to_string();
    assert!(missing.contains("not in") && missing.contains("cancel the job"), "{missing}");
    let branch = site.open(Some(0)).unwrap();
    branch.write(5, b"kept").unwrap();
    drop(branch);
    for turn in [Some(0), None] {
        assert_eq!(site.open(turn).unwrap().written(), [BlockRange::new(0, 1)], "{turn:?}");
    }
    // A change of the point gives up what was written, also one to the same point.
    assert_eq!(site.open(Some(1)).unwrap().written(), []);
    let other = Origin { point: PointId::from_bytes([8; 16]), turn: None };
    assert!(Branch::open(&site.path, other, Arc::new(Known::new()), "boot-0").is_err(), "of another point");
    let file = fs::OpenOptions::new().write(true).open(&site.path).unwrap();
    file.write_all_at(&[0xff], 20).unwrap();
    for turn in [Some(1), Some(2), None] {
        let damaged = site.open(turn).unwrap_err().to_string();
        assert!(damaged.contains("damaged"), "{damaged}");
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_changes_nothing() {
    let site = Site::new();
    let known = Arc::new(Known { damaged: Some(3), ..Known::new() });
    let branch = Branch::open(&site.path, Origin { point: POINT, turn: Some(0) }, known, "boot").unwrap();
    for (offset, bytes) in [(SIZE as u64, 1), (SIZE as u64 - 1, 2), (u64::MAX, 2)] {
        assert!(matches!(branch.write_zeroes(offset, bytes, false), Err(WriteError::BeyondEnd { .. })));
    }
    // The rest of the block cannot be read; the whole block needs nothing of it.
    let in_part = 3 * BLOCK_BYTES as u64 + 10;
    assert!(matches!(branch.write(in_part, b"some"), Err(WriteError::View(_))));
    assert_eq!(branch.written(), []);
    branch.write(3 * BLOCK_BYTES as u64, &[9; BLOCK_BYTES]).unwrap();
    branch.write(in_part, b"some").unwrap();
    assert_eq!(branch.written(), [BlockRange::new(3, 1)]);
}

#[test]
fn the_bytes_of_the_file_are_those_of_version_1() {
    let site = Site::new();
    let branch = site.open(Some(2)).unwrap();
    branch.write(65 * BLOCK_BYTES as u64, &[0xab; BLOCK_BYTES]).unwrap();
    let file = fs::read(&site.path).unwrap();
    let mut header = b"HFBRANCH\x01\0\0\0\x02\0\0\0".to_vec();
    header.extend([7; 16]);
    header.extend((SIZE as u64).to_le_bytes());
    header.extend(b"boot-0");
    header.resize(80, 0);
    let digest = blake3::hash(&header);
    header.extend(&digest.as_bytes()[..16]);
    assert_eq!(file[..96], header);
    assert!(Header::decode(header.as_slice().try_into().unwrap()).is_some());
    let word = |place: usize| u64::from_le_bytes(file[place..place + 8].try_into().unwrap());
    assert_eq!([word(4096), word(4104), word(4112)], [0, 2, 0], "live");
    assert_eq!([word(8192), word(8200), word(8208)], [0, 0, 0], "durable");
    assert_eq!(file[12288 + 65 * 4096..][..4097], [[0xab; 4096].as_slice(), &[0]].concat());
    assert_eq!(file.len(), 12288 + SIZE);
    branch.flush().unwrap();
    assert_eq!(fs::read(&site.path).unwrap()[8200], 2);
    assert_eq!(Layout::of(0).data(), 4096, "a disk of no bytes");
}

#[test]
fn what_was_written_since_it_was_taken_is_told_once() {
    let site = Site::new();
    let branch = site.open(Some(0)).unwrap();
    branch.write(0, &[1; BLOCK_BYTES]).unwrap();
    assert_eq!(branch.take_changed(), [], "nobody asked for it");
    branch.track();
    let at = |block: usize| (block * BLOCK_BYTES) as u64;
    branch.write(at(63) + 100, &[2; BLOCK_BYTES]).unwrap();
    branch.write_zeroes(at(128), 3 * BLOCK_BYTES as u64, false).unwrap();
    // Written before, and again.
    branch.write(0, &[3; 10]).unwrap();
    let ranges = [BlockRange::new(0, 1), BlockRange::new(63, 2), BlockRange::new(128, 3)];
    assert_eq!(branch.take_changed(), ranges);
    assert_eq!(branch.take_changed(), []);
    branch.write(0, &[4; 64 * BLOCK_BYTES]).unwrap();
    branch.write((SIZE - 1) as u64, &[5]).unwrap();
    assert_eq!(branch.take_changed(), [BlockRange::new(0, 64), BlockRange::new(150, 1)]);
}

#[test]
fn a_write_waits_while_writes_are_held_and_fails_once_it_is_sealed() {
    let site = Site::new();
    let branch = Arc::new(site.open(Some(0)).unwrap());
    branch.track();
    let held = branch.hold();
    let (writing, begun) = (Arc::clone(&branch), Arc::new(std::sync::Barrier::new(2)));
    let began = Arc::clone(&begun);
    let writer = std::thread::spawn(move || {
        began.wait();
        writing.write(0, &[1; BLOCK_BYTES])
    });
    begun.wait();
    for _ in 0..1000 {
        std::thread::yield_now();
    }
    assert_eq!((branch.take_changed(), content(&branch)[0]), (Vec::new(), Known::new().bytes[0]));
    drop(held);
    writer.join().unwrap().unwrap();
    assert_eq!(branch.take_changed(), [BlockRange::new(0, 1)]);
    branch.seal(true);
    assert!(matches!(branch.write(0, &[2; BLOCK_BYTES]), Err(WriteError::Sealed { .. })));
    assert_eq!((branch.take_changed(), content(&branch)[0]), (Vec::new(), 1));
    branch.seal(false);
    branch.write(0, &[2; BLOCK_BYTES]).unwrap();
}
