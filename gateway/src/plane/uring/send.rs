//! Sending: one send of a connection at a time, with everything that was queued before it; and the steps of an orderly
//! end, which follow the last one.
//!
//! `unsafe`: submissions with addresses of send queues.
#![allow(unsafe_code)]

use super::Uring;
use super::slot::{Flag, Kind, name};
use crate::plane::conn::State;
use crate::plane::driver::Sink;
use gateway_core::output::ConnId;
use io_uring::opcode;
use io_uring::types::{Fd, Fixed};
use std::os::fd::AsRawFd;

/// One send is at most this long: results are 32-bit and signed.
const SEND_BYTES_MAX: usize = 1 << 30;

impl Uring {
    pub(super) fn mark_dirty(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && !entry.is(Flag::DIRTY)
        {
            entry.set(Flag::DIRTY, true);
            self.dirty.push(conn);
        }
    }

    pub(super) fn on_send(&mut self, conn: ConnId, result: i32, sink: &mut impl Sink) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        entry.set(Flag::SENDING, false);
        if result > 0 {
            entry.queue.advance(result as usize, &mut self.pool);
            self.counters.sends.add(1);
            self.counters.bytes_out.add(result as u64);
        } else {
            entry.queue.unlock();
        }
        if !entry.is_alive() {
            return self.finish(conn);
        }
        let again = matches!(-result, libc::EINTR | libc::EAGAIN | libc::ECANCELED);
        if result <= 0 && !again {
            return self.fail(conn, sink);
        }
        if result > 0 && entry.state == State::Open {
            sink.sent(conn, result as usize, entry.queue.queued());
        }
        if !entry.queue.is_empty() || entry.state != State::Open {
            self.mark_dirty(conn);
        }
    }

    /// Puts the next send of a connection in flight, or takes the next step of its end.
    pub(super) fn flush_one(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::DIRTY, false);
        if !entry.is_alive() || entry.is(Flag::SENDING) {
            return;
        }
        let file = self.banks.file(conn);
        if !entry.queue.is_empty() {
            entry.set(Flag::SENDING, true);
            let bytes = entry.queue.lock();
            let (start, len) = (bytes.as_ptr(), bytes.len().min(SEND_BYTES_MAX) as u32);
            let send = for_fd!(entry, file, |fd| opcode::Send::new(fd, start, len).flags(libc::MSG_NOSIGNAL).build());
            // SAFETY: the queue's front is locked: it neither moves nor grows before `on_send`, and the slot, with the
            // queue and the descriptor, is kept until then.
            return unsafe { self.push(conn, send.user_data(name(Kind::Send, conn))) };
        }
        match entry.state {
            State::Closing => {
                entry.state = State::Lingering;
                entry.begin_aside();
                let shutdown = for_fd!(entry, file, |fd| opcode::Shutdown::new(fd, libc::SHUT_WR).build());
                // SAFETY: the entry points to nothing; the descriptor is kept while an aside is in flight.
                unsafe { self.push(conn, shutdown.user_data(name(Kind::Aside, conn))) };
                // A paused connection is read again now, for its end.
                self.mark_rearm(conn);
            }
            State::Gone => self.die(conn),
            State::Open | State::Lingering => {}
        }
    }
}
