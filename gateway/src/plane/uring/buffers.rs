//! The ring of receive buffers that all connections of a ring share: the kernel takes one when bytes are there, the
//! shard gives it back when they are decoded. No connection owns a buffer while it is idle.
//!
//! `unsafe`: memory that the kernel writes to while no reference to it exists on this side.
#![allow(unsafe_code)]

use io_uring::types::BufRingEntry;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

/// The ring memory must begin on a page.
const PAGE_BYTES: usize = 4096;

/// The group id under which receives ask for buffers; there is one group a ring.
pub(super) const GROUP: u16 = 0;

/// Zeroed memory of our own, kept at one address.
struct Region {
    start: NonNull<u8>,
    layout: Layout,
}

impl Region {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(1), PAGE_BYTES).expect("bounded by the options");
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

/// The buffers and the ring through which the kernel gets them. It must outlive every receive: the driver frees it
/// only after all its operations have completed.
pub(super) struct Buffers {
    ring: Region,
    memory: Region,
    count: u16,
    bytes: u32,
    /// What the kernel sees once `publish` is called.
    tail: u16,
    /// What it sees now.
    published: u16,
}

impl Buffers {
    /// `count` is a power of two.
    pub(super) fn new(count: u16, bytes: u32) -> Self {
        assert!(count.is_power_of_two(), "a ring's size is a power of two");
        let ring = Region::new(usize::from(count) * size_of::<BufRingEntry>());
        let memory = Region::new(usize::from(count) * bytes as usize);
        let mut buffers = Self { ring, memory, count, bytes, tail: 0, published: 0 };
        for buffer in 0..count {
            buffers.give_back(buffer);
        }
        buffers.publish();
        buffers
    }

    /// Makes the buffers known to a ring.
    pub(super) fn register(&self, submitter: &io_uring::Submitter<'_>) -> io::Result<()> {
        // SAFETY: the memory is page-aligned, large enough for `count` entries, and outlives the ring's use of it,
        // see the type.
        unsafe { submitter.register_buf_ring_with_flags(self.ring.start.as_ptr() as u64, self.count, GROUP, 0) }
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        assert!(buffer < self.count, "buffer {buffer} of {}", self.count);
        // SAFETY: the offset is within the allocation, by the assertion and by its size in `new`.
        unsafe { self.memory.start.as_ptr().add(usize::from(buffer) * self.bytes as usize) }
    }

    /// Bytes of each.
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    /// The first `len` bytes of a buffer that a completion named.
    pub(super) fn filled(&mut self, buffer: u16, len: usize) -> &mut [u8] {
        assert!(len <= self.bytes as usize, "{len} bytes in a buffer of {}", self.bytes);
        // SAFETY: within the allocation and initialised (zeroed at first, written by the kernel since). The kernel gave
        // the buffer to us with the completion and does not touch it before `publish` after `give_back`; the borrow of
        // `self` ends before that.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer), len) }
    }

    /// Queues a buffer for the kernel again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        let address = self.address(buffer) as u64;
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is within the ring's memory, which was zeroed, a valid state of entries. The kernel does
        // not read entries at or beyond the tail that it sees. Entry 0 shares its last field with the tail, so fields
        // are set one by one, never the entry as a whole.
        let entry = unsafe { &mut *self.ring.start.cast::<BufRingEntry>().as_ptr().add(index) };
        entry.set_addr(address);
        entry.set_len(self.bytes);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Lets the kernel see what was given back.
    pub(super) fn publish(&mut self) {
        if self.published == self.tail {
            return;
        }
        self.published = self.tail;
        // SAFETY: the tail is a 16-bit field inside entry 0, aligned as such, which only this thread writes; the
        // kernel reads it.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.ring.start.cast().as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
