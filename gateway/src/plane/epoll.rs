//! The epoll driver: level-triggered readiness, one receive a turn and connection into a buffer of the shard, sends at
//! the end of the turn. It serves where io_uring is forbidden or too old, and runs on a plain thread.

use super::conn::{Outgoing, SendPool, State};
use super::counters::Counters;
use super::driver::{Detached, Driver, Sink};
use super::table::Table;
use bytes::Bytes;
use gateway_core::output::ConnId;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Events taken in one turn.
const EVENTS_MAX: usize = 512;
/// Connections accepted in one turn: those that are live come first.
const ACCEPTS_PER_TURN_MAX: usize = 64;
/// The read buffer of the shard.
const READ_BYTES_MAX: usize = 64 << 10;
/// Sends to one connection in one turn before the others have theirs.
const SENDS_PER_TURN_MAX: usize = 16;
/// Pause of accepting after the process ran out of descriptors.
pub(super) const ACCEPT_BACKOFF_MS: u64 = 100;

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_LISTENER: u64 = u64::MAX - 1;

struct Conn {
    fd: OwnedFd,
    queue: Outgoing,
    state: State,
    /// What epoll is told to report.
    interest: EventFlags,
    paused: bool,
    /// On the list of connections that `flush` visits.
    dirty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    On,
    /// The table is full: until a connection leaves.
    Full,
    /// No descriptors: until then.
    Backoff(u64),
}

pub(crate) struct Epoll {
    epoll: OwnedFd,
    /// Closed by a drain: who comes then is refused, and may try elsewhere.
    listener: Option<OwnedFd>,
    accepting: Accepting,
    table: Table<Conn>,
    clients_max: usize,
    linger_ms: u64,
    /// Ends of linger times, in order.
    lingering: VecDeque<(u64, ConnId)>,
    events: Vec<Event>,
    read_buffer: Box<[u8]>,
    dirty: Vec<ConnId>,
    detached: VecDeque<(ConnId, Detached)>,
    pool: SendPool,
    counters: Arc<Counters>,
}

fn token(conn: ConnId) -> EventData {
    EventData::new_u64(u64::from(conn.generation) << 32 | u64::from(conn.slot))
}

