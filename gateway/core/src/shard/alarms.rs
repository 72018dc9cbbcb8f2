//! What a shard's timers are for, and how the wheel keeps them: those of connections, of which there are millions, in
//! eight bytes each; the others beside the wheel.

use crate::output::ConnId;
use crate::timers::Timers;
use parley_protocol::ChatId;
use slab::Slab;
use std::collections::VecDeque;

/// Connections of a shard are fewer, so that a slot leaves room for the kind of a timer.
pub(super) const SLOTS_MAX: u32 = 1 << 29;

/// What a timer is for. Whoever is meant checks whether it still holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// The lobby's deadline for a head, then for a session.
    Lobby(ConnId),
    /// Silence, expiry and stalls of a session.
    Watch(ConnId),
    /// A mark is due.
    Mark(ConnId),
    /// What waits beside a stream leaves.
    Beside(ConnId),
    /// A hole had its time.
    Hole(ConnId),
    /// The slow comparison with the head.
    HeadCheck(ConnId),
    /// A chat home's marks may be stored.
    Receipts(ChatId),
    /// A large chat's head may be told.
    Heads(ChatId),
    /// Load a chat home again.
    Reload(ChatId),
    /// Connect the link.
    Link,
    /// Look whether the link is dead; counts the links.
    LinkIdle(u32),
    /// The link is away too long for anybody to wait.
    LinkAway,
    /// Try again what the mesh had no room for.
    Owed,
    /// Go on reading after a nudge to everybody.
    NudgeWalk,
    /// Close what is left of a drain.
    DrainEnd,
}

/// Kinds of timers of a connection, by number.
const OF_CONNS: [fn(ConnId) -> Timer; 6] =
    [Timer::Lobby, Timer::Watch, Timer::Mark, Timer::Beside, Timer::Hole, Timer::HeadCheck];
/// The kind of all others.
const OTHER: u32 = OF_CONNS.len() as u32;
const KIND_SHIFT: u32 = SLOTS_MAX.trailing_zeros();
const _: () = assert!(SLOTS_MAX.is_power_of_two() && OTHER >> (u32::BITS - KIND_SHIFT) == 0);

/// What the wheel keeps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Armed {
    /// The kind, above a connection's slot or the place among the others.
    what: u32,
    generation: u32,
}

/// The timers of a shard.
#[derive(Debug)]
pub(super) struct Alarms {
    wheel: Timers<Armed>,
    others: Slab<Timer>,
}

impl Alarms {
    pub(super) fn new(now_ms: u64) -> Self {
        Self { wheel: Timers::new(now_ms), others: Slab::new() }
    }

    /// Fires `timer` at or after `deadline_ms`, never before it.
    pub(super) fn arm(&mut self, deadline_ms: u64, timer: Timer) {
        let (kind, place, generation) = match timer {
            Timer::Lobby(conn) => (0, conn.slot, conn.generation),
            Timer::Watch(conn) => (1, conn.slot, conn.generation),
            Timer::Mark(conn) => (2, conn.slot, conn.generation),
            Timer::Beside(conn) => (3, conn.slot, conn.generation),
            Timer::Hole(conn) => (4, conn.slot, conn.generation),
            Timer::HeadCheck(conn) => (5, conn.slot, conn.generation),
            other => (OTHER, self.others.insert(other) as u32, 0),
        };
        assert!(place < SLOTS_MAX, "connections, and timers beside theirs, are fewer");
        self.wheel.arm(deadline_ms, Armed { what: kind << KIND_SHIFT | place, generation });
    }

    /// Appends what is due to `due`, in the order of ticks.
    pub(super) fn fire(&mut self, now_ms: u64, due: &mut VecDeque<Armed>) {
        self.wheel.fire(now_ms, due);
    }

    /// What a timer that fired was for; asked once for each.
    pub(super) fn take(&mut self, armed: Armed) -> Timer {
        let (kind, place) = (armed.what >> KIND_SHIFT, armed.what & (SLOTS_MAX - 1));
        match OF_CONNS.get(kind as usize) {
            Some(timer) => timer(ConnId { slot: place, generation: armed.generation }),
            None => self.others.remove(place as usize),
        }
    }

    /// When [`Alarms::fire`] has something to do, if ever.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.wheel.next_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timer_comes_back_as_it_was_armed() {
        assert_eq!(Timers::<Armed>::ENTRY_BYTES, 16);
        let conn = ConnId { slot: SLOTS_MAX - 1, generation: u32::MAX };
        let chat = ChatId(u128::MAX);
        let all = [
            Timer::Lobby(conn),
            Timer::Receipts(chat),
            Timer::Watch(conn),
            Timer::Mark(conn),
            Timer::Heads(ChatId(0)),
            Timer::Beside(conn),
            Timer::Hole(conn),
            Timer::Reload(chat),
            Timer::Link,
            Timer::LinkIdle(7),
            Timer::LinkAway,
            Timer::HeadCheck(conn),
            Timer::Owed,
            Timer::NudgeWalk,
            Timer::DrainEnd,
        ];
        let mut alarms = Alarms::new(0);
        let mut due = VecDeque::new();
        for round in 0..2 {
            all.iter().for_each(|timer| alarms.arm(round * 1_000, *timer));
            alarms.fire(round * 1_000 + 100, &mut due);
            let fired: Vec<Timer> = due.drain(..).map(|armed| alarms.take(armed)).collect();
            assert_eq!(fired, all);
            assert!(alarms.others.is_empty() && alarms.next_ms().is_none());
        }
    }
}
