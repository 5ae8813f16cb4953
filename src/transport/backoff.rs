//! How long to wait before connecting again. Pure: the caller brings the chance.

use std::time::Duration;

/// Pauses that double from the least to the longest, without a limit of attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failures: 0 }
    }

    /// The pause after one more failure. `chance`, from 0 to 1, takes up to half of it away, so
    /// that two hundred children of a parent do not come back in step.
    pub(crate) fn failed(&mut self, chance: f64) -> Duration {
        let doubled = 2_u32.checked_pow(self.failures).and_then(|by| self.min.checked_mul(by));
        let whole = doubled.unwrap_or(self.max).min(self.max);
        self.failures = self.failures.saturating_add(1);
        whole.mul_f64(1.0 - chance.clamp(0.0, 1.0) / 2.0)
    }

    /// It worked for long enough: the next pause is the least again.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn pauses_double_up_to_the_longest_and_never_end() {
        let mut backoff = Backoff::new(MIN, MAX);
        let pauses: Vec<_> = (0..8).map(|_| backoff.failed(0.0).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        for _ in 0..10_000 {
            assert_eq!(backoff.failed(0.0), MAX);
        }
    }

    #[test]
    fn chance_takes_up_to_half_away() {
        assert_eq!(Backoff::new(MIN, MAX).failed(1.0), MIN / 2);
        assert_eq!(Backoff::new(MIN, MAX).failed(0.5), MIN * 3 / 4);
        assert_eq!(Backoff::new(MIN, MAX).failed(7.0), MIN / 2);
    }

    #[test]
    fn success_starts_over() {
        let mut backoff = Backoff::new(MIN, MAX);
        for _ in 0..5 {
            backoff.failed(0.0);
        }
        backoff.succeeded();
        assert_eq!(backoff.failed(0.0), MIN);
    }
}