impl Epoll {
    /// `clients_max` connections beside one link.
    pub(crate) fn new(
        listener: OwnedFd,
        wake: &OwnedFd,
        clients_max: usize,
        linger_ms: u64,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&listener, true)?;
        epoll::add(&epoll, &listener, EventData::new_u64(TOKEN_LISTENER), EventFlags::IN)?;
        // Edge-triggered: each write is one event, and nobody needs to read the counter back.
        epoll::add(&epoll, wake, EventData::new_u64(TOKEN_WAKE), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            listener: Some(listener),
            accepting: Accepting::On,
            table: Table::new(clients_max + 1),
            clients_max,
            linger_ms,
            lingering: VecDeque::new(),
            events: Vec::with_capacity(EVENTS_MAX),
            read_buffer: vec![0; READ_BYTES_MAX].into_boxed_slice(),
            dirty: Vec::new(),
            detached: VecDeque::new(),
            pool: SendPool::default(),
            counters,
        })
    }

    fn mark_dirty(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && !entry.dirty
        {
            entry.dirty = true;
            self.dirty.push(conn);
        }
    }

    fn set_accepting(&mut self, accepting: Accepting) {
        let Some(listener) = self.listener.as_ref().filter(|_| self.accepting != accepting) else { return };
        let flags = if accepting == Accepting::On { EventFlags::IN } else { EventFlags::empty() };
        if accepting != Accepting::On {
            self.counters.accept_pauses.add(1);
        }
        if let Err(error) = epoll::modify(&self.epoll, listener, EventData::new_u64(TOKEN_LISTENER), flags) {
            tracing::error!(%error, "cannot change the listener's interest");
        }
        self.accepting = accepting;
    }

    fn accept(&mut self, now_ms: u64, sink: &mut impl Sink) {
        for _ in 0..ACCEPTS_PER_TURN_MAX {
            if self.table.len() >= self.clients_max {
                return self.set_accepting(Accepting::Full);
            }
            let Some(listener) = &self.listener else { return };
            let (fd, peer) = match rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC) {
                Ok((fd, Some(peer))) => (fd, peer),
                Ok((_, None)) | Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "accepting pauses");
                    return self.set_accepting(Accepting::Backoff(now_ms + ACCEPT_BACKOFF_MS));
                }
            };
            let Ok(peer) = SocketAddr::try_from(peer) else { continue };
            if let Some(conn) = self.insert(fd, Outgoing::default()) {
                self.counters.accepted.add(1);
                sink.accepted(conn, peer);
            }
        }
    }

    fn insert(&mut self, fd: OwnedFd, queue: Outgoing) -> Option<ConnId> {
        let interest = EventFlags::IN;
        let conn = self.table.insert(Conn { fd, queue, state: State::Open, interest, paused: false, dirty: false })?;
        let fd = &self.table.get_mut(conn).expect("inserted above").fd;
        if let Err(error) = epoll::add(&self.epoll, fd, token(conn), interest) {
            tracing::warn!(%error, "cannot watch a connection");
            self.table.remove(conn);
            return None;
        }
        self.counters.connections.set(self.table.len() as u64);
        Some(conn)
    }

    fn remove(&mut self, conn: ConnId) -> Option<Conn> {
        // Closing the descriptor takes it out of the epoll set; whoever keeps it open does that first.
        let removed = self.table.remove(conn)?;
        self.counters.closed.add(1);
        self.counters.connections.set(self.table.len() as u64);
        if self.accepting == Accepting::Full && self.table.len() < self.clients_max {
            self.set_accepting(Accepting::On);
        }
        Some(removed)
    }

    /// Ends a connection whose socket is of no more use.
    fn fail(&mut self, conn: ConnId, sink: &mut impl Sink) {
        if let Some(removed) = self.remove(conn)
            && removed.state != State::Gone
        {
            sink.closed(conn);
        }
    }

    fn on_event(&mut self, now_ms: u64, conn: ConnId, flags: EventFlags, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let reads = entry.state.reads(entry.paused);
        if broken && !reads {
            return self.fail(conn, sink);
        }
        if flags.contains(EventFlags::OUT) {
            self.mark_dirty(conn);
        }
        if reads && (broken || flags.contains(EventFlags::IN)) {
            self.receive(now_ms, conn, sink);
        }
    }

    fn receive(&mut self, now_ms: u64, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        match rustix::net::recv(&entry.fd, &mut *self.read_buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) if matches!(entry.state, State::Lingering) => self.fail(conn, sink),
            Ok((0, _)) => {
                // The peer sends no more. What is queued for it, and what this turn queues, may still be wanted.
                entry.state = State::Gone;
                self.linger(now_ms, conn);
                self.mark_dirty(conn);
                sink.closed(conn);
            }
            Ok((bytes, _)) => {
                self.counters.recvs.add(1);
                self.counters.bytes_in.add(bytes as u64);
                if entry.state == State::Open {
                    sink.data(conn, &mut self.read_buffer[..bytes]);
                }
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.fail(conn, sink),
        }
    }

    fn linger(&mut self, now_ms: u64, conn: ConnId) {
        self.lingering.push_back((now_ms + self.linger_ms, conn));
    }

    /// Sends what is queued as far as the socket takes it, then adjusts what epoll reports.
    fn flush_one(&mut self, conn: ConnId, sink: &mut impl Sink) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        entry.dirty = false;
        let mut sent = 0;
        for _ in 0..SENDS_PER_TURN_MAX {
            if entry.queue.is_empty() {
                break;
            }
            match rustix::net::send(&entry.fd, entry.queue.front(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(bytes) => {
                    entry.queue.advance(bytes, &mut self.pool);
                    self.counters.sends.add(1);
                    sent += bytes;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.fail(conn, sink),
            }
        }
        if entry.queue.is_empty() {
            match entry.state {
                State::Closing => {
                    // Nothing to wait for when the peer is gone already.
                    if rustix::net::shutdown(&entry.fd, Shutdown::Write).is_err() {
                        return self.fail(conn, sink);
                    }
                    entry.state = State::Lingering;
                }
                State::Gone => {
                    self.remove(conn);
                    return;
                }
                State::Open | State::Lingering => {}
            }
        }
        if sent > 0 {
            self.counters.bytes_out.add(sent as u64);
            if entry.state == State::Open {
                sink.sent(conn, sent, entry.queue.queued());
            }
        }
        self.update_interest(conn);
    }

    fn update_interest(&mut self, conn: ConnId) {
        let Some(entry) = self.table.get_mut(conn) else { return };
        let mut wanted = EventFlags::empty();
        wanted.set(EventFlags::OUT, !entry.queue.is_empty());
        let reads = entry.state.reads(entry.paused);
        wanted.set(EventFlags::IN, reads);
        if wanted != entry.interest {
            entry.interest = wanted;
            if let Err(error) = epoll::modify(&self.epoll, &entry.fd, token(conn), wanted) {
                tracing::error!(%error, "cannot change a connection's interest");
            }
        }
    }
}

