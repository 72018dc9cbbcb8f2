//! Accepting, in the first ring. What is accepted is a plain descriptor, so the limit of open files bounds the lobby.
//!
//! `unsafe`: descriptors that completions bring.
#![allow(unsafe_code)]

use super::ring::Completion;
use super::slot::{Conn, Kind, NOBODY, name};
use super::{Accepting, Uring};
use crate::plane::conn::Outgoing;
use crate::plane::driver::Sink;
use crate::plane::epoll::ACCEPT_BACKOFF_MS;
use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fd};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

impl Uring {
    pub(super) fn on_accept(&mut self, completion: Completion, sink: &mut impl Sink) {
        if !completion.more() {
            self.accepting = Accepting::Off;
        }
        if completion.result < 0 {
            if matches!(-completion.result, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) {
                let error = io::Error::from_raw_os_error(-completion.result);
                tracing::warn!(%error, "accepting pauses");
                self.counters.accept_pauses.add(1);
                self.accepting = Accepting::Backoff(self.now_ms + ACCEPT_BACKOFF_MS);
            }
            return;
        }
        // SAFETY: the kernel opened this descriptor for us with the completion; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
        if self.table.len() >= self.clients_max || !self.accepts || !self.has_room() {
            // It was accepted before the cancellation took effect, or there is no ring for it.
            self.counters.refused.add(1);
            return;
        }
        // A peer that is gone already has no address any more.
        let Ok(Some(peer)) = rustix::net::getpeername(&fd) else { return };
        let Ok(peer) = SocketAddr::try_from(peer) else { return };
        let Some(conn) = self.table.insert(Conn::new(fd, Outgoing::default())) else { return };
        self.counters.accepted.add(1);
        self.counters.connections.set(self.table.len() as u64);
        self.mark_rearm(conn);
        sink.accepted(conn, peer);
    }

    /// Whether another connection finds a slot, and a ring for it.
    pub(super) fn has_room(&mut self) -> bool {
        let Some(slot) = self.table.next_slot() else { return false };
        let rings = self.banks.size().0;
        let room = self.banks.reach(slot, self.now_ms);
        if self.banks.size().0 > rings {
            self.count_rings();
        }
        room
    }

    pub(super) fn count_rings(&self) {
        let (rings, files) = self.banks.size();
        self.counters.rings.set(rings as u64);
        self.counters.ring_files.set(files as u64);
    }

    pub(super) fn arm_accept(&mut self) {
        let full = self.table.len() >= self.clients_max;
        match self.accepting {
            Accepting::Off | Accepting::Backoff(_) if !self.accepts => self.listener = None,
            Accepting::Off if !full => {
                let Some(listener) = &self.listener else { return };
                let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
                self.accepting = Accepting::Armed;
                // SAFETY: the entry points to nothing; the listener stays open until accepting is off.
                let pushed = unsafe { self.banks.first().push(accept.build().user_data(name(Kind::Accept, NOBODY))) };
                self.note(pushed);
            }
            Accepting::Armed if full || !self.accepts => {
                self.accepting = Accepting::Cancelling;
                if full {
                    self.counters.accept_pauses.add(1);
                }
                let which = CancelBuilder::user_data(name(Kind::Accept, NOBODY));
                let cancelled = self.banks.first().cancel(which, name(Kind::Ignored, NOBODY));
                self.note(cancelled);
            }
            _ => {}
        }
    }
}
