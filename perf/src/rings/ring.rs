//! One ring: its table of direct descriptors, its receive buffers, submission and completion. It counts what is in
//! flight, so that nothing which the kernel still uses is freed.
//!
//! `unsafe`: submission entries carry raw addresses; whoever pushes vouches for them.
#![allow(unsafe_code)]

use super::buffers::{BufferOptions, Buffers};
use io_uring::types::CancelBuilder;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::io;
use std::time::Duration;

const SUBMISSIONS: u32 = 1024;
/// Beyond it the kernel keeps a list, which is slower.
const COMPLETIONS: u32 = 8192;
/// How often a full submission queue is handed to the kernel before that counts as a failure.
const SUBMIT_ATTEMPTS_MAX: usize = 100;
/// How often the end of a ring asks for the last completions before it rather leaks their memory.
const QUIESCE_ROUNDS_MAX: usize = 2_000;
/// After so many rounds without an end it cancels whatever is left.
const QUIESCE_ROUNDS_PER_SWEEP: usize = 500;

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    flags: u32,
}

impl Completion {
    /// The operation stays armed and will complete again.
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The receive buffer that it filled.
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

pub(super) struct Ring {
    // In this order: the kernel lets go of the buffers with the ring.
    uring: IoUring,
    pub(super) buffers: Buffers,
    /// Operations submitted or queued that will still complete.
    in_flight: usize,
}

impl Ring {
    /// A ring with a table of `files` direct descriptors.
    pub(super) fn new(files: u32, buffers: BufferOptions) -> io::Result<Self> {
        let uring = IoUring::builder()
            .dontfork()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_clamp()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        uring.submitter().register_files_sparse(files)?;
        let buffers = Buffers::new(buffers);
        buffers.register(&uring.submitter())?;
        Ok(Self { uring, buffers, in_flight: 0 })
    }

    /// What epoll watches: readable once there are completions.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor stays open for as long as the ring is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) }
    }

    /// Queues an operation.
    ///
    /// # Safety
    ///
    /// Whatever the entry points to must stay in place until its last completion was taken.
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        for _ in 0..SUBMIT_ATTEMPTS_MAX {
            // SAFETY: passed on to the caller.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                self.in_flight += 1;
                return Ok(());
            }
            self.submit()?;
        }
        Err(io::Error::other("the kernel takes no submissions"))
    }

    /// Ends operations; each still completes.
    pub(super) fn cancel(&mut self, which: CancelBuilder, user_data: u64) -> io::Result<()> {
        // SAFETY: the entry points to nothing.
        unsafe { self.push(&opcode::AsyncCancel2::new(which).build().user_data(user_data)) }
    }

    /// Puts a socket into the direct table and closes its plain descriptor.
    pub(super) fn install(&mut self, slot: u32, socket: OwnedFd) -> io::Result<()> {
        self.update(slot, socket.as_raw_fd())
    }

    /// Takes a socket out of the direct table, which closes it once nothing uses it.
    pub(super) fn clear(&mut self, slot: u32) -> io::Result<()> {
        self.update(slot, -1)
    }

    fn update(&mut self, slot: u32, fd: i32) -> io::Result<()> {
        match self.uring.submitter().register_files_update(slot, &[fd])? {
            1 => Ok(()),
            _ => Err(io::Error::other("the direct table was not changed")),
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

    /// True when there are operations that the kernel was not given yet.
    pub(super) fn has_queued(&mut self) -> bool {
        !self.uring.submission().is_empty()
    }

    /// Takes at most `max` completions.
    pub(super) fn take(&mut self, into: &mut Vec<Completion>, max: usize) {
        let kept = into.len();
        into.extend(self.uring.completion().take(max).map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            flags: entry.flags(),
        }));
        let ended = into[kept..].iter().filter(|completion| !completion.more()).count();
        self.in_flight = self.in_flight.checked_sub(ended).expect("no more completions than operations");
    }

    /// Waits for the last completion of what was cancelled; false when the kernel did not give all up.
    pub(super) fn quiesce(&mut self) -> bool {
        let mut taken = Vec::new();
        for round in 0..QUIESCE_ROUNDS_MAX {
            if self.in_flight == 0 {
                return true;
            }
            // Something was missed. Seldom: with all operations of a full ring armed, this one call takes seconds.
            let missed = round % QUIESCE_ROUNDS_PER_SWEEP == QUIESCE_ROUNDS_PER_SWEEP - 1;
            if missed && self.cancel(CancelBuilder::any(), 0).is_err() {
                return false;
            }
            if self.submit().is_err() {
                return false;
            }
            let before = taken.len();
            self.take(&mut taken, usize::MAX);
            if taken.len() == before {
                std::thread::sleep(Duration::from_millis(1));
            }
            taken.clear();
        }
        self.in_flight == 0
    }

    /// Takes completions that nobody wants any more.
    pub(super) fn discard(&mut self) {
        self.take(&mut Vec::new(), usize::MAX);
    }
}
