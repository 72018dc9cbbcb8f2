//! The ring driver. A connection is accepted as a plain descriptor and stays one in the lobby, with one-shot receives,
//! so that it can be given to another shard; once live it is a direct descriptor with a multishot receive. Connection
//! slots and direct descriptors share their numbers.
//!
//! A slot is used again only when every operation of its connection has completed, and until then its send queue and
//! descriptor stay where they are: this is what the SAFETY comments rest on.
//!
//! `unsafe`: submissions with addresses of send queues, and descriptors that completions bring.
#![allow(unsafe_code)]

mod buffers;
mod ring;
mod slot;

pub(crate) use ring::try_setup;

use super::BufferOptions;
use super::conn::{Outgoing, SendPool, State};
use super::counters::Counters;
use super::driver::{Detached, Driver, Sink};
use super::epoll::ACCEPT_BACKOFF_MS;
use super::table::Table;
use buffers::Buffers;
use bytes::Bytes;
use gateway_core::output::ConnId;
use io_uring::types::{CancelBuilder, Fd, Fixed};
use io_uring::{opcode, squeue};
use ring::{Completion, Ring};
use slot::{Conn, Fate, Kind, NOBODY, name, unname};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Completions taken in one turn.
const COMPLETIONS_PER_TURN_MAX: usize = 1024;
/// Slots fit into 24 bits of an operation's name; two numbers are taken.
pub(crate) const CONNECTIONS_MAX: u32 = (1 << 24) - 1;
/// One send is at most this long: results are 32-bit and signed.
const SEND_BYTES_MAX: usize = 1 << 30;
/// Descriptors that a process needs beside its connections.
const FILES_RESERVED: u64 = 64;

