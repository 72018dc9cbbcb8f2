//! The mesh: bounded lock-free queues for every ordered pair of shards, and the wake that tells a sleeping shard. Moves
//! messages; what they mean, and the credits that keep requests and answers within their queues, are the brain's.

use crossbeam::queue::ArrayQueue;
use gateway_core::brain::{MeshClass, MeshMessage};
use rustix::event::EventfdFlags;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// What a mesh is woven from. [`Native`] is what ships; `mesh_model` weaves the same mesh from atomics whose every
/// interleaving is explored. Nothing here costs anything: all of it is known when it is compiled.
pub(crate) trait Fabric: fmt::Debug + 'static {
    type Flag: Flag;
    type Bell: Bell;
    type Queue<T: Send>: Queue<T>;

    /// A sequentially consistent fence. Each side of the wake has one, and each needs that of the other.
    fn fence(side: Side);
}

/// Who fences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Between saying that it sleeps and the last look at its queues.
    Sleeper,
    /// Between putting something on a queue and the look at who sleeps.
    Sender,
}

/// An atomic boolean, with the orderings that the wake needs.
pub(crate) trait Flag {
    fn new() -> Self;
    fn set(&self, value: bool);
    /// Relaxed.
    fn peek(&self) -> bool;
    /// Clears it, and says whether it was set: true for one caller only.
    fn take(&self) -> bool;
}

/// What a shard sleeps on.
pub(crate) trait Bell: Sized {
    fn new() -> io::Result<Self>;
    fn ring(&self);
}

/// A bounded queue; `mesh` has one sender and one receiver for each.
pub(crate) trait Queue<T> {
    fn new(capacity: usize) -> Self;
    fn push(&self, item: T) -> Result<(), T>;
    fn pop(&self) -> Option<T>;
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool;
}

/// Atomics of the standard library, eventfds, crossbeam's queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Native;

impl Fabric for Native {
    type Flag = AtomicBool;
    type Bell = OwnedFd;
    type Queue<T: Send> = ArrayQueue<T>;

    #[inline]
    fn fence(_: Side) {
        fence(Ordering::SeqCst);
    }
}

impl Flag for AtomicBool {
    fn new() -> Self {
        AtomicBool::new(false)
    }

    #[inline]
    fn set(&self, value: bool) {
        self.store(value, Ordering::SeqCst);
    }

    #[inline]
    fn peek(&self) -> bool {
        self.load(Ordering::Relaxed)
    }

    #[inline]
    fn take(&self) -> bool {
        self.swap(false, Ordering::SeqCst)
    }
}

impl Bell for OwnedFd {
    fn new() -> io::Result<Self> {
        // Blocking: the glommio host reads it through a ring, where a non-blocking file would end the read at once.
        Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?)
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then the shard is awake.
        let _ = rustix::io::write(self, &1u64.to_ne_bytes());
    }
}

impl<T> Queue<T> for ArrayQueue<T> {
    fn new(capacity: usize) -> Self {
        ArrayQueue::new(capacity)
    }

    #[inline]
    fn push(&self, item: T) -> Result<(), T> {
        ArrayQueue::push(self, item)
    }

    #[inline]
    fn pop(&self) -> Option<T> {
        ArrayQueue::pop(self)
    }

    #[inline]
    fn len(&self) -> usize {
        ArrayQueue::len(self)
    }

    #[inline]
    fn is_empty(&self) -> bool {
        ArrayQueue::is_empty(self)
    }
}

/// Room of each queue of one ordered pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Open requests that a brain may have towards one shard.
    pub request: usize,
    /// At least as many as `request`: every request reserves room for its answer.
    pub answer: usize,
    /// Messages that may be dropped when there is no room.
    pub fanout: usize,
    /// Connections on their way to another shard; more of them wait at the sender.
    pub seat: usize,
}

impl Default for Capacities {
    fn default() -> Self {
        Self { request: 4096, answer: 4096, fanout: 8192, seat: 256 }
    }
}

/// Wakes one shard out of its sleep, and only then: writing the eventfd costs a system call.
#[derive(Debug)]
pub(crate) struct Waker<F: Fabric = Native> {
    bell: F::Bell,
    asleep: F::Flag,
}

impl Waker {
    pub(crate) fn eventfd(&self) -> &OwnedFd {
        &self.bell
    }
}

impl<F: Fabric> Waker<F> {
    fn new() -> io::Result<Self> {
        Ok(Self { bell: F::Bell::new()?, asleep: F::Flag::new() })
    }

    #[cfg(test)]
    pub(crate) fn bell(&self) -> &F::Bell {
        &self.bell
    }

    /// Says that the shard is about to sleep. It must look at its queues once more after this, and before it sleeps.
    pub(crate) fn arm(&self) {
        self.asleep.set(true);
        // Pairs with the fence of `wake`: either the sender sees the flag, or this shard sees the message.
        F::fence(Side::Sleeper);
    }

    pub(crate) fn disarm(&self) {
        self.asleep.set(false);
    }

