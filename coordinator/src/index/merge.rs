//! Newest wins: two sorted sequences of entries become one.
//!
//! Owns the merge. Pure. Invariant: if both inputs ascend without overlaps, so does the output; where both have a block,
//! the newer's entry is what comes out.

use super::{entry::IndexEntry, lookup::IndexError};

/// A stream of entries, ascending.
pub type Entries<'a> = Box<dyn Iterator<Item = Result<IndexEntry, IndexError>> + 'a>;

/// Merges layers, given newest first.
#[must_use]
pub fn merge_all<'a>(layers: Vec<Entries<'a>>) -> Entries<'a> {
    let mut merged: Entries<'a> = Box::new(std::iter::empty());
    for layer in layers.into_iter().rev() {
        merged = Box::new(Merge::new(layer, merged));
    }
    merged
}

/// Merges two streams.
struct Merge<'a> {
    newer: Entries<'a>,
    older: Entries<'a>,
    newer_next: Option<IndexEntry>,
    older_next: Option<IndexEntry>,
    started: bool,
    failed: bool,
}

impl<'a> Merge<'a> {
    fn new(newer: Entries<'a>, older: Entries<'a>) -> Self {
        Self { newer, older, newer_next: None, older_next: None, started: false, failed: false }
    }

    fn step(&mut self) -> Result<Option<IndexEntry>, IndexError> {
        if !self.started {
            self.started = true;
            self.newer_next = self.newer.next().transpose()?;
            self.older_next = self.older.next().transpose()?;
        }
        let (newer, older) = match (self.newer_next, self.older_next) {
            (None, None) => return Ok(None),
            (None, Some(older)) => {
                self.older_next = self.older.next().transpose()?;
                return Ok(Some(older));
            }
            (Some(newer), None) => {
                self.newer_next = self.newer.next().transpose()?;
                return Ok(Some(newer));
            }
            (Some(newer), Some(older)) => (newer, older),
        };
        if older.end() <= newer.start {
            self.older_next = self.older.next().transpose()?;
            return Ok(Some(older));
        }
        if older.start < newer.start {
            self.older_next = Some(older.part(newer.start, older.end()));
            return Ok(Some(older.part(older.start, newer.start)));
        }
        self.uncover(newer.end())?;
        self.newer_next = self.newer.next().transpose()?;
        Ok(Some(newer))
    }

    /// Drops what the older side has in front of `end`.
    fn uncover(&mut self, end: u64) -> Result<(), IndexError> {
        while let Some(older) = self.older_next.filter(|older| older.start < end) {
            self.older_next = if older.end() > end {
                Some(older.part(end, older.end()))
            } else {
                self.older.next().transpose()?
            };
        }
        Ok(())
    }
}

impl Iterator for Merge<'_> {
    type Item = Result<IndexEntry, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.step();
        self.failed = next.is_err();
        next.transpose()
    }
}
