//! The generator: which id comes next, or why none may be given yet. A refused call changes nothing.

use crate::layout::{EPOCH_UNIX_MS, ID_MAX, Id, UNIX_MS_MAX, Worker, first_above, first_of_ms, successor, unix_ms_of};
use std::fmt;

/// How far an id may run ahead of the clock that is handed in, in milliseconds. It absorbs a clock that steps back, and
/// bursts above 4,096 ids a millisecond (some 8 million ids); it bounds by how much an id's time can be too late.
///
/// A mark lies at most this far ahead of the clock too, so a restart under a clock that did not step waits for a millisecond at most.
pub const RUN_AHEAD_MS_MAX: u64 = 2_000;
/// A mark moves by at least this, in milliseconds, unless ids wait for it: it is written a few times a second at most.
pub const RESERVE_STEP_MS_MIN: u64 = RUN_AHEAD_MS_MAX / 8;

/// A new mark is due when less than this is left below the present one.
const RESERVE_LEFT_MS_MIN: u64 = RUN_AHEAD_MS_MAX / 2;

const _: () = assert!(RUN_AHEAD_MS_MAX >= 1_000, "a step of one second back must not stall");
const _: () = assert!(0 < RESERVE_STEP_MS_MIN && RESERVE_STEP_MS_MIN < RESERVE_LEFT_MS_MIN);
// All sums below stay far from overflow once `now` is capped.
const _: () = assert!(UNIX_MS_MAX < u64::MAX / 4);

/// Why no id can be given now. The generator is as it was before the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotYet {
    /// The ids up to the run-ahead bound are used up: repeat the call when the clock shows `unix_ms`.
    NotBefore {
        /// Milliseconds since 1970.
        unix_ms: u64,
    },
    /// The clock is `ms` milliseconds behind a time that it showed before (in this run, in an earlier one, or to the
    /// writer that numbered `above`), more than [`RUN_AHEAD_MS_MAX`]. An operator should look at the clock.
    ClockBehind {
        /// Milliseconds.
        ms: u64,
    },
    /// The next id is not below the reserved mark: store this mark, call [`Generator::reserved`], and repeat.
    Unreserved {
        /// Milliseconds since 1970.
        mark_unix_ms: u64,
    },
    /// The 41 bits of milliseconds are used up, by the clock, the stored mark or `above`. Waiting does not help.
    Exhausted,
}

impl fmt::Display for NotYet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotYet::NotBefore { unix_ms } => write!(f, "no id before millisecond {unix_ms}: all up to it are used"),
            NotYet::ClockBehind { ms } => write!(f, "the clock is {ms} ms behind a time that it already showed"),
            NotYet::Unreserved { mark_unix_ms } => write!(f, "the mark {mark_unix_ms} must be stored first"),
            NotYet::Exhausted => write!(f, "the 41 bits of milliseconds are used up"),
        }
    }
}

impl std::error::Error for NotYet {}

/// Gives the ids of one worker, each above all that it gave before, in this run and in every earlier one.
///
/// Order of calls: [`Generator::restore`] with the mark that the store holds (0 in a new store); then, whenever ids are
/// about to be drawn, [`Generator::reservation_due`], storing what it returns, and [`Generator::reserved`]; then
/// [`Generator::next`] as often as needed. Ids are given only below the reserved mark, so whatever a lost run gave lies
/// below the mark at which the next one starts.
///
/// Two generators with the same worker number must not run at the same time: the store's lock or lease sees to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generator {
    worker: Worker,
    /// The lowest id not given yet, one of this worker's; above `ID_MAX` when there is none.
    next: u64,
    /// Ids name milliseconds below this one.
    mark_unix_ms: u64,
    /// The highest time that is known to have been shown by the clock: of the calls that gave an id, or the mark.
    shown_unix_ms: u64,
}

impl Generator {
    /// A generator that starts at the mark that the store holds, or anywhere when it holds none (0). Nothing is
    /// reserved yet.
    pub fn restore(worker: Worker, mark_unix_ms: u64) -> Generator {
        // One past the last millisecond stands for "exhausted"; a mark above it can only be damaged and ends there too.
        let start = mark_unix_ms.clamp(EPOCH_UNIX_MS, UNIX_MS_MAX + 1);
        Generator { worker, next: first_of_ms(start, worker), mark_unix_ms: start, shown_unix_ms: start }
    }

    /// The worker whose ids these are.
    pub fn worker(&self) -> Worker {
        self.worker
    }

