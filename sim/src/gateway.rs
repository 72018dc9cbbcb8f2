//! A gateway process: its shards take turns as the shell has them, over sockets with small buffers, bounded queues between
//! shards and one link each.

mod sockets;

use crate::authority::Names;
use crate::bounds::{Counted, Dropped};
use crate::overflows::Overflow;
use crate::plan::Fault;
use crate::world::{EPOCH_MS, Event, Link, World};
use gateway_core::brain::{Brain, MeshClass, MeshMessage};
use gateway_core::mesh::Mesh;
use gateway_core::output::{HaltReason, Output};
use gateway_core::shard::{Out, Seat, Shard};
use gateway_core::time::Now;
use std::collections::VecDeque;

/// Connections on their way from one shard to another, at a time.
const SEATS_MAX: usize = 4;
/// A closing connection has this long to take what is queued, microseconds.
const LINGER_US: u64 = 500_000;
/// A halted gateway ends after this, microseconds.
const HALT_US: u64 = 300_000;

/// A gateway.
pub(crate) struct Gateway {
    pub(crate) alive: bool,
    pub(crate) draining: bool,
    pub(crate) halted: Option<HaltReason>,
    /// No shard takes a turn before this.
    pub(crate) stopped_until: u64,
    pub(crate) offset_ms: i64,
    pub(crate) shards: Vec<ShardProcess>,
}

/// A shard's thread.
pub(crate) struct ShardProcess {
    pub(crate) brain: Shard,
    pub(crate) stalled_until: u64,
    wake: Option<u64>,
    /// Connections by slot.
    slots: Vec<(u32, Option<u32>)>,
    free: Vec<u32>,
    accepts: VecDeque<u32>,
    /// Connections with news: bytes, an end, or room.
    news: VecDeque<u32>,
    /// Messages by sender and class.
    mesh: Vec<[VecDeque<Mesh>; 3]>,
    seats: VecDeque<(u32, Seat)>,
    departing: VecDeque<(u16, u32, Seat)>,
    link: Option<u32>,
    drained: bool,
    /// What the oracles of bounds saw of its figures last.
    pub(crate) counted: Counted,
}

impl ShardProcess {
    /// The connections that it has.
    pub(crate) fn conns(&self) -> impl Iterator<Item = u32> {
        self.slots.iter().filter_map(|(_, conn)| *conn)
    }
}

fn class_index(class: MeshClass) -> usize {
    match class {
        MeshClass::Answer => 0,
        MeshClass::Request => 1,
        MeshClass::Fanout => 2,
    }
}

impl World {
    pub(crate) fn start_gateway(&mut self) -> bool {
        let number = self.gateways.len() as u32;
        let offset_ms = self.skew();
        let now = Now { mono_ms: self.now / 1_000, unix_ms: self.unix_ms(offset_ms) };
        let shards = (0..self.plan.shards).map(|shard| ShardProcess {
            brain: Shard::new(self.plan.gateway_options(u128::from(number) + 1, shard), Box::new(Names), now),
            stalled_until: 0,
            wake: None,
            slots: Vec::new(),
            free: Vec::new(),
            accepts: VecDeque::new(),
            news: VecDeque::new(),
            mesh: (0..self.plan.shards).map(|_| Default::default()).collect(),
            seats: VecDeque::new(),
            departing: VecDeque::new(),
            link: None,
            drained: false,
            counted: Counted::default(),
        });
        let shards = shards.collect();
        let gateway = Gateway { alive: true, draining: false, halted: None, stopped_until: 0, offset_ms, shards };
        self.gateways.push(gateway);
        self.trace.tell(self.now, || format!("gateway {number} starts"));
        (0..self.plan.shards).for_each(|shard| self.wake_shard(number, shard, self.now));
        true
    }

    /// How far a process's calendar is off.
    pub(crate) fn skew(&mut self) -> i64 {
        let apart = self.faults.chance(self.plan.fault(Fault::ClockSkew));
        if apart { self.faults.below(4_000) as i64 - 2_000 } else { 0 }
    }

