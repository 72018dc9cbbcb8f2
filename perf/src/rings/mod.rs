//! Very many client sockets on one thread, beyond the process's limit of open files: each lives in the table of direct
//! descriptors of one of several rings, as a byte of state and an armed receive. Moves bytes and tells a `Client` what
//! happened; what the bytes mean is not known here.
//!
//! A slot is vacant again only when every operation on its socket has completed, so that no completion is ever taken for
//! one of a later socket.
//!
//! `unsafe`: submissions with the addresses of what is sent.
#![allow(unsafe_code)]

mod buffers;
mod ring;
mod socket;
#[cfg(test)]
mod tests;

pub(crate) use buffers::BufferOptions;

use crate::net::{Clock, Closed};
use io_uring::types::{CancelBuilder, Fixed};
use io_uring::{opcode, squeue};
use ring::{Completion, Ring};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use socket::Target;
use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;
use std::{io, mem};

/// Completions of one ring in one turn.
const COMPLETIONS_PER_TURN_MAX: usize = 4096;
/// Frames that wait for one socket above which it counts as stalled and is given up.
const WAITING_MAX: usize = 256;

/// Cancellations of an ending ring between two looks at its completions.
const CANCELS_AT_A_TIME: usize = 512;

/// What a client wants done. Actions on a socket that has ended do nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Connects socket `conn`, which is vacant, from an address of this machine.
    Open { conn: u32, source: Option<Ipv4Addr> },
    /// Sends bytes after all those before.
    Send { conn: u32, bytes: Rc<[u8]> },
    /// Resets the connection; `vacant` follows.
    End { conn: u32 },
}

/// Who is told about sockets.
pub(crate) trait Client {
    /// The connect succeeded.
    fn connected(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>);
    /// Bytes came, in order.
    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>);
    /// The other side or the kernel ended it. Not told after `Action::End`.
    fn ended(&mut self, conn: u32, why: Closed);
    /// Nothing of it is left: it may be opened again.
    fn vacant(&mut self, conn: u32, now_ns: u64);
}

/// What is known of a socket, in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot(u8);

impl Slot {
    const OPEN: u8 = 1;
    const CONNECTING: u8 = 2;
    const RECEIVING: u8 = 4;
    const SENDING: u8 = 8;
    const CANCELLING: u8 = 16;
    const ENDING: u8 = 32;
    /// Operations in flight.
    const BUSY: u8 = Self::CONNECTING | Self::RECEIVING | Self::SENDING | Self::CANCELLING;

    fn has(self, flags: u8) -> bool {
        self.0 & flags != 0
    }

    fn is_alive(self) -> bool {
        self.has(Self::OPEN) && !self.has(Self::ENDING)
    }

    fn set(&mut self, flags: u8) {
        self.0 |= flags;
    }

    fn clear(&mut self, flags: u8) {
        self.0 &= !flags;
    }
}

/// Operations, as their completions name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Connect = 1,
    Receive,
    Send,
    Cancel,
}

/// A name: the kind, the shipment (24 bits), the socket.
fn name(kind: Kind, shipment: u32, conn: u32) -> u64 {
    (kind as u64) << 56 | u64::from(shipment) << 32 | u64::from(conn)
}

fn unname(user_data: u64) -> Option<(Kind, u32, u32)> {
    let kind = match user_data >> 56 {
        1 => Kind::Connect,
        2 => Kind::Receive,
        3 => Kind::Send,
        4 => Kind::Cancel,
        _ => return None,
    };
    Some((kind, (user_data >> 32) as u32 & SHIPMENTS_MAX, user_data as u32))
}

/// A shipment's number has 24 bits.
const SHIPMENTS_MAX: u32 = (1 << 24) - 1;

/// Bytes on their way to the kernel, which reads them in place.
#[derive(Debug)]
struct Shipment {
    bytes: Rc<[u8]>,
    from: usize,
}

/// Shipments by number, while they are under way.
#[derive(Debug, Default)]
struct Shipments {
    list: Vec<Option<Shipment>>,
    free: Vec<u32>,
}

impl Shipments {
    fn insert(&mut self, shipment: Shipment) -> u32 {
        if let Some(number) = self.free.pop() {
            self.list[number as usize] = Some(shipment);
            return number;
        }
        let number = self.list.len() as u32;
        assert!(number < SHIPMENTS_MAX, "one send a socket, and fewer sockets than that");
        self.list.push(Some(shipment));
        number
    }

