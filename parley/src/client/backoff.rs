//! How long to wait before the next attempt: exponential with full jitter, so that clients do not come back together.

use std::time::Duration;

const MAX_MS: u64 = 10_000;

/// Counts attempts. The random numbers are handed in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next delay. `patient`: the server asked for a pause. `random` is any number.
    pub(crate) fn next(&mut self, patient: bool, random: u64) -> Duration {
        let first_ms: u64 = if patient { 1_000 } else { 50 };
        let ceiling_ms = first_ms.saturating_mul(1 << self.attempts.min(10)).min(MAX_MS);
        self.attempts = self.attempts.saturating_add(1);
        let floor_ms = if patient { ceiling_ms / 2 } else { 0 };
        Duration::from_millis(floor_ms + random % (ceiling_ms - floor_ms + 1))
    }

    /// The connection stood: start again from the shortest delay.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_rise_to_a_ceiling_and_never_above_it() {
        let mut backoff = Backoff::default();
        // A random number of one below the span's length gives the longest delay.
        let longest: Vec<u64> = (0..10)
            .map(|step| {
                let ceiling_ms = (50 << step).min(MAX_MS);
                u64::try_from(backoff.next(false, ceiling_ms).as_millis()).expect("small")
            })
            .collect();
        assert_eq!(longest, [50, 100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        backoff.reset();
        assert_eq!(backoff.next(false, 50), Duration::from_millis(50));
    }

    #[test]
    fn a_server_that_asks_for_a_pause_gets_one() {
        for random in [0, 1, 499, u64::MAX] {
            assert!(Backoff::default().next(true, random) >= Duration::from_millis(500));
        }
    }
}
