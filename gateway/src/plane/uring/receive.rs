//! Receiving. A connection in the lobby has a receive of one step. A live one has a multishot receive while it is
//! active, and else a poll, which costs the kernel a third of the memory: what the poll tells of is taken with receives
//! that do not wait. A few receives within a second make a connection active; a heartbeat does not. A clock hand goes
//! round the table and sends those back to polling that have been idle for long, so none needs a timer.
//!
//! The poll is of one event, and armed anew when what it told of was taken: then it tells again of whatever is there. A
//! multishot poll would have to be cancelled in the end, and the kernel finds what is to be cancelled by walking through
//! hundreds of others. So nothing is in flight any more when the end of a connection was received.
//!
//! `unsafe`: submissions.
#![allow(unsafe_code)]

use super::Uring;
use super::buffers::GROUP;
use super::ring::Completion;
use super::slot::{Fate, Flag, Kind, name};
use crate::plane::conn::State;
use crate::plane::driver::Sink;
use gateway_core::output::ConnId;
use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{opcode, squeue};
use std::os::fd::AsRawFd;

/// So many receives within one second make a connection active.
const ACTIVE_RECEIVES: u8 = 3;
/// Slots that the clock hand passes in one step.
const HAND_SLOTS_MAX: u32 = 4096;
/// Time between two steps of the clock hand, in milliseconds.
const HAND_MS_MIN: u64 = 10;
const HAND_MS_MAX: u64 = 1_000;
/// The hand goes round in this part of the time after which a connection is idle.
const HAND_ROUNDS: u64 = 8;

/// Milliseconds until the clock hand's next step.
fn hand_step_ms(poll_after_ms: u64, slots: u32) -> u64 {
    let steps = u64::from(slots.div_ceil(HAND_SLOTS_MAX)).max(1);
    (poll_after_ms / HAND_ROUNDS / steps).clamp(HAND_MS_MIN, HAND_MS_MAX)
}

impl Uring {
    pub(super) fn mark_rearm(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && !entry.is(Flag::REARMING)
        {
            entry.set(Flag::REARMING, true);
            self.rearm.push(conn);
        }
    }