    /// The process is gone, as after kill -9.
    pub(crate) fn end_gateway(&mut self, gateway: u32) -> bool {
        if !self.gateways[gateway as usize].alive {
            return false;
        }
        self.trace.tell(self.now, || format!("gateway {gateway} ends"));
        self.gateways[gateway as usize].alive = false;
        for conn in 0..self.conns.len() as u32 {
            if self.conns[conn as usize].gateway == gateway && self.conns[conn as usize].server_open {
                self.server_ends(conn);
            }
        }
        for shard in 0..self.plan.shards {
            if let Some(link) = self.gateways[gateway as usize].shards[shard as usize].link.take() {
                self.shard_ends_link(link);
            }
        }
        self.gateways[gateway as usize].shards.clear();
        let others = self.gateways.iter().any(|gateway| gateway.alive && !gateway.draining && gateway.halted.is_none());
        if !others {
            let again = self.now + 5_000 + self.faults.around(100_000);
            self.at(again, Event::StartGateway);
        }
        true
    }

    pub(crate) fn wake_shard(&mut self, gateway: u32, shard: u16, at: u64) {
        let process = &mut self.gateways[gateway as usize];
        if !process.alive {
            return;
        }
        let at = at.max(self.now).max(process.stopped_until);
        let shard_process = &mut process.shards[shard as usize];
        let at = at.max(shard_process.stalled_until);
        if shard_process.wake.is_none_or(|wake| at < wake) {
            shard_process.wake = Some(at);
            self.at(at, Event::Shard { gateway, shard });
        }
    }

    /// A turn of a shard, as the shell takes it.
    pub(crate) fn shard_turn(&mut self, gateway: u32, shard: u16) -> bool {
        let process = &mut self.gateways[gateway as usize];
        let Some(shard_process) = process.shards.get_mut(shard as usize).filter(|_| process.alive) else {
            return false;
        };
        if shard_process.wake != Some(self.now) {
            return false;
        }
        shard_process.wake = None;
        let late = process.stopped_until.max(shard_process.stalled_until);
        if late > self.now {
            self.wake_shard(gateway, shard, late);
            return false;
        }
        let offset_ms = process.offset_ms;
        let now = Now { mono_ms: self.now / 1_000, unix_ms: self.unix_ms(offset_ms) };
        let mut out = std::mem::take(&mut self.out);
        self.take_accepts(now, gateway, shard, &mut out);
        self.take_news(now, gateway, shard, &mut out);
        self.take_link(now, gateway, shard, &mut out);
        self.take_mesh(now, gateway, shard, &mut out);
        self.take_seats(now, gateway, shard, &mut out);
        let process = &mut self.gateways[gateway as usize];
        let draining = process.draining;
        let shard_process = &mut process.shards[shard as usize];
        if shard_process.brain.next_timer().is_some_and(|due| due <= now.mono_ms) {
            shard_process.brain.handle_timer(now, &mut out);
        }
        if draining && !shard_process.drained {
            shard_process.drained = true;
            shard_process.brain.handle_drain(now, &mut out);
        }
        let mut full = 0;
        for _ in 0..1_000 {
            if out.is_empty() && self.brain(gateway, shard).news.is_empty() {
                break;
            }
            self.carry_out(now, gateway, shard, &mut out, &mut full);
            self.take_news(now, gateway, shard, &mut out);
        }
        self.ensure(out.is_empty(), "comes to rest", || format!("shard {shard} has no end of outputs"));
        self.out = out;
        self.after_turn(gateway, shard);
        true
    }

    fn after_turn(&mut self, gateway: u32, shard: u16) {
        let process = &self.gateways[gateway as usize];
        let Some(shard_process) = process.shards.get(shard as usize) else { return };
        let timer = shard_process.brain.next_timer().map(|due| due * 1_000);
        let busy = !shard_process.departing.is_empty() || !shard_process.seats.is_empty();
        let over = process.draining && process.shards.iter().all(|shard| shard.drained && shard.brain.is_drained());
        if let Some(due) = timer {
            self.wake_shard(gateway, shard, due);
        }
        if busy {
            self.wake_shard(gateway, shard, self.now + 1_000);
        }
        if over {
            self.at(self.now + 10_000, Event::EndGateway { gateway });
        }
        if self.tick.is_multiple_of(16) {
            self.brain(gateway, shard).brain.check_invariants();
            self.look_at_sessions(gateway, shard);
        }
        self.look_at_queues(gateway, shard);
    }

    fn brain(&mut self, gateway: u32, shard: u16) -> &mut ShardProcess {
        &mut self.gateways[gateway as usize].shards[shard as usize]
    }