impl Driver for Epoll {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.events.clear();
        let timeout = timeout
            .map(|timeout| Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn dispatch(&mut self, now_ms: u64, sink: &mut impl Sink) {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event.data.u64() {
                TOKEN_WAKE => {}
                TOKEN_LISTENER => self.accept(now_ms, sink),
                token => {
                    let conn = ConnId { slot: token as u32, generation: (token >> 32) as u32 };
                    self.on_event(now_ms, conn, event.flags, sink);
                }
            }
        }
        self.events = events;
        while let Some((_, conn)) = self.lingering.pop_front_if(|(deadline, _)| *deadline <= now_ms) {
            self.fail(conn, sink);
        }
        if matches!(self.accepting, Accepting::Backoff(until) if until <= now_ms) {
            self.set_accepting(Accepting::On);
        }
    }

    fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.queue.push(bytes, &mut self.pool);
            self.mark_dirty(conn);
        }
    }

    fn send_shared(&mut self, conn: ConnId, bytes: Bytes) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.queue.push_shared(bytes, &mut self.pool);
            self.mark_dirty(conn);
        }
    }

    fn pause(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.paused = true;
            self.mark_dirty(conn);
        }
    }

    fn resume(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.paused = false;
            self.mark_dirty(conn);
        }
    }

    /// A live connection differs from one in the lobby only in the ring driver.
    fn promote(&mut self, _: ConnId) {}

    fn close(&mut self, now_ms: u64, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn)
            && entry.state == State::Open
        {
            entry.state = State::Closing;
            self.linger(now_ms, conn);
            self.mark_dirty(conn);
        }
    }

    fn abort(&mut self, conn: ConnId) {
        self.remove(conn);
    }

    fn detach(&mut self, conn: ConnId) -> bool {
        let gone = self.table.get_mut(conn).is_none_or(|entry| entry.state != State::Open);
        if gone {
            return false;
        }
        let Some(Conn { fd, queue, .. }) = self.remove(conn) else { return false };
        if let Err(error) = epoll::delete(&self.epoll, &fd) {
            tracing::error!(%error, "cannot hand a connection over");
            return false;
        }
        self.detached.push_back((conn, Detached { fd, unread: Vec::new(), unsent: queue }));
        true
    }

    fn take_detached(&mut self) -> Option<(ConnId, Detached)> {
        self.detached.pop_front()
    }

    fn adopt(&mut self, arrival: Detached, busy: bool) -> Option<ConnId> {
        if self.table.len() >= self.clients_max && !busy {
            return None;
        }
        let pending = !arrival.unsent.is_empty();
        let conn = self.insert(arrival.fd, arrival.unsent)?;
        if pending {
            self.mark_dirty(conn);
        }
        Some(conn)
    }

    fn flush(&mut self, _: u64, sink: &mut impl Sink) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for conn in dirty.drain(..) {
            self.flush_one(conn, sink);
        }
        // `flush_one` marks nobody, so the list that is kept for its allocation is the only one.
        self.dirty = dirty;
    }

    fn stop_accepting(&mut self) {
        // Closing takes it out of the epoll set.
        self.listener = None;
        self.accepting = Accepting::Full;
    }

    fn next_deadline(&self) -> Option<u64> {
        let backoff = match self.accepting {
            Accepting::Backoff(until) => Some(until),
            _ => None,
        };
        [self.lingering.front().map(|(deadline, _)| *deadline), backoff].into_iter().flatten().min()
    }

    fn has_more(&mut self) -> bool {
        // Level-triggered: what was not taken is reported again by the next wait.
        false
    }
}
