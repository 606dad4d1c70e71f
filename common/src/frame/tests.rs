//! Frames: golden bytes, round trips, and every kind of damage.

use bytes::{Bytes, BytesMut};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::{
    ApplicationFreeze, Compression, Consistency, CutMember, CutMethod, CutMore, CutRecord, Extent, Frame,
    FrameError, FrameHeader, FrameIdentity, FrameKind, FrameSealer, GroupMark, PlainReader, ScanRecord,
    Witness, WitnessBlock, check_in_place,
    header::FRAME_HEADER_BYTES,
    seal::{seal_cut, seal_scan},
    witness_digest,
};
use crate::{
    clock::Timestamp,
    ids::{DiskId, Generation, GroupCutId, GroupId, Interval, MachineId, PointId, Sequence},
    units::{BLOCK_BYTES, BlockIndex, BlockRange},
};

fn identity() -> FrameIdentity {
    FrameIdentity {
        disk: DiskId::from_bytes([0x11; 16]),
        generation: Generation(2),
        sequence: Sequence(3),
        interval: Interval(4),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sample() -> Bytes {
    let extents = [Extent::data(BlockRange::new(5, 1)), Extent::zero(BlockRange::new(9, 100))];
    FrameSealer::new(None).unwrap().seal_data(identity(), &extents, &[7; BLOCK_BYTES]).unwrap()
}

#[test]
fn golden_bytes_of_a_data_frame() {
    let frame = sample();
    let expected_head = "4846524d0100010011111111111111111111111111111111\
        0200000002000000030000000000000004000000000000000010000000100000\
        0000000000000000";
    assert_eq!(hex(&frame[..64]), expected_head);
    let expected_table = "05000000000000000100000000000000\
        09000000000000006400000001000000";
    assert_eq!(hex(&frame[96..128]), expected_table);
    let mut digested = frame[..64].to_vec();
    digested.extend_from_slice(&frame[96..]);
    assert_eq!(&frame[64..96], blake3::hash(&digested).as_bytes());
    assert_eq!(frame.len(), FRAME_HEADER_BYTES + 32 + BLOCK_BYTES);
}

#[test]
fn golden_bytes_of_records() {
    let record = CutRecord {
        point: PointId::from_bytes([1; 16]),
        machine: MachineId::from_bytes([2; 16]),
        at: Timestamp(1_000_000),
        hold_us: 5,
        method: CutMethod::QuietWindow,
        consistency: Consistency::Crash,
        members: vec![CutMember { disk: DiskId::from_bytes([3; 16]), generation: Generation(1) }],
        notes: vec!["n".to_owned()],
        request: Some(9),
        more: CutMore::default(),
    };
    let frame = Frame::verify(seal_cut(identity(), &record).unwrap()).unwrap();
    assert_eq!(
        hex(frame.stored()),
        "1001010101010101010101010101010101100202020202020202020202020202020\
         2fc80841e00050100011003030303030303030303030303030303010101\
         6e0109"
    );
    assert_eq!(frame.cut_record().unwrap(), record);
    let scan = ScanRecord { scanned_to: BlockIndex(300), complete: true };
    let frame = Frame::verify(seal_scan(identity(), &scan).unwrap()).unwrap();
    assert_eq!(hex(frame.stored()), "fb2c0101");
    assert_eq!(frame.scan_record().unwrap(), scan);
    assert_eq!(frame.header().kind, FrameKind::Scan);
}

#[test]
fn golden_bytes_of_what_stands_behind_a_cut_record() {
    let mut record = CutRecord {
        point: PointId::from_bytes([1; 16]),
        machine: MachineId::from_bytes([2; 16]),
        at: Timestamp(1),
        hold_us: 5,
        method: CutMethod::Freeze,
        consistency: Consistency::App,
        members: Vec::new(),
        notes: Vec::new(),
        request: None,
        more: CutMore::default(),
    };
    let plain = record.encode().unwrap();
    record.more.group = Some(GroupMark {
        cut: GroupCutId::from_bytes([4; 16]),
        group: GroupId::from_bytes([5; 16]),
        name: "shop".to_owned(),
        members: vec![MachineId::from_bytes([2; 16]), MachineId::from_bytes([6; 16])],
        since_held_us: 300,
        waited_us: 400,
        spread_us: 7,
    });
    record.more.application =
        Some(ApplicationFreeze { hooks: vec!["10-postgresql".to_owned()], frozen_us: 9 });
    let frame = Frame::verify(seal_cut(identity(), &record).unwrap()).unwrap();
    let (old, more) = frame.stored().split_at(plain.len());
    assert_eq!(old, plain, "what an older record had keeps its bytes");
    assert_eq!(
        hex(more),
        "000110040404040404040404040404040404041005050505050505050505050505050505\
         0473686f70021002020202020202020202020202020202100606060606060606060606060606060\
         6fb2c01fb9001070101\
         0d31302d706f737467726573716c09"
    );
    assert_eq!(frame.cut_record().unwrap(), record);
    let disk = DiskId::from_bytes([7; 16]);
    let block = WitnessBlock { disk, block: BlockIndex(300), digest: [8; 16] };
    record.more = CutMore { witness: Some(Witness { blocks: vec![block] }), ..CutMore::default() };
    let witnessed = record.encode().unwrap();
    assert_eq!(
        hex(&witnessed[plain.len()..]),
        "0100000110070707070707070707070707070707\
         07fb2c0108080808080808080808080808080808"
    );
    assert_eq!(CutRecord::decode(&witnessed).unwrap(), record);
    let mut garbage = plain;
    garbage.push(9);
    assert!(CutRecord::decode(&garbage).is_err(), "a newer form is refused");
}

#[test]
fn golden_digest_of_a_witnessed_block() {
    assert_eq!(hex(&witness_digest(&[0; BLOCK_BYTES])), "b6fb73fc46938c981e2b0b4b1ef282ad");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let frame = sample();
    for position in (0..frame.len()).filter(|at| *at < 160 || at % 97 == 0) {
        let mut bytes = frame.to_vec();
        bytes[position] ^= 0x10;
        assert!(Frame::verify(Bytes::from(bytes)).is_err(), "flip at {position} went unnoticed");
    }
}

#[test]
fn a_frame_that_ends_early_is_torn() {
    let frame = sample();
    for length in [0, 1, 95, 96, 127, 128, frame.len() - 1] {
        let result = Frame::verify(frame.slice(..length));
        assert!(matches!(result, Err(FrameError::Torn { .. })), "{length}: {result:?}");
    }
}

#[test]
fn newer_versions_are_refused_by_number() {
    let mut bytes = sample().to_vec();
    bytes[4] = 9;
    assert_eq!(FrameHeader::parse(&bytes), Err(FrameError::Version(9)));
}

#[test]
fn a_table_out_of_order_is_not_sealed() {
    let extents = [Extent::zero(BlockRange::new(9, 2)), Extent::zero(BlockRange::new(10, 1))];
    let result = FrameSealer::new(None).unwrap().seal_data(identity(), &extents, &[]);
    assert_eq!(result, Err(FrameError::Extent { index: 1 }));
}

#[test]
fn what_does_not_shrink_is_stored_raw() {
    let mut noise = vec![0; BLOCK_BYTES];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let extents = [Extent::data(BlockRange::new(0, 1))];
    let frame = FrameSealer::new(Some(1)).unwrap().seal_data(identity(), &extents, &noise).unwrap();
    assert_eq!(Frame::verify(frame).unwrap().header().compression, Compression::None);
}

#[test]
fn a_payload_of_another_size_than_stated_gives_no_bytes() {
    let seal = |blocks: u64| {
        let extent = Extent::data(BlockRange::new(0, blocks));
        let plain = vec![7; usize::try_from(blocks).unwrap() * BLOCK_BYTES];
        FrameSealer::new(Some(1)).unwrap().seal_data(identity(), &[extent], &plain).unwrap()
    };
    let (front, other) = (FRAME_HEADER_BYTES + 16, seal(2));
    for stated in [1, 3] {
        let mut bytes = seal(stated)[..front].to_vec();
        bytes.extend_from_slice(&other[front..]);
        bytes[52..56].copy_from_slice(&other[52..56]);
        let digest = blake3::hash(&[&bytes[..64], &bytes[FRAME_HEADER_BYTES..]].concat());
        bytes[64..FRAME_HEADER_BYTES].copy_from_slice(digest.as_bytes());
        let frame = Frame::verify(Bytes::from(bytes)).unwrap();
        let mut plain = vec![1; 4 * BLOCK_BYTES];
        assert_eq!(PlainReader::new().read(&frame, &mut plain), Err(FrameError::Payload));
        assert!(plain.is_empty(), "{stated} blocks stated");
        assert_eq!(PlainReader::new().read_to(&frame, &mut [0; 4 * BLOCK_BYTES]), Err(FrameError::Payload));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn plain_bytes_come_back(
        blocks in proptest::collection::vec(any::<(u8, bool)>(), 1..16),
        level in proptest::option::of(-3i32..4),
    ) {
        let mut plain = Vec::new();
        let mut extents = Vec::new();
        for (index, (fill, zero)) in blocks.iter().enumerate() {
            let range = BlockRange::new(index as u64 * 2, 1);
            if *zero {
                extents.push(Extent::zero(range));
            } else {
                extents.push(Extent::data(range));
                plain.extend(std::iter::repeat_n(*fill, BLOCK_BYTES));
            }
        }
        let bytes = FrameSealer::new(level).unwrap().seal_data(identity(), &extents, &plain).unwrap();
        let frame = Frame::verify(bytes).unwrap();
        prop_assert_eq!(frame.extents(), extents.as_slice());
        let mut read = vec![1, 2, 3];
        PlainReader::new().read(&frame, &mut read).unwrap();
        prop_assert!(read == plain);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Frame::verify(Bytes::from(bytes.clone()));
        let _ = check_in_place(&mut bytes.clone());
        let _ = Frame::verify_mut(BytesMut::from(bytes.as_slice()));
    }

    #[test]
    fn all_ways_to_verify_agree_and_leave_the_bytes_alone(
        blocks in 1u64..6, flipped in proptest::option::of((any::<proptest::sample::Index>(), 0u8..8)),
    ) {
        let plain: Vec<u8> = (0..usize::try_from(blocks).unwrap() * BLOCK_BYTES).map(|at| u8::try_from(at / 7 % 251).unwrap()).collect();
        let extents = [Extent::data(BlockRange::new(3, blocks))];
        let sealed = FrameSealer::new(None).unwrap().seal_data(identity(), &extents, &plain).unwrap();
        let mut bytes = sealed.to_vec();
        if let Some((at, bit)) = flipped {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let expected = Frame::verify(Bytes::from(bytes.clone())).map(|frame| *frame.header());
        let owned = Frame::verify_mut(BytesMut::from(bytes.as_slice()));
        prop_assert_eq!(owned.as_ref().map(|frame| *frame.header()), expected.as_ref().copied());
        if let Ok(frame) = owned {
            prop_assert_eq!(frame.bytes(), &bytes);
        }
        let before = bytes.clone();
        // A frame may be followed by others; a table is not looked into here.
        bytes.extend_from_slice(&[7; 50]);
        let checked = check_in_place(&mut bytes);
        if expected.is_ok() {
            prop_assert_eq!(checked, expected);
        } else {
            prop_assert!(checked.is_err());
        }
        prop_assert_eq!(&bytes[..before.len()], before.as_slice());
    }
}
