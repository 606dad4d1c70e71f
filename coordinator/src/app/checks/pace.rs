//! Holding a rate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use holdfast_common::clock::Clock;

/// Holds a rate: each piece may begin when those before it had their time.
pub(super) struct Pace {
    clock: Arc<dyn Clock>,
    rate: Option<u64>,
    next: Mutex<Duration>,
}

impl Pace {
    pub(super) fn new(clock: Arc<dyn Clock>, rate: Option<u64>) -> Self {
        let next = Mutex::new(clock.monotonic());
        Self { clock, rate, next }
    }

    /// Waits until these bytes have had their time, or until `go_on` gives false; gives what that says. Blocks.
    pub(super) fn wait(&self, bytes: u64, go_on: &dyn Fn() -> bool) -> bool {
        let Some(rate) = self.rate else { return go_on() };
        let micros =
            u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX);
        let until = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            *next += Duration::from_micros(micros);
            *next
        };
        loop {
            let left = until.saturating_sub(self.clock.monotonic());
            if left.is_zero() || !go_on() {
                return go_on();
            }
            std::thread::sleep(left.min(NAP_MAX));
        }
    }
}

/// Longest time without a look at whether to go on.
const NAP_MAX: Duration = Duration::from_millis(100);
