//! Times without points: where they begin and end, and why.
//!
//! Owns the rule. Pure: points and voided cuts in, gaps out; reads no clock.
//! A gap is a time between two neighbouring points that is longer than [`GAP_INTERVALS`] intervals. It is exact: a failover
//! to a time inside loses everything back to its beginning.
//! Limit: as many gaps as points.

use std::time::Duration;

use holdfast_common::clock::Timestamp;

/// Intervals between two points that make a gap.
pub const GAP_INTERVALS: u32 = 3;

/// A time without points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The last cut before it, by the source's clock.
    pub from: Timestamp,
    /// The first cut after it.
    pub to: Timestamp,
    /// Cuts that were voided in it.
    pub voided: usize,
    /// Why the last of them was.
    pub reason: Option<String>,
}

/// A cut that was voided: when (source's clock), and why.
pub type Voided<'a> = (Timestamp, &'a str);

/// The gaps between points, newest first. `cuts` are the instants of complete points, newest first; `voided` in any order.
#[must_use]
pub fn gaps(cuts: &[Timestamp], voided: &[Voided<'_>], interval: Duration) -> Vec<Gap> {
    let longest = interval * GAP_INTERVALS;
    let pairs = cuts.iter().zip(cuts.iter().skip(1));
    let long = pairs.filter(|(newer, older)| newer.since(**older) > longest);
    long.map(|(to, from)| {
        let inside = || voided.iter().filter(|(at, _)| from < at && at < to);
        let last = inside().max_by_key(|(at, _)| *at);
        Gap { from: *from, to: *to, voided: inside().count(), reason: last.map(|(_, why)| (*why).to_owned()) }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_common::clock::Timestamp;

    use super::{Gap, gaps};

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000)
    }

    #[test]
    fn gaps_are_exact_and_say_why() {
        let cuts = [at(200), at(190), at(100), at(70), at(60), at(29)];
        let voided = [(at(120), "the disk was busy"), (at(150), "frozen too long"), (at(65), "not in a gap")];
        let found = gaps(&cuts, &voided, Duration::from_secs(10));
        let reason = Some("frozen too long".to_owned());
        assert_eq!(
            found,
            [
                Gap { from: at(100), to: at(190), voided: 2, reason },
                Gap { from: at(29), to: at(60), voided: 0, reason: None }
            ]
        );
    }

    #[test]
    fn points_in_their_rhythm_and_clocks_that_step_back_make_none() {
        let interval = Duration::from_secs(10);
        assert!(gaps(&[at(40), at(30), at(0)], &[], interval).is_empty());
        assert!(gaps(&[at(40), at(400), at(390)], &[], interval).is_empty());
        assert!(gaps(&[at(1)], &[], interval).is_empty());
    }
}
