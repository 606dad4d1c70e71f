//! Segments: golden bytes, round trips, torn tails and damage.

use std::fs::File;

use bytes::Bytes;
use holdfast_common::{
    frame::{Extent, Frame, FrameIdentity, FrameSealer},
    ids::{DiskId, Generation, Interval, Sequence},
    units::{BLOCK_BYTES, BlockRange},
};
use tempfile::TempDir;

use super::{
    format::{FormatError, MARK_BYTES, Mark, MarkPlace, SEGMENT_HEADER_BYTES, SegmentHeader, Trailer},
    recovery::{self, Damage, RecoveryPlan},
    segment::{SealedSegment, SegmentError},
    writer::{SegmentWriter, WriteError},
};

const DISK: DiskId = DiskId::from_bytes([0x22; 16]);

fn header() -> SegmentHeader {
    SegmentHeader {
        disk: DISK,
        first_sequence: Sequence(5),
        base_interval: Interval(2),
        base_generation: Generation(1),
    }
}

fn frame(sequence: u64) -> Frame {
    let identity = FrameIdentity {
        disk: DISK,
        generation: Generation(1),
        sequence: Sequence(sequence),
        interval: Interval(3),
    };
    let fill = u8::try_from(sequence % 251).unwrap();
    let extents = [Extent::data(BlockRange::new(sequence, 1)), Extent::zero(BlockRange::new(1000, 7))];
    let bytes = FrameSealer::new(None).unwrap().seal_data(identity, &extents, &[fill; BLOCK_BYTES]).unwrap();
    Frame::verify(bytes).unwrap()
}

/// Frames 5..=12 in groups of two; gives the file's bytes.
fn written(folder: &TempDir, seal: bool) -> Vec<u8> {
    let path = folder.path().join("s");
    let mut writer = SegmentWriter::create(&path, header()).unwrap();
    for first in [5, 7, 9, 11] {
        writer.append_group(&[frame(first), frame(first + 1)]).unwrap();
    }
    if seal {
        writer.seal().unwrap();
        assert_eq!(writer.file_bytes(), std::fs::metadata(&path).unwrap().len());
    }
    std::fs::read(&path).unwrap()
}

fn plan(bytes: &[u8]) -> RecoveryPlan {
    recovery::plan(bytes, DISK, Sequence(5)).unwrap()
}

const FRAME_BYTES: usize = 96 + 32 + BLOCK_BYTES;
const GROUP_BYTES: usize = MARK_BYTES + 2 * FRAME_BYTES;