    fn remove(&mut self, number: u32) -> Shipment {
        self.free.push(number);
        self.list[number as usize].take().expect("a shipment is under way until its completion")
    }
}

/// The rings and all their sockets: socket `conn` has slot `conn % files` of ring `conn / files`.
pub(crate) struct Rings {
    list: Vec<Ring>,
    files: u32,
    slots: Vec<Slot>,
    shipments: Shipments,
    /// What a socket sends after that which is under way.
    waiting: HashMap<u32, VecDeque<Rc<[u8]>>>,
    /// Sockets for which too much waits.
    stalled: Vec<u32>,
    target: SocketAddr,
    raw_target: Target,
    epoll: OwnedFd,
    completions: Vec<Completion>,
    actions: Vec<Action>,
}

impl Rings {
    /// Room for `sockets` of them, `files` in each ring.
    pub(crate) fn new(sockets: u32, files: u32, target: SocketAddr, buffers: BufferOptions) -> io::Result<Self> {
        assert!(files > 0 && sockets < SHIPMENTS_MAX);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut list = Vec::new();
        for _ in 0..sockets.div_ceil(files).max(1) {
            let ring = Ring::new(files, buffers)?;
            epoll::add(&epoll, ring.fd(), epoll::EventData::new_u64(list.len() as u64), epoll::EventFlags::IN)?;
            list.push(ring);
        }
        Ok(Self {
            list,
            files,
            slots: vec![Slot::default(); sockets as usize],
            shipments: Shipments::default(),
            waiting: HashMap::new(),
            stalled: Vec::new(),
            target,
            raw_target: Target::new(target),
            epoll,
            completions: Vec::with_capacity(COMPLETIONS_PER_TURN_MAX),
            actions: Vec::new(),
        })
    }

    /// Does what a client wants; `actions` is empty afterwards.
    pub(crate) fn run(&mut self, actions: &mut Vec<Action>) -> io::Result<()> {
        for action in actions.drain(..) {
            match action {
                Action::Open { conn, source } => self.open(conn, source)?,
                Action::Send { conn, bytes } => self.send(conn, bytes)?,
                Action::End { conn } => self.end(conn)?,
            }
        }
        Ok(())
    }

    /// Hands the kernel what is queued, and the client what came. How many completions there were.
    pub(crate) fn turn(&mut self, client: &mut impl Client, clock: &Clock) -> io::Result<usize> {
        let mut taken = 0;
        for index in 0..self.list.len() {
            let ring = &mut self.list[index];
            if ring.has_work() {
                ring.submit()?;
            }
            let now_ns = clock.now_ns();
            let mut completions = mem::take(&mut self.completions);
            ring.take(&mut completions, COMPLETIONS_PER_TURN_MAX);
            taken += completions.len();
            for completion in completions.drain(..) {
                self.on_completion(index, completion, client, now_ns)?;
            }
            self.completions = completions;
            self.list[index].buffers.publish();
        }
        for conn in mem::take(&mut self.stalled) {
            self.fail(conn, Closed::Broken("the server takes nothing any more"), client)?;
        }
        // What the answers asked for need not wait for the next turn.
        for ring in &mut self.list {
            if ring.has_queued() {
                ring.submit()?;
            }
        }
        Ok(taken)
    }

    /// Waits until a ring has something, or the time is over.
    pub(crate) fn wait(&self, longest: Duration) -> io::Result<()> {
        let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: i64::from(longest.subsec_nanos()) };
        let mut events = Vec::with_capacity(1);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn ring(&mut self, conn: u32) -> &mut Ring {
        &mut self.list[(conn / self.files) as usize]
    }

    fn fixed(&self, conn: u32) -> Fixed {
        Fixed(conn % self.files)
    }

    /// Queues an operation of a socket.
    ///
    /// # Safety
    ///
    /// See [`Ring::push`].
    unsafe fn push(&mut self, conn: u32, flag: u8, entry: squeue::Entry) -> io::Result<()> {
        self.slots[conn as usize].set(flag);
        // SAFETY: passed on to the caller.
        unsafe { self.ring(conn).push(&entry) }
    }