    /// Ids are given for milliseconds below this one.
    pub fn mark_unix_ms(&self) -> u64 {
        self.mark_unix_ms
    }

    /// The mark to store now, if one is due. Ask before drawing ids: a batch that carries the mark along pays nothing.
    pub fn reservation_due(&self, now_unix_ms: u64) -> Option<u64> {
        let mark = mark_for(now_unix_ms);
        let reach = unix_ms_unbounded(self.next).max(now_unix_ms);
        let waits = reach >= self.mark_unix_ms && mark > self.mark_unix_ms;
        let low = self.mark_unix_ms < reach.saturating_add(RESERVE_LEFT_MS_MIN);
        let worth = mark >= self.mark_unix_ms.saturating_add(RESERVE_STEP_MS_MIN);
        (waits || (low && worth)).then_some(mark)
    }

    /// The mark is stored. Call it when the mark is durable; or as soon as it is part of an atomic commit that also
    /// carries the first ids above the old mark, provided that nothing later commits without it and that a failed
    /// commit ends this generator. A lower mark than the present one is ignored.
    pub fn reserved(&mut self, mark_unix_ms: u64) {
        self.mark_unix_ms = self.mark_unix_ms.max(mark_unix_ms.min(UNIX_MS_MAX + 1));
    }

    /// An id above `above` and above all ids given before. `above` is any id, of any worker; 0 when there is none.
    pub fn next(&mut self, now_unix_ms: u64, above: u64) -> Result<Id, NotYet> {
        if now_unix_ms > UNIX_MS_MAX {
            return Err(NotYet::Exhausted);
        }
        let mut candidate = self.next;
        if now_unix_ms >= EPOCH_UNIX_MS {
            candidate = candidate.max(first_of_ms(now_unix_ms, self.worker));
        }
        if candidate <= above {
            if above > ID_MAX {
                return Err(NotYet::Exhausted);
            }
            candidate = first_above(above, self.worker);
        }
        let unix_ms = unix_ms_unbounded(candidate);
        if candidate > ID_MAX || unix_ms > now_unix_ms + RUN_AHEAD_MS_MAX || unix_ms >= self.mark_unix_ms {
            return Err(self.refusal(now_unix_ms, above, candidate));
        }
        self.next = successor(candidate, self.worker);
        self.shown_unix_ms = self.shown_unix_ms.max(now_unix_ms);
        debug_assert!(candidate > above && self.next > candidate);
        Ok(Id(candidate))
    }

    /// Why `candidate` cannot be given; out of the way of the calls that succeed.
    #[cold]
    fn refusal(&self, now_unix_ms: u64, above: u64, candidate: u64) -> NotYet {
        if candidate > ID_MAX {
            return NotYet::Exhausted;
        }
        let shown = self.shown_unix_ms.max(unix_ms_of(above));
        if shown > now_unix_ms + RUN_AHEAD_MS_MAX {
            return NotYet::ClockBehind { ms: shown - now_unix_ms };
        }
        let unix_ms = unix_ms_of(candidate);
        if unix_ms > now_unix_ms + RUN_AHEAD_MS_MAX {
            return NotYet::NotBefore { unix_ms: unix_ms - RUN_AHEAD_MS_MAX };
        }
        NotYet::Unreserved { mark_unix_ms: mark_for(now_unix_ms) }
    }
}

/// The mark that makes room for every id that may be given at `now`: one past the furthest.
fn mark_for(now_unix_ms: u64) -> u64 {
    now_unix_ms.min(UNIX_MS_MAX).saturating_add(RUN_AHEAD_MS_MAX + 1).min(UNIX_MS_MAX + 1)
}

