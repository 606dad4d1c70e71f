//! Makes the digests of changed bytes good again, so that what lies behind them is tested too.
//!
//! Owns the places of digests in each format. Does not know what a valid content is; bytes that do not look like the format
//! are left as they are.

use holdfast_common::{
    frame::{
        FRAME_HEADER_BYTES, FrameHeader,
        header::{FRAME_DIGESTED_HEADER_BYTES, FRAME_MAGIC},
    },
    ids::DiskId,
};
use holdfast_coordinator::{
    index::{
        page,
        run_format::{
            FIRST_BYTES, FIXED_BYTES, FIXED_HEAD_BYTES, RUN_HEADER_BYTES, RUN_VERSION_FIXED, RunHeader,
            fixed_check, fixed_seed,
        },
    },
    journal::format::{FOOTER_MAGIC, MARK_BYTES, MARK_MAGIC, TRAILER_BYTES},
};

/// Replaces what stands at `at`, if it is there.
fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    if let Some(place) = at.checked_add(new.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(new);
    }
}

/// Puts the digest of `from..to` at `at`.
fn digest(bytes: &mut [u8], from: usize, to: usize, at: usize) {
    if let Some(covered) = bytes.get(from..to) {
        let hash = blake3::hash(covered);
        put(bytes, at, hash.as_bytes());
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let eight = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u64::from_le_bytes(*eight)).ok()
}

/// All whole frames in the bytes.
pub fn frames(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(found) = find(bytes, at, &[FRAME_MAGIC]) {
        at = found + frame(bytes, found).unwrap_or(1);
    }
}

fn find(bytes: &[u8], from: usize, magics: &[[u8; 4]]) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let found = rest.windows(4).position(|four| magics.iter().any(|magic| four == magic))?;
    Some(from + found)
}

/// Repairs the frame that begins here, if a whole one does; gives its size.
fn frame(bytes: &mut [u8], at: usize) -> Option<usize> {
    let header = FrameHeader::parse(bytes.get(at..)?).ok()?;
    let whole = bytes.get(at..)?.get(..header.frame_bytes())?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(whole.get(..FRAME_DIGESTED_HEADER_BYTES)?).update(whole.get(FRAME_HEADER_BYTES..)?);
    let hash = hasher.finalize();
    put(bytes, at + FRAME_DIGESTED_HEADER_BYTES, hash.as_bytes());
    Some(header.frame_bytes())
}

/// A segment of `disk`: header, marks, frames, footer.
pub fn segment(bytes: &mut [u8], disk: DiskId) {
    digest(bytes, 0, 64, 64);
    let mut at = 0;
    while let Some(found) = find(bytes, at, &[FRAME_MAGIC, MARK_MAGIC, FOOTER_MAGIC]) {
        at = found + frame(bytes, found).unwrap_or_else(|| mark(bytes, found, disk));
    }
    let Some(trailer) = bytes.len().checked_sub(TRAILER_BYTES) else { return };
    if let (Some(entries), Some(heads)) = (number(bytes, trailer + 32), number(bytes, trailer + 40)) {
        digest(bytes, entries, heads, trailer + 64);
        digest(bytes, heads, trailer, trailer + 96);
    }
    digest(bytes, trailer, trailer + 128, trailer + 128);
}

fn mark(bytes: &mut [u8], at: usize, disk: DiskId) -> usize {
    let Some(covered) = bytes.get(at..at + 32).filter(|covered| !covered.starts_with(&FRAME_MAGIC)) else {
        return 1;
    };
    let mut hasher = blake3::Hasher::new();
    let hash = hasher.update(covered).update(&disk.into_bytes()).finalize();
    put(bytes, at + 32, hash.as_bytes());
    MARK_BYTES
}

/// A disk's manifest.
pub fn manifest(bytes: &mut [u8]) {
    let end = bytes.len();
    digest(bytes, 40, end, 8);
}

/// The checks of pages of 4 KiB.
fn fixed_pages(bytes: &mut [u8], pages_end: usize, header: &RunHeader) {
    let mut start = RUN_HEADER_BYTES;
    let mut number = 0;
    while start < pages_end {
        let end = pages_end.min(start + FIXED_BYTES);
        if let Some(entries) = bytes.get(start + FIXED_HEAD_BYTES..end) {
            let check = fixed_check(&[fixed_seed(number, header.name.to).as_slice(), entries].concat());
            put(bytes, start + 8, &check);
        }
        (start, number) = (end, number + 1);
    }
}

/// The checks of packed pages, each of which ends where the firsts say.
fn packed_pages(bytes: &mut [u8], pages_end: usize, header: &RunHeader) {
    let mut start = RUN_HEADER_BYTES;
    for number in 0..header.page_count() {
        let at = pages_end.saturating_add(usize::try_from(number).unwrap_or(0) * FIRST_BYTES + 8);
        let Some(end) = bytes.get(at..).and_then(|rest| rest.first_chunk()) else { return };
        let end = usize::try_from(u64::from_le_bytes(*end)).unwrap_or(0).saturating_add(RUN_HEADER_BYTES);
        let check = bytes.get(start..end).map(|packed| page::check(number, header.name.to, packed));
        if let Some(check) = check {
            put(bytes, start, &check);
        }
        start = end;
    }
}

/// An index run: pages, firsts, records and header.
pub fn run(bytes: &mut [u8]) {
    digest(bytes, 0, 160, 160);
    let Some(header) = RunHeader::parse(bytes).filter(|header| header.entry_count < 1 << 20) else { return };
    let pages_end = usize::try_from(header.pages_bytes).unwrap_or(0).saturating_add(RUN_HEADER_BYTES);
    if header.version == RUN_VERSION_FIXED {
        fixed_pages(bytes, pages_end, &header);
    } else {
        packed_pages(bytes, pages_end, &header);
    }
    let records = bytes.len().saturating_sub(header.record_bytes as usize);
    digest(bytes, pages_end, records, 64);
    let end = bytes.len();
    digest(bytes, records, end, 96);
    digest(bytes, 0, 160, 160);
}
