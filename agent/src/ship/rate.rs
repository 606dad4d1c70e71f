//! The send rate limit: a token bucket, without a clock.
//!
//! Owns the arithmetic. Invariant: over any stretch of time, at most `rate * time + burst` bytes are let through, plus one
//! frame. A rate of zero means no limit.

use std::time::Duration;

/// Longest stretch that may be caught up at once.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket that may go into debt, so that frames larger than the burst get through too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    bytes_per_second: u64,
    /// Bytes that may be sent now; negative: debt.
    credit: i64,
    filled_at: Duration,
}

impl Bucket {
    /// Sets the rate. What was saved up under another rate is kept within the new burst.
    pub fn set_rate(&mut self, bytes_per_second: u64, now: Duration) {
        if self.bytes_per_second != bytes_per_second {
            *self = Self { bytes_per_second, credit: 0, filled_at: now };
        }
    }

    /// Takes the bytes and says how long to wait before sending them.
    pub fn take(&mut self, bytes: usize, now: Duration) -> Duration {
        if self.bytes_per_second == 0 {
            return Duration::ZERO;
        }
        let elapsed = now.saturating_sub(self.filled_at);
        self.filled_at = now;
        let burst = self.bytes_in(BURST);
        self.credit = self.credit.saturating_add(self.bytes_in(elapsed)).min(burst);
        self.credit = self.credit.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        let debt = u128::from(self.credit.min(0).unsigned_abs());
        let micros = debt * 1_000_000 / u128::from(self.bytes_per_second);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn bytes_in(&self, time: Duration) -> i64 {
        let bytes = u128::from(self.bytes_per_second) * time.as_micros() / 1_000_000;
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Bucket;

    #[test]
    fn the_rate_is_kept_over_time() {
        let mut bucket = Bucket::default();
        bucket.set_rate(1_000_000, Duration::ZERO);
        let mut now = Duration::ZERO;
        for _ in 0..1000 {
            now += bucket.take(10_000, now);
        }
        // 10 MB at 1 MB/s.
        assert!((Duration::from_millis(9_990)..=Duration::from_millis(10_010)).contains(&now), "{now:?}");
    }

    #[test]
    fn idle_time_is_not_saved_up_beyond_the_burst() {
        let mut bucket = Bucket::default();
        bucket.set_rate(1_000_000, Duration::ZERO);
        let hour = Duration::from_hours(1);
        assert_eq!(bucket.take(100_000, hour), Duration::ZERO);
        assert_eq!(bucket.take(1_000_000, hour), Duration::from_secs(1));
    }

    #[test]
    fn zero_means_no_limit() {
        assert_eq!(Bucket::default().take(usize::MAX, Duration::ZERO), Duration::ZERO);
    }
}