    /// Wakes the shard if it sleeps, after something was put where it will look.
    pub(crate) fn wake(&self) {
        F::fence(Side::Sender);
        if self.asleep.peek() && self.asleep.take() {
            self.bell.ring();
        }
    }
}

struct Pair<M: Send, T: Send, F: Fabric> {
    request: F::Queue<M>,
    answer: F::Queue<M>,
    fanout: F::Queue<M>,
    seat: F::Queue<T>,
}

impl<M: Send, T: Send, F: Fabric> Pair<M, T, F> {
    fn is_empty(&self) -> bool {
        self.answer.is_empty() && self.request.is_empty() && self.fanout.is_empty() && self.seat.is_empty()
    }
}

/// All queues of a process. `M` is the message, `T` a connection on its way.
pub(crate) struct Mesh<M: Send, T: Send, F: Fabric = Native> {
    shards: u16,
    /// Indexed by `from * shards + to`.
    pairs: Box<[Pair<M, T, F>]>,
    wakers: Arc<[Waker<F>]>,
}

impl<M: MeshMessage, T: Send, F: Fabric> Mesh<M, T, F> {
    pub(crate) fn new(shards: u16, capacities: Capacities) -> io::Result<Self> {
        assert!(shards > 0, "a mesh has at least one shard");
        assert!(capacities.answer >= capacities.request, "every request reserves room for its answer");
        let pairs = (0..usize::from(shards) * usize::from(shards))
            .map(|_| Pair {
                request: F::Queue::new(capacities.request),
                answer: F::Queue::new(capacities.answer),
                fanout: F::Queue::new(capacities.fanout),
                seat: F::Queue::new(capacities.seat),
            })
            .collect();
        let wakers = (0..shards).map(|_| Waker::new()).collect::<io::Result<Vec<_>>>()?.into();
        Ok(Self { shards, pairs, wakers })
    }

    pub(crate) fn shards(&self) -> u16 {
        self.shards
    }

    pub(crate) fn waker(&self, shard: u16) -> &Waker<F> {
        &self.wakers[usize::from(shard)]
    }

    pub(crate) fn wakers(&self) -> Arc<[Waker<F>]> {
        self.wakers.clone()
    }

    pub(crate) fn wake_all(&self) {
        self.wakers.iter().for_each(Waker::wake);
    }

    /// Says that a shard will sleep; false, and it is awake as before, when something came in the meantime. `has_news`
    /// is asked last: what is not on a queue, and whose maker calls [`Waker::wake`] after making it.
    pub(crate) fn arm(&self, shard: u16, has_news: impl FnOnce() -> bool) -> bool {
        let waker = self.waker(shard);
        waker.arm();
        let idle = self.is_empty(shard) && !has_news();
        if !idle {
            waker.disarm();
        }
        idle
    }

    fn pair(&self, from: u16, to: u16) -> &Pair<M, T, F> {
        assert!(from < self.shards && to < self.shards, "shard {from} or {to} of {}", self.shards);
        &self.pairs[usize::from(from) * usize::from(self.shards) + usize::from(to)]
    }

    /// Puts a message on its queue; a fan-out message that finds no room comes back. The caller wakes the target.
    ///
    /// # Panics
    ///
    /// When a request or answer finds no room: the brain's credits are wrong, and to lose one would stall for ever.
    pub(crate) fn push(&self, from: u16, to: u16, message: M) -> Result<(), M> {
        let pair = self.pair(from, to);
        match message.class() {
            MeshClass::Request => {
                assert!(pair.request.push(message).is_ok(), "more requests from {from} to {to} than credits");
                Ok(())
            }
            MeshClass::Answer => {
                assert!(pair.answer.push(message).is_ok(), "more answers from {from} to {to} than requests");
                Ok(())
            }
            MeshClass::Fanout => pair.fanout.push(message),
        }
    }

    pub(crate) fn push_seat(&self, from: u16, to: u16, seat: T) -> Result<(), T> {
        self.pair(from, to).seat.push(seat)
    }

    pub(crate) fn pop_seat(&self, from: u16, to: u16) -> Option<T> {
        self.pair(from, to).seat.pop()
    }

    /// Takes what is in the queues from one shard to another, answers first, at most what was there at the start: a
    /// turn ends even when others never stop sending.
    pub(crate) fn drain(&self, from: u16, to: u16, mut each: impl FnMut(M)) {
        let pair = self.pair(from, to);
        for queue in [&pair.answer, &pair.request, &pair.fanout] {
            for _ in 0..queue.len() {
                let Some(message) = queue.pop() else { break };
                each(message);
            }
        }
    }

    /// True when nothing waits for this shard.
    pub(crate) fn is_empty(&self, to: u16) -> bool {
        (0..self.shards).all(|from| self.pair(from, to).is_empty())
    }
}

/// The sending side of one shard, turn by turn: whom it has to wake, and who refused a fan-out message.
pub(crate) struct Sender<M: Send, T: Send, F: Fabric = Native> {
    mesh: Arc<Mesh<M, T, F>>,
    me: u16,
    targets: Box<[Target]>,
}