/// Like [`unix_ms_of`], but keeps the bit that says that the 41 bits have overflown.
fn unix_ms_unbounded(id: u64) -> u64 {
    EPOCH_UNIX_MS + (id >> crate::layout::MS_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;
    const W: Worker = Worker::new(5).unwrap();

    fn reserved_at(now: u64) -> Generator {
        let mut ids = Generator::restore(W, 0);
        ids.reserved(ids.reservation_due(now).unwrap());
        ids
    }

    /// Draws ids at `now` until refused; returns their number and the refusal.
    fn exhaust(ids: &mut Generator, now: u64) -> (u64, NotYet) {
        for given in 0..=(RUN_AHEAD_MS_MAX + 1) * 4_096 {
            if let Err(refusal) = ids.next(now, 0) {
                return (given, refusal);
            }
        }
        panic!("more ids than the run-ahead bound allows");
    }

    #[test]
    fn an_id_names_the_millisecond_and_the_worker() {
        let mut ids = reserved_at(NOW);
        let first = ids.next(NOW, 0).unwrap();
        assert_eq!((first.parts().unix_ms, first.parts().worker, first.parts().sequence), (NOW, 5, 0));
        assert_eq!(ids.next(NOW, 0).unwrap().get(), first.get() + 1);
        assert_eq!(ids.next(NOW + 1, 0).unwrap().parts().sequence, 0);
    }

    #[test]
    fn a_burst_runs_ahead_to_the_bound_and_then_waits_one_millisecond() {
        let mut ids = reserved_at(NOW);
        let (given, refusal) = exhaust(&mut ids, NOW);
        assert_eq!(given, (RUN_AHEAD_MS_MAX + 1) * 4_096);
        assert_eq!(refusal, NotYet::NotBefore { unix_ms: NOW + 1 });
        ids.reserved(ids.reservation_due(NOW + 1).unwrap());
        assert_eq!(ids.next(NOW + 1, 0).unwrap().unix_ms(), NOW + 1 + RUN_AHEAD_MS_MAX);
    }

    #[test]
    fn a_step_back_within_the_bound_does_not_stall() {
        let mut ids = reserved_at(NOW);
        let before = ids.next(NOW, 0).unwrap();
        let after = ids.next(NOW - RUN_AHEAD_MS_MAX, 0).unwrap();
        assert_eq!(after.get(), before.get() + 1);
    }

    #[test]
    fn a_step_back_beyond_the_bound_says_by_how_much() {
        let mut ids = reserved_at(NOW);
        ids.next(NOW, 0).unwrap();
        for back in [RUN_AHEAD_MS_MAX + 1, 3_600_000, NOW] {
            let before = ids.clone();
            assert_eq!(ids.next(NOW - back, 0), Err(NotYet::ClockBehind { ms: back }));
            assert_eq!(ids, before);
        }
        assert!(ids.next(NOW, 0).is_ok());
    }

    #[test]
    fn nothing_is_given_before_a_mark_is_stored() {
        let mut ids = Generator::restore(W, 0);
        let mark_unix_ms = NOW + RUN_AHEAD_MS_MAX + 1;
        assert_eq!(ids.next(NOW, 0), Err(NotYet::Unreserved { mark_unix_ms }));
        assert_eq!(ids.reservation_due(NOW), Some(mark_unix_ms));
        ids.reserved(mark_unix_ms);
        assert_eq!(ids.reservation_due(NOW), None);
        assert_eq!(ids.next(NOW, 0).unwrap().unix_ms(), NOW);
    }

    #[test]
    fn ids_stay_below_the_mark() {
        let mut ids = Generator::restore(W, 0);
        ids.reserved(NOW + 2);
        let (given, refusal) = exhaust(&mut ids, NOW);
        assert_eq!((given, refusal), (2 * 4_096, NotYet::Unreserved { mark_unix_ms: NOW + RUN_AHEAD_MS_MAX + 1 }));
        assert_eq!(ids.next(NOW + 2, 0), Err(NotYet::Unreserved { mark_unix_ms: NOW + RUN_AHEAD_MS_MAX + 3 }));
    }

    #[test]
    fn a_mark_never_falls() {
        let mut ids = reserved_at(NOW);
        let mark = ids.mark_unix_ms();
        ids.reserved(mark - 1);
        assert_eq!(ids.mark_unix_ms(), mark);
        assert_eq!(ids.reservation_due(NOW - 3_600_000), None);
    }

    #[test]
    fn a_mark_is_due_when_half_of_it_is_used_and_by_time_alone() {
        let ids = reserved_at(NOW);
        assert_eq!(ids.reservation_due(NOW + RUN_AHEAD_MS_MAX / 2), None);
        let later = NOW + RUN_AHEAD_MS_MAX / 2 + 2;
        assert_eq!(ids.reservation_due(later), Some(later + RUN_AHEAD_MS_MAX + 1));
    }

    #[test]
    fn a_restart_starts_at_the_mark_and_does_not_wait() {
        let mut ids = reserved_at(NOW);
        let last = ids.next(NOW, 0).unwrap();
        let mark = ids.mark_unix_ms();
        let mut ids = Generator::restore(W, mark);
        let now = NOW + 1;
        ids.reserved(ids.reservation_due(now).unwrap());
        let first = ids.next(now, 0).unwrap();
        assert!(first > last);
        assert_eq!((first.unix_ms(), first.parts().sequence), (mark, 0));
    }

    #[test]
    fn a_restart_with_the_clock_far_behind_the_mark_refuses() {
        let mut ids = Generator::restore(W, NOW);
        assert_eq!(ids.next(NOW - 3_600_000, 0), Err(NotYet::ClockBehind { ms: 3_600_000 }));
        assert_eq!(ids.next(NOW - RUN_AHEAD_MS_MAX - 1, 0), Err(NotYet::ClockBehind { ms: RUN_AHEAD_MS_MAX + 1 }));
        let at_the_bound = NOW - RUN_AHEAD_MS_MAX;
        assert_eq!(ids.next(at_the_bound, 0), Err(NotYet::Unreserved { mark_unix_ms: NOW + 1 }));
        assert_eq!(ids.reservation_due(at_the_bound), Some(NOW + 1));
        ids.reserved(NOW + 1);
        assert_eq!(ids.next(at_the_bound, 0).unwrap().unix_ms(), NOW);
    }

    #[test]
    fn above_is_respected_and_stays_respected() {
        let mut ids = reserved_at(NOW);
        let theirs = first_of_ms(NOW + 10, Worker::new(6).unwrap());
        let id = ids.next(NOW, theirs).unwrap();
        assert_eq!((id.unix_ms(), id.parts().sequence), (NOW + 11, 0));
        assert_eq!(ids.next(NOW, 0).unwrap().get(), id.get() + 1);
    }

    #[test]
    fn above_at_and_beyond_the_bound() {
        let mut ids = reserved_at(NOW);
        let last_of_bound = first_of_ms(NOW + RUN_AHEAD_MS_MAX, W) | 4_095;
        assert_eq!(ids.next(NOW, last_of_bound - 1).unwrap().get(), last_of_bound);
        let mut ids = reserved_at(NOW);
        assert_eq!(ids.next(NOW, last_of_bound), Err(NotYet::NotBefore { unix_ms: NOW + 1 }));
        let beyond = first_of_ms(NOW + RUN_AHEAD_MS_MAX + 1, W);
        assert_eq!(ids.next(NOW, beyond), Err(NotYet::ClockBehind { ms: RUN_AHEAD_MS_MAX + 1 }));
        assert_eq!(ids.next(NOW, ID_MAX), Err(NotYet::Exhausted));
        assert_eq!(ids.next(NOW, u64::MAX), Err(NotYet::Exhausted));
        assert_eq!(ids, reserved_at(NOW));
    }

    #[test]
    fn a_clock_before_the_epoch_is_behind() {
        let mut ids = Generator::restore(W, 0);
        assert_eq!(ids.next(0, 0), Err(NotYet::ClockBehind { ms: EPOCH_UNIX_MS }));
        assert_eq!(ids.reservation_due(0), None);
        let just_before = EPOCH_UNIX_MS - 1;
        ids.reserved(ids.reservation_due(just_before).unwrap());
        assert_eq!(ids.next(just_before, 0).unwrap().unix_ms(), EPOCH_UNIX_MS);
    }

    #[test]
    fn the_last_millisecond_is_usable_and_then_time_is_exhausted() {
        let mut ids = reserved_at(UNIX_MS_MAX);
        let (given, refusal) = exhaust(&mut ids, UNIX_MS_MAX);
        assert_eq!((given, refusal), (4_096, NotYet::Exhausted));
        assert_eq!(ids.reservation_due(UNIX_MS_MAX), None);
        assert_eq!(ids.next(UNIX_MS_MAX + 1, 0), Err(NotYet::Exhausted));
        assert_eq!(ids.next(u64::MAX, 0), Err(NotYet::Exhausted));
        assert_eq!(ids.reservation_due(u64::MAX), None);
        assert_eq!(Generator::restore(W, u64::MAX).next(NOW, 0), Err(NotYet::Exhausted));
    }

    #[test]
    fn worker_0_gives_no_id_0_for_above_0() {
        let mut ids = Generator::restore(Worker::new(0).unwrap(), 0);
        ids.reserved(EPOCH_UNIX_MS + 1);
        assert_eq!(ids.next(EPOCH_UNIX_MS, 0).unwrap().get(), 1);
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let text = NotYet::ClockBehind { ms: 3_600_000 }.to_string();
        assert_eq!(text, "the clock is 3600000 ms behind a time that it already showed");
    }
}