    fn take_link(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out) {
        let Some(link) = self.brain(gateway, shard).link else { return };
        let mut bytes = Vec::new();
        let state = &mut self.links[link as usize];
        state.down.take(self.now, &mut bytes);
        let over = state.down.is_over(self.now);
        if !bytes.is_empty() {
            self.brain(gateway, shard).brain.handle_link_data(now, &mut bytes, out);
        }
        if over && self.brain(gateway, shard).link == Some(link) {
            self.shard_ends_link(link);
            self.brain(gateway, shard).link = None;
            self.brain(gateway, shard).brain.handle_link_down(now, out);
        }
    }

    fn take_mesh(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out) {
        for from in 0..self.plan.shards {
            for class in 0..3 {
                let waiting = self.brain(gateway, shard).mesh[from as usize][class].len();
                for _ in 0..waiting {
                    let process = self.brain(gateway, shard);
                    let Some(message) = process.mesh[from as usize][class].pop_front() else { break };
                    process.brain.handle_mesh(now, from, message, out);
                }
            }
        }
    }

    fn take_seats(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out) {
        while let Some((conn, seat)) = self.brain(gateway, shard).seats.pop_front() {
            if !self.conns[conn as usize].server_open {
                continue;
            }
            let id = self.new_slot(gateway, shard, conn);
            self.brain(gateway, shard).brain.handle_seated(now, id, seat, out);
            // What came meanwhile, and room for what is queued.
            self.brain(gateway, shard).news.push_back(conn);
        }
        for _ in 0..self.brain(gateway, shard).departing.len() {
            let Some((target, conn, seat)) = self.brain(gateway, shard).departing.pop_front() else { break };
            self.send_seat(gateway, shard, target, conn, seat);
        }
    }

    fn send_seat(&mut self, gateway: u32, shard: u16, target: u16, conn: u32, seat: Seat) {
        if self.brain(gateway, target).seats.len() < SEATS_MAX {
            self.brain(gateway, target).seats.push_back((conn, seat));
            let soon = self.now + self.net.below(100);
            self.wake_shard(gateway, target, soon);
        } else {
            self.brain(gateway, shard).departing.push_back((target, conn, seat));
        }
    }

    /// Carries outputs out; what that leads to is in `out` afterwards.
    fn carry_out(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out, full: &mut u64) {
        let mut applying = std::mem::take(&mut self.applying);
        std::mem::swap(out, &mut applying);
        let arena = std::mem::take(&mut applying.arena);
        for output in applying.items.drain(..) {
            self.apply(now, gateway, shard, output, &arena, out, full);
        }
        applying.arena = arena;
        applying.arena.clear();
        self.applying = applying;
    }

    #[expect(clippy::too_many_arguments, reason = "the turn's state, handed on")]
    fn apply(
        &mut self,
        now: Now,
        gateway: u32,
        shard: u16,
        output: Output<Mesh, Seat>,
        arena: &[u8],
        out: &mut Out,
        full: &mut u64,
    ) {
        match output {
            Output::Send { conn, bytes } => self.queue(gateway, shard, conn, &arena[bytes]),
            Output::SendShared { conn, bytes } => self.queue(gateway, shard, conn, &bytes),
            Output::Pause(id) => {
                self.overflows.add(Overflow::AheadPaused);
                self.set_paused(gateway, shard, id, true);
            }
            Output::Resume(id) => self.set_paused(gateway, shard, id, false),
            Output::Promote(_) => {}
            Output::Close(id) => {
                if let Some(conn) = self.conn_of(gateway, shard, id) {
                    let until = self.now + LINGER_US;
                    self.conns[conn as usize].closing_at.get_or_insert(until);
                    let process = self.brain(gateway, shard);
                    process.news.push_back(conn);
                    self.wake_shard(gateway, shard, until);
                }
            }
            Output::Abort(id) => {
                if let Some(conn) = self.conn_of(gateway, shard, id) {
                    self.server_ends(conn);
                }
            }
            Output::Seat { conn: id, shard: target, seat } => {
                if let Some(conn) = self.conn_of(gateway, shard, id) {
                    self.free_slot(conn);
                    self.send_seat(gateway, shard, target, conn, seat);
                }
            }
            Output::Mesh { shard: target, message } => {
                if let Some(message) = self.push_mesh(gateway, shard, target, message, full) {
                    let before = self.brain(gateway, shard).brain.owed_to(target).1;
                    let dropped = Dropped::of(&message);
                    self.brain(gateway, shard).brain.handle_mesh_full(now, target, message, out);
                    self.look_at_owed((gateway, shard), target, before, &dropped);
                }
            }
            Output::LinkConnect { writer } => self.connect_link(now, gateway, shard, writer, out),
            Output::LinkSend(bytes) => {
                if let Some(link) = self.brain(gateway, shard).link {
                    self.send_to_writer(link, arena[bytes].to_vec());
                }
            }
            Output::LinkClose => {
                if let Some(link) = self.brain(gateway, shard).link.take() {
                    self.shard_ends_link(link);
                    self.brain(gateway, shard).brain.handle_link_down(now, out);
                }
            }
            Output::Halt(reason) => {
                self.trace.tell(self.now, || format!("gateway {gateway} halts: {reason:?}"));
                self.gateways[gateway as usize].halted = Some(reason);
                self.gateways[gateway as usize].draining = true;
                (0..self.plan.shards).for_each(|shard| self.wake_shard(gateway, shard, self.now));
                self.at(self.now + HALT_US, Event::EndGateway { gateway });
            }
        }
    }