fn sequences(plan: &RecoveryPlan) -> Vec<u64> {
    (0..plan.tables.entries().len()).map(|at| plan.tables.sequence_at(at).unwrap().0).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_header_mark_and_trailer() {
    let bytes = header().to_bytes();
    let expected = "4853454701000000222222222222222222222222222222220500000000000000\
        020000000000000001000000\
        0000000000000000000000000000000000000000";
    assert_eq!(hex(&bytes[..64]), expected);
    assert_eq!(&bytes[64..], blake3::hash(&bytes[..64]).as_bytes());
    assert_eq!(SegmentHeader::parse(&bytes), Ok(header()));

    let mark = Mark { durable_bytes: 96, durable_sequence: Sequence(4) };
    let bytes = mark.to_bytes(MarkPlace::Group, DISK);
    assert_eq!(hex(&bytes[..32]), "484d524b01000000600000000000000004000000000000000000000000000000");
    let digested = [&bytes[..32], &[0x22; 16]].concat();
    assert_eq!(&bytes[32..], blake3::hash(&digested).as_bytes());
    assert!(Mark::parse(&bytes, DiskId::from_bytes([1; 16])).is_err());

    let trailer = Trailer {
        first_sequence: Sequence(5),
        last_sequence: Sequence(12),
        frame_count: 8,
        entries_offset: 0x100,
        heads_offset: 0x140,
        frame_bytes: 0x900,
        entries_digest: [1; 32],
        heads_digest: [2; 32],
    };
    let bytes = trailer.to_bytes();
    let expected = "48454e440100000005000000000000000c000000000000000800000000000000\
        0001000000000000400100000000000000090000000000000000000000000000";
    assert_eq!(hex(&bytes[..64]), expected);
    assert_eq!(Trailer::parse(&bytes), Ok(trailer));
}

#[test]
fn newer_versions_are_refused_by_number() {
    let mut bytes = header().to_bytes();
    bytes[4] = 2;
    assert_eq!(SegmentHeader::parse(&bytes), Err(FormatError::Newer { what: "segment header", version: 2 }));
    let folder = TempDir::new().unwrap();
    let mut bytes = written(&folder, false);
    bytes[4] = 2;
    let refused = recovery::plan(bytes.as_slice(), DISK, Sequence(5));
    assert!(matches!(refused, Err(SegmentError::Format(FormatError::Newer { .. }))), "{refused:?}");
}

#[test]
fn a_sealed_segment_gives_every_frame_and_head() {
    let folder = TempDir::new().unwrap();
    written(&folder, true);
    let file = File::open(folder.path().join("s")).unwrap();
    let segment = SealedSegment::open(file, DISK, Sequence(5)).unwrap();
    assert!(segment.has_footer());
    assert_eq!(segment.last_sequence(), Some(Sequence(12)));
    for sequence in 5..=12 {
        assert_eq!(segment.read(Sequence(sequence)).unwrap().bytes(), frame(sequence).bytes());
    }
    assert!(matches!(segment.read(Sequence(13)), Err(SegmentError::Missing(_))));
    let heads = segment.tables().unwrap().heads_after(Sequence(9), usize::MAX).unwrap();
    let expected: Vec<_> = (10..=12).map(|sequence| (&frame(sequence)).into()).collect();
    assert_eq!(heads, expected);
    assert_eq!(segment.frame_bytes(), 8 * FRAME_BYTES as u64);
}

#[test]
fn whatever_part_of_the_last_group_is_missing_is_cut_off() {
    let folder = TempDir::new().unwrap();
    let bytes = written(&folder, false);
    let start = SEGMENT_HEADER_BYTES + 3 * GROUP_BYTES;
    for length in start..bytes.len() {
        // Every byte of the small parts, some of the payload.
        let inside = (length - start - MARK_BYTES.min(length - start)) % FRAME_BYTES;
        if inside > 140 && inside < FRAME_BYTES - 2 && length % 509 != 0 {
            continue;
        }
        let plan = plan(&bytes[..length]);
        let whole = length.saturating_sub(start + MARK_BYTES) / FRAME_BYTES;
        assert_eq!(plan.damage, []);
        assert_eq!(plan.last_sequence, Sequence(10 + whole as u64), "{length}");
        let kept = if length < start + MARK_BYTES { start } else { start + MARK_BYTES + whole * FRAME_BYTES };
        assert_eq!(plan.keep_bytes, kept as u64, "{length}");
    }
}

#[test]
fn a_bad_frame_that_was_durable_is_named_and_those_behind_it_stay() {
    let folder = TempDir::new().unwrap();
    let good = written(&folder, false);
    let begin = SEGMENT_HEADER_BYTES + GROUP_BYTES + MARK_BYTES;
    for flipped in [0, 7, 50, 70, 100, 130, 3000, FRAME_BYTES - 1] {
        let mut bytes = good.clone();
        bytes[begin + flipped] ^= 4;
        let plan = plan(&bytes);
        assert_eq!(sequences(&plan), [5, 6, 8, 9, 10, 11, 12], "{flipped}");
        assert_eq!(plan.keep_bytes, bytes.len() as u64);
        let damage = Damage { from: begin as u64, to: (begin + FRAME_BYTES) as u64, lost: Some(7..=7) };
        assert_eq!(plan.damage, [damage]);
    }
}

#[test]
fn a_bad_frame_of_the_last_group_takes_the_rest_of_the_group_with_it() {
    let folder = TempDir::new().unwrap();
    let mut bytes = written(&folder, false);
    let begin = SEGMENT_HEADER_BYTES + 3 * GROUP_BYTES + MARK_BYTES;
    bytes[begin + 200] ^= 1;
    let plan = plan(&bytes);
    assert_eq!((plan.damage.len(), plan.last_sequence, plan.keep_bytes), (0, Sequence(10), begin as u64));
}

#[test]
fn a_bad_mark_or_header_loses_no_frame() {
    let folder = TempDir::new().unwrap();
    let good = written(&folder, false);
    for flipped in [10, 80, SEGMENT_HEADER_BYTES + GROUP_BYTES + 20] {
        let mut bytes = good.clone();
        bytes[flipped] ^= 1;
        let plan = plan(&bytes);
        assert_eq!(sequences(&plan), [5, 6, 7, 8, 9, 10, 11, 12], "{flipped}");
        assert!(matches!(plan.damage.as_slice(), [Damage { lost: None, .. }]), "{:?}", plan.damage);
    }
}

#[test]
fn an_interrupted_footer_is_cut_off() {
    let folder = TempDir::new().unwrap();
    let unsealed = written(&folder, false);
    let sealed = written(&folder, true);
    for length in [unsealed.len() + 1, unsealed.len() + 70, sealed.len() - 1] {
        let plan = plan(&sealed[..length]);
        assert_eq!((plan.keep_bytes, plan.damage.len()), (unsealed.len() as u64, 0), "{length}");
        assert_eq!(plan.last_sequence, Sequence(12));
    }
}

#[test]
fn recovery_applied_goes_on_where_it_stopped() {
    let folder = TempDir::new().unwrap();
    let bytes = written(&folder, false);
    let path = folder.path().join("s");
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let plan = recovery::plan(&file, DISK, Sequence(5)).unwrap();
    recovery::apply(&file, &plan).unwrap();
    assert_eq!(recovery::plan(&file, DISK, Sequence(5)).unwrap().torn_bytes(), 0);
    let mut writer = SegmentWriter::resume(file, header(), plan);
    writer.append_group(&[frame(12), frame(13)]).unwrap();
    writer.seal().unwrap();
    let segment = SealedSegment::open(File::open(&path).unwrap(), DISK, Sequence(5)).unwrap();
    for sequence in 5..=13 {
        assert_eq!(segment.read(Sequence(sequence)).unwrap().bytes(), frame(sequence).bytes());
    }
}

#[test]
fn a_damaged_footer_is_replaced_by_the_frames() {
    let folder = TempDir::new().unwrap();
    let bytes = written(&folder, true);
    let footer = written(&folder, false).len();
    for flipped in
        [footer + 3, footer + MARK_BYTES + 5, footer + MARK_BYTES + 70, bytes.len() - 1, bytes.len() - 100]
    {
        let mut bytes = bytes.clone();
        bytes[flipped] ^= 1;
        let path = folder.path().join("damaged");
        std::fs::write(&path, &bytes).unwrap();
        let segment = SealedSegment::open(File::open(&path).unwrap(), DISK, Sequence(5)).unwrap();
        let heads = segment.tables().unwrap().heads_after(Sequence(0), usize::MAX).unwrap();
        assert_eq!(heads.len(), 8, "{flipped}");
        assert_eq!(segment.read(Sequence(12)).unwrap().bytes(), frame(12).bytes());
    }
}

#[test]
fn memory_of_other_heads_is_no_matter_to_those_of_a_footer() {
    let folder = TempDir::new().unwrap();
    let mut bytes = written(&folder, true);
    // The frames themselves would show seven.
    bytes[SEGMENT_HEADER_BYTES + MARK_BYTES + FRAME_BYTES - 1] ^= 1;
    let path = folder.path().join("damaged");
    std::fs::write(&path, &bytes).unwrap();
    let segment = SealedSegment::open(File::open(&path).unwrap(), DISK, Sequence(5)).unwrap();
    for spare in [Vec::new(), vec![0xee; 3], vec![0xee; 1 << 20]] {
        let tables = segment.tables_into(spare).unwrap();
        assert_eq!(tables.heads_after(Sequence(0), usize::MAX).unwrap().len(), 8);
    }
}

#[test]
fn a_segment_of_another_disk_inside_the_payload_is_never_taken_for_ours() {
    // A protected machine may itself hold a journal. Damage in front of such a payload must not make its frames, marks
    // or footers count.
    let folder = TempDir::new().unwrap();
    let nested = written(&folder, true);
    let other = DiskId::from_bytes([0x33; 16]);
    let blocks = nested.len().div_ceil(BLOCK_BYTES);
    let mut plain = nested;
    plain.resize(blocks * BLOCK_BYTES, 0);
    let seal = |sequence| {
        let identity = FrameIdentity {
            disk: other,
            generation: Generation(1),
            sequence: Sequence(sequence),
            interval: Interval(1),
        };
        let extents = [Extent::data(BlockRange::new(0, blocks as u64))];
        Frame::verify(FrameSealer::new(None).unwrap().seal_data(identity, &extents, &plain).unwrap()).unwrap()
    };
    let path = folder.path().join("outer");
    let header = SegmentHeader { disk: other, first_sequence: Sequence(1), ..header() };
    let mut writer = SegmentWriter::create(&path, header).unwrap();
    for sequence in 1..=3 {
        writer.append_group(&[seal(sequence)]).unwrap();
    }
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[SEGMENT_HEADER_BYTES + MARK_BYTES + 20] ^= 1;
    let plan = recovery::plan(bytes.as_slice(), other, Sequence(1)).unwrap();
    assert_eq!(sequences(&plan), [2, 3]);
    assert!(matches!(plan.damage.as_slice(), [Damage { lost: Some(lost), .. }] if *lost == (1..=1)));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn damage_anywhere_never_panics_and_never_invents(
        hits in proptest::collection::vec((0usize..40_000, proptest::prelude::any::<u8>()), 0..6),
        cut in 0usize..40_000,
    ) {
        let folder = TempDir::new().unwrap();
        let mut bytes = written(&folder, cut % 2 == 0);
        bytes.truncate(bytes.len().saturating_sub(cut / 3));
        for (at, value) in hits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(plan) = recovery::plan(bytes.as_slice(), DISK, Sequence(5)) {
            for (at, sequence) in sequences(&plan).into_iter().enumerate() {
                let offset = plan.tables.entries()[at].offset as usize;
                let found = Frame::verify(Bytes::copy_from_slice(&bytes[offset..offset + FRAME_BYTES])).unwrap();
                assert_eq!(found.bytes(), frame(sequence).bytes());
            }
            assert!(plan.keep_bytes <= plan.file_bytes);
        }
    }
}

#[test]
fn a_failed_sync_is_final_and_nothing_of_its_group_counts() {
    let folder = TempDir::new().unwrap();
    let bytes = written(&folder, false);
    // The null device takes every write and can sync none.
    let device = File::options().write(true).open("/dev/null").unwrap();
    let mut writer = SegmentWriter::resume(device, header(), plan(&bytes));
    let before = (writer.durable_bytes(), writer.durable_sequence());
    let failed = writer.append_group(&[frame(13)]);
    assert!(matches!(failed, Err(WriteError::Poisoned(_))), "{failed:?}");
    assert!(writer.is_poisoned());
    assert_eq!((writer.durable_bytes(), writer.durable_sequence()), before);
    assert_eq!(writer.tables().read().unwrap().entries().len(), 8);
    // What the kernel dropped would look written if it were tried again.
    assert!(matches!(writer.append_group(&[frame(13)]), Err(WriteError::Unusable)));
    assert!(matches!(writer.seal(), Err(WriteError::Unusable)));
}
