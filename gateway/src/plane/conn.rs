//! What both drivers keep of a connection: the table of slots, and the queue of bytes to send.

use bytes::Bytes;
use gateway_core::output::ConnId;
use std::collections::VecDeque;

/// Shared bytes up to this size are copied behind what is already queued, so that they leave in one send.
const JOIN_BYTES_MAX: usize = 4 << 10;
/// An owned segment grows up to this size.
const SEGMENT_BYTES_MAX: usize = 64 << 10;
/// Buffers above this capacity are not kept for reuse.
const POOLED_BYTES_MAX: usize = 16 << 10;
/// Buffers kept for reuse by one shard.
const POOLED_MAX: usize = 256;

/// How far a connection is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// In use.
    Open,
    /// The brain closed it: what is queued goes out first.
    Closing,
    /// All is sent and the sending side shut down: what the peer still sends is dropped until it closes too.
    Lingering,
    /// The peer closed and the brain knows: what is queued goes out, as far as the peer still takes it.
    Gone,
}

impl State {
    /// Whether the driver receives in this state.
    pub(crate) fn reads(self, paused: bool) -> bool {
        match self {
            Self::Open => !paused,
            Self::Closing | Self::Lingering => true,
            Self::Gone => false,
        }
    }
}

/// Connections by slot. A slot's generation counts its uses, so an id of a former use finds nothing.
#[derive(Debug)]
pub(crate) struct Table<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    len_max: usize,
}

