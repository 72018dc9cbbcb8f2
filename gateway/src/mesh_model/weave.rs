//! The fabric of the exploration: loom's atomics, and a queue that promises less than crossbeam's.

use super::{Mutation, Rest, is_planted};
use crate::mesh::{Bell, Fabric, Flag, Queue, Side};
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use loom::sync::{Condvar, Mutex};
use std::io;

#[derive(Debug)]
pub(super) struct Modelled;

impl Fabric for Modelled {
    type Flag = ModelFlag;
    type Bell = ModelBell;
    type Queue<T: Send> = ModelQueue<T>;

    fn fence(side: Side) {
        let removed = match side {
            Side::Sleeper => Mutation::SleeperWithoutFence,
            Side::Sender => Mutation::SenderWithoutFence,
        };
        if !is_planted(removed) {
            fence(Ordering::SeqCst);
        }
    }
}

impl Rest for Modelled {
    fn sleep(bell: &ModelBell) {
        let mut count = bell.count.lock().expect("no panic inside");
        while *count == 0 {
            count = bell.rung.wait(count).expect("no panic inside");
        }
        *count = 0;
    }

    fn pause() {
        loom::thread::yield_now();
    }
}

/// All of it relaxed, where what ships is sequentially consistent: the mesh must need nothing but its fences and that a
/// `take` is atomic. `set` is a swap whose result is thrown away, since loom does not know that what a swap writes
/// follows at once on what it read: with a plain store it would let an old `take` undo a later `set`, which C11 forbids
/// (intro.races, modification order and atomicity of read-modify-write). A relaxed swap adds no ordering of its own.
#[derive(Debug)]
pub(super) struct ModelFlag(AtomicBool);

impl Flag for ModelFlag {
    fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn set(&self, value: bool) {
        self.0.swap(value, Ordering::Relaxed);
    }

    fn peek(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn take(&self) -> bool {
        if is_planted(Mutation::FlagNotTaken) {
            let was = self.0.load(Ordering::Relaxed);
            self.set(false);
            return was;
        }
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Counts like an eventfd.
#[derive(Debug)]
pub(super) struct ModelBell {
    count: Mutex<usize>,
    rung: Condvar,
    /// Outside of the model: how often it was rung in all.
    pub(super) rings: std::sync::atomic::AtomicUsize,
}

impl Bell for ModelBell {
    fn new() -> io::Result<Self> {
        Ok(Self { count: Mutex::new(0), rung: Condvar::new(), rings: Default::default() })
    }

    fn ring(&self) {
        self.rings.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        *self.count.lock().expect("no panic inside") += 1;
        self.rung.notify_one();
    }
}

/// The algorithm of crossbeam's `ArrayQueue` for one sender and one receiver, with the weakest orderings that still hand
/// an item over: the stamp of a slot is released and acquired, and the rest is relaxed. Where crossbeam has more
/// (sequentially consistent indices, fences in a pop from an empty and a push into a full queue), the mesh must not need
/// it. Like crossbeam's, the tail moves before the item is there.
#[derive(Debug)]
pub(super) struct ModelQueue<T> {
    slots: Box<[Slot<T>]>,
    /// Where the next item goes; counts on, never wraps.
    tail: AtomicUsize,
    /// Where the next item comes from: the receiver's alone, so no part of the model.
    head: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
struct Slot<T> {
    /// Twice the position that the slot is free for, one more while it holds an item.
    stamp: AtomicUsize,
    /// Its lock is never waited for, so it orders nothing.
    item: std::sync::Mutex<Option<T>>,
}

impl<T> ModelQueue<T> {
    fn slot(&self, position: usize) -> &Slot<T> {
        &self.slots[position % self.slots.len()]
    }

    fn head(&self) -> usize {
        self.head.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl<T> Queue<T> for ModelQueue<T> {
    fn new(capacity: usize) -> Self {
        let slot = |position| Slot { stamp: AtomicUsize::new(2 * position), item: std::sync::Mutex::new(None) };
        Self { slots: (0..capacity).map(slot).collect(), tail: AtomicUsize::new(0), head: Default::default() }
    }

    fn push(&self, item: T) -> Result<(), T> {
        let tail = self.tail.load(Ordering::Relaxed);
        let slot = self.slot(tail);
        if slot.stamp.load(Ordering::Acquire) != 2 * tail {
            return Err(item);
        }
        self.tail.store(tail + 1, Ordering::Relaxed);
        let old = slot.item.lock().expect("no panic inside").replace(item);
        assert!(old.is_none(), "a free slot is empty");
        slot.stamp.store(2 * tail + 1, Ordering::Release);
        Ok(())
    }

    fn pop(&self) -> Option<T> {
        let head = self.head();
        let slot = self.slot(head);
        while slot.stamp.load(Ordering::Acquire) != 2 * head + 1 {
            if self.tail.load(Ordering::Relaxed) == head {
                return None;
            }
            loom::thread::yield_now();
        }
        let item = slot.item.lock().expect("no panic inside").take();
        self.head.store(head + 1, std::sync::atomic::Ordering::Relaxed);
        slot.stamp.store(2 * (head + self.slots.len()), Ordering::Release);
        Some(item.expect("a stamped slot is full"))
    }

    fn len(&self) -> usize {
        self.tail.load(Ordering::Relaxed) - self.head()
    }

    fn is_empty(&self) -> bool {
        is_planted(Mutation::NoLastLook) || self.len() == 0
    }
}
