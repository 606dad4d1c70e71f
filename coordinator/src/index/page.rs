//! A page of a run: up to 512 sorted entries in as few bits as they need.
//!
//! Owns the layout of packed pages, and reading entries of those and of the first version's. Does not know files. Invariants:
//! packing loses nothing; an entry is read without those in front of it; whatever the bytes are, reading them does not panic.
//! Limit: [`PAGE_ENTRIES`] entries; their widths follow from the largest of the page, and are together at most 128 bits.
//!
//! ```text
//! offset size  field (integers are little endian)
//!   0     8    check: the start of the keyed BLAKE3 of the bytes behind it; the key is the page's number (u64), the run's
//!              `to` (u64) and 16 zero bytes
//!   8     2    number of entries, 1 to 512; 512 in every page but the last
//!  10     1    bits of a start, at most 42
//!  11     1    bits of a count, at most 22
//!  12     1    bits of a sequence, at most 48
//!  13     1    bits of a place, at most 16
//!  14     2    zero
//!  16     8    least sequence
//!  24     4    least count
//!  28     2    least place
//!  30     2    zero
//!  32     -    the entries, one behind the other, each from its lowest bit: start less the page's first block; number of blocks
//!              less one, less the least count; sequence less the least; place less the least. A place is 0 for zeroes, else the block
//!              offset in the frame's plain bytes plus one. The last byte is filled up with zeroes.
//!   -    15    zero, so that any entry can be taken out of 16 bytes
//! ```

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32, U64},
};

use holdfast_common::ids::Sequence;

use super::entry::{ENTRY_BYTES, IndexEntry, SEQUENCE_MAX, start_of};

/// Entries in every page but the last.
pub const PAGE_ENTRIES: usize = 512;
/// Size of what stands in front of the entries.
pub const PAGE_HEAD_BYTES: usize = size_of::<RawPageHead>();
/// Size of what stands behind them.
pub const PAGE_TAIL_BYTES: usize = 15;
/// Size of the check.
const CHECK_BYTES: usize = 8;

const START_BITS_MAX: u32 = 42;
const COUNT_BITS_MAX: u32 = 22;
const SEQUENCE_BITS_MAX: u32 = 48;
const PLACE_BITS_MAX: u32 = 16;

/// The head as it lies in the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPageHead {
    check: [u8; CHECK_BYTES],
    entries: U16,
    start_bits: u8,
    count_bits: u8,
    sequence_bits: u8,
    place_bits: u8,
    zero: [u8; 2],
    least_sequence: U64,
    least_count: U32,
    least_place: U16,
    zero_too: [u8; 2],
}

const _: () = assert!(PAGE_HEAD_BYTES == 32);

/// The check of a packed page: of everything behind the check itself.
#[must_use]
pub fn check(number: u64, to: Sequence, page: &[u8]) -> [u8; CHECK_BYTES] {
    let mut key = [0; blake3::KEY_LEN];
    let (place, rest) = key.split_at_mut(8);
    place.copy_from_slice(&number.to_le_bytes());
    rest.split_at_mut(8).0.copy_from_slice(&to.0.to_le_bytes());
    let hash = blake3::keyed_hash(&key, page.get(CHECK_BYTES..).unwrap_or_default());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Whether the check of a packed page is right.
#[must_use]
pub fn is_intact(number: u64, to: Sequence, page: &[u8]) -> bool {
    page.first_chunk() == Some(&check(number, to, page))
}

/// The entries of a page, verified.
#[derive(Clone, Copy, Debug)]
pub enum Page<'a> {
    /// As the first version has them.
    Fixed(&'a [[u8; ENTRY_BYTES]]),
    /// Packed.
    Packed(PackedPage<'a>),
}

impl Page<'_> {
    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Fixed(entries) => entries.len(),
            Self::Packed(page) => page.len,
        }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An entry.
    #[must_use]
    pub fn get(&self, number: usize) -> Option<IndexEntry> {
        match self {
            Self::Fixed(entries) => entries.get(number).map(|bytes| IndexEntry::unpack(*bytes)),
            Self::Packed(page) => page.get(number),
        }
    }

    /// Number of the first entry that ends behind `block`.
    #[must_use]
    pub fn position(&self, block: u64) -> usize {
        // Only the starts are looked at; the entry in front may reach over the block.
        let behind = match self {
            Self::Fixed(entries) => entries.partition_point(|bytes| start_of(bytes) <= block),
            Self::Packed(page) => page.behind(block),
        };
        let before = behind.checked_sub(1).and_then(|at| self.get(at));
        behind - usize::from(before.is_some_and(|entry| entry.end() > block))
    }
}

