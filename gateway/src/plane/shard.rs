//! The loop of one shard: events of the driver and of the mesh go into the brain, its outputs come out and are carried
//! out. The loop never waits on anything but the driver, and every phase of a turn is bounded.

use super::clock::Clock;
use super::control::Control;
use super::counters::Counters;
use super::driver::{Detached, Driver, Sink};
use crate::mesh::{Mesh, Sender};
use gateway_core::brain::Brain;
use gateway_core::output::{ConnId, Output, Outputs};
use gateway_core::time::Now;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Outputs may lead to events that lead to outputs; after this many rounds the rest waits for the next turn.
const SETTLE_ROUNDS_MAX: usize = 4;
/// Connections taken from one shard in one turn.
const SEATS_PER_TURN_MAX: usize = 64;
/// How soon a connection that found the way to its shard full tries again.
const SEAT_RETRY_MS: u64 = 1;

/// A connection on its way to the shard that owns its user.
#[derive(Debug)]
pub(crate) struct Transfer<S> {
    detached: Detached,
    seat: S,
}

pub(crate) type ShardMesh<B> = Mesh<<B as Brain>::Mesh, Transfer<<B as Brain>::Seat>>;

/// What the host does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// There is more to do.
    Again,
    /// Nothing to do before this time (`Now::mono_ms`), unless something happens.
    Sleep(Option<u64>),
    /// The shard has ended.
    Done,
}

/// What a shard shares with the rest of the process.
pub(crate) struct Shared<B: Brain> {
    pub(crate) mesh: Arc<ShardMesh<B>>,
    pub(crate) control: Arc<Control>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) clock: Clock,
    pub(crate) link_paths: Arc<[PathBuf]>,
}

pub(crate) struct Shard<B: Brain, D> {
    me: u16,
    brain: B,
    pub(crate) driver: D,
    shared: Shared<B>,
    now: Now,
    out: Outputs<B::Mesh, B::Seat>,
    /// The outputs being carried out; what that leads to is written to `out`.
    applying: Outputs<B::Mesh, B::Seat>,
    /// The connection that is the link to the storage-writer.
    link: Option<ConnId>,
    /// Connections that the driver has not let go yet.
    leaving: HashMap<ConnId, (u16, B::Seat)>,
    /// Connections that found the way to their shard full.
    departing: VecDeque<(u16, Transfer<B::Seat>)>,
    /// Connections given to this shard by itself.
    returning: VecDeque<Transfer<B::Seat>>,
    sender: Sender<B::Mesh, Transfer<B::Seat>>,
    draining: bool,
}

/// The brain, seen by the driver.
struct ToBrain<'a, B: Brain> {
    brain: &'a mut B,
    out: &'a mut Outputs<B::Mesh, B::Seat>,
    now: Now,
    link: &'a mut Option<ConnId>,
}

impl<B: Brain> Sink for ToBrain<'_, B> {
    fn accepted(&mut self, conn: ConnId, peer: SocketAddr) {
        self.brain.handle_accept(self.now, conn, peer, self.out);
    }

    fn data(&mut self, conn: ConnId, data: &mut [u8]) {
        if *self.link == Some(conn) {
            self.brain.handle_link_data(self.now, data, self.out);
        } else {
            self.brain.handle_data(self.now, conn, data, self.out);
        }
    }

    fn sent(&mut self, conn: ConnId, bytes: usize, queued: usize) {
        if *self.link != Some(conn) {
            self.brain.handle_sent(self.now, conn, bytes, queued, self.out);
        }
    }

    fn closed(&mut self, conn: ConnId) {
        if *self.link == Some(conn) {
            *self.link = None;
            self.brain.handle_link_down(self.now, self.out);
        } else {
            self.brain.handle_closed(self.now, conn, self.out);
        }
    }
}

macro_rules! to_brain {
    ($shard:expr) => {
        &mut ToBrain { brain: &mut $shard.brain, out: &mut $shard.out, now: $shard.now, link: &mut $shard.link }
    };
}

