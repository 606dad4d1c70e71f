//! A token bucket: how many bytes may be read now, given how many per second are allowed.
//!
//! Pure: time is handed in. Invariant: over any stretch of time no more is granted than the rate times that stretch
//! plus one burst. Limit: a burst is what [`BURST`] gathers.

use std::time::Duration;

/// Time whose worth of bytes may be saved up.
pub const BURST: Duration = Duration::from_millis(250);

/// A token bucket.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    bytes_per_second: u64,
    /// When the debt of what was granted is paid off.
    free_at: Duration,
}

impl RateLimit {
    /// A limit of this many bytes per second; zero means none.
    #[must_use]
    pub const fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Duration::ZERO }
    }

    /// Changes the rate; debt stays.
    pub const fn set(&mut self, bytes_per_second: u64) {
        self.bytes_per_second = bytes_per_second;
    }

    /// When the next bytes may be read: `now` or later.
    #[must_use]
    pub fn ready_at(&self, now: Duration) -> Duration {
        if self.bytes_per_second == 0 { now } else { self.free_at.max(now) }
    }

    /// Notes that `bytes` are read now.
    pub fn spend(&mut self, now: Duration, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        // Rounded up: many small grants must not add up to more than the rate.
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_second));
        let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_at = self.free_at.max(now.saturating_sub(BURST)).saturating_add(cost);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{BURST, RateLimit};

    proptest! {
        #[test]
        fn grants_no_more_than_the_rate_and_one_burst(
            rate in 1_000_u64..1_000_000_000,
            sizes in prop::collection::vec((1_u64..10_000_000, 0_u64..50), 1..100),
        ) {
            let mut limit = RateLimit::new(rate);
            let mut now = Duration::from_secs(10);
            let start = now;
            let mut granted = 0;
            for (bytes, idle_ms) in sizes {
                now = limit.ready_at(now + Duration::from_millis(idle_ms));
                let allowed = rate as f64 * ((now - start) + BURST).as_secs_f64();
                prop_assert!(granted as f64 <= allowed + 1.0);
                limit.spend(now, bytes);
                granted += bytes;
            }
        }
    }

    #[test]
    fn zero_means_no_limit() {
        let mut limit = RateLimit::new(0);
        limit.spend(Duration::ZERO, u64::MAX);
        assert_eq!(limit.ready_at(Duration::ZERO), Duration::ZERO);
    }
}
