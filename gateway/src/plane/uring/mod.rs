//! The ring driver. A connection is accepted as a plain descriptor and stays one in the lobby, so that it can be given
//! to another shard; once live it is a direct descriptor of one of the shard's rings. The number of its slot says which
//! ring that is, and its place in that ring's file table; all its operations go through this ring.
//!
//! A slot is used again only when every operation of its connection has completed, and until then its send queue and
//! descriptor stay where they are: this is what the SAFETY comments rest on.
//!
//! `unsafe`: submissions, and descriptors that completions bring.
#![allow(unsafe_code)]

/// Builds an entry for the plain or the direct descriptor.
macro_rules! for_fd {
    ($entry:expr, $file:expr, |$fd:ident| $build:expr) => {
        match &$entry.fd {
            Some(plain) => {
                let $fd = Fd(plain.as_raw_fd());
                $build
            }
            None => {
                let $fd = Fixed($file);
                $build
            }
        }
    };
}

mod accept;
mod banks;
mod buffers;
mod ending;
mod receive;
mod ring;
mod send;
mod slot;

pub(crate) use ring::try_setup;

use super::Options;
use super::conn::{SendPool, State};
use super::counters::Counters;
use super::driver::{Detached, Driver, Sink};
use super::table::Table;
use banks::Banks;
use bytes::Bytes;
use gateway_core::output::ConnId;
use io_uring::squeue;
use ring::Completion;
use slot::{Conn, Flag, Kind, NOBODY, name, unname};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Completions taken in one turn, of all rings together.
const COMPLETIONS_PER_TURN_MAX: usize = 1024;
/// Slots fit into 24 bits of an operation's name; two numbers are taken.
pub(crate) const CONNECTIONS_MAX: u32 = (1 << 24) - 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accepting {
    Off,
    Armed,
    Cancelling,
    /// No descriptors: until then.
    Backoff(u64),
}

pub(crate) struct Uring {
    banks: Banks,
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
    /// What was received from connections that leave, while they still had operations in flight.
    leaving: HashMap<ConnId, Vec<u8>>,
    detached: VecDeque<(ConnId, Detached)>,
    /// When the armed timeout fires.
    timeout: Option<u64>,
    pool: SendPool,
    counters: Arc<Counters>,
    /// A failure of a ring itself, which ends the shard at the next `wait`.
    broken: Option<io::Error>,
    /// The time of this turn, in milliseconds and, wrapping, in seconds.
    now_ms: u64,
    now_s: u16,
    /// Connections in the file tables.
    live: usize,
    /// Of these, with a multishot receive, and of these, those that may go back to polling.
    streaming: usize,
    demotable: usize,
    poll_after_ms: u64,
    /// The clock hand: the slot that it comes to next, and when.
    hand: u32,
    hand_at_ms: u64,
}

impl Uring {
    /// `connections_max` connections beside one link.
    pub(crate) fn new(
        listener: OwnedFd,
        wake: &OwnedFd,
        options: &Options,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let clients_max = options.connections_max as usize;
        let driver = Self {
            banks: Banks::new(wake, options)?,
            listener: Some(listener),
            accepting: Accepting::Off,
            accepts: true,
            table: Table::new(clients_max + 1),
            clients_max,
            linger_ms: options.linger_ms,
            lingering: VecDeque::new(),
            completions: Vec::with_capacity(COMPLETIONS_PER_TURN_MAX),
            dirty: Vec::new(),
            rearm: Vec::new(),
            leaving: HashMap::new(),
            detached: VecDeque::new(),
            timeout: None,
            pool: SendPool::default(),
            counters,
            broken: None,
            now_ms: 0,
            now_s: 0,
            live: 0,
            streaming: 0,
            demotable: 0,
            poll_after_ms: options.rings.poll_after_ms,
            hand: 0,
            hand_at_ms: 0,
        };
        driver.count_rings();
        Ok(driver)
    }