impl<B: Brain, D: Driver> Shard<B, D> {
    pub(crate) fn new(me: u16, brain: B, driver: D, shared: Shared<B>) -> Self {
        let now = shared.clock.now();
        let sender = Sender::new(shared.mesh.clone(), me);
        Self {
            me,
            brain,
            driver,
            shared,
            now,
            out: Outputs::default(),
            applying: Outputs::default(),
            link: None,
            leaving: HashMap::new(),
            departing: VecDeque::new(),
            returning: VecDeque::new(),
            sender,
            draining: false,
        }
    }

    /// One turn of the loop.
    pub(crate) fn turn(&mut self, timeout: Option<Duration>) -> std::io::Result<Next> {
        self.driver.wait(timeout)?;
        self.now = self.shared.clock.now();
        self.shared.counters.turns.add(1);
        self.driver.dispatch(self.now.mono_ms, to_brain!(self));
        self.receive_mesh();
        self.receive_seats();
        if self.brain.next_timer().is_some_and(|due| due <= self.now.mono_ms) {
            self.brain.handle_timer(self.now, &mut self.out);
        }
        if self.shared.control.is_draining() && !self.draining {
            self.draining = true;
            self.driver.stop_accepting();
            self.brain.handle_drain(self.now, &mut self.out);
        }
        self.settle();
        self.sender.end_turn();
        Ok(self.next())
    }

    fn next(&mut self) -> Next {
        let control = &self.shared.control;
        if self.draining {
            control.set_drained(self.me, self.brain.is_drained());
            if control.is_over(self.now.mono_ms) {
                // The others may sleep; the last one to be drained ends them all.
                self.shared.mesh.wake_all();
                return Next::Done;
            }
        }
        let more = !self.out.is_empty()
            || !self.returning.is_empty()
            || self.driver.has_more()
            || !self.shared.mesh.is_empty(self.me);
        if more {
            return Next::Again;
        }
        let retry = (!self.departing.is_empty()).then_some(self.now.mono_ms + SEAT_RETRY_MS);
        let deadline = if self.draining { control.deadline() } else { None };
        let next = [self.brain.next_timer(), self.driver.next_deadline(), retry, deadline].into_iter().flatten().min();
        Next::Sleep(next)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now.mono_ms
    }

    /// Says that this shard will sleep; false when something came in the meantime.
    pub(crate) fn arm(&self) -> bool {
        self.shared.mesh.arm(self.me, || self.shared.control.has_news(self.draining))
    }

    pub(crate) fn disarm(&self) {
        self.shared.mesh.waker(self.me).disarm();
    }

    /// How long to sleep until `deadline`.
    pub(crate) fn until(&self, deadline: Option<u64>) -> Option<Duration> {
        deadline.map(|due| Duration::from_millis(due.saturating_sub(self.now.mono_ms)))
    }

    fn receive_mesh(&mut self) {
        for from in 0..self.shared.mesh.shards() {
            let (brain, out, now) = (&mut self.brain, &mut self.out, self.now);
            self.shared.mesh.drain(from, self.me, |message| brain.handle_mesh(now, from, message, out));
        }
    }

    fn receive_seats(&mut self) {
        for from in 0..self.shared.mesh.shards() {
            for _ in 0..SEATS_PER_TURN_MAX {
                let Some(transfer) = self.shared.mesh.pop_seat(from, self.me) else { break };
                self.take_seat(transfer);
            }
        }
        for _ in 0..self.returning.len().min(SEATS_PER_TURN_MAX) {
            let Some(transfer) = self.returning.pop_front() else { break };
            self.take_seat(transfer);
        }
        while let Some((shard, transfer)) = self.departing.pop_front() {
            if let Err(transfer) = self.sender.push_seat(shard, transfer) {
                self.departing.push_front((shard, transfer));
                break;
            }
        }
    }

    fn take_seat(&mut self, transfer: Transfer<B::Seat>) {
        let Transfer { mut detached, seat } = transfer;
        let mut unread = std::mem::take(&mut detached.unread);
        let Some(conn) = self.driver.adopt(detached, false) else {
            self.shared.counters.seats_refused.add(1);
            return;
        };
        self.shared.counters.seated.add(1);
        self.brain.handle_seated(self.now, conn, seat, &mut self.out);
        if !unread.is_empty() {
            self.brain.handle_data(self.now, conn, &mut unread, &mut self.out);
        }
    }

