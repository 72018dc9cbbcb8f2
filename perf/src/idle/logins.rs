//! How fast sessions log in: so many attempts a second, so many at a time, and a refused one again later. Times are
//! handed in.

use crate::schedule::Random;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The first wait after a refusal; it doubles ...
const BACKOFF_NS: u64 = 100_000_000;
/// ... so often.
const DOUBLINGS_MAX: u8 = 7;
/// Attempts of one session, in all about two minutes.
pub(crate) const TRIES_MAX: u8 = 14;

/// The pace.
#[derive(Debug)]
pub(crate) struct Logins {
    sessions: u32,
    window: u32,
    rate: u32,
    begun_ns: u64,
    /// Sessions that were begun at all.
    fresh: u32,
    attempts: u64,
    in_flight: u32,
    retries: BinaryHeap<Reverse<(u64, u32)>>,
    random: Random,
    /// Attempts that failed.
    pub(crate) refused: u64,
}

impl Logins {
    /// `sessions` in all, `window` at a time, `rate` attempts a second, from now on.
    pub(crate) fn new(sessions: u32, window: u32, rate: u32, seed: u64, now_ns: u64) -> Self {
        Self {
            sessions,
            window,
            rate,
            begun_ns: now_ns,
            fresh: 0,
            attempts: 0,
            in_flight: 0,
            retries: BinaryHeap::new(),
            random: Random::new(seed),
            refused: 0,
        }
    }

    /// A session to log in now.
    pub(crate) fn next(&mut self, now_ns: u64) -> Option<u32> {
        let elapsed_ns = u128::from(now_ns.saturating_sub(self.begun_ns));
        let allowed = elapsed_ns * u128::from(self.rate) / 1_000_000_000 + 1;
        if self.in_flight >= self.window || u128::from(self.attempts) >= allowed {
            return None;
        }
        let again =
            self.retries.peek().filter(|Reverse((due_ns, _))| *due_ns <= now_ns).map(|Reverse((_, conn))| *conn);
        let conn = if let Some(conn) = again {
            self.retries.pop();
            conn
        } else if self.fresh < self.sessions {
            self.fresh += 1;
            self.fresh - 1
        } else {
            return None;
        };
        self.attempts += 1;
        self.in_flight += 1;
        Some(conn)
    }

    /// An attempt succeeded.
    pub(crate) fn seated(&mut self) {
        self.in_flight -= 1;
    }

    /// An attempt failed, the `tries`th of its session; it is made again later.
    pub(crate) fn refused(&mut self, conn: u32, tries: u8, now_ns: u64) {
        self.in_flight -= 1;
        self.refused += 1;
        let wait_ns = BACKOFF_NS << tries.saturating_sub(1).min(DOUBLINGS_MAX);
        // Half of it is jitter, so that those who were refused together do not come back together.
        let jitter_ns = u64::from(self.random.below((wait_ns / 2_000) as u32)) * 1_000;
        self.retries.push(Reverse((now_ns + wait_ns / 2 + jitter_ns, conn)));
    }

    /// Nothing is left to begin or to wait for.
    pub(crate) fn is_done(&self) -> bool {
        self.fresh == self.sessions && self.in_flight == 0 && self.retries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn the_window_bounds_what_is_in_flight_and_every_session_comes_once() {
        let mut logins = Logins::new(5, 2, 1_000_000, 1, 0);
        assert_eq!((logins.next(SECOND_NS), logins.next(SECOND_NS), logins.next(SECOND_NS)), (Some(0), Some(1), None));
        let mut order = Vec::new();
        while !logins.is_done() {
            logins.seated();
            order.extend(logins.next(SECOND_NS));
        }
        assert_eq!((order, logins.next(u64::MAX)), (vec![2, 3, 4], None));
    }

    #[test]
    fn the_rate_bounds_attempts_a_second() {
        let mut logins = Logins::new(1_000, 1_000, 100, 1, 7 * SECOND_NS);
        let mut begun = |now_ns| std::iter::from_fn(|| logins.next(now_ns)).count();
        assert_eq!((begun(7 * SECOND_NS), begun(8 * SECOND_NS), begun(8 * SECOND_NS)), (1, 100, 0));
    }

    #[test]
    fn a_refused_session_comes_again_after_a_growing_wait() {
        let mut logins = Logins::new(1, 1, 1_000_000, 1, 0);
        let (mut now_ns, mut waits) = (SECOND_NS, Vec::new());
        for tries in 1..=TRIES_MAX {
            assert_eq!(logins.next(now_ns), Some(0));
            logins.refused(0, tries, now_ns);
            assert!(!logins.is_done());
            let begun_ns = now_ns;
            let again = (1_u64..).map(|step| begun_ns + step * BACKOFF_NS / 10);
            now_ns = again.take(10_000).find(|now_ns| logins.retries.peek().unwrap().0.0 <= *now_ns).unwrap();
            waits.push(now_ns - begun_ns);
        }
        assert!((BACKOFF_NS / 2..=BACKOFF_NS * 11 / 10).contains(&waits[0]), "{waits:?}");
        let longest = BACKOFF_NS << DOUBLINGS_MAX;
        assert!((longest / 2..=longest * 11 / 10).contains(waits.last().unwrap()), "{waits:?}");
        assert!(waits.iter().sum::<u64>() > 40 * SECOND_NS, "{waits:?}");
        assert_eq!(logins.refused, u64::from(TRIES_MAX));
    }
}