    /// A receive has completed: one that waits, or (`Kind::Take`) one that does not.
    pub(super) fn on_receive(&mut self, kind: Kind, conn: ConnId, completion: Completion, sink: &mut impl Sink) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        let takes = kind == Kind::Take;
        if takes {
            entry.set(Flag::TAKING, false);
        } else {
            entry.set(Flag::RECEIVING, completion.more());
        }
        match completion.result {
            0 if entry.is_alive() => self.on_end(conn, sink),
            bytes if bytes > 0 => self.on_bytes(takes, conn, completion, sink),
            error if error < 0 => match -error {
                libc::ENOBUFS => {
                    entry.set(Flag::READABLE, takes);
                    self.counters.enobufs.add(1);
                }
                libc::EINTR => entry.set(Flag::READABLE, takes),
                libc::ECANCELED | libc::EAGAIN => {}
                _ => self.fail(conn, sink),
            },
            _ => {}
        }
        if let Some(buffer) = completion.buffer() {
            self.banks.of(conn).buffers.give_back(buffer);
        }
        let Some(entry) = self.table.get_mut(conn) else { return };
        if !entry.is_alive() {
            if completion.more() {
                // The cancellation missed it: it was running just then.
                self.cancel_again(conn);
            } else {
                self.finish(conn);
            }
        } else if takes {
            self.mark_rearm(conn);
        } else {
            let streams = entry.fd.is_some() || entry.is(Flag::STREAMING);
            // It ended, or goes on though it should not: a cancellation may miss what was just running.
            let other = if entry.is(Flag::RECEIVING) { !(entry.reads() && streams) } else { entry.reads() };
            if other {
                self.mark_rearm(conn);
            }
        }
    }

    /// The peer sends no more.
    fn on_end(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        match entry.state {
            State::Open | State::Closing => {
                // What is queued for it, and what this turn queues, may still be wanted.
                entry.state = State::Gone;
                self.linger(self.now_ms, conn);
                self.mark_dirty(conn);
                sink.closed(conn);
            }
            State::Lingering => self.fail(conn, sink),
            State::Gone => {}
        }
    }

    fn on_bytes(&mut self, takes: bool, conn: ConnId, completion: Completion, sink: &mut impl Sink) {
        let bytes = completion.result as usize;
        self.counters.recvs.add(1);
        self.counters.bytes_in.add(bytes as u64);
        let buffer = completion.buffer().expect("bytes are received into a buffer of the group");
        let buffers = &mut self.banks.of(conn).buffers;
        let Some(entry) = self.table.get_mut(conn) else { return };
        let receives = entry.received(self.now_s);
        if takes {
            // Only TCP says whether there is more; a full buffer is a hint everywhere.
            let more = completion.leaves_more() || bytes == buffers.bytes();
            entry.set(Flag::READABLE, more || entry.is(Flag::READABLE));
        }
        let becomes_active = takes && receives >= ACTIVE_RECEIVES && entry.is_alive() && entry.state == State::Open;
        let data = buffers.filled(buffer, bytes);
        match entry.fate {
            Fate::Alive if entry.state == State::Open => sink.data(conn, data),
            Fate::Leaving => self.leaving.entry(conn).or_default().extend_from_slice(data),
            _ => {}
        }
        if becomes_active && self.poll_after_ms > 0 {
            self.counters.promotions.add(1);
            self.start_streaming(conn);
        }
    }

    /// A poll tells of bytes, of the end, or of an error: which one, a receive finds out.
    pub(super) fn on_poll(&mut self, conn: ConnId, completion: Completion, sink: &mut impl Sink) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        entry.set(Flag::POLLING, false);
        if !entry.is_alive() {
            return self.finish(conn);
        }
        match completion.result {
            events if events > 0 => entry.set(Flag::READABLE, true),
            error if error < 0 && -error != libc::ECANCELED => return self.fail(conn, sink),
            _ => {}
        }
        self.mark_rearm(conn);
    }

    /// The cancellation of a receive has ended. The receive completes by itself; if it was missed, its next bytes lead
    /// to another attempt.
    pub(super) fn on_receive_cancelled(&mut self, conn: ConnId) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        assert!(entry.is(Flag::CANCELLING), "no more completions than operations");
        entry.set(Flag::CANCELLING, false);
        if !entry.is_alive() {
            self.finish(conn);
        } else if !entry.is(Flag::RECEIVING) {
            self.mark_rearm(conn);
        }
    }

    /// Brings what a connection has in flight to receive to what is wanted.
    pub(super) fn rearm_one(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::REARMING, false);
        // While a cancellation is in flight nothing changes: its completion leads here again.
        if !entry.is_alive() || entry.is(Flag::CANCELLING) {
            return;
        }
        if !entry.reads() {
            // A poll may go on: it is remembered that it told of something.
            if entry.is(Flag::RECEIVING) {
                self.cancel_receive(conn);
            }
            return;
        }
        self.go_live(conn, sink);
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return };
        let streams = entry.fd.is_some() || entry.is(Flag::STREAMING);
        if entry.is(Flag::RECEIVING) {
            if !streams {
                self.cancel_receive(conn);
            }
        } else if entry.is(Flag::TAKING) || entry.is(Flag::POLLING) {
            // Its completion leads here again.
        } else if streams {
            self.arm_receive(conn);
        } else if entry.is(Flag::READABLE) {
            self.take(conn);
        } else {
            self.arm_poll(conn);
        }
    }

    fn cancel_receive(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::CANCELLING, true);
        let which = CancelBuilder::user_data(name(Kind::Receive, conn));
        let cancelled = self.banks.of(conn).ring.cancel(which, name(Kind::CancelReceive, conn));
        self.note(cancelled);
    }

    /// Moves a connection that is to be live into its ring's file table.
    fn go_live(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        // Operations that are queued but not submitted name the plain descriptor: then next time.
        if !entry.is(Flag::WANTS_LIVE) || entry.is_busy() {
            return;
        }
        let Some(fd) = &entry.fd else { return };
        let file = self.banks.file(conn);
        if let Err(error) = self.banks.of(conn).ring.install(file, fd.as_raw_fd()) {
            tracing::error!(%error, "cannot take a connection live");
            return self.fail(conn, sink);
        }
        entry.fd = None;
        self.live += 1;
        self.counters.live.set(self.live as u64);
        if entry.is(Flag::BUSY) || self.poll_after_ms == 0 {
            self.start_streaming(conn);
        }
    }

    fn arm_receive(&mut self, conn: ConnId) {
        let file = self.banks.file(conn);
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::RECEIVING, true);
        entry.set(Flag::READABLE, false);
        let receive = match &entry.fd {
            Some(fd) => opcode::Recv::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            None => opcode::RecvMulti::new(Fixed(file), GROUP).build(),
        };
        // SAFETY: the memory is of the buffer group, which outlives the ring's operations. The descriptor is closed
        // after this operation has completed.
        unsafe { self.push(conn, receive.user_data(name(Kind::Receive, conn))) };
    }

    fn arm_poll(&mut self, conn: ConnId) {
        let file = self.banks.file(conn);
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::POLLING, true);
        let events = (libc::POLLIN | libc::POLLRDHUP) as u32;
        let poll = opcode::PollAdd::new(Fixed(file), events).build();
        // SAFETY: the entry points to nothing.
        unsafe { self.push(conn, poll.user_data(name(Kind::Poll, conn))) };
    }

    fn take(&mut self, conn: ConnId) {
        let file = self.banks.file(conn);
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.set(Flag::READABLE, false);
        entry.set(Flag::TAKING, true);
        let take = opcode::Recv::new(Fixed(file), std::ptr::null_mut(), 0)
            .flags(libc::MSG_DONTWAIT)
            .buf_group(GROUP)
            .build()
            .flags(squeue::Flags::BUFFER_SELECT);
        // SAFETY: as in `arm_receive`.
        unsafe { self.push(conn, take.user_data(name(Kind::Take, conn))) };
    }

    fn start_streaming(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| !entry.is(Flag::STREAMING)) else { return };
        entry.set(Flag::STREAMING, true);
        entry.active_s = self.now_s;
        self.streaming += 1;
        self.demotable += usize::from(!entry.is(Flag::BUSY));
        self.counters.streaming.set(self.streaming as u64);
    }

    pub(super) fn stop_streaming(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is(Flag::STREAMING)) else { return };
        entry.set(Flag::STREAMING, false);
        self.streaming -= 1;
        self.demotable -= usize::from(!entry.is(Flag::BUSY));
        self.counters.streaming.set(self.streaming as u64);
    }

    /// When the clock hand moves again; `None` while nobody could go back to polling.
    pub(super) fn hand_deadline(&self) -> Option<u64> {
        (self.poll_after_ms > 0 && self.demotable > 0).then_some(self.hand_at_ms)
    }

    /// Moves the clock hand on, if it is time: whom it finds idle goes back to polling.
    pub(super) fn move_hand(&mut self) {
        if self.hand_deadline().is_none_or(|due| due > self.now_ms) {
            return;
        }
        let used = self.table.used();
        self.hand_at_ms = self.now_ms + hand_step_ms(self.poll_after_ms, used);
        let idle_s = self.poll_after_ms.div_ceil(1_000);
        for _ in 0..used.min(HAND_SLOTS_MAX) {
            let slot = if self.hand < used { self.hand } else { 0 };
            self.hand = slot + 1;
            let Some((conn, entry)) = self.table.at_mut(slot) else { continue };
            let idle = u64::from(self.now_s.wrapping_sub(entry.active_s)) >= idle_s;
            if idle && entry.is(Flag::STREAMING) && !entry.is(Flag::BUSY) && entry.is_alive() {
                self.counters.demotions.add(1);
                self.stop_streaming(conn);
                self.mark_rearm(conn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_goes_round_a_table_of_any_size_in_an_eighth_of_the_idle_time() {
        assert_eq!(hand_step_ms(60_000, 0), 1_000);
        assert_eq!(hand_step_ms(60_000, 4_096), 1_000);
        assert_eq!(hand_step_ms(60_000, 524_288) * 128, 7_424);
        assert_eq!(hand_step_ms(1, 1 << 24), 10);
    }
}
