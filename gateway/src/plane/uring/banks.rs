//! The rings of a shard. The kernel bounds a ring's file table by the limit of open files, so a shard that holds more
//! live connections than that has several rings: banks. The bank of a connection and its place in the bank's file table
//! follow from its slot. A bank is made when the first connection gets a slot of it, and stays.

use super::buffers::Buffers;
use super::ring::{Completion, Ring, Size};
use crate::plane::{BufferOptions, Options};
use gateway_core::output::ConnId;
use std::io;
use std::os::fd::OwnedFd;

/// The ring that accepts and keeps the time, too: it serves all connections of most shards.
const FIRST: Size = Size { submissions: 4096, completions: 32 << 10 };
/// How soon a ring is tried again after one could not be made.
const RETRY_MS: u64 = 1_000;

/// A ring, and the buffers that its connections receive into. The ring is dropped first.
pub(super) struct Bank {
    pub(super) ring: Ring,
    pub(super) buffers: Buffers,
}

impl Bank {
    fn new(size: Size, files: u32, wake: &OwnedFd, buffers: BufferOptions) -> io::Result<Self> {
        let buffers = Buffers::new(buffers.count, buffers.bytes);
        let ring = Ring::new(size, files, wake, &buffers)?;
        Ok(Self { ring, buffers })
    }
}

pub(super) struct Banks {
    banks: Vec<Bank>,
    /// Connections of a bank, as a power of two.
    files_bits: u32,
    /// What all rings signal.
    wake: OwnedFd,
    more: Size,
    more_buffers: BufferOptions,
    /// Where `take` begins: the banks take turns.
    next: usize,
    /// No ring could be made; when to try again.
    retry_at: Option<u64>,
}