    /// `Some` comes back: no room.
    fn push_mesh(&mut self, gateway: u32, shard: u16, target: u16, message: Mesh, full: &mut u64) -> Option<Mesh> {
        let class = message.class();
        let index = class_index(class);
        let room = self.plan.mesh_room();
        let jammed = self.now < self.mesh_full_until;
        let waiting = self.brain(gateway, target).mesh[shard as usize][index].len();
        if class == MeshClass::Fanout {
            if *full >> target & 1 == 1 || waiting >= room || jammed {
                *full |= 1 << target;
                self.overflows.add(Overflow::MeshFull);
                return Some(message);
            }
        } else {
            let max = self.plan.gateway_options(1, 0).mesh_requests_max as usize;
            self.ensure(waiting < max, "queues are bounded", || format!("{max} {class:?} wait for shard {target}"));
        }
        self.brain(gateway, target).mesh[shard as usize][index].push_back(message);
        let soon = self.now + self.net.below(60);
        self.wake_shard(gateway, target, soon);
        None
    }

    fn connect_link(&mut self, now: Now, gateway: u32, shard: u16, writer: u16, out: &mut Out) {
        if let Some(old) = self.brain(gateway, shard).link.take() {
            self.shard_ends_link(old);
        }
        let Some(writer) = self.listening_writer(writer) else {
            return self.brain(gateway, shard).brain.handle_link_down(now, out);
        };
        let link = self.links.len() as u32;
        self.links.push(Link {
            gateway,
            shard,
            writer,
            up: Default::default(),
            down: Default::default(),
            input: Vec::new(),
            shard_has_it: true,
            writer_has_it: true,
            last_no: 0,
            asked: Default::default(),
        });
        self.brain(gateway, shard).link = Some(link);
        self.trace.tell(self.now, || format!("gateway {gateway} shard {shard}: link {link} to writer {writer}"));
        self.brain(gateway, shard).brain.handle_link_up(now, out);
    }

    fn shard_ends_link(&mut self, link: u32) {
        let soon = self.now + self.net.around(200);
        let state = &mut self.links[link as usize];
        state.shard_has_it = false;
        let at = state.up.end(soon);
        self.at(at, Event::LinkUp { link });
    }

    pub(crate) fn arrived_at_shard(&mut self, link: u32) -> bool {
        let Link { gateway, shard, shard_has_it, .. } = self.links[link as usize];
        if shard_has_it {
            self.wake_shard(gateway, shard, self.now);
        }
        shard_has_it
    }

    /// A device's way in: a gateway that lives, the newest one mostly.
    pub(crate) fn choose_gateway(&mut self) -> Option<u32> {
        let open = |gateway: &&Gateway| gateway.alive && !gateway.draining && gateway.halted.is_none();
        let alive: Vec<u32> = (0u32..).zip(&self.gateways).filter(|(_, g)| open(g)).map(|(at, _)| at).collect();
        if self.people.chance(800) { alive.last().copied() } else { self.people.pick(&alive).copied() }
    }

    /// The calendar of a gateway steps.
    pub(crate) fn step_clock_of_gateway(&mut self, gateway: u32, by_ms: i64) {
        let process = &mut self.gateways[gateway as usize];
        let stepped = process.offset_ms + by_ms;
        process.offset_ms = stepped.clamp(-(EPOCH_MS as i64) / 2, 1 << 40);
    }
}
