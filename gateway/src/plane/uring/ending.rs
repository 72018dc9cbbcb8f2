//! The ends of connections. A slot is used again only when every operation of its connection has completed, and until
//! then its send queue and descriptor stay where they are: this is what the SAFETY comments of the driver rest on.
//!
//! `unsafe`: submissions.
#![allow(unsafe_code)]

use super::Uring;
use super::slot::{Conn, Fate, Flag, Kind, name};
use crate::plane::conn::State;
use crate::plane::driver::{Detached, Sink};
use gateway_core::output::ConnId;
use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fixed};

impl Uring {
    pub(super) fn linger(&mut self, now_ms: u64, conn: ConnId) {
        self.lingering.push_back((now_ms + self.linger_ms, conn));
    }

    /// Ends a connection whose socket is of no more use.
    pub(super) fn fail(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return };
        if entry.state != State::Gone {
            sink.closed(conn);
        }
        self.die(conn);
    }

    /// Lets go of a connection as soon as nothing is in flight.
    pub(super) fn die(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return };
        entry.fate = Fate::Dying;
        self.finish_or_cancel(conn);
    }

    /// Lets a connection go to another shard as soon as nothing is in flight. False when it cannot.
    pub(super) fn leave(&mut self, conn: ConnId) -> bool {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return false };
        if entry.state != State::Open {
            return false;
        }
        if entry.fd.is_none() {
            tracing::error!("a live connection cannot be given to another shard");
            self.die(conn);
            return false;
        }
        entry.fate = Fate::Leaving;
        self.finish_or_cancel(conn);
        true
    }

    fn finish_or_cancel(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        if !entry.is_busy() {
            return self.finish(conn);
        }
        // By name: to find what belongs to a descriptor, the kernel walks through everything that waits in the ring.
        for (flag, kind) in [(Flag::RECEIVING, Kind::Receive), (Flag::POLLING, Kind::Poll), (Flag::SENDING, Kind::Send)]
        {
            if self.table.get_mut(conn).is_some_and(|entry| entry.is(flag)) {
                self.cancel_for_good(conn, kind);
            }
        }
    }

    /// A receive that goes on by itself has completed once more, of a connection that is on its way out.
    pub(super) fn cancel_again(&mut self, conn: ConnId) {
        // One that is under way may still meet it, and its end leads nowhere else.
        if self.table.get_mut(conn).is_some_and(|entry| entry.asides() == 0) {
            self.cancel_for_good(conn, Kind::Receive);
        }
    }

    fn cancel_for_good(&mut self, conn: ConnId, kind: Kind) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.begin_aside();
        let which = CancelBuilder::user_data(name(kind, conn));
        let cancelled = self.banks.of(conn).ring.cancel(which, name(Kind::Aside, conn));
        self.note(cancelled);
    }

    /// Called when an operation of a connection has completed and it is on its way out.
    pub(super) fn finish(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        if entry.is_busy() {
            return;
        }
        match entry.fate {
            Fate::Alive | Fate::Releasing => {}
            Fate::Dying if entry.fd.is_some() => {
                self.remove(conn);
            }
            Fate::Dying => {
                entry.fate = Fate::Releasing;
                let file = Fixed(self.banks.file(conn));
                let close = opcode::Close::new(file).build().user_data(name(Kind::Close, conn));
                // SAFETY: the entry points to nothing.
                unsafe { self.push(conn, close) };
            }
            Fate::Leaving => {
                let unread = self.leaving.remove(&conn).unwrap_or_default();
                let Some(Conn { fd: Some(fd), queue, .. }) = self.remove(conn) else {
                    unreachable!("a connection that leaves has a plain descriptor");
                };
                self.detached.push_back((conn, Detached { fd, unread, unsent: queue }));
            }
        }
    }

    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Conn> {
        self.stop_streaming(conn);
        let removed = self.table.remove(conn)?;
        if removed.fd.is_none() {
            self.live -= 1;
            self.counters.live.set(self.live as u64);
        }
        self.counters.closed.add(1);
        self.counters.connections.set(self.table.len() as u64);
        Some(removed)
    }
}
