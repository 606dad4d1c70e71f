//! How many failed logins are answered and written down.
//!
//! Owns the counting. Pure: addresses and times in, verdicts out. Does not know tokens.
//! A token has 256 random bits and is not guessed; what is limited is the noise: entries of the audit, and the answers
//! that somebody gets who tries. A good token is never held up, so that nobody can lock operators out on the worst day.
//! Limit: [`FAILURES_MAX`] failures per address and [`WINDOW`], [`ADDRESSES_MAX`] addresses, [`NOTES_MAX`] entries of the
//! audit per [`NOTES_WINDOW`].

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Failures of one address in a window that are answered as such.
pub(crate) const FAILURES_MAX: u32 = 5;
/// How long failures of an address count.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);
/// Addresses that are counted; those that come when all are taken get no answer but "too many".
pub(crate) const ADDRESSES_MAX: usize = 4_096;
/// Entries of the audit that failures and refusals may make in a window.
pub(crate) const NOTES_MAX: u32 = 100;
/// How long entries of the audit count.
pub(crate) const NOTES_WINDOW: Duration = Duration::from_hours(1);

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Say what is wrong; write it into the audit, with the number of failures that were not written since the last
    /// entry, unless there are too many entries.
    Tell {
        /// What to write; nothing if there are too many entries already.
        note: Option<u64>,
    },
    /// Say only that there are too many, and when to try again.
    TooMany {
        /// When.
        retry_after: Duration,
    },
}

/// Counts failures.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    addresses: HashMap<IpAddr, Count>,
    notes: Count,
    unwritten: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    began: Duration,
    count: u32,
}

impl Count {
    /// One more; gives whether it is within `max` of this window.
    const fn add(&mut self, now: Duration, window: Duration, max: u32) -> bool {
        if now.saturating_sub(self.began).as_nanos() >= window.as_nanos() {
            *self = Self { began: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count <= max
    }
}

impl Gate {
    /// Somebody at this address could not prove who it is. `now` is of a clock that never goes back.
    pub(crate) fn failed(&mut self, from: IpAddr, now: Duration) -> Verdict {
        let from = network(from);
        if self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&from) {
            self.addresses.retain(|_, count| now.saturating_sub(count.began) < WINDOW);
        }
        let full = self.addresses.len() >= ADDRESSES_MAX && !self.addresses.contains_key(&from);
        if full {
            self.unwritten = self.unwritten.saturating_add(1);
            return Verdict::TooMany { retry_after: WINDOW };
        }
        let count = self.addresses.entry(from).or_insert(Count { began: now, count: 0 });
        if count.add(now, WINDOW, FAILURES_MAX) {
            return Verdict::Tell { note: self.note(now) };
        }
        let retry_after = WINDOW.saturating_sub(now.saturating_sub(count.began));
        self.unwritten = self.unwritten.saturating_add(1);
        Verdict::TooMany { retry_after }
    }

    /// Whether an entry may be made, and how many were not since the last one.
    pub(crate) fn note(&mut self, now: Duration) -> Option<u64> {
        if self.notes.add(now, NOTES_WINDOW, NOTES_MAX) {
            return Some(std::mem::take(&mut self.unwritten));
        }
        self.unwritten = self.unwritten.saturating_add(1);
        None
    }
}

/// What counts as one address: of IPv6 the first 64 bits, since a host may have all that follow.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests;