impl<T> Table<T> {
    pub(crate) fn new(len_max: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), len_max }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.len_max
    }

    pub(crate) fn insert(&mut self, value: T) -> Option<ConnId> {
        if self.is_full() {
            return None;
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        entry.0 = entry.0.wrapping_add(1).max(1);
        entry.1 = Some(value);
        Some(ConnId { slot, generation: entry.0 })
    }

    pub(crate) fn get_mut(&mut self, conn: ConnId) -> Option<&mut T> {
        match self.slots.get_mut(conn.slot as usize) {
            Some((generation, Some(value))) if *generation == conn.generation => Some(value),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, conn: ConnId) -> Option<T> {
        self.get_mut(conn)?;
        self.free.push(conn.slot);
        self.slots[conn.slot as usize].1.take()
    }
}

/// Small buffers that went out and will be needed again.
#[derive(Debug, Default)]
pub(crate) struct BufferPool(Vec<Vec<u8>>);

impl BufferPool {
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= POOLED_BYTES_MAX && self.0.len() < POOLED_MAX {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}

#[derive(Debug)]
enum Segment {
    Own(Vec<u8>),
    Shared(Bytes),
}

impl Segment {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// Adds bytes behind these, so that one send takes both; false when that would copy or grow too much.
    fn append(&mut self, more: &[u8], pool: &mut BufferPool) -> bool {
        if let Self::Shared(shared) = self {
            if shared.len() > JOIN_BYTES_MAX || more.len() > SEGMENT_BYTES_MAX - JOIN_BYTES_MAX {
                return false;
            }
            let mut own = pool.take();
            own.extend_from_slice(shared);
            *self = Self::Own(own);
        }
        match self {
            Self::Own(own) if own.len() + more.len() <= SEGMENT_BYTES_MAX => {
                own.extend_from_slice(more);
                true
            }
            _ => false,
        }
    }
}

/// Bytes to send, in order. No heap while empty; what a turn adds becomes one segment, unless it is large.
#[derive(Debug, Default)]
pub(crate) struct SendQueue {
    front: Option<Segment>,
    /// Bytes of `front` that the kernel has taken.
    front_sent: usize,
    /// The kernel reads `front` right now: it must neither move nor grow.
    front_locked: bool,
    rest: VecDeque<Segment>,
    queued: usize,
}

impl SendQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Bytes not yet taken by the kernel.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// What is to be sent next.
    pub(crate) fn front(&self) -> &[u8] {
        self.front.as_ref().map_or(&[], |segment| &segment.bytes()[self.front_sent..])
    }

    /// Fixes the front in place while the kernel reads it, until `advance` or `unlock`.
    pub(crate) fn lock(&mut self) -> &[u8] {
        self.front_locked = true;
        self.front()
    }

    pub(crate) fn unlock(&mut self) {
        self.front_locked = false;
    }

    pub(crate) fn push(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        if bytes.is_empty() {
            return;
        }
        self.queued += bytes.len();
        if let Some(tail) = self.tail()
            && tail.append(bytes, pool)
        {
            return;
        }
        let mut own = if bytes.len() <= POOLED_BYTES_MAX { pool.take() } else { Vec::new() };
        own.extend_from_slice(bytes);
        self.push_segment(Segment::Own(own));
    }

    pub(crate) fn push_shared(&mut self, bytes: Bytes, pool: &mut BufferPool) {
        if bytes.is_empty() {
            return;
        }
        self.queued += bytes.len();
        if bytes.len() <= JOIN_BYTES_MAX
            && let Some(tail) = self.tail()
            && tail.append(&bytes, pool)
        {
            return;
        }
        self.push_segment(Segment::Shared(bytes));
    }

    /// The last segment, if it may still change.
    fn tail(&mut self) -> Option<&mut Segment> {
        if self.rest.is_empty() && self.front_locked {
            return None;
        }
        self.rest.back_mut().or(self.front.as_mut())
    }

    fn push_segment(&mut self, segment: Segment) {
        if self.front.is_none() {
            self.front = Some(segment);
        } else {
            self.rest.push_back(segment);
        }
    }

    /// The kernel took `bytes` of the front.
    pub(crate) fn advance(&mut self, bytes: usize, pool: &mut BufferPool) {
        let left = self.front().len();
        assert!(bytes <= left, "the kernel took {bytes} of {left} bytes");
        self.front_locked = false;
        self.queued -= bytes;
        self.front_sent += bytes;
        if bytes < left {
            return;
        }
        if let Some(Segment::Own(buffer)) = self.front.take() {
            pool.put(buffer);
        }
        self.front_sent = 0;
        self.front = self.rest.pop_front();
        if self.rest.is_empty() && self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut SendQueue, pool: &mut BufferPool) -> Vec<Vec<u8>> {
        let mut sends = Vec::new();
        while !queue.is_empty() {
            let front = queue.lock().to_vec();
            queue.advance(front.len(), pool);
            sends.push(front);
        }
        sends
    }

    #[test]
    fn what_a_turn_adds_leaves_as_one_send() {
        let (mut queue, mut pool) = (SendQueue::default(), BufferPool::default());
        queue.push_shared(Bytes::from_static(b"ab"), &mut pool);
        queue.push(b"cd", &mut pool);
        queue.push_shared(Bytes::from_static(b"ef"), &mut pool);
        assert_eq!(drain(&mut queue, &mut pool), [b"abcdef".to_vec()]);
    }

    #[test]
    fn shared_bytes_alone_are_not_copied() {
        let (mut queue, mut pool) = (SendQueue::default(), BufferPool::default());
        let shared = Bytes::from(vec![7; 100]);
        queue.push_shared(shared.clone(), &mut pool);
        assert_eq!(queue.front().as_ptr(), shared.as_ptr());
    }

    #[test]
    fn a_locked_front_does_not_move() {
        let (mut queue, mut pool) = (SendQueue::default(), BufferPool::default());
        queue.push(b"one", &mut pool);
        let address = queue.lock().as_ptr();
        for _ in 0..1000 {
            queue.push(b"more", &mut pool);
        }
        assert_eq!((queue.front().as_ptr(), queue.front()), (address, &b"one"[..]));
        queue.advance(2, &mut pool);
        assert_eq!((queue.front(), queue.queued()), (&b"e"[..], 4001));
        queue.lock();
        queue.advance(1, &mut pool);
        assert_eq!(drain(&mut queue, &mut pool), [b"more".repeat(1000)]);
    }

    #[test]
    fn an_id_of_a_former_use_finds_nothing() {
        let mut table = Table::new(1);
        let first = table.insert('a').expect("room");
        assert_eq!(table.insert('b'), None);
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('c').expect("room");
        assert_eq!(second.slot, first.slot);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.get_mut(second), Some(&mut 'c'));
    }
}
