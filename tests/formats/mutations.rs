//! Every decoder over valid bytes that were changed at random: a short, reproducible stand-in for fuzzing.

use holdfast_common::entropy::{Entropy as _, SeededEntropy};
use holdfast_tests::decoders::DECODERS;

/// Changes per seed and decoder.
const ROUNDS: usize = 300;

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
    for decoder in DECODERS {
        (decoder.decode)(&[]);
        for seed in (decoder.seeds)() {
            (decoder.decode)(&seed);
            for _ in 0..ROUNDS {
                let mut bytes = seed.clone();
                for _ in 0..=entropy.next_u64() % 3 {
                    mutate(&mut bytes, &entropy);
                }
                (decoder.decode)(&bytes);
            }
        }
    }
}

#[test]
fn bytes_of_one_format_are_no_danger_to_another() {
    for seed in DECODERS.iter().flat_map(|decoder| (decoder.seeds)()) {
        for decoder in DECODERS {
            (decoder.decode)(&seed);
        }
    }
}