/// A packed page.
#[derive(Clone, Copy, Debug)]
pub struct PackedPage<'a> {
    bits: &'a [u8],
    len: usize,
    first: u64,
    start_bits: u32,
    low_bits: u32,
    sequence_bits: u32,
    high_bits: u32,
    least_sequence: u64,
    least_count: u64,
    least_place: u64,
}

impl<'a> PackedPage<'a> {
    /// Reads the head of a page whose first block is `first`; `None` if the bytes are none.
    #[must_use]
    pub fn parse(bytes: &'a [u8], first: u64) -> Option<Self> {
        let (head, bits) = RawPageHead::read_from_prefix(bytes).ok()?;
        let len = usize::from(head.entries.get());
        let [start_bits, count_bits, sequence_bits, place_bits] =
            [head.start_bits, head.count_bits, head.sequence_bits, head.place_bits].map(u32::from);
        let page = Self {
            bits,
            len,
            first,
            start_bits,
            low_bits: start_bits + count_bits,
            sequence_bits,
            high_bits: sequence_bits + place_bits,
            least_sequence: head.least_sequence.get(),
            least_count: u64::from(head.least_count.get()),
            least_place: u64::from(head.least_place.get()),
        };
        let fits = (1..=PAGE_ENTRIES).contains(&len)
            && start_bits <= START_BITS_MAX
            && count_bits <= COUNT_BITS_MAX
            && sequence_bits <= SEQUENCE_BITS_MAX
            && place_bits <= PLACE_BITS_MAX
            && first >> START_BITS_MAX == 0
            && page.least_sequence <= SEQUENCE_MAX
            && page.least_count >> COUNT_BITS_MAX == 0
            && bits.len() == (len * page.width()).div_ceil(8) + PAGE_TAIL_BYTES;
        fits.then_some(page)
    }

    /// Bits of an entry.
    const fn width(&self) -> usize {
        (self.low_bits + self.high_bits) as usize
    }

    fn get(&self, number: usize) -> Option<IndexEntry> {
        let low_at = number * self.width();
        let low = self.word(low_at, self.low_bits);
        let high = self.word(low_at + self.low_bits as usize, self.high_bits);
        let place = self.least_place + high.checked_shr(self.sequence_bits).unwrap_or(0);
        let entry = IndexEntry {
            start: self.first + (low & mask(self.start_bits)),
            count: self.least_count + low.checked_shr(self.start_bits).unwrap_or(0) + 1,
            sequence: Sequence(self.least_sequence + (high & mask(self.sequence_bits))),
            plain: place.checked_sub(1).and_then(|plain| u32::try_from(plain).ok()),
        };
        (number < self.len).then_some(entry)
    }

    /// How many entries begin at `block` or in front of it.
    fn behind(&self, block: u64) -> usize {
        let (mut from, mut to) = (0, self.len);
        while from < to {
            let middle = usize::midpoint(from, to);
            if self.first + self.word(middle * self.width(), self.start_bits) <= block {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }

    /// So many bits, at most 64, from a place on.
    fn word(&self, at: usize, bits: u32) -> u64 {
        let bytes = self.bits.get(at / 8..).and_then(<[u8]>::first_chunk::<16>);
        let word = bytes.map_or(0, |bytes| u128::from_le_bytes(*bytes)) >> (at % 8);
        u64::try_from(word & u128::from(mask(bits))).unwrap_or(0)
    }
}

/// So many ones, at most 64.
const fn mask(bits: u32) -> u64 {
    match u64::MAX.checked_shr(64 - bits) {
        Some(mask) => mask,
        None => 0,
    }
}

/// A page that is being filled.
#[derive(Debug)]
pub struct PageBuilder {
    entries: Vec<IndexEntry>,
}

impl Default for PageBuilder {
    fn default() -> Self {
        Self { entries: Vec::with_capacity(PAGE_ENTRIES) }
    }
}

impl PageBuilder {
    /// Adds an entry behind all others.
    pub fn push(&mut self, entry: IndexEntry) {
        self.entries.push(entry);
    }

    /// Whether no more fit.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.entries.len() >= PAGE_ENTRIES
    }

    /// The first block; `None` if there is no entry.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.entries.first().map(|entry| entry.start)
    }