impl Banks {
    /// Makes the first bank.
    pub(super) fn new(wake: &OwnedFd, options: &Options) -> io::Result<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let rings = &options.rings;
        let files = u64::from(rings.connections_max).min(limit).max(1);
        let files_bits = files.ilog2();
        let wake = wake.try_clone()?;
        let first = Bank::new(FIRST, 1 << files_bits, &wake, options.buffers)?;
        let more = Size { submissions: rings.submissions, completions: rings.completions };
        Ok(Self { banks: vec![first], files_bits, wake, more, more_buffers: rings.buffers, next: 0, retry_at: None })
    }

    /// Rings, and the connections that their file tables hold.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.banks.len(), self.banks.len() << self.files_bits)
    }

    /// The ring that accepts and keeps the time.
    pub(super) fn first(&mut self) -> &mut Ring {
        &mut self.banks[0].ring
    }

    /// The bank of a connection.
    pub(super) fn of(&mut self, conn: ConnId) -> &mut Bank {
        &mut self.banks[(conn.slot >> self.files_bits) as usize]
    }

    /// Its place in the bank's file table.
    pub(super) fn file(&self, conn: ConnId) -> u32 {
        conn.slot & ((1 << self.files_bits) - 1)
    }

    /// Makes the bank of a slot if there is none yet. False when it cannot be made.
    pub(super) fn reach(&mut self, slot: u32, now_ms: u64) -> bool {
        while (slot >> self.files_bits) as usize >= self.banks.len() {
            if self.retry_at.is_some_and(|at| now_ms < at) {
                return false;
            }
            match Bank::new(self.more, 1 << self.files_bits, &self.wake, self.more_buffers) {
                Ok(bank) => {
                    self.banks.push(bank);
                    self.retry_at = None;
                }
                Err(error) => {
                    if self.retry_at.is_none() {
                        tracing::error!(
                            %error,
                            rings = self.banks.len(),
                            "no further ring can be made, so new connections are refused: raise the limit of locked \
                             memory (`ulimit -l`, LimitMEMLOCK) or of open files, or lower connections_max"
                        );
                    }
                    self.retry_at = Some(now_ms + RETRY_MS);
                    return false;
                }
            }
        }
        true
    }

    /// Hands everything queued to the kernel, and lets it run what completed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        for bank in &mut self.banks {
            if bank.ring.has_work() {
                bank.ring.submit()?;
            }
        }
        Ok(())
    }

    /// Whether nothing has completed, and nothing waits for a call into the kernel. The kernel runs a part of what waits
    /// in one call, and that may complete nothing: a poll is woken for what it does not ask for, too. It signals only
    /// what comes while nothing waits, so a shard that sleeps before is not woken.
    pub(super) fn are_idle(&mut self) -> bool {
        self.banks.iter_mut().all(|bank| !bank.ring.has_completions() && !bank.ring.has_work())
    }

    pub(super) fn has_completions(&mut self) -> bool {
        self.banks.iter_mut().any(|bank| bank.ring.has_completions())
    }

    /// Takes at most `max` completions of all banks together. Whoever was left with some begins the next time.
    pub(super) fn take(&mut self, into: &mut Vec<Completion>, max: usize) {
        let count = self.banks.len();
        for n in 0..count {
            let index = (self.next + n) % count;
            self.banks[index].ring.take(into, max - into.len());
            if into.len() == max {
                self.next = (index + 1) % count;
                return;
            }
        }
    }

    /// Lets the kernel see the buffers that were given back.
    pub(super) fn publish(&mut self) {
        self.banks.iter_mut().for_each(|bank| bank.buffers.publish());
    }

    /// Whether completions signal the wake descriptor: only while the shard is about to sleep.
    pub(super) fn signal(&mut self, enabled: bool) {
        self.banks.iter_mut().for_each(|bank| bank.ring.signal(enabled));
    }

    /// Cancels everything and waits for the last completions; false when the kernel did not give them all up.
    pub(super) fn quiesce(&mut self, mut last: impl FnMut(Completion)) -> bool {
        let mut quiet = true;
        for bank in &mut self.banks {
            quiet &= bank.ring.quiesce(&mut last);
        }
        quiet
    }

    /// Gives the buffers up for ever: the kernel may still write to them.
    pub(super) fn leak_buffers(&mut self) {
        for bank in &mut self.banks {
            std::mem::forget(std::mem::replace(&mut bank.buffers, Buffers::new(1, 1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode;
    use io_uring::types::Fd;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    /// Polls that wake for nothing, more than the kernel looks at in one call, before one that has something to tell.
    #[test]
    fn a_shard_does_not_sleep_on_what_the_kernel_has_not_looked_at() {
        const POLLS: u64 = 200;
        let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).expect("an eventfd");
        let buffers = BufferOptions { count: 8, bytes: 64 };
        let bank = Bank::new(Size { submissions: 512, completions: 1_024 }, 8, &wake, buffers).expect("a ring");
        let more = Size { submissions: 8, completions: 16 };
        let mut banks =
            Banks { banks: vec![bank], files_bits: 3, wake, more, more_buffers: buffers, next: 0, retry_at: None };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let pairs: Vec<(TcpStream, TcpStream)> = (0..=POLLS)
            .map(|_| {
                let far = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
                (listener.accept().expect("its other end").0, far)
            })
            .collect();
        for (number, (near, _)) in (0..).zip(&pairs) {
            let poll = opcode::PollAdd::new(Fd(near.as_raw_fd()), (libc::POLLIN | libc::POLLRDHUP) as u32);
            // SAFETY: the entry points to nothing, and the sockets are open until the end.
            unsafe { banks.first().push(poll.build().user_data(number)) }.expect("it is queued");
        }
        banks.submit().expect("they are armed");
        // One's own end of sending wakes whoever waits for the socket, whatever for.
        pairs[..POLLS as usize].iter().for_each(|(near, _)| near.shutdown(Shutdown::Write).expect("it is open"));
        (&pairs[POLLS as usize].1).write_all(b"!").expect("it takes a byte");
        let mut told = Vec::new();
        loop {
            banks.submit().expect("the kernel looks");
            if banks.are_idle() {
                break;
            }
            banks.take(&mut told, usize::MAX);
        }
        let told: Vec<u64> = told.iter().map(|completion| completion.user_data).collect();
        assert_eq!(told, [POLLS], "before it slept");
        drop(pairs);
        assert!(banks.quiesce(|_| {}));
    }
}
