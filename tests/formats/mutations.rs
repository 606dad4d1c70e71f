//! Every decoder over valid bytes that were changed at random: a short, reproducible stand-in for fuzzing.

use holdfast_common::{
    codec,
    entropy::{Entropy as _, SeededEntropy},
    ids::{DiskId, Generation, Interval, Sequence},
    wire,
};
use holdfast_coordinator::journal::{format::SegmentHeader, writer::SegmentWriter};
use holdfast_tests::{
    decoders::DECODERS,
    journal::{DISK, frame, manifest},
};
use tempfile::TempDir;

/// Changes per seed and decoder.
const ROUNDS: usize = 400;

fn seeds() -> Vec<Vec<u8>> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("segment");
    let header = SegmentHeader {
        disk: DISK,
        first_sequence: Sequence(1),
        base_interval: Interval(0),
        base_generation: Generation(0),
    };
    let mut writer = SegmentWriter::create(&path, header).unwrap();
    writer.append_group(&[frame(1), frame(2)]).unwrap();
    writer.append_group(&[frame(10)]).unwrap();
    writer.seal().unwrap();
    let acknowledge = wire::CoordinatorMessage::Acknowledge {
        disk: DiskId::from_bytes([1; 16]),
        sequence: Sequence(u64::MAX),
    };
    let manifest_path = folder.path().join("manifest");
    manifest().store(&manifest_path).unwrap();
    vec![
        Vec::new(),
        frame(1).bytes().to_vec(),
        frame(10).bytes().to_vec(),
        std::fs::read(&path).unwrap(),
        std::fs::read(&manifest_path).unwrap(),
        codec::encode(&acknowledge).unwrap(),
    ]
}

/// Flips, overwrites, cuts, repeats, or splices in a large number.
fn mutate(bytes: &mut Vec<u8>, entropy: &SeededEntropy) {
    let at = usize::try_from(entropy.next_u64() % (bytes.len() as u64 + 1)).unwrap();
    let value = entropy.next_u64();
    match value % 5 {
        0 => bytes.truncate(at),
        1 => bytes.extend_from_within(at..),
        2 => bytes.splice(at..at, [0xff, 0xff, 0xff, 0xff, 0x7f]).for_each(drop),
        3 => bytes.iter_mut().skip(at).take(8).for_each(|byte| *byte = 0xff),
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (value >> 8 & 7)),
    }
}

#[test]
fn no_decoder_panics_on_changed_bytes() {
    let entropy = SeededEntropy::new(20_261_122);
    for seed in seeds() {
        for (_, decode) in DECODERS {
            decode(&seed);
            for _ in 0..ROUNDS {
                let mut bytes = seed.clone();
                for _ in 0..=entropy.next_u64() % 3 {
                    mutate(&mut bytes, &entropy);
                }
                decode(&bytes);
            }
        }
    }
}