/// Builds an entry for the plain or the direct descriptor.
macro_rules! for_fd {
    ($conn:expr, $entry:expr, |$fd:ident| $build:expr) => {
        match &$entry.fd {
            Some(plain) => {
                let $fd = Fd(plain.as_raw_fd());
                $build
            }
            None => {
                let $fd = Fixed($conn.slot);
                $build
            }
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    Off,
    Armed,
    Cancelling,
    /// No descriptors: until then.
    Backoff(u64),
}

pub(crate) struct Uring {
    ring: Ring,
    buffers: Buffers,
    /// Closed by a drain: who comes then is refused, and may try elsewhere.
    listener: Option<OwnedFd>,
    accepting: Accepting,
    accepts: bool,
    table: Table<Conn>,
    clients_max: usize,
    linger_ms: u64,
    lingering: VecDeque<(u64, ConnId)>,
    completions: Vec<Completion>,
    dirty: Vec<ConnId>,
    rearm: Vec<ConnId>,
    detached: VecDeque<(ConnId, Detached)>,
    /// When the armed timeout fires.
    timeout: Option<u64>,
    pool: SendPool,
    counters: Arc<Counters>,
    /// A failure of the ring itself, which ends the shard at the next `wait`.
    broken: Option<io::Error>,
}

impl Uring {
    /// `clients_max` connections beside one link, as far as the limit of open files allows such a table.
    pub(crate) fn new(
        listener: OwnedFd,
        wake: &OwnedFd,
        clients_max: usize,
        linger_ms: u64,
        buffers: BufferOptions,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let allowed = files.saturating_sub(FILES_RESERVED).max(1) as usize;
        if clients_max > allowed {
            tracing::warn!(clients_max, allowed, "the limit of open files bounds the connections of a shard");
        }
        let clients_max = clients_max.min(allowed);
        let buffers = Buffers::new(buffers.count, buffers.bytes);
        let ring = Ring::new(clients_max as u32 + 1, wake, &buffers)?;
        Ok(Self {
            ring,
            buffers,
            listener: Some(listener),
            accepting: Accepting::Off,
            accepts: true,
            table: Table::new(clients_max + 1),
            clients_max,
            linger_ms,
            lingering: VecDeque::new(),
            completions: Vec::with_capacity(COMPLETIONS_PER_TURN_MAX),
            dirty: Vec::new(),
            rearm: Vec::new(),
            detached: VecDeque::new(),
            timeout: None,
            pool: SendPool::default(),
            counters,
            broken: None,
        })
    }

    /// Prepares to sleep on the wake descriptor until `deadline`; false when there is something to do.
    pub(crate) fn park(&mut self, now_ms: u64, deadline: Option<u64>) -> io::Result<bool> {
        self.ring.signal(true);
        // The kernel sets its flag and then looks whether to signal; this side enables signals and then looks for the
        // flag. With the fence one of the two sees the other.
        fence(Ordering::SeqCst);
        if let Some(deadline) = deadline
            && self.timeout.is_none_or(|armed| deadline < armed)
        {
            let moves = self.timeout.map(|_| name(Kind::Timeout, NOBODY));
            let this = if moves.is_some() { Kind::Ignored } else { Kind::Timeout };
            self.ring.timeout(deadline.saturating_sub(now_ms), name(this, NOBODY), moves)?;
            self.timeout = Some(deadline);
        }
        if self.ring.has_work() {
            self.ring.submit()?;
        }
        let idle = !self.ring.has_completions();
        if !idle {
            self.ring.signal(false);
        }
        Ok(idle)
    }

    /// After `park`, awake again.
    pub(crate) fn unpark(&mut self) {
        self.ring.signal(false);
    }

    /// Queues an operation of a connection.
    ///
    /// # Safety
    ///
    /// See [`Ring::push`].
    unsafe fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: passed on to the caller.
        if let Err(error) = unsafe { self.ring.push(entry) } {
            self.broken.get_or_insert(error);
        }
    }

    fn mark_dirty(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push(conn);
        }
    }

    fn mark_rearm(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && !entry.rearming
        {
            entry.rearming = true;
            self.rearm.push(conn);
        }
    }

    fn linger(&mut self, now_ms: u64, conn: ConnId) {
        self.lingering.push_back((now_ms + self.linger_ms, conn));
    }

    /// Ends a connection whose socket is of no more use.
    fn fail(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return };
        if entry.state != State::Gone {
            sink.closed(conn);
        }
        self.die(conn);
    }

    /// Lets go of a connection as soon as nothing is in flight.
    fn die(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return };
        entry.fate = Fate::Dying;
        if entry.is_busy() {
            self.cancel_all(conn);
        } else {
            self.finish(conn);
        }
    }

    fn cancel_all(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.begin_aside();
        let which = for_fd!(conn, entry, |fd| CancelBuilder::fd(fd)).all();
        if let Err(error) = self.ring.cancel(which, name(Kind::Aside, conn)) {
            self.broken.get_or_insert(error);
        }
    }

    /// Called when an operation of a connection has completed and it is on its way out.
    fn finish(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        if entry.is_busy() {
            return;
        }
        match &entry.fate {
            Fate::Alive | Fate::Releasing => {}
            Fate::Dying if entry.fd.is_some() => {
                self.remove(conn);
            }
            Fate::Dying => {
                entry.fate = Fate::Releasing;
                let close = opcode::Close::new(Fixed(conn.slot)).build().user_data(name(Kind::Close, conn));
                // SAFETY: the entry points to nothing.
                unsafe { self.push(close) };
            }
            Fate::Leaving(_) => {
                let Some(Conn { fd: Some(fd), queue, fate: Fate::Leaving(unread), .. }) = self.remove(conn) else {
                    unreachable!("a connection that leaves has a plain descriptor");
                };
                self.detached.push_back((conn, Detached { fd, unread, unsent: queue }));
            }
        }
    }

    fn remove(&mut self, conn: ConnId) -> Option<Conn> {
        let removed = self.table.remove(conn)?;
        self.counters.closed.add(1);
        self.counters.connections.set(self.table.len() as u64);
        Some(removed)
    }

    fn on_completion(&mut self, now_ms: u64, completion: Completion, sink: &mut impl Sink) {
        let (kind, conn) = unname(completion.user_data);
        match kind {
            Kind::Ignored => {}
            Kind::Accept => self.on_accept(now_ms, completion, sink),
            Kind::Receive => self.on_receive(now_ms, conn, completion, sink),
            Kind::Send => self.on_send(conn, completion.result, sink),
            Kind::Aside => {
                let Some(entry) = self.table.get_mut(conn) else { return };
                entry.end_aside();
                if !entry.is_alive() {
                    self.finish(conn);
                }
            }
            Kind::CancelReceive => self.on_receive_cancelled(conn),
            Kind::Close => {
                if completion.result < 0 {
                    let error = io::Error::from_raw_os_error(-completion.result);
                    tracing::error!(%error, "cannot clear a direct descriptor");
                }
                self.remove(conn);
            }
            Kind::Timeout => self.timeout = None,
        }
    }

    fn on_accept(&mut self, now_ms: u64, completion: Completion, sink: &mut impl Sink) {
        if !completion.more() {
            self.accepting = Accepting::Off;
        }
        if completion.result < 0 {
            if matches!(-completion.result, libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) {
                let error = io::Error::from_raw_os_error(-completion.result);
                tracing::warn!(%error, "accepting pauses");
                self.counters.accept_pauses.add(1);
                self.accepting = Accepting::Backoff(now_ms + ACCEPT_BACKOFF_MS);
            }
            return;
        }
        // SAFETY: the kernel opened this descriptor for us with the completion; nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(completion.result) };
        if self.table.len() >= self.clients_max || !self.accepts {
            // It was accepted before the cancellation took effect.
            self.counters.refused.add(1);
            return;
        }
        // A peer that is gone already has no address any more.
        let Ok(Some(peer)) = rustix::net::getpeername(&fd) else { return };
        let Ok(peer) = SocketAddr::try_from(peer) else { return };
        let Some(conn) = self.table.insert(Conn::new(fd, false, Outgoing::default())) else { return };
        self.counters.accepted.add(1);
        self.counters.connections.set(self.table.len() as u64);
        self.mark_rearm(conn);
        sink.accepted(conn, peer);
    }

    fn on_receive(&mut self, now_ms: u64, conn: ConnId, completion: Completion, sink: &mut impl Sink) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        entry.receiving = completion.more();
        match completion.result {
            0 if entry.is_alive() => match entry.state {
                State::Open | State::Closing => {
                    // The peer sends no more. What is queued for it, and what this turn queues, may still be wanted.
                    entry.state = State::Gone;
                    self.linger(now_ms, conn);
                    self.mark_dirty(conn);
                    sink.closed(conn);
                }
                State::Lingering => self.fail(conn, sink),
                State::Gone => {}
            },
            bytes if bytes > 0 => {
                self.counters.recvs.add(1);
                self.counters.bytes_in.add(bytes as u64);
                let buffer = completion.buffer().expect("bytes are received into a buffer of the group");
                let data = self.buffers.filled(buffer, bytes as usize);
                match &mut entry.fate {
                    Fate::Alive if entry.state == State::Open => sink.data(conn, data),
                    Fate::Leaving(unread) => unread.extend_from_slice(data),
                    _ => {}
                }
            }
            error if error < 0 => match -error {
                libc::ENOBUFS => self.counters.enobufs.add(1),
                libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                _ => self.fail(conn, sink),
            },
            _ => {}
        }
        if let Some(buffer) = completion.buffer() {
            self.buffers.give_back(buffer);
        }
        let Some(entry) = self.table.get_mut(conn) else { return };
        if !entry.is_alive() {
            if !completion.more() {
                self.finish(conn);
            }
        } else if entry.receiving != entry.state.reads(entry.paused) {
            // It ended, or goes on though it should not: a cancellation may miss what was just running.
            self.mark_rearm(conn);
        }
    }

    /// The cancellation of a receive has ended. The receive completes by itself; if it was missed, its next bytes lead
    /// to another attempt.
    fn on_receive_cancelled(&mut self, conn: ConnId) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        assert!(entry.cancelling, "no more completions than operations");
        entry.cancelling = false;
        if !entry.is_alive() {
            self.finish(conn);
        } else if !entry.receiving {
            self.mark_rearm(conn);
        }
    }

    fn on_send(&mut self, conn: ConnId, result: i32, sink: &mut impl Sink) {
        let entry = self.table.get_mut(conn).expect("a slot outlives its operations");
        entry.sending = false;
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

    /// Brings the receive of a connection to what is wanted: cancels it while paused; arms it for one that is to be
    /// read, moving that into the direct table first if it goes live.
    fn rearm_one(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.rearming = false;
        // While a cancellation is in flight nothing changes: its completion leads here again.
        if !entry.is_alive() || entry.cancelling {
            return;
        }
        match (entry.receiving, entry.state.reads(entry.paused)) {
            (false, true) => self.arm_receive(conn, sink),
            (true, false) => {
                entry.cancelling = true;
                let which = CancelBuilder::user_data(name(Kind::Receive, conn));
                if let Err(error) = self.ring.cancel(which, name(Kind::CancelReceive, conn)) {
                    self.broken.get_or_insert(error);
                }
            }
            (true, true) | (false, false) => {}
        }
    }

    fn arm_receive(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        // Operations that are queued but not submitted name the plain descriptor: then next time.
        if entry.wants_live
            && !entry.is_busy()
            && let Some(fd) = &entry.fd
        {
            if let Err(error) = self.ring.install(conn.slot, fd.as_raw_fd()) {
                tracing::error!(%error, "cannot take a connection live");
                return self.fail(conn, sink);
            }
            entry.fd = None;
        }
        entry.receiving = true;
        let receive = match &entry.fd {
            Some(fd) => opcode::Recv::new(Fd(fd.as_raw_fd()), std::ptr::null_mut(), 0)
                .buf_group(buffers::GROUP)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT),
            None => opcode::RecvMulti::new(Fixed(conn.slot), buffers::GROUP).build(),
        };
        // SAFETY: the memory is of the buffer group, which outlives the ring's operations. The descriptor is closed
        // after this operation has completed.
        unsafe { self.push(receive.user_data(name(Kind::Receive, conn))) };
    }

    /// Puts the next send of a connection in flight, or takes the next step of its end.
    fn flush_one(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.dirty = false;
        if !entry.is_alive() || entry.sending {
            return;
        }
        if !entry.queue.is_empty() {
            entry.sending = true;
            let bytes = entry.queue.lock();
            let (start, len) = (bytes.as_ptr(), bytes.len().min(SEND_BYTES_MAX) as u32);
            let send = for_fd!(conn, entry, |fd| opcode::Send::new(fd, start, len).flags(libc::MSG_NOSIGNAL).build());
            // SAFETY: the queue's front is locked: it neither moves nor grows before `on_send`, and the slot, with the
            // queue and the descriptor, is kept until then.
            return unsafe { self.push(send.user_data(name(Kind::Send, conn))) };
        }
        match entry.state {
            State::Closing => {
                entry.state = State::Lingering;
                entry.begin_aside();
                let shutdown = for_fd!(conn, entry, |fd| opcode::Shutdown::new(fd, libc::SHUT_WR).build());
                // SAFETY: the entry points to nothing; the descriptor is kept while an aside is in flight.
                unsafe { self.push(shutdown.user_data(name(Kind::Aside, conn))) };
                // A paused connection is read again now, for its end.
                self.mark_rearm(conn);
            }
            State::Gone => self.die(conn),
            State::Open | State::Lingering => {}
        }
    }

    fn arm_accept(&mut self) {
        let full = self.table.len() >= self.clients_max;
        match self.accepting {
            Accepting::Off | Accepting::Backoff(_) if !self.accepts => self.listener = None,
            Accepting::Off if !full => {
                let Some(listener) = &self.listener else { return };
                let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).flags(libc::SOCK_CLOEXEC);
                self.accepting = Accepting::Armed;
                // SAFETY: the entry points to nothing; the listener stays open until accepting is off.
                unsafe { self.push(accept.build().user_data(name(Kind::Accept, NOBODY))) };
            }
            Accepting::Armed if full || !self.accepts => {
                self.accepting = Accepting::Cancelling;
                if full {
                    self.counters.accept_pauses.add(1);
                }
                let which = CancelBuilder::user_data(name(Kind::Accept, NOBODY));
                if let Err(error) = self.ring.cancel(which, name(Kind::Ignored, NOBODY)) {
                    self.broken.get_or_insert(error);
                }
            }
            _ => {}
        }
    }
}

