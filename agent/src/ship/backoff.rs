//! How long to wait before the next attempt to connect.
//!
//! Owns the arithmetic; randomness is handed in. Invariant: every pause is between half of its step and the step; steps
//! double from the shortest to the longest.

use std::time::Duration;

use holdfast_common::entropy::Entropy;

/// Doubling pauses with jitter, so that many agents do not come back at the same instant.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    step: Duration,
}

impl Backoff {
    /// Pauses from `shortest` to `longest`.
    #[must_use]
    pub const fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, step: shortest }
    }

    /// The next pause.
    pub fn pause(&mut self, entropy: &dyn Entropy) -> Duration {
        let half = self.step / 2;
        let range = u64::try_from(half.as_micros()).unwrap_or(u64::MAX).saturating_add(1);
        let jitter = Duration::from_micros(entropy.next_u64() % range);
        self.step = self.step.saturating_mul(2).min(self.longest);
        half + jitter
    }

    /// A session went well: begin with the shortest pause again.
    pub const fn reset(&mut self) {
        self.step = self.shortest;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use holdfast_common::entropy::SeededEntropy;

    use super::Backoff;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let entropy = SeededEntropy::new(1);
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        for step in [200, 400, 800, 1000, 1000] {
            let pause = backoff.pause(&entropy);
            let step = Duration::from_millis(step);
            assert!((step / 2..=step).contains(&pause), "{pause:?} for {step:?}");
        }
        backoff.reset();
        assert!(backoff.pause(&entropy) <= Duration::from_millis(200));
    }
}