/// What happened to a target in this turn.
#[derive(Clone, Debug, Default)]
struct Target {
    touched: bool,
    /// It found no room for a fan-out message, so it gets no later one either: nothing overtakes what was refused.
    full: bool,
}

impl<M: MeshMessage, T: Send, F: Fabric> Sender<M, T, F> {
    pub(crate) fn new(mesh: Arc<Mesh<M, T, F>>, me: u16) -> Self {
        let targets = vec![Target::default(); usize::from(mesh.shards())].into();
        Self { mesh, me, targets }
    }

    /// Like [`Mesh::push`]; after a fan-out message came back, those that follow it in this turn come back too.
    pub(crate) fn push(&mut self, to: u16, message: M) -> Result<(), M> {
        let target = &mut self.targets[usize::from(to)];
        if target.full && message.class() == MeshClass::Fanout {
            return Err(message);
        }
        let pushed = self.mesh.push(self.me, to, message);
        match pushed {
            Ok(()) => target.touched = true,
            Err(_) => target.full = true,
        }
        pushed
    }

    pub(crate) fn push_seat(&mut self, to: u16, seat: T) -> Result<(), T> {
        self.targets[usize::from(to)].touched = true;
        self.mesh.push_seat(self.me, to, seat)
    }

    /// Wakes those who were sent something, and asks those who refused anew from now on.
    pub(crate) fn end_turn(&mut self) {
        for (shard, target) in self.targets.iter_mut().enumerate() {
            if std::mem::take(target).touched && shard != usize::from(self.me) {
                self.mesh.waker(shard as u16).wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Message(MeshClass, u32);

    impl MeshMessage for Message {
        fn class(&self) -> MeshClass {
            self.0
        }
    }

    const SMALL: Capacities = Capacities { request: 4, answer: 4, fanout: 4, seat: 1 };

    #[test]
    fn answers_come_first_and_fanout_without_room_comes_back() {
        let mesh: Mesh<Message, ()> = Mesh::new(2, SMALL).expect("eventfds");
        for n in 0..4 {
            mesh.push(0, 1, Message(MeshClass::Fanout, n)).expect("room");
        }
        assert_eq!(mesh.push(0, 1, Message(MeshClass::Fanout, 4)), Err(Message(MeshClass::Fanout, 4)));
        mesh.push(0, 1, Message(MeshClass::Request, 5)).expect("room");
        mesh.push(0, 1, Message(MeshClass::Answer, 6)).expect("room");
        let mut order = Vec::new();
        mesh.drain(0, 1, |message| order.push(message.1));
        assert_eq!(order, [6, 5, 0, 1, 2, 3]);
        assert!(mesh.is_empty(1) && mesh.is_empty(0));
    }

    #[test]
    fn nothing_overtakes_a_refused_fanout_message_in_its_turn() {
        let mesh: Arc<Mesh<Message, ()>> = Arc::new(Mesh::new(3, SMALL).expect("eventfds"));
        let mut sender = Sender::new(mesh.clone(), 0);
        let taken = || {
            let mut taken = Vec::new();
            mesh.drain(0, 1, |message| taken.push(message.1));
            taken
        };
        let fanout = |n| Message(MeshClass::Fanout, n);
        for n in 0..4 {
            sender.push(1, fanout(n)).expect("room");
        }
        assert_eq!(sender.push(1, fanout(4)), Err(fanout(4)));
        // The target makes room in the middle of the sender's turn.
        assert_eq!(taken(), [0, 1, 2, 3]);
        assert_eq!(sender.push(1, fanout(5)), Err(fanout(5)));
        // Requests and answers have room of their own, and other targets refused nothing.
        sender.push(1, Message(MeshClass::Request, 6)).expect("room");
        sender.push(1, Message(MeshClass::Answer, 7)).expect("room");
        sender.push(2, fanout(8)).expect("room");
        sender.end_turn();
        sender.push(1, fanout(9)).expect("room in the next turn");
        assert_eq!(taken(), [7, 6, 9]);
    }

    #[test]
    #[should_panic(expected = "more requests from 0 to 1 than credits")]
    fn a_request_beyond_the_credits_is_a_bug() {
        let mesh: Mesh<Message, ()> = Mesh::new(2, SMALL).expect("eventfds");
        for n in 0..5 {
            let _ = mesh.push(0, 1, Message(MeshClass::Request, n));
        }
    }

    #[test]
    fn only_a_sleeping_shard_is_woken() {
        let waker: Waker = Waker::new().expect("eventfd");
        let count = || {
            // A non-zero counter is readable; reading resets it.
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let mut fds = [PollFd::new(waker.eventfd(), PollFlags::IN)];
            let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll");
            if ready == 0 {
                return 0;
            }
            let mut bytes = [0; 8];
            rustix::io::read(waker.eventfd(), &mut bytes).expect("readable");
            u64::from_ne_bytes(bytes)
        };
        waker.wake();
        assert_eq!(count(), 0);
        waker.arm();
        waker.wake();
        waker.wake();
        assert_eq!(count(), 1);
        waker.arm();
        waker.disarm();
        waker.wake();
        assert_eq!(count(), 0);
    }
}
