//! Models of what surrounds the sessions: capture on one side, the store on the other.
//!
//! Owns what the invariants are checked against: what capture made, what the log holds, what was acknowledged.

use std::collections::BTreeMap;

use holdfast_common::ids::{DiskId, Generation, Sequence};

/// One entry of a log: its generation and the number that stands for its content.
pub(crate) type Entry = (Generation, u64);

/// Capture of one disk: numbers frames as the contract with ship asks.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) generation: Generation,
    pub(crate) next: Sequence,
    /// Content of all frames made in this line by this process.
    pub(crate) made: BTreeMap<Sequence, u64>,
}

impl Engine {
    pub(crate) fn new(generation: Generation, durable: Sequence) -> Self {
        Self { generation, next: durable.next(), made: BTreeMap::new() }
    }
}

/// One disk's log: what was appended, and how much of it survives a crash.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Vec<Entry>,
    durable: usize,
    /// What the agent was told is durable.
    promised: BTreeMap<Sequence, u64>,
}

impl Log {
    pub(crate) fn append(&mut self, disk: DiskId, sequence: Sequence, entry: Entry) {
        assert_eq!(sequence.0, self.entries.len() as u64 + 1, "gap in the log of {disk}");
        let last = self.entries.last().map_or(Generation(0), |last| last.0);
        assert!(entry.0 >= last, "an older generation after a newer one in the log of {disk}");
        self.entries.push(entry);
    }

    pub(crate) fn sync(&mut self) -> Sequence {
        self.durable = self.entries.len();
        self.durable()
    }

    pub(crate) fn durable(&self) -> Sequence {
        Sequence(self.durable as u64)
    }

    /// A crash keeps what is durable and `extra` more entries, if there are as many.
    pub(crate) fn crash(&mut self, extra: usize) {
        self.entries.truncate(self.durable + extra);
        self.durable = self.entries.len();
        self.check_promises();
    }

    /// A broken store that forgets durable entries; what was promised of them cannot hold.
    pub(crate) fn roll_back(&mut self, to: usize) {
        self.entries.truncate(to);
        self.durable = self.entries.len();
        self.promised.retain(|sequence, _| sequence.0 <= to as u64);
    }

    /// The agent learned that everything up to here is durable.
    pub(crate) fn promise(&mut self, engine: &Engine, to: Sequence) {
        assert!(to <= self.durable(), "frame {to} was acknowledged, {} are durable", self.durable);
        for (sequence, content) in engine.made.range(..=to) {
            assert_eq!(
                self.get(*sequence),
                Some((engine.generation, *content)),
                "frame {sequence} is another"
            );
            self.promised.insert(*sequence, *content);
        }
    }

    pub(crate) fn check_promises(&self) {
        for (sequence, content) in &self.promised {
            assert_eq!(
                self.get(*sequence).map(|entry| entry.1),
                Some(*content),
                "promised frame {sequence} is gone"
            );
        }
    }

    pub(crate) fn get(&self, sequence: Sequence) -> Option<Entry> {
        self.entries.get(usize::try_from(sequence.0).ok()?.checked_sub(1)?).copied()
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }
}
