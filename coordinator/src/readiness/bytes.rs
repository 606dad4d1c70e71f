//! Bounded reading of a disk that may hold anything.
//!
//! Owns the budget. Invariant: a look at a disk ends, whatever is written on it, because reads fail once the budget is used up.
//! Limits: [`BUDGET_BYTES`] and [`BUDGET_READS`] per look.

use std::{cell::Cell, error::Error, sync::Arc};

use crate::points::view::BlockView;

/// Bytes that one look reads at most: an initramfs or two, and what it takes to find them.
pub const BUDGET_BYTES: u64 = 1 << 30;
/// Reads that one look makes at most.
pub const BUDGET_READS: u64 = 1 << 20;

/// What can be read by offset.
pub trait Source {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset`.
    ///
    /// # Errors
    /// Beyond the end, unreadable, or the budget is used up; the text says which.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String>;

    /// The bytes from `offset`, as an array.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], String>
    where
        Self: Sized,
    {
        let mut buffer = [0; N];
        self.read(offset, &mut buffer)?;
        Ok(buffer)
    }
}

/// What is left of a look's budget.
#[derive(Debug)]
pub struct Budget {
    bytes: Cell<u64>,
    reads: Cell<u64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: Cell::new(BUDGET_BYTES), reads: Cell::new(BUDGET_READS) }
    }
}

impl Budget {
    fn take(&self, bytes: u64) -> Result<(), String> {
        let left = self.bytes.get().checked_sub(bytes).zip(self.reads.get().checked_sub(1));
        let (bytes, reads) =
            left.ok_or("the look was ended: it would have read more than any sound disk needs")?;
        self.bytes.set(bytes);
        self.reads.set(reads);
        Ok(())
    }
}

/// A part of a disk at a point.
#[derive(Clone, Debug)]
pub struct Part {
    view: Arc<dyn BlockView>,
    budget: std::rc::Rc<Budget>,
    start: u64,
    size: u64,
}

impl Part {
    /// A whole disk.
    #[must_use]
    pub fn whole(view: Arc<dyn BlockView>, budget: std::rc::Rc<Budget>) -> Self {
        let size = view.size_bytes();
        Self { view, budget, start: 0, size }
    }

    /// A part of it, cut at its end.
    #[must_use]
    pub fn part(&self, start: u64, size: u64) -> Self {
        let start = start.min(self.size);
        Self { start: self.start + start, size: size.min(self.size - start), ..self.clone() }
    }
}

impl Source for Part {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= self.size);
        end.ok_or("it points beyond its own end")?;
        self.budget.take(buffer.len() as u64)?;
        self.view.read(self.start + offset, buffer).map_err(|error| error.to_string())
    }
}

impl ext4_view::Ext4Read for Part {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        Source::read(self, offset, buffer).map_err(Into::into)
    }
}

impl Source for &[u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), String> {
        let start = usize::try_from(offset).map_err(|_| "it points beyond its own end")?;
        let end = start.checked_add(buffer.len());
        let bytes = end.and_then(|end| self.get(start..end)).ok_or("it points beyond its own end")?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// The units of a text in little-endian UTF-16; an odd byte at its end is none.
pub fn utf16_units(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair))
}

/// A little-endian number of up to eight bytes; zero where there are none.
#[must_use]
pub fn number(bytes: &[u8], range: std::ops::Range<usize>) -> u64 {
    let bytes = bytes.get(range).unwrap_or_default();
    bytes.iter().rev().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
