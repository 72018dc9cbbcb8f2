//! The ring itself: set-up, submission, completion. It counts what is in flight, so that nothing which the kernel still
//! uses is freed.
//!
//! `unsafe`: submission entries carry raw addresses and descriptors; the driver vouches for them.
#![allow(unsafe_code)]

use super::buffers::Buffers;
use io_uring::types::{CancelBuilder, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// How often a full submission queue is handed to the kernel before that counts as a failure.
const SUBMIT_ATTEMPTS_MAX: usize = 100;
/// More than this in flight is not cancelled at the end of a ring, as that takes the kernel a time that grows with the
/// square: their memory is leaked.
const QUIESCE_IN_FLIGHT_MAX: usize = 4_096;
/// How often the end of a ring asks for the last completions before it rather leaks their memory.
const QUIESCE_ROUNDS_MAX: usize = 1_000;

/// Entries of a ring's two queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Submissions of one turn before an early call into the kernel.
    pub(super) submissions: u32,
    /// Completions that wait for us; beyond it the kernel keeps a list, which is slower.
    pub(super) completions: u32,
}

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    fn of(entry: cqueue::Entry) -> Self {
        Self { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() }
    }

    /// The operation stays armed and will complete again.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that it filled.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }

    /// After this receive there are bytes left in the socket, or its end.
    pub(super) fn leaves_more(&self) -> bool {
        cqueue::sock_nonempty(self.flags)
    }
}

pub(super) struct Ring {
    uring: IoUring,
    /// Operations submitted or queued that will still complete.
    in_flight: usize,
    /// Completions that made room in the ring while more was being submitted; older than those in the ring.
    early: VecDeque<Completion>,
    /// Where the kernel reads a timeout's length when it is submitted; boxed, since it reads the address.
    timespec: Box<Timespec>,
}

fn setup(submissions: u32, completions: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .dontfork()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_clamp()
        .setup_cqsize(completions)
        .build(submissions)
}

/// Sets a small ring up with all that the driver uses, and drops it.
pub(crate) fn try_setup() -> io::Result<()> {
    let uring = setup(8, 16)?;
    uring.submitter().register_files_sparse(8)?;
    let buffers = Buffers::new(8, 64);
    buffers.register(&uring.submitter())?;
    // The ring goes first; nothing was submitted to it.
    drop(uring);
    drop(buffers);
    Ok(())
}

impl Ring {
    /// A ring with a table of `files` direct descriptors, which signals `eventfd` while that is enabled.
    pub(super) fn new(size: Size, files: u32, eventfd: &OwnedFd, buffers: &Buffers) -> io::Result<Self> {
        let uring = setup(size.submissions, size.completions)?;
        uring.submitter().register_files_sparse(files)?;
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        buffers.register(&uring.submitter())?;
        let mut ring = Self { uring, in_flight: 0, early: VecDeque::new(), timespec: Box::new(Timespec::new()) };
        ring.uring.completion().disable_eventfd();
        Ok(ring)
    }

    /// Queues an operation.
    ///
    /// # Safety
    ///
    /// Whatever the entry points to must stay in place until its last completion was taken, and its descriptor open
    /// until it is submitted.
    pub(super) unsafe fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            // SAFETY: passed on to the caller.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.submit()?;
            // A burst of submissions completes as it goes, and can be larger than the completion queue. What waits here
            // is bounded by the operations in flight.
            let completion = self.uring.completion();
            self.early.extend(completion.map(Completion::of));
        }
        Err(io::Error::other("the kernel takes no submissions"))
    }

    /// Ends operations; each still completes. Entries without addresses are safe to push.
    pub(super) fn cancel(&mut self, which: CancelBuilder, user_data: u64) -> io::Result<()> {
        // SAFETY: the entry points to nothing.
        unsafe { self.push(opcode::AsyncCancel2::new(which).build().user_data(user_data)) }
    }

    /// Completes with `user_data` after `ms`, or moves the timeout that is armed under it.
    pub(super) fn timeout(&mut self, ms: u64, user_data: u64, moves: Option<u64>) -> io::Result<()> {
        *self.timespec = Timespec::new().sec(ms / 1000).nsec((ms % 1000) as u32 * 1_000_000);
        let address: *const Timespec = &*self.timespec;
        let entry = match moves {
            Some(armed) => opcode::TimeoutUpdate::new(armed, address).build(),
            None => opcode::Timeout::new(address).build(),
        };
        // SAFETY: the kernel reads the timespec when the entry is submitted, which happens here, before it can change;
        // it is on the heap and outlives the ring's use of it.
        unsafe { self.push(entry.user_data(user_data))? };
        self.submit()
    }

    /// Puts an open file into the direct table. Must be called from the ring's own thread.
    pub(super) fn install(&mut self, slot: u32, fd: RawFd) -> io::Result<()> {
        match self.uring.submitter().register_files_update(slot, &[fd])? {
            1 => Ok(()),
            _ => Err(io::Error::other("the direct table took no file")),
        }
    }

    /// Hands everything queued to the kernel and lets it run what completed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let queued = {
            let mut submission = self.uring.submission();
            submission.sync();
            submission.len() as u32
        };
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no argument is passed along.
        match unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued, 0, flags, None) } {
            Ok(_) => Ok(()),
            // Too many completions wait, or a signal came: the entries stay queued and go with the next call.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// True when a call into the kernel would do something.
    pub(super) fn has_work(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    pub(super) fn has_completions(&mut self) -> bool {
        !self.early.is_empty() || !self.uring.completion().is_empty()
    }

    /// Takes at most `max` completions.
    pub(super) fn take(&mut self, into: &mut Vec<Completion>, max: usize) {
        let kept = into.len();
        if !self.early.is_empty() {
            into.extend(self.early.drain(..self.early.len().min(max)));
            if self.early.is_empty() {
                self.early = VecDeque::new();
            }
        }
        let left = max - (into.len() - kept);
        let completion = self.uring.completion();
        into.extend(completion.take(left).map(Completion::of));
        let ended = into[kept..].iter().filter(|completion| !completion.more()).count();
        self.in_flight = self.in_flight.checked_sub(ended).expect("no more completions than operations");
    }

    /// Whether completions signal the eventfd: only while the shard is about to sleep.
    pub(super) fn signal(&mut self, enabled: bool) {
        let completion = self.uring.completion();
        if enabled { completion.enable_eventfd() } else { completion.disable_eventfd() }
    }

    /// Cancels everything and waits for the last completion; false when the kernel did not give them all up.
    pub(super) fn quiesce(&mut self, mut last: impl FnMut(Completion)) -> bool {
        if self.in_flight > QUIESCE_IN_FLIGHT_MAX {
            return false;
        }
        let mut taken = Vec::new();
        for _ in 0..QUIESCE_ROUNDS_MAX {
            if self.in_flight == 0 {
                return true;
            }
            if self.cancel(CancelBuilder::any(), 0).is_err() || self.uring.submit_and_wait(1).is_err() {
                return false;
            }
            taken.clear();
            self.take(&mut taken, usize::MAX);
            taken.iter().copied().for_each(&mut last);
        }
        self.in_flight == 0
    }
}