impl Driver for Uring {
    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        if let Some(error) = self.broken.take() {
            return Err(error);
        }
        if self.ring.has_work() { self.ring.submit() } else { Ok(()) }
    }

    fn dispatch(&mut self, now_ms: u64, sink: &mut impl Sink) {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.take(&mut completions, COMPLETIONS_PER_TURN_MAX);
        for completion in completions.drain(..) {
            self.on_completion(now_ms, completion, sink);
        }
        self.completions = completions;
        self.buffers.publish();
        while let Some((_, conn)) = self.lingering.pop_front_if(|(deadline, _)| *deadline <= now_ms) {
            self.fail(conn, sink);
        }
        if matches!(self.accepting, Accepting::Backoff(until) if until <= now_ms) {
            self.accepting = Accepting::Off;
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) {
            entry.queue.push(bytes, &mut self.pool);
            self.mark_dirty(conn);
        }
    }

    fn send_shared(&mut self, conn: ConnId, bytes: Bytes) {
        if let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) {
            entry.queue.push_shared(bytes, &mut self.pool);
            self.mark_dirty(conn);
        }
    }

    fn pause(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.paused = true;
            self.mark_rearm(conn);
        }
    }

    fn resume(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.paused = false;
            self.mark_rearm(conn);
        }
    }

    fn promote(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.wants_live = true;
            self.mark_rearm(conn);
        }
    }

    fn close(&mut self, now_ms: u64, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && entry.is_alive()
            && entry.state == State::Open
        {
            entry.state = State::Closing;
            self.linger(now_ms, conn);
            self.mark_dirty(conn);
            self.mark_rearm(conn);
        }
    }

    fn abort(&mut self, conn: ConnId) {
        self.die(conn);
    }

    fn detach(&mut self, conn: ConnId) -> bool {
        let Some(entry) = self.table.get_mut(conn).filter(|entry| entry.is_alive()) else { return false };
        if entry.state != State::Open {
            return false;
        }
        if entry.fd.is_none() {
            tracing::error!("a live connection cannot be given to another shard");
            self.die(conn);
            return false;
        }
        entry.fate = Fate::Leaving(Vec::new());
        if entry.is_busy() {
            self.cancel_all(conn);
        } else {
            self.finish(conn);
        }
        true
    }

    fn take_detached(&mut self) -> Option<(ConnId, Detached)> {
        self.detached.pop_front()
    }

    fn adopt(&mut self, arrival: Detached) -> Option<ConnId> {
        let pending = !arrival.unsent.is_empty();
        let conn = self.table.insert(Conn::new(arrival.fd, true, arrival.unsent))?;
        self.counters.connections.set(self.table.len() as u64);
        self.mark_rearm(conn);
        if pending {
            self.mark_dirty(conn);
        }
        Some(conn)
    }

    fn flush(&mut self, _: u64, sink: &mut impl Sink) {
        // Receives first: a connection that goes live sends through its direct descriptor.
        let mut rearm = std::mem::take(&mut self.rearm);
        for conn in rearm.drain(..) {
            self.rearm_one(conn, sink);
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        for conn in dirty.drain(..) {
            self.flush_one(conn);
        }
        // Ends of connections may have asked for receives; nothing in here marks sends.
        for conn in std::mem::replace(&mut self.rearm, rearm) {
            self.rearm_one(conn, sink);
        }
        self.dirty = dirty;
        self.arm_accept();
    }

    fn stop_accepting(&mut self) {
        self.accepts = false;
    }

    fn next_deadline(&self) -> Option<u64> {
        let backoff = match self.accepting {
            Accepting::Backoff(until) => Some(until),
            _ => None,
        };
        [self.lingering.front().map(|(deadline, _)| *deadline), backoff].into_iter().flatten().min()
    }

    fn has_more(&mut self) -> bool {
        self.ring.has_completions()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let quiet = self.ring.quiesce(|completion| {
            if unname(completion.user_data).0 == Kind::Accept && completion.result >= 0 {
                // SAFETY: as in `on_accept`; it is closed at once.
                drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            }
        });
        if !quiet {
            // The kernel may still write to the buffers and read from the queues.
            tracing::error!("operations do not end; their memory is leaked");
            std::mem::forget(std::mem::replace(&mut self.buffers, Buffers::new(1, 1)));
            std::mem::forget(std::mem::replace(&mut self.table, Table::new(0)));
        }
    }
}