    fn open(&mut self, conn: u32, source: Option<Ipv4Addr>) -> io::Result<()> {
        assert_eq!(self.slots[conn as usize], Slot::default(), "a socket is opened when it is vacant");
        let socket = socket::open(self.target, source)?;
        let slot = conn % self.files;
        self.ring(conn).install(slot, socket)?;
        self.slots[conn as usize].set(Slot::OPEN);
        let (address, len) = self.raw_target.raw();
        let entry = opcode::Connect::new(self.fixed(conn), address, len).build();
        // SAFETY: the address lives on the heap for as long as the rings, which end their operations before they go.
        unsafe { self.push(conn, Slot::CONNECTING, entry.user_data(name(Kind::Connect, 0, conn))) }
    }

    fn send(&mut self, conn: u32, bytes: Rc<[u8]>) -> io::Result<()> {
        let slot = self.slots[conn as usize];
        if !slot.is_alive() || bytes.is_empty() {
            return Ok(());
        }
        if !slot.has(Slot::SENDING) {
            return self.ship(conn, Shipment { bytes, from: 0 });
        }
        let waiting = self.waiting.entry(conn).or_default();
        if waiting.len() < WAITING_MAX {
            waiting.push_back(bytes);
        } else {
            self.stalled.push(conn);
        }
        Ok(())
    }

    fn ship(&mut self, conn: u32, shipment: Shipment) -> io::Result<()> {
        let rest = &shipment.bytes[shipment.from..];
        let (address, len) = (rest.as_ptr(), rest.len() as u32);
        let number = self.shipments.insert(shipment);
        let entry = opcode::Send::new(self.fixed(conn), address, len).flags(libc::MSG_NOSIGNAL).build();
        // SAFETY: the shipment keeps its share of the bytes, which do not move, until this send has completed.
        unsafe { self.push(conn, Slot::SENDING, entry.user_data(name(Kind::Send, number, conn))) }
    }

    fn receive(&mut self, conn: u32) -> io::Result<()> {
        let entry = opcode::RecvMulti::new(self.fixed(conn), buffers::GROUP).build();
        // SAFETY: the entry points to nothing: the buffers are the ring's own.
        unsafe { self.push(conn, Slot::RECEIVING, entry.user_data(name(Kind::Receive, 0, conn))) }
    }

    /// Ends a socket, and says so to nobody yet.
    fn end(&mut self, conn: u32) -> io::Result<()> {
        let slot = &mut self.slots[conn as usize];
        if slot.is_alive() {
            slot.set(Slot::ENDING);
            self.waiting.remove(&conn);
            self.cancel(conn)?;
        }
        Ok(())
    }

    /// Cancels what is in flight on a socket, one operation after the other; with nothing in flight this completes all
    /// the same, and the socket is then vacant. By name, which the kernel finds at once: to find operations by their
    /// descriptor it looks at all that are armed.
    fn cancel(&mut self, conn: u32) -> io::Result<()> {
        let slot = self.slots[conn as usize];
        let which = if slot.has(Slot::CONNECTING) {
            CancelBuilder::user_data(name(Kind::Connect, 0, conn))
        } else if slot.has(Slot::SENDING) {
            CancelBuilder::fd(self.fixed(conn)).all()
        } else {
            CancelBuilder::user_data(name(Kind::Receive, 0, conn))
        };
        self.slots[conn as usize].set(Slot::CANCELLING);
        self.ring(conn).cancel(which, name(Kind::Cancel, 0, conn))
    }

    fn fail(&mut self, conn: u32, why: Closed, client: &mut impl Client) -> io::Result<()> {
        if self.slots[conn as usize].is_alive() {
            client.ended(conn, why);
            self.end(conn)?;
        }
        Ok(())
    }

    fn on_completion(
        &mut self,
        ring: usize,
        completion: Completion,
        client: &mut impl Client,
        now_ns: u64,
    ) -> io::Result<()> {
        // Those without a name are of an ending ring.
        let Some((kind, shipment, conn)) = unname(completion.user_data) else { return Ok(()) };
        match kind {
            Kind::Connect => self.on_connect(conn, completion.result, client, now_ns)?,
            Kind::Receive => self.on_receive(ring, conn, completion, client, now_ns)?,
            Kind::Send => self.on_send(conn, shipment, completion.result, client)?,
            Kind::Cancel => self.slots[conn as usize].clear(Slot::CANCELLING),
        }
        let mut actions = mem::take(&mut self.actions);
        self.run(&mut actions)?;
        self.actions = actions;
        self.settle(conn, client, now_ns)
    }

