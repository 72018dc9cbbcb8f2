//! What both drivers keep of a connection: how far it is on its way out, and the bytes to send.

use bytes::Bytes;
use std::collections::VecDeque;

/// Shared bytes up to this size are copied behind what is already queued, so that they leave in one send.
const JOIN_BYTES_MAX: usize = 4 << 10;
/// An owned segment grows up to this size.
const SEGMENT_BYTES_MAX: usize = 64 << 10;
/// Buffers above this capacity are not kept for reuse.
const POOLED_BYTES_MAX: usize = 16 << 10;
/// Buffers, and queues, kept for reuse by one shard.
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

/// Small buffers and queues that were emptied and will be needed again.
#[derive(Debug, Default)]
pub(crate) struct SendPool {
    buffers: Vec<Vec<u8>>,
    // The allocations are what is kept here.
    #[allow(clippy::vec_box)]
    queues: Vec<Box<SendQueue>>,
}

impl SendPool {
    fn take(&mut self) -> Vec<u8> {
        self.buffers.pop().unwrap_or_default()
    }

    fn put(&mut self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= POOLED_BYTES_MAX && self.buffers.len() < POOLED_MAX {
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    fn put_queue(&mut self, queue: Box<SendQueue>) {
        if self.queues.len() < POOLED_MAX {
            self.queues.push(queue);
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
    fn append(&mut self, more: &[u8], pool: &mut SendPool) -> bool {
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

/// What a connection has to send: a queue that exists only while something is in it.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(Option<Box<SendQueue>>);

impl Outgoing {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Bytes not yet taken by the kernel.
    pub(crate) fn queued(&self) -> usize {
        self.0.as_ref().map_or(0, |queue| queue.queued)
    }

    /// What is to be sent next.
    pub(crate) fn front(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |queue| queue.front())
    }

    /// Fixes the front in place while the kernel reads it, until `advance` or `unlock`. It stays where it is though
    /// this value moves.
    pub(crate) fn lock(&mut self) -> &[u8] {
        let Some(queue) = &mut self.0 else { return &[] };
        queue.front_locked = true;
        queue.front()
    }

    pub(crate) fn unlock(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.front_locked = false;
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8], pool: &mut SendPool) {
        if !bytes.is_empty() {
            self.0.get_or_insert_with(|| pool.queues.pop().unwrap_or_default()).push(bytes, pool);
        }
    }

    pub(crate) fn push_shared(&mut self, bytes: Bytes, pool: &mut SendPool) {
        if !bytes.is_empty() {
            self.0.get_or_insert_with(|| pool.queues.pop().unwrap_or_default()).push_shared(bytes, pool);
        }
    }

    /// The kernel took `bytes` of the front.
    pub(crate) fn advance(&mut self, bytes: usize, pool: &mut SendPool) {
        let left = self.front().len();
        assert!(bytes <= left, "the kernel took {bytes} of {left} bytes");
        let Some(queue) = &mut self.0 else { return };
        queue.advance(bytes, pool);
        if queue.queued == 0
            && let Some(queue) = self.0.take()
        {
            pool.put_queue(queue);
        }
    }
}

/// Bytes to send, in order; what a turn adds becomes one segment, unless it is large. Empty, it is as good as new.
#[derive(Debug, Default)]
struct SendQueue {
    front: Option<Segment>,
    /// Bytes of `front` that the kernel has taken.
    front_sent: usize,
    /// The kernel reads `front` right now: it must neither move nor grow.
    front_locked: bool,
    rest: VecDeque<Segment>,
    queued: usize,
}

impl SendQueue {
    fn front(&self) -> &[u8] {
        self.front.as_ref().map_or(&[], |segment| &segment.bytes()[self.front_sent..])
    }

    fn push(&mut self, bytes: &[u8], pool: &mut SendPool) {
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

    fn push_shared(&mut self, bytes: Bytes, pool: &mut SendPool) {
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

    fn advance(&mut self, bytes: usize, pool: &mut SendPool) {
        let left = self.front().len();
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

    fn drain(queue: &mut Outgoing, pool: &mut SendPool) -> Vec<Vec<u8>> {
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
        let (mut queue, mut pool) = (Outgoing::default(), SendPool::default());
        queue.push_shared(Bytes::from_static(b"ab"), &mut pool);
        queue.push(b"cd", &mut pool);
        queue.push_shared(Bytes::from_static(b"ef"), &mut pool);
        assert_eq!(drain(&mut queue, &mut pool), [b"abcdef".to_vec()]);
    }

    #[test]
    fn shared_bytes_alone_are_not_copied() {
        let (mut queue, mut pool) = (Outgoing::default(), SendPool::default());
        let shared = Bytes::from(vec![7; 100]);
        queue.push_shared(shared.clone(), &mut pool);
        assert_eq!(queue.front().as_ptr(), shared.as_ptr());
    }

    #[test]
    fn a_locked_front_does_not_move() {
        let (mut queue, mut pool) = (Outgoing::default(), SendPool::default());
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
    fn a_queue_exists_only_while_something_is_in_it() {
        let (mut queue, mut pool) = (Outgoing::default(), SendPool::default());
        queue.push(b"", &mut pool);
        queue.push_shared(Bytes::new(), &mut pool);
        assert!(queue.0.is_none());
        queue.push(b"abc", &mut pool);
        queue.lock();
        queue.advance(3, &mut pool);
        assert!(queue.0.is_none() && queue.is_empty());
        // Another connection gets the same one, which knows nothing of its former use.
        assert_eq!(pool.queues.len(), 1);
        let mut other = Outgoing::default();
        other.push(b"de", &mut pool);
        assert_eq!((pool.queues.len(), other.front(), other.queued()), (0, &b"de"[..], 2));
        other.push(b"f", &mut pool);
        assert_eq!(other.front(), b"def", "its front is not locked");
        assert_eq!(size_of::<Outgoing>(), 8);
    }
}
