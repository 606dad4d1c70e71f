//! Which stored data is checked next, and how fast.
//!
//! Owns the rules: what is new is verified before old data is scrubbed, logs take turns, a pass over everything ends within
//! its period. Pure: facts in, a piece of work out. Does not know files or threads.
//! Invariant: as long as something is due there is work; a log is never scrubbed while it has new data to verify.
//! Limit: a piece of work has at most [`SCRUB_STEP_FRAMES`] frames or one interval.

use holdfast_common::{
    clock::Timestamp,
    ids::{DiskId, Sequence},
};

use crate::store::CheckRecord;

/// Frames of one step of a scrub; the position is kept between two.
pub const SCRUB_STEP_FRAMES: u64 = 4096;

/// Rates and periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckPolicy {
    /// Days in which everything is read once.
    pub scrub_days: u32,
    /// A scrub is never slower than this.
    pub scrub_bytes_per_second_min: u64,
    /// New data is verified at this rate, and so is a pass that an operator asked for; zero: as fast as it goes.
    pub verify_bytes_per_second: u64,
}

/// What is known of one log.
#[derive(Clone, Copy, Debug)]
pub struct LogFacts {
    /// The disk.
    pub disk: DiskId,
    /// How far it was checked.
    pub record: CheckRecord,
    /// The first cut that was not verified, if there is one.
    pub next_cut: Option<Sequence>,
    /// Last durable frame.
    pub durable: Sequence,
    /// When it had its last turn; anything that grows.
    pub turn: u64,
}

/// A piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckWork {
    /// What a cut needs and those before it do not.
    Verify {
        /// The log.
        disk: DiskId,
        /// Cut up to which all is verified.
        after: Sequence,
        /// The cut.
        cut: Sequence,
    },
    /// A pass is due: it begins.
    BeginPass {
        /// The log.
        disk: DiskId,
    },
    /// The next frames of a pass.
    Scrub {
        /// The log.
        disk: DiskId,
        /// Frames up to here were read.
        after: Sequence,
        /// Read up to here.
        up_to: Sequence,
        /// Whether an operator waits for it.
        asked: bool,
    },
}

impl CheckPolicy {
    /// The period of a scrub in microseconds.
    #[must_use]
    pub const fn period_us(&self) -> i64 {
        self.scrub_days as i64 * 86_400_000_000
    }

    /// The rate at which a store of this size is scrubbed. An eighth more than needed: what restarts and other work took is
    /// made up for.
    #[must_use]
    pub fn scrub_rate(&self, store_bytes: u64) -> u64 {
        let seconds = u64::from(self.scrub_days.max(1)) * 86_400;
        (store_bytes / seconds * 9 / 8).max(self.scrub_bytes_per_second_min)
    }

    /// The rate of a piece of work; `None` if it has no bound.
    #[must_use]
    pub fn rate(&self, work: &CheckWork, store_bytes: u64) -> Option<u64> {
        let rate = match work {
            CheckWork::Scrub { asked: false, .. } => self.scrub_rate(store_bytes),
            _ => self.verify_bytes_per_second,
        };
        (rate > 0).then_some(rate)
    }

    /// What is to be done now.
    #[must_use]
    pub fn next(&self, logs: &[LogFacts], now: Timestamp) -> Option<CheckWork> {
        let first = |of: &dyn Fn(&LogFacts) -> Option<CheckWork>| {
            let able = logs.iter().filter_map(|facts| Some((facts.turn, of(facts)?)));
            able.min_by_key(|(turn, _)| *turn).map(|(_, work)| work)
        };
        first(&verify).or_else(|| first(&go_on)).or_else(|| {
            first(&|facts| {
                let due = facts.record.due_us(self.period_us()) <= now.0 && facts.durable > Sequence(0);
                due.then_some(CheckWork::BeginPass { disk: facts.disk })
            })
        })
    }
}

fn verify(facts: &LogFacts) -> Option<CheckWork> {
    let after = Sequence(facts.record.verified_to);
    Some(CheckWork::Verify { disk: facts.disk, after, cut: facts.next_cut? })
}

fn go_on(facts: &LogFacts) -> Option<CheckWork> {
    let pass = facts.record.pass?;
    let up_to = pass.up_to.min(pass.position.saturating_add(SCRUB_STEP_FRAMES));
    let (after, up_to) = (Sequence(pass.position), Sequence(up_to));
    Some(CheckWork::Scrub { disk: facts.disk, after, up_to, asked: pass.asked })
}

#[cfg(test)]
mod tests {
    use holdfast_common::{
        clock::Timestamp,
        ids::{DiskId, Sequence},
    };

    use super::{CheckPolicy, CheckWork, LogFacts, SCRUB_STEP_FRAMES};
    use crate::store::CheckRecord;

    const DAY_US: i64 = 86_400_000_000;

    fn policy() -> CheckPolicy {
        CheckPolicy { scrub_days: 7, scrub_bytes_per_second_min: 1000, verify_bytes_per_second: 9000 }
    }

    fn facts(disk: u8, next_cut: Option<u64>, turn: u64) -> LogFacts {
        LogFacts {
            disk: DiskId::from_bytes([disk; 16]),
            record: CheckRecord::default(),
            next_cut: next_cut.map(Sequence),
            durable: Sequence(10_000),
            turn,
        }
    }

    #[test]
    fn new_data_comes_first_and_logs_take_turns() {
        let mut logs = [facts(1, Some(50), 9), facts(2, Some(70), 3), facts(3, None, 0)];
        logs[2].record.begin_pass(Sequence(10_000), Timestamp(0), false);
        let work = policy().next(&logs, Timestamp(0));
        let second = CheckWork::Verify { disk: logs[1].disk, after: Sequence(0), cut: Sequence(70) };
        assert_eq!(work, Some(second));
        logs[0].next_cut = None;
        logs[1].next_cut = None;
        let work = policy().next(&logs, Timestamp(0));
        let step = CheckWork::Scrub {
            disk: logs[2].disk,
            after: Sequence(0),
            up_to: Sequence(SCRUB_STEP_FRAMES),
            asked: false,
        };
        assert_eq!(work, Some(step));
    }

    #[test]
    fn a_pass_begins_when_its_period_is_over_and_then_nothing_is_left() {
        let mut log = facts(1, None, 0);
        assert_eq!(policy().next(&[log], Timestamp(7 * DAY_US - 1)), None);
        let now = Timestamp(7 * DAY_US);
        assert_eq!(policy().next(&[log], now), Some(CheckWork::BeginPass { disk: log.disk }));
        log.record.begin_pass(log.durable, now, false);
        let mut steps = 0;
        while let Some(CheckWork::Scrub { up_to, .. }) = policy().next(&[log], now) {
            log.record.advance_pass(up_to, 1, 0, now);
            steps += 1;
        }
        assert_eq!(steps, 10_000_u64.div_ceil(SCRUB_STEP_FRAMES));
        assert_eq!(policy().next(&[log], now), None);
        assert!(policy().next(&[log], Timestamp(14 * DAY_US)).is_some());
    }

    #[test]
    fn everything_is_read_within_the_period_and_never_slower_than_the_least_rate() {
        let terabyte = 1 << 40;
        assert!(policy().scrub_rate(terabyte) * 7 * 86_400 >= terabyte);
        assert_eq!(policy().scrub_rate(1 << 20), 1000);
        let work = CheckWork::BeginPass { disk: DiskId::from_bytes([1; 16]) };
        assert_eq!(policy().rate(&work, terabyte), Some(9000));
    }
}