    /// Prepares to sleep on the wake descriptor until `deadline`; false when there is something to do.
    pub(crate) fn park(&mut self, now_ms: u64, deadline: Option<u64>) -> io::Result<bool> {
        self.banks.signal(true);
        // The kernel sets its flag and then looks whether to signal; this side enables signals and then looks for the
        // flag, ring by ring. With the fence one of the two sees the other.
        fence(Ordering::SeqCst);
        if let Some(deadline) = deadline
            && self.timeout.is_none_or(|armed| deadline < armed)
        {
            let moves = self.timeout.map(|_| name(Kind::Timeout, NOBODY));
            let this = if moves.is_some() { Kind::Ignored } else { Kind::Timeout };
            self.banks.first().timeout(deadline.saturating_sub(now_ms), name(this, NOBODY), moves)?;
            self.timeout = Some(deadline);
        }
        self.banks.submit()?;
        let idle = self.banks.are_idle();
        if !idle {
            self.banks.signal(false);
        }
        Ok(idle)
    }

    /// After `park`, awake again.
    pub(crate) fn unpark(&mut self) {
        self.banks.signal(false);
    }

    /// Queues an operation of a connection.
    ///
    /// # Safety
    ///
    /// See [`ring::Ring::push`].
    unsafe fn push(&mut self, conn: ConnId, entry: squeue::Entry) {
        // SAFETY: passed on to the caller.
        let pushed = unsafe { self.banks.of(conn).ring.push(entry) };
        self.note(pushed);
    }

    /// Remembers a failure of a ring.
    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.broken.get_or_insert(error);
        }
    }

    fn on_completion(&mut self, completion: Completion, sink: &mut impl Sink) {
        let (kind, conn) = unname(completion.user_data);
        match kind {
            Kind::Ignored => {}
            Kind::Accept => self.on_accept(completion, sink),
            Kind::Receive | Kind::Take => self.on_receive(kind, conn, completion, sink),
            Kind::Poll => self.on_poll(conn, completion, sink),
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
}

impl Driver for Uring {
    fn wait(&mut self, _: Option<Duration>) -> io::Result<()> {
        match self.broken.take() {
            Some(error) => Err(error),
            None => self.banks.submit(),
        }
    }

    fn dispatch(&mut self, now_ms: u64, sink: &mut impl Sink) {
        self.now_ms = now_ms;
        self.now_s = (now_ms / 1_000) as u16;
        let mut completions = std::mem::take(&mut self.completions);
        self.banks.take(&mut completions, COMPLETIONS_PER_TURN_MAX);
        for completion in completions.drain(..) {
            self.on_completion(completion, sink);
        }
        self.completions = completions;
        self.banks.publish();
        while let Some((_, conn)) = self.lingering.pop_front_if(|(deadline, _)| *deadline <= now_ms) {
            self.fail(conn, sink);
        }
        if matches!(self.accepting, Accepting::Backoff(until) if until <= now_ms) {
            self.accepting = Accepting::Off;
        }
        self.move_hand();
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
            entry.set(Flag::PAUSED, true);
            self.mark_rearm(conn);
        }
    }

    fn resume(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.set(Flag::PAUSED, false);
            self.mark_rearm(conn);
        }
    }

    fn promote(&mut self, conn: ConnId) {
        if let Some(entry) = self.table.get_mut(conn) {
            entry.set(Flag::WANTS_LIVE, true);
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
        self.leave(conn)
    }

    fn take_detached(&mut self) -> Option<(ConnId, Detached)> {
        self.detached.pop_front()
    }

    fn adopt(&mut self, arrival: Detached, busy: bool) -> Option<ConnId> {
        let full = self.table.len() >= self.clients_max && !busy;
        if full || !self.has_room() {
            return None;
        }
        let pending = !arrival.unsent.is_empty();
        let mut entry = Conn::new(arrival.fd, arrival.unsent);
        entry.set(Flag::WANTS_LIVE, true);
        entry.set(Flag::BUSY, busy);
        let conn = self.table.insert(entry)?;
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
        let lingering = self.lingering.front().map(|(deadline, _)| *deadline);
        [lingering, backoff, self.hand_deadline()].into_iter().flatten().min()
    }

    fn has_more(&mut self) -> bool {
        self.banks.has_completions()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        let quiet = self.banks.quiesce(|completion| {
            if unname(completion.user_data).0 == Kind::Accept && completion.result >= 0 {
                // SAFETY: as in `on_accept`; it is closed at once.
                drop(unsafe { OwnedFd::from_raw_fd(completion.result) });
            }
        });
        if !quiet {
            // The kernel may still write to the buffers and read from the queues.
            tracing::warn!("operations are in flight at the end; their memory is left to the end of the process");
            self.banks.leak_buffers();
            std::mem::forget(std::mem::replace(&mut self.table, Table::new(0)));
        }
    }
}
