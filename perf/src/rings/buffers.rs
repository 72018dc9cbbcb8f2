//! The ring of receive buffers that all sockets of one ring share. No socket owns a buffer while it is idle.
//!
//! `unsafe`: memory that the kernel writes to while no reference to it exists on this side.
#![allow(unsafe_code)]

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

const PAGE_BYTES: usize = 4096;
/// The group id under which receives ask for them.
pub(super) const GROUP: u16 = 0;

/// The receive buffers of one ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BufferOptions {
    /// A power of two.
    pub(crate) count: u16,
    /// Of each.
    pub(crate) bytes: usize,
}

/// Zeroed memory at one address.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

impl Region {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, PAGE_BYTES).expect("a few pages");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

/// The buffers, and the ring through which the kernel gets them. Freed only when no receive is in flight.
pub(super) struct Buffers {
    ring: Region,
    memory: Region,
    count: u16,
    bytes: usize,
    /// What the kernel sees once `publish` is called.
    tail: u16,
}

impl Buffers {
    pub(super) fn new(options: BufferOptions) -> Self {
        let BufferOptions { count, bytes } = options;
        assert!(count.is_power_of_two() && bytes > 0 && u32::try_from(bytes).is_ok());
        let ring = Region::new(usize::from(count) * size_of::<BufRingEntry>());
        let memory = Region::new(usize::from(count) * bytes);
        let mut buffers = Self { ring, memory, count, bytes, tail: 0 };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        buffers.publish();
        buffers
    }

    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        // SAFETY: the memory begins on a page, holds `count` entries, and outlives the ring's use of it, see the type.
        unsafe { submitter.register_buf_ring_with_flags(self.ring.start.as_ptr() as u64, self.count, GROUP, 0) }
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < self.count, "buffer {buffer} of {}", self.count);
        // SAFETY: within the allocation, by the assertion and the size in `new`.
        unsafe { self.memory.start.as_ptr().add(usize::from(buffer) * self.bytes) }
    }

    /// The first `len` bytes of a buffer that a completion named.
    pub(super) fn filled(&self, buffer: u16, len: usize) -> &[u8] {
        assert!(len <= self.bytes, "{len} bytes in a buffer of {}", self.bytes);
        // SAFETY: within the allocation and initialised. The kernel gave the buffer to us with the completion, and does
        // not touch it before `publish` after `give_back`, which both take `self` mutably.
        unsafe { std::slice::from_raw_parts(self.address(buffer), len) }
    }

    /// Queues a buffer for the kernel again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: within the ring's memory, which was zeroed, a valid state of entries. The kernel does not read entries
        // at or beyond the tail that it sees. Entry 0 shares its last field with the tail, so fields are set one by one.
        let entry = unsafe { &mut *self.ring.start.cast::<BufRingEntry>().as_ptr().add(index) };
        entry.set_addr(address);
        entry.set_len(self.bytes as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given back.
    pub(super) fn publish(&mut self) {
        // SAFETY: the tail is a 16-bit field inside entry 0, aligned as such, which only this thread writes; the kernel
        // reads it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring.start.cast().as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
