//! A hashed timer wheel (Varghese and Lauck, SOSP 1987, scheme 6): constant cost to arm, no cancel. Whoever arms a timer
//! checks at its firing whether it still means anything.

use crate::chunks::Chunks;
use std::collections::VecDeque;

/// Width of a slot: the precision of every timer.
pub const TICK_MS: u64 = 8;
const SLOTS: usize = 8192;
const _: () = assert!(SLOTS.is_power_of_two());
/// Entries keep the low half of their tick. A deadline farther away (198 days) counts as this far.
const AHEAD_TICKS_MAX: u64 = i32::MAX as u64;
/// No entry.
const NONE: u32 = u32::MAX;

/// Timers of one shard. An armed one costs 16 bytes and nothing else; the room of one that fired is used again.
#[derive(Debug)]
pub struct Timers<K> {
    slots: Box<[Slot]>,
    /// One bit a slot that has an entry.
    occupied: Vec<u64>,
    entries: Chunks<Entry<K>>,
    /// The first of the entries that are free.
    free: u32,
    /// Entries that were ever used.
    used: u32,
    /// All ticks up to here have fired.
    tick: u64,
    len: usize,
}

/// The entries of a slot, in the order in which they came.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u32,
    last: u32,
}

const EMPTY: Slot = Slot { first: NONE, last: NONE };

/// An armed timer.
#[derive(Debug, Default)]
struct Entry<K> {
    /// The low half of the tick at which it fires.
    tick: u32,
    /// The next one of its slot, or of those that are free.
    next: u32,
    kind: K,
}

impl<K: Copy + Default> Timers<K> {
    /// What an armed timer costs.
    pub const ENTRY_BYTES: usize = size_of::<Entry<K>>();

    /// An empty wheel at a time.
    pub fn new(now_ms: u64) -> Self {
        Self {
            slots: vec![EMPTY; SLOTS].into_boxed_slice(),
            occupied: vec![0; SLOTS / 64],
            entries: Chunks::new(),
            free: NONE,
            used: 0,
            tick: now_ms / TICK_MS,
            len: 0,
        }
    }

    /// Fires `kind` at the first tick at or after `deadline_ms`, never before it.
    pub fn arm(&mut self, deadline_ms: u64, kind: K) {
        let tick = deadline_ms.div_ceil(TICK_MS).clamp(self.tick + 1, self.tick + AHEAD_TICKS_MAX);
        let index = match self.free {
            NONE => {
                self.used += 1;
                self.used - 1
            }
            free => free,
        };
        let entry = self.entries.entry(index);
        if index == self.free {
            self.free = entry.next;
        }
        *entry = Entry { tick: tick as u32, next: NONE, kind };
        self.len += 1;
        self.put(index, tick);
    }

    /// Appends an entry to the slot of its tick. What lies beyond the horizon waits in the farthest slot and is put in
    /// again from there.
    fn put(&mut self, index: u32, tick: u64) {
        let at = tick.min(self.tick + SLOTS as u64 - 1) as usize % SLOTS;
        let slot = &mut self.slots[at];
        let last = std::mem::replace(&mut slot.last, index);
        if last == NONE {
            slot.first = index;
            self.occupied[at / 64] |= 1 << (at % 64);
        } else {
            self.entries.entry(last).next = index;
        }
    }

    /// Appends what is due to `due`, in the order of ticks.
    pub fn fire(&mut self, now_ms: u64, due: &mut VecDeque<K>) {
        let target = now_ms / TICK_MS;
        while self.tick < target {
            let Some(next) = self.next_tick() else {
                self.tick = target;
                return;
            };
            if next > target {
                self.tick = target;
                return;
            }
            self.tick = next;
            let at = next as usize % SLOTS;
            self.occupied[at / 64] &= !(1 << (at % 64));
            let mut index = std::mem::replace(&mut self.slots[at], EMPTY).first;
            while let Some(entry) = self.entries.get_mut(index) {
                let this = std::mem::replace(&mut index, entry.next);
                let ahead = entry.tick.wrapping_sub(next as u32) as i32;
                if ahead > 0 {
                    entry.next = NONE;
                    self.put(this, next + u64::from(ahead.unsigned_abs()));
                } else {
                    due.push_back(entry.kind);
                    entry.next = std::mem::replace(&mut self.free, this);
                    self.len -= 1;
                }
            }
        }
    }

    /// When [`Timers::fire`] has something to do, if ever.
    pub fn next_ms(&self) -> Option<u64> {
        self.next_tick().map(|tick| tick * TICK_MS)
    }

    /// Armed timers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// No timer is armed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn next_tick(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let first = (self.tick + 1) as usize % SLOTS;
        let words = self.occupied.len();
        // The word of the first slot is looked at twice: its upper bits now, its lower ones last.
        for step in 0..=words {
            let word = (first / 64 + step) % words;
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (first % 64);
            } else if step == words {
                bits &= !(u64::MAX << (first % 64));
            }
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (slot + SLOTS - first) % SLOTS;
                return Some(self.tick + 1 + ahead as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_timer_fires_once_and_never_early() {
        let mut timers = Timers::new(5);
        let deadlines = [5, 6, 13, 100, 1_000, 65_000, 65_536, 70_000, 300_000, 1_000_000];
        deadlines.iter().for_each(|deadline| timers.arm(*deadline, *deadline));
        let mut due = VecDeque::new();
        let mut fired = Vec::new();
        while let Some(now) = timers.next_ms() {
            timers.fire(now, &mut due);
            for deadline in due.drain(..) {
                assert!(now >= deadline && now < deadline.max(5) + 2 * TICK_MS, "{deadline} fired at {now}");
                fired.push(deadline);
            }
        }
        assert_eq!(fired, deadlines);
        assert!(timers.is_empty());
    }

    #[test]
    fn a_long_sleep_fires_everything_that_came_due() {
        let mut timers = Timers::new(0);
        (1..1000).for_each(|n| timers.arm(n * 100, n));
        let mut due = VecDeque::new();
        timers.fire(1_000_000, &mut due);
        assert_eq!(due.len(), 999);
    }

    #[test]
    fn an_armed_timer_costs_little_and_its_room_is_used_again() {
        assert_eq!(Timers::<[u32; 2]>::ENTRY_BYTES, 16);
        let mut timers = Timers::new(0);
        let mut due = VecDeque::new();
        for round in 0..1_000 {
            (0..100).for_each(|n| timers.arm(round * 1_000 + n * 10, n));
            timers.fire((round + 1) * 1_000, &mut due);
            assert!(due.drain(..).eq(0..100), "in the order of their ticks");
        }
        assert_eq!(timers.used, 100);
    }

    #[test]
    fn ticks_may_outgrow_the_half_that_is_kept() {
        let wrap_ms = (u64::from(u32::MAX) + 1) * TICK_MS;
        let mut timers = Timers::new(wrap_ms - 10_000);
        let mut due = VecDeque::new();
        timers.arm(wrap_ms - 5_000, 1);
        timers.arm(wrap_ms + 300_000, 3);
        timers.arm(wrap_ms + 5_000, 2);
        timers.fire(wrap_ms - 5_000 - TICK_MS, &mut due);
        assert!(due.is_empty());
        timers.fire(wrap_ms + 299_000, &mut due);
        assert_eq!(due, [1, 2]);
        timers.fire(wrap_ms + 300_000 + TICK_MS, &mut due);
        assert_eq!((due.len(), timers.len()), (3, 0));
    }
}