    /// Carries outputs out until there are none, or for a few rounds.
    fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            std::mem::swap(&mut self.out, &mut self.applying);
            let mut items = std::mem::take(&mut self.applying.items);
            for output in items.drain(..) {
                self.apply(output);
            }
            self.applying.items = items;
            self.applying.clear();
            self.driver.flush(self.now.mono_ms, to_brain!(self));
            self.send_seats();
            if self.out.is_empty() {
                return;
            }
        }
    }

    fn apply(&mut self, output: Output<B::Mesh, B::Seat>) {
        let now_ms = self.now.mono_ms;
        match output {
            Output::Send { conn, bytes } => self.driver.send(conn, &self.applying.arena[bytes]),
            Output::SendShared { conn, bytes } => self.driver.send_shared(conn, bytes),
            Output::Pause(conn) => self.driver.pause(conn),
            Output::Resume(conn) => self.driver.resume(conn),
            Output::Promote(conn) => self.driver.promote(conn),
            Output::Close(conn) => self.driver.close(now_ms, conn),
            Output::Abort(conn) => self.driver.abort(conn),
            Output::Seat { conn, shard, seat } => {
                assert!(shard < self.shared.mesh.shards(), "a seat on shard {shard}");
                if self.driver.detach(conn) {
                    self.leaving.insert(conn, (shard, seat));
                }
            }
            Output::Mesh { shard, message } => {
                if let Err(message) = self.sender.push(shard, message) {
                    self.shared.counters.mesh_full.add(1);
                    self.brain.handle_mesh_full(self.now, shard, message, &mut self.out);
                }
            }
            Output::LinkConnect { writer } => self.connect_link(writer),
            Output::LinkSend(bytes) => {
                if let Some(link) = self.link {
                    self.driver.send(link, &self.applying.arena[bytes]);
                }
            }
            Output::LinkClose => {
                if let Some(link) = self.link.take() {
                    self.driver.abort(link);
                    self.brain.handle_link_down(self.now, &mut self.out);
                }
            }
            Output::Halt(reason) => {
                self.shared.control.halt(reason, now_ms);
                self.shared.mesh.wake_all();
            }
        }
    }

    /// Sends on what the driver let go.
    fn send_seats(&mut self) {
        while let Some((conn, detached)) = self.driver.take_detached() {
            let Some((shard, seat)) = self.leaving.remove(&conn) else { continue };
            let transfer = Transfer { detached, seat };
            if shard == self.me {
                self.returning.push_back(transfer);
                continue;
            }
            if let Err(transfer) = self.sender.push_seat(shard, transfer) {
                self.departing.push_back((shard, transfer));
            }
        }
    }

    fn connect_link(&mut self, writer: u16) {
        if let Some(old) = self.link.take() {
            self.driver.abort(old);
        }
        let connected = self.open_link(writer).and_then(|fd| {
            let detached = Detached { fd, unread: Vec::new(), unsent: Default::default() };
            self.driver.adopt(detached, true).ok_or_else(|| std::io::Error::other("no room for the link"))
        });
        match connected {
            Ok(link) => {
                self.link = Some(link);
                self.brain.handle_link_up(self.now, &mut self.out);
            }
            Err(error) => {
                tracing::debug!(%error, shard = self.me, writer, "the link to the storage-writer does not connect");
                self.brain.handle_link_down(self.now, &mut self.out);
            }
        }
    }

    fn open_link(&self, writer: u16) -> std::io::Result<OwnedFd> {
        let path = self.shared.link_paths.get(usize::from(writer));
        let path = path.ok_or_else(|| std::io::Error::other("no such link is configured"))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Non-blocking while connecting: a listener with a full backlog refuses instead of stopping the shard.
        rustix::net::connect(&fd, &SocketAddrUnix::new(path.as_path())?)?;
        rustix::io::ioctl_fionbio(&fd, false)?;
        Ok(fd)
    }
}
