//! Waking the writer thread out of its wait, and ending the process when a thread of ours panics.

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An eventfd that the writer thread waits on.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    /// Wakes, from any thread. Wakes that nobody took yet are one.
    pub(crate) fn wake(&self) {
        // It refuses only when the counter is full, and then the thread is woken anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes all wakes.
    pub(crate) fn clear(&self) {
        // It refuses only when there is none.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends the process when the thread that holds it unwinds: a writer without one of its threads would hang, not fail.
pub(crate) struct PanicEndsProcess(pub(crate) &'static str);

impl Drop for PanicEndsProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The panic's own message is out already.
            eprintln!("storage-writer: the {} thread panicked; the process ends", self.0);
            std::process::abort();
        }
    }
}
