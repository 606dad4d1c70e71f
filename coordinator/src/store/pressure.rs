//! How fast frames are taken when the store is nearly full.
//!
//! Owns the rule. Pure. Invariant: the less is free, the slower; at the reserve nothing is taken, and far above it the rule
//! does not apply. So there is time to act between the warning and the end, and retention is never cut short for space.

use std::time::Duration;

/// Below this many times the reserve, frames are taken more slowly.
pub const SLOW_RESERVES: u64 = 3;
/// Bytes per second where slowing begins.
const RATE_MAX: u64 = 128 << 20;
/// Bytes per second just above the reserve.
const RATE_MIN: u64 = 1 << 20;
/// Longest pause for one group, so that a disk's queue always moves.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Bytes per second that one disk's log takes with so much space free; `None` if it need not be slow.
#[must_use]
pub fn rate(free_bytes: u64, reserve_bytes: u64) -> Option<u64> {
    let slow_below = reserve_bytes.saturating_mul(SLOW_RESERVES);
    if free_bytes >= slow_below || reserve_bytes == 0 {
        return None;
    }
    let left = u128::from(free_bytes.saturating_sub(reserve_bytes));
    let range = u128::from(slow_below - reserve_bytes).max(1);
    // The square: most of the range is only a little slower.
    let rate = u128::from(RATE_MAX) * left * left / (range * range);
    Some(u64::try_from(rate).unwrap_or(RATE_MAX).clamp(RATE_MIN, RATE_MAX))
}

/// How long to wait after a group of so many bytes.
#[must_use]
pub fn pause(bytes: usize, free_bytes: u64, reserve_bytes: u64) -> Duration {
    rate(free_bytes, reserve_bytes)
        .map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate as f64).min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PAUSE_MAX, RATE_MAX, RATE_MIN, pause, rate};

    #[test]
    fn the_less_is_free_the_slower() {
        let reserve = 64 << 20;
        assert_eq!(rate(reserve * 3, reserve), None);
        assert_eq!(rate(u64::MAX, u64::MAX / 2), None);
        assert_eq!(rate(reserve, reserve), Some(RATE_MIN));
        assert_eq!(rate(reserve * 2, reserve), Some(RATE_MAX / 4));
        let mut before = 0;
        for free in (reserve..reserve * 3).step_by(1 << 20) {
            let now = rate(free, reserve).unwrap();
            assert!(now >= before);
            before = now;
        }
        assert_eq!(pause(1 << 20, reserve * 3, reserve), Duration::ZERO);
        assert_eq!(pause(1 << 20, reserve, reserve), Duration::from_secs(1));
        assert_eq!(pause(1 << 30, reserve, reserve), PAUSE_MAX);
        assert_eq!(pause(1 << 30, 0, 0), Duration::ZERO);
    }
}
