//! When messages go out: by the clock, or so many in flight. The same for a chat and for its raw baseline.

use crate::schedule::Schedule;
use std::collections::VecDeque;

/// The slot of a refused message is free again after this.
const RETRY_NS: u64 = 100_000_000;

/// What decides when messages go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Messages a second.
    Open { rate: u64 },
    /// Messages in flight in all.
    Closed { window: u32 },
}

/// The pace of one round.
#[derive(Debug)]
pub(crate) struct Pace {
    schedule: Option<Schedule>,
    free: u32,
    retries: VecDeque<u64>,
    sender: u32,
    senders: u32,
}

impl Pace {
    /// From `start_ns` to `end_ns`, by members below `senders`; those of a closed loop take turns.
    pub(crate) fn new(load: Load, start_ns: u64, end_ns: u64, senders: u32, seed: u64) -> Self {
        let (schedule, free) = match load {
            Load::Open { rate } => (Some(Schedule::new(start_ns, end_ns, rate, senders, seed)), 0),
            Load::Closed { window } => (None, window),
        };
        Self { schedule, free, retries: VecDeque::new(), sender: 0, senders }
    }

    /// The next message that is due: its sender, and when it was to be sent.
    pub(crate) fn due(&mut self, now_ns: u64) -> Option<(u32, u64)> {
        if let Some(schedule) = &mut self.schedule {
            return schedule.due(now_ns);
        }
        while self.retries.front().is_some_and(|due_ns| *due_ns <= now_ns) {
            self.retries.pop_front();
            self.free += 1;
        }
        self.free = self.free.checked_sub(1)?;
        self.sender = (self.sender + 1) % self.senders;
        Some((self.sender, now_ns))
    }

    /// A message was acknowledged and has reached everybody.
    pub(crate) fn complete(&mut self) {
        self.free += u32::from(self.schedule.is_none());
    }

    /// A message was refused.
    pub(crate) fn refused(&mut self, now_ns: u64) {
        if self.schedule.is_none() {
            self.retries.push_back(now_ns + RETRY_NS);
        }
    }

    /// When the next message is due, as far as that is known.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        match &self.schedule {
            Some(schedule) => schedule.next_at_ns(),
            None if self.free > 0 => Some(0),
            None => self.retries.front().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_loop_has_so_many_in_flight_and_senders_take_turns() {
        let mut pace = Pace::new(Load::Closed { window: 3 }, 0, 0, 2, 1);
        let senders: Vec<_> = std::iter::from_fn(|| pace.due(7)).collect();
        assert_eq!(senders, [(1, 7), (0, 7), (1, 7)]);
        assert_eq!(pace.next_ns(), None);
        pace.complete();
        assert_eq!((pace.next_ns(), pace.due(8), pace.due(8)), (Some(0), Some((0, 8)), None));
        pace.refused(8);
        assert_eq!((pace.due(9), pace.next_ns()), (None, Some(8 + RETRY_NS)));
        assert_eq!(pace.due(8 + RETRY_NS), Some((1, 8 + RETRY_NS)));
    }

    #[test]
    fn an_open_loop_goes_by_the_clock_whatever_is_complete() {
        let mut pace = Pace::new(Load::Open { rate: 100 }, 1_000, 2_000_000_000, 5, 1);
        pace.complete();
        pace.refused(0);
        assert_eq!((pace.due(999), pace.next_ns()), (None, Some(1_000)));
        assert_eq!(std::iter::from_fn(|| pace.due(u64::MAX)).count(), 200);
    }
}