    /// Makes a page of number `number` of the entries, which are forgotten then.
    pub fn finish(&mut self, number: u64, to: Sequence, page: &mut Vec<u8>) {
        page.clear();
        let Some(first) = self.first() else { return };
        let ranges = Ranges::of(&self.entries);
        let start_bits = bits_of(ranges.start - first);
        let count_bits = bits_of(ranges.counts.1 - ranges.counts.0);
        let sequence_bits = bits_of(ranges.sequences.1 - ranges.sequences.0);
        let place_bits = bits_of(ranges.places.1 - ranges.places.0);
        // All of these fit, by the limits of an entry and of a page.
        let byte = |bits: u32| u8::try_from(bits).unwrap_or(u8::MAX);
        let head = RawPageHead {
            check: [0; CHECK_BYTES],
            entries: U16::new(u16::try_from(self.entries.len()).unwrap_or(u16::MAX)),
            start_bits: byte(start_bits),
            count_bits: byte(count_bits),
            sequence_bits: byte(sequence_bits),
            place_bits: byte(place_bits),
            zero: [0; 2],
            least_sequence: U64::new(ranges.sequences.0),
            least_count: U32::new(u32::try_from(ranges.counts.0).unwrap_or(u32::MAX)),
            least_place: U16::new(u16::try_from(ranges.places.0).unwrap_or(u16::MAX)),
            zero_too: [0; 2],
        };
        page.extend_from_slice(head.as_bytes());
        let mut bits = BitWriter { bytes: page, word: 0, filled: 0 };
        for entry in &self.entries {
            let low = (entry.start - first) | ((entry.count - 1 - ranges.counts.0) << start_bits);
            let place = place_of(entry) - ranges.places.0;
            let high = (entry.sequence.0 - ranges.sequences.0) | (place << sequence_bits);
            bits.push(low, start_bits + count_bits);
            bits.push(high, sequence_bits + place_bits);
        }
        bits.finish();
        page.extend_from_slice(&[0; PAGE_TAIL_BYTES]);
        let check = check(number, to, page);
        if let Some(place) = page.first_chunk_mut() {
            *place = check;
        }
        self.entries.clear();
    }
}

/// The last start, and the least and the largest of all else.
struct Ranges {
    start: u64,
    counts: (u64, u64),
    sequences: (u64, u64),
    places: (u64, u64),
}

impl Ranges {
    fn of(entries: &[IndexEntry]) -> Self {
        let all = (u64::MAX, 0);
        let mut ranges = Self { start: 0, counts: all, sequences: all, places: all };
        for entry in entries {
            ranges.start = entry.start;
            widen(&mut ranges.counts, entry.count - 1);
            widen(&mut ranges.sequences, entry.sequence.0);
            widen(&mut ranges.places, place_of(entry));
        }
        ranges
    }
}

fn widen(range: &mut (u64, u64), value: u64) {
    *range = (range.0.min(value), range.1.max(value));
}

fn place_of(entry: &IndexEntry) -> u64 {
    entry.plain.map_or(0, |plain| u64::from(plain & 0x7fff) + 1)
}

const fn bits_of(value: u64) -> u32 {
    u64::BITS - value.leading_zeros()
}

/// Bits one behind the other, each value from its lowest bit.
struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    word: u128,
    filled: u32,
}

impl BitWriter<'_> {
    /// A value below 2^bits; at most 64 bits.
    fn push(&mut self, value: u64, bits: u32) {
        self.word |= u128::from(value) << self.filled;
        self.filled += bits;
        if self.filled >= 64 {
            let word = self.word.to_le_bytes();
            self.bytes.extend_from_slice(word.first_chunk::<8>().map_or(&[], |half| half.as_slice()));
            self.word >>= 64;
            self.filled -= 64;
        }
    }

    fn finish(self) {
        let rest = self.word.to_le_bytes();
        self.bytes.extend_from_slice(rest.get(..self.filled.div_ceil(8) as usize).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
