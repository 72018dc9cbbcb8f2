//! A hashed timer wheel (Varghese and Lauck, SOSP 1987, scheme 6): constant cost to arm, no cancel. Whoever arms a timer
//! checks at its firing whether it still means anything.

use std::collections::VecDeque;

/// Width of a slot: the precision of every timer.
pub const TICK_MS: u64 = 8;
const SLOTS: usize = 8192;
const _: () = assert!(SLOTS.is_power_of_two());

/// Timers of one shard.
#[derive(Debug)]
pub struct Timers<K> {
    slots: Vec<Vec<(u64, K)>>,
    /// One bit a slot that has an entry.
    occupied: Vec<u64>,
    /// All ticks up to here have fired.
    tick: u64,
    len: usize,
}

impl<K> Timers<K> {
    /// An empty wheel at a time.
    pub fn new(now_ms: u64) -> Self {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Self { slots, occupied: vec![0; SLOTS / 64], tick: now_ms / TICK_MS, len: 0 }
    }

    /// Fires `kind` at the first tick at or after `deadline_ms`, never before it.
    pub fn arm(&mut self, deadline_ms: u64, kind: K) {
        let tick = deadline_ms.div_ceil(TICK_MS).max(self.tick + 1);
        // What lies beyond the horizon waits in the farthest slot and is put in again from there.
        let slot = tick.min(self.tick + SLOTS as u64 - 1) as usize % SLOTS;
        self.slots[slot].push((deadline_ms, kind));
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.len += 1;
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
            let slot = next as usize % SLOTS;
            self.occupied[slot / 64] &= !(1 << (slot % 64));
            let mut entries = std::mem::take(&mut self.slots[slot]);
            self.len -= entries.len();
            for (deadline_ms, kind) in entries.drain(..) {
                if deadline_ms.div_ceil(TICK_MS) > next {
                    self.arm(deadline_ms, kind);
                } else {
                    due.push_back(kind);
                }
            }
            if self.slots[slot].is_empty() {
                // Keep the allocation of busy slots, within reason.
                entries.shrink_to(64);
                self.slots[slot] = entries;
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
}
