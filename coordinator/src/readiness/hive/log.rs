//! Changes of a hive that had not reached its file.
//!
//! Owns the decoding of logs as Windows 8.1 and later write them, and their replay. Windows writes changes into the logs at once
//! and into the hive itself up to an hour later, so the hive of a running Windows is hardly ever whole without them.
//! Invariant: an entry is applied as a whole, after both of its digests were found good, and in the order of its number; at the first
//! gap the replay ends. Logs of older versions (type 1, "DIRT") are not replayed: there a hive lacks something for moments only.
//!
//! Format, after Maxim Suhanov's specification (see [`super`]):
//!
//! ```text
//!   0 base block, 512 bytes, like the hive's, but 28 u32 file type 6
//! 512 entries, each a multiple of 512 bytes:
//!   0 "HvLE"   4 u32 its bytes   12 u32 number   16 u32 bytes of the bins   20 u32 pages
//!  24 u64 Marvin32 of all from 40 on   32 u64 Marvin32 of the first 32 bytes   40 of each page: u32 offset in the bins, u32 bytes
//!   then the pages without gaps
//! ```
//! An entry that is not sound ends the log: behind the newest one lie remnants of older rounds.

use super::{HIVE_BYTES_MAX, State, has_good_sum, word};
use crate::readiness::bytes::number;

const HEAD_BYTES: usize = 40;
const SECTOR_BYTES: usize = 512;
/// File type of a log with entries.
const LOG_TYPE: u64 = 6;
const SEED: u64 = 14_219_357_686_671_994_754;

/// A sound entry.
struct Entry<'a> {
    number: u32,
    bins_bytes: usize,
    pages: Vec<(usize, &'a [u8])>,
}

/// Applies what the logs have from this number on.
pub(super) fn replay(bins: &mut Vec<u8>, from: u32, logs: &[Vec<u8>]) -> State {
    let mut found: Vec<Entry<'_>> = logs.iter().flat_map(|log| entries(log)).collect();
    found.sort_by_key(|entry| entry.number);
    let mut applied = 0;
    let mut expected = from;
    for entry in found {
        if entry.number < expected {
            continue;
        }
        if entry.number > expected {
            let reason = format!("its logs lack change {expected}, behind which there are others");
            return State::Unfinished { reason };
        }
        // Never shorter, so that entries that contradict each other cost the longest once.
        bins.resize(entry.bins_bytes.max(bins.len()), 0);
        for (at, page) in &entry.pages {
            if let Some(place) = bins.get_mut(*at..at + page.len()) {
                place.copy_from_slice(page);
            }
        }
        applied += 1;
        let Some(next) = expected.checked_add(1) else { break };
        expected = next;
    }
    if applied == 0 {
        return State::Unfinished { reason: "its logs do not have the change that it lacks".to_owned() };
    }
    State::Replayed { entries: applied }
}

fn entries(log: &[u8]) -> Vec<Entry<'_>> {
    let mut found = Vec::new();
    if !log.starts_with(b"regf") || number(log, 28..32) != LOG_TYPE || !has_good_sum(log) {
        return found;
    }
    let mut rest = log.get(SECTOR_BYTES..).unwrap_or_default();
    while let Some((entry, bytes)) = entry(rest) {
        found.push(entry);
        rest = rest.get(bytes..).unwrap_or_default();
    }
    found
}

/// The entry at the beginning, and its bytes; `None` if there is none that is sound.
fn entry(bytes: &[u8]) -> Option<(Entry<'_>, usize)> {
    let size = usize::try_from(number(bytes, 4..8)).ok()?;
    let bytes = bytes.get(..size).filter(|bytes| bytes.starts_with(b"HvLE"))?;
    let (head, body) = bytes.split_at_checked(HEAD_BYTES)?;
    let is_sound = size.is_multiple_of(SECTOR_BYTES)
        && marvin(body, SEED) == number(head, 24..32)
        && marvin(head.get(..32)?, SEED) == number(head, 32..40);
    let bins_bytes = usize::try_from(number(head, 16..20)).ok()?;
    if !is_sound || bins_bytes > HIVE_BYTES_MAX || !bins_bytes.is_multiple_of(4096) {
        return None;
    }
    let count = usize::try_from(number(head, 20..24)).ok()?;
    let (references, mut rest) = body.split_at_checked(count.checked_mul(8)?)?;
    let mut pages = Vec::with_capacity(count);
    for reference in references.chunks_exact(8) {
        let place = |at| usize::try_from(word(reference, at)).ok();
        let (at, length) = (place(0)?, place(4)?);
        let (page, after) = rest.split_at_checked(length)?;
        if at.checked_add(length)? > bins_bytes {
            return None;
        }
        pages.push((at, page));
        rest = after;
    }
    Some((Entry { number: word(head, 12), bins_bytes, pages }, size))
}

/// Marvin32, the digest of log entries.
#[must_use]
pub fn marvin(bytes: &[u8], seed: u64) -> u64 {
    let halves = seed.to_le_bytes();
    let (mut low, mut high) = (word(&halves, 0), word(&halves, 4));
    let mut mix = |block: u32| {
        low = low.wrapping_add(block);
        high ^= low;
        low = low.rotate_left(20).wrapping_add(high);
        high = high.rotate_left(9) ^ low;
        low = low.rotate_left(27).wrapping_add(high);
        high = high.rotate_left(19);
        u64::from(high) << 32 | u64::from(low)
    };
    let (blocks, rest) = bytes.as_chunks::<4>();
    for block in blocks {
        mix(u32::from_le_bytes(*block));
    }
    let mut last = [0; 4];
    for (place, byte) in last.iter_mut().zip(rest.iter().chain(&[0x80])) {
        *place = *byte;
    }
    mix(u32::from_le_bytes(last));
    mix(0)
}

#[cfg(test)]
mod tests {
    use super::marvin;

    /// The vectors that .NET's own tests have.
    #[test]
    fn digests_are_those_that_are_published() {
        let seed = 0x004f_b61a_001b_dbcc;
        let vectors: [(&[u8], u64); 6] = [
            (&[], 0x30ed_35c1_00cd_3c7d),
            (&[0xaf], 0x48e7_3fc7_7d75_ddc1),
            (&[0xe7, 0x0f], 0xb5f6_e1fc_485d_bff8),
            (&[0x37, 0xf4, 0x95], 0xf0b0_7c78_9b8c_f7e8),
            (&[0x86, 0x42, 0xdc, 0x59], 0x7008_f2e8_7e9c_f556),
            (&[0xab, 0x42, 0x7e, 0xa8, 0xd1, 0x0f, 0xc7], 0xe118_47e4_f067_8c41),
        ];
        for (bytes, digest) in vectors {
            assert_eq!(marvin(bytes, seed), digest, "{bytes:02x?}");
        }
    }
}
