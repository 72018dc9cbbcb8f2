//! How a process of shards ends: a drain with a deadline, or a halt, seen by all shards through a few atomics.

use gateway_core::output::HaltReason;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// After a halt, the other shards have this long to say goodbye to their clients.
const HALT_GRACE_MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Control {
    draining: AtomicBool,
    /// `Now::mono_ms` after which shards end as they are; 0 while there is none.
    deadline: AtomicU64,
    /// 0, or 1 + the reason.
    halt: AtomicU8,
    drained: Box<[AtomicBool]>,
    over: AtomicBool,
}

impl Control {
    pub(crate) fn new(shards: u16) -> Self {
        Self {
            draining: AtomicBool::new(false),
            deadline: AtomicU64::new(0),
            halt: AtomicU8::new(0),
            drained: (0..shards).map(|_| AtomicBool::new(false)).collect(),
            over: AtomicBool::new(false),
        }
    }

    /// Starts the end; an earlier deadline wins.
    pub(crate) fn drain(&self, deadline_ms: u64) {
        let _ = self.deadline.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
            (old == 0 || deadline_ms < old).then_some(deadline_ms)
        });
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn halt(&self, reason: HaltReason, now_ms: u64) {
        let code = match reason {
            HaltReason::Fenced => 1,
            HaltReason::LinkVersion => 2,
        };
        let _ = self.halt.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        self.drain(now_ms + HALT_GRACE_MS);
    }

    pub(crate) fn halted(&self) -> Option<HaltReason> {
        match self.halt.load(Ordering::SeqCst) {
            1 => Some(HaltReason::Fenced),
            2 => Some(HaltReason::LinkVersion),
            _ => None,
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn deadline(&self) -> Option<u64> {
        match self.deadline.load(Ordering::SeqCst) {
            0 => None,
            deadline => Some(deadline),
        }
    }

    pub(crate) fn set_drained(&self, shard: u16, drained: bool) {
        self.drained[usize::from(shard)].store(drained, Ordering::SeqCst);
    }

    /// True when shards end: all are drained at once, or the deadline is over.
    pub(crate) fn is_over(&self, now_ms: u64) -> bool {
        if !self.over.load(Ordering::SeqCst) {
            let late = self.deadline().is_some_and(|deadline| deadline <= now_ms);
            if late || self.all_drained() {
                self.over.store(true, Ordering::SeqCst);
            }
        }
        self.over.load(Ordering::SeqCst)
    }

    /// True when a shard that is about to sleep must look again: a drain began, or it is over.
    pub(crate) fn has_news(&self, knows_of_drain: bool) -> bool {
        if knows_of_drain { self.over.load(Ordering::SeqCst) } else { self.draining.load(Ordering::SeqCst) }
    }

    /// Ends all shards now.
    pub(crate) fn end(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn all_drained(&self) -> bool {
        self.drained.iter().all(|drained| drained.load(Ordering::SeqCst))
    }
}
