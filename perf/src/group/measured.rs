//! What is measured of one round: how long messages take to the first, the median and the last member, and how many
//! deliveries there were.

use crate::report::{Window, histogram, micros};
use hdrhistogram::Histogram;

/// How long messages take, microseconds, by the time at which they were to be sent.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(crate) first: Histogram<u64>,
    pub(crate) median: Histogram<u64>,
    pub(crate) last: Histogram<u64>,
    pub(crate) ack: Histogram<u64>,
    /// How late the generator itself wrote.
    pub(crate) lag: Histogram<u64>,
}

impl Spread {
    pub(crate) fn new() -> Self {
        let [first, median, last, ack, lag] = std::array::from_fn(|_| histogram());
        Self { first, median, last, ack, lag }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let Self { first, median, last, ack, lag } = self;
        let others = [&other.first, &other.median, &other.last, &other.ack, &other.lag];
        for (own, other) in [first, median, last, ack, lag].into_iter().zip(others) {
            own.add(other).expect("the bounds are the same");
        }
    }
}

/// A round. Deliveries belong to it by the time at which they arrive, latencies by the time of sending.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) window: Window,
    members: u32,
    pub(crate) spread: Spread,
    pub(crate) deliveries: u64,
    /// Messages that reached the last member.
    pub(crate) messages: u64,
    /// Messages that were to be sent.
    pub(crate) offered: u64,
    /// To the last member, since the last line of progress.
    pub(crate) recent: Histogram<u64>,
}

impl Measured {
    pub(crate) fn new(window: Window, members: u32) -> Self {
        Self { window, members, spread: Spread::new(), deliveries: 0, messages: 0, offered: 0, recent: histogram() }
    }

    /// Before any round.
    pub(crate) fn never(members: u32) -> Self {
        Self::new(Window { start_ns: u64::MAX - 1, end_ns: u64::MAX }, members)
    }

    pub(crate) fn sent(&mut self, scheduled_ns: u64, now_ns: u64) {
        if self.window.contains(scheduled_ns) {
            self.offered += 1;
            self.spread.lag.saturating_record(micros(scheduled_ns, now_ns));
        }
    }

    pub(crate) fn acked(&mut self, scheduled_ns: u64, now_ns: u64) {
        if self.window.contains(scheduled_ns) {
            self.spread.ack.saturating_record(micros(scheduled_ns, now_ns));
        }
    }

    /// A message reached its `reached`th member.
    pub(crate) fn reached(&mut self, reached: u32, scheduled_ns: u64, now_ns: u64) {
        let inside = self.window.contains(now_ns);
        self.deliveries += u64::from(inside);
        if reached != 1 && reached != self.members && reached != self.members.div_ceil(2) {
            return;
        }
        let latency = micros(scheduled_ns, now_ns);
        let counts = self.window.contains(scheduled_ns);
        if reached == 1 && counts {
            self.spread.first.saturating_record(latency);
        }
        if reached == self.members.div_ceil(2) && counts {
            self.spread.median.saturating_record(latency);
        }
        if reached == self.members {
            self.recent.saturating_record(latency);
            self.messages += u64::from(inside);
            if counts {
                self.spread.last.saturating_record(latency);
            }
        }
    }

    /// A message that did not reach everybody took at least until now: survivors alone would flatter a server.
    pub(crate) fn never_reached(&mut self, scheduled_ns: u64, now_ns: u64) {
        if self.window.contains(scheduled_ns) {
            self.spread.last.saturating_record(micros(scheduled_ns, now_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_median_and_last_are_told_apart_and_only_what_falls_into_the_window_counts() {
        let ms = 1_000_000;
        let mut measured = Measured::new(Window { start_ns: 1_000 * ms, end_ns: 2_000 * ms }, 5);
        for (sent_ms, counts) in [(900, false), (1_100, true), (1_999, true)] {
            measured.sent(sent_ms * ms, (sent_ms + 1) * ms);
            for reached in 1..=5 {
                measured.reached(reached, sent_ms * ms, (sent_ms + u64::from(reached) * 10) * ms);
            }
            assert_eq!(measured.offered > 0, counts);
        }
        let Spread { first, median, last, lag, .. } = &measured.spread;
        assert_eq!([first.len(), median.len(), last.len(), lag.len()], [2; 4]);
        assert!(first.max() < 10_100 && (30_000..30_100).contains(&median.max()) && last.min() >= 49_000);
        // Of the first message everything came too early, of the last one too late.
        assert_eq!((measured.deliveries, measured.messages, measured.offered), (5, 1, 2));
        measured.never_reached(1_500 * ms, 9_500 * ms);
        assert!(measured.spread.last.max() >= 7_990_000);
    }

    #[test]
    fn a_chat_of_one_has_all_three_at_once() {
        let mut measured = Measured::new(Window { start_ns: 0, end_ns: 100_000 }, 1);
        measured.reached(1, 0, 50_000);
        assert_eq!((measured.spread.first.len(), measured.spread.median.len(), measured.messages), (1, 1, 1));
    }
}