    /// Goes on with a socket that is ending.
    fn settle(&mut self, conn: u32, client: &mut impl Client, now_ns: u64) -> io::Result<()> {
        let slot = self.slots[conn as usize];
        if !slot.has(Slot::ENDING) || slot.has(Slot::CANCELLING) {
            return Ok(());
        }
        if slot.has(Slot::BUSY) {
            // The cancellation missed what was just running, which completed now and goes on.
            return self.cancel(conn);
        }
        let index = conn % self.files;
        self.ring(conn).clear(index)?;
        self.slots[conn as usize] = Slot::default();
        client.vacant(conn, now_ns);
        Ok(())
    }

    fn on_connect(&mut self, conn: u32, result: i32, client: &mut impl Client, now_ns: u64) -> io::Result<()> {
        self.slots[conn as usize].clear(Slot::CONNECTING);
        if result < 0 {
            return self.fail(conn, Closed::Io(io::Error::from_raw_os_error(-result)), client);
        }
        if self.slots[conn as usize].is_alive() {
            self.receive(conn)?;
            client.connected(conn, now_ns, &mut self.actions);
        }
        Ok(())
    }

    fn on_receive(
        &mut self,
        ring: usize,
        conn: u32,
        completion: Completion,
        client: &mut impl Client,
        now_ns: u64,
    ) -> io::Result<()> {
        if !completion.more() {
            self.slots[conn as usize].clear(Slot::RECEIVING);
        }
        let alive = self.slots[conn as usize].is_alive();
        let buffers = &mut self.list[ring].buffers;
        if let Some(buffer) = completion.buffer() {
            if alive && completion.result > 0 {
                let data = buffers.filled(buffer, completion.result as usize);
                client.data(conn, data, now_ns, &mut self.actions);
            }
            buffers.give_back(buffer);
        }
        match -completion.result {
            0 => self.fail(conn, Closed::Eof, client)?,
            // Buffers come back at the end of the turn, before the receive is armed again.
            libc::ENOBUFS | libc::EINTR | libc::EAGAIN | libc::ECANCELED | ..0 => {}
            error => self.fail(conn, Closed::Io(io::Error::from_raw_os_error(error)), client)?,
        }
        let slot = self.slots[conn as usize];
        if slot.is_alive() && !slot.has(Slot::RECEIVING) { self.receive(conn) } else { Ok(()) }
    }

    fn on_send(&mut self, conn: u32, shipment: u32, result: i32, client: &mut impl Client) -> io::Result<()> {
        self.slots[conn as usize].clear(Slot::SENDING);
        let mut shipment = self.shipments.remove(shipment);
        if !self.slots[conn as usize].is_alive() {
            return Ok(());
        }
        match -result {
            libc::EINTR | libc::EAGAIN | ..=0 => shipment.from += result.max(0) as usize,
            error => return self.fail(conn, Closed::Io(io::Error::from_raw_os_error(error)), client),
        }
        if shipment.from < shipment.bytes.len() {
            return self.ship(conn, shipment);
        }
        let Some(waiting) = self.waiting.get_mut(&conn) else { return Ok(()) };
        let next = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&conn);
        }
        match next {
            Some(bytes) => self.ship(conn, Shipment { bytes, from: 0 }),
            None => Ok(()),
        }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        let files = self.files;
        for (index, mut ring) in self.list.drain(..).enumerate() {
            let first = index as u32 * files;
            let open = self.slots.iter().enumerate().skip(first as usize).take(files as usize);
            let receiving = open.filter(|(_, slot)| slot.has(Slot::RECEIVING)).map(|(conn, _)| conn as u32);
            let mut cancelled = true;
            for (count, conn) in receiving.enumerate() {
                let which = CancelBuilder::user_data(name(Kind::Receive, 0, conn));
                cancelled &= ring.cancel(which, 0).is_ok();
                if count % CANCELS_AT_A_TIME == 0 {
                    cancelled &= ring.submit().is_ok();
                    ring.discard();
                }
            }
            if !cancelled || !ring.quiesce() {
                // The kernel may still read and write what its operations point to: better to lose it.
                mem::forget(ring);
                mem::forget(mem::take(&mut self.shipments));
                mem::forget(mem::replace(&mut self.raw_target, Target::new(self.target)));
            }
        }
    }
}
