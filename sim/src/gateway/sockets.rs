//! The sockets of a gateway: slots of its shards, bytes that come and go in pieces, kernels with little room, closes.

use crate::overflows::Overflow;
use crate::plan::Fault;
use crate::world::{Conn, Event, World};
use gateway_core::brain::Brain;
use gateway_core::output::ConnId;
use gateway_core::shard::Out;
use gateway_core::stats::{Reason, Stats};
use gateway_core::time::Now;

impl World {
    pub(super) fn new_slot(&mut self, gateway: u32, shard: u16, conn: u32) -> ConnId {
        let process = self.brain(gateway, shard);
        let slot = process.free.pop().unwrap_or_else(|| {
            process.slots.push((0, None));
            process.slots.len() as u32 - 1
        });
        let entry = &mut process.slots[slot as usize];
        *entry = (entry.0 + 1, Some(conn));
        let id = ConnId { slot, generation: entry.0 };
        let state = &mut self.conns[conn as usize];
        (state.shard, state.id) = (shard, Some(id));
        id
    }

    /// The shard has the connection no more.
    pub(super) fn free_slot(&mut self, conn: u32) {
        let Conn { gateway, shard, id, .. } = self.conns[conn as usize];
        let Some(id) = id else { return };
        self.conns[conn as usize].id = None;
        let process = self.brain(gateway, shard);
        process.slots[id.slot as usize].1 = None;
        process.free.push(id.slot);
    }

    pub(super) fn conn_of(&mut self, gateway: u32, shard: u16, id: ConnId) -> Option<u32> {
        let (generation, conn) = *self.brain(gateway, shard).slots.get(id.slot as usize)?;
        conn.filter(|_| generation == id.generation)
    }

    pub(super) fn take_accepts(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out) {
        while let Some(conn) = self.brain(gateway, shard).accepts.pop_front() {
            let id = self.new_slot(gateway, shard, conn);
            let peer = "127.0.0.1:50000".parse().expect("an address");
            self.brain(gateway, shard).brain.handle_accept(now, id, peer, out);
        }
    }

    /// Something changed on a connection.
    pub(crate) fn tell_shard(&mut self, conn: u32) {
        let Conn { gateway, shard, id, server_open, .. } = self.conns[conn as usize];
        if server_open && id.is_some() && self.gateways[gateway as usize].alive {
            self.brain(gateway, shard).news.push_back(conn);
            let soon = self.now + self.net.below(60);
            self.wake_shard(gateway, shard, soon);
        }
    }

    /// A device has connected.
    pub(crate) fn accept(&mut self, conn: u32) {
        let Conn { gateway, shard, .. } = self.conns[conn as usize];
        self.brain(gateway, shard).accepts.push_back(conn);
        let soon = self.now + self.net.below(200);
        self.wake_shard(gateway, shard, soon);
    }

    pub(super) fn take_news(&mut self, now: Now, gateway: u32, shard: u16, out: &mut Out) {
        self.round += 1;
        for _ in 0..self.brain(gateway, shard).news.len() {
            let Some(conn) = self.brain(gateway, shard).news.pop_front() else { return };
            if self.conns[conn as usize].id.is_some() && self.conns[conn as usize].shard == shard {
                self.take_bytes(now, conn, out);
                self.flush(now, conn, out);
            }
        }
    }

    pub(super) fn take_bytes(&mut self, now: Now, conn: u32, out: &mut Out) {
        let state = &mut self.conns[conn as usize];
        let (Some(id), false, None) = (state.id, state.paused, state.closing_at) else { return };
        let (gateway, shard) = (state.gateway, state.shard);
        if std::mem::replace(&mut state.read_in, self.round) == self.round {
            return;
        }
        let reads = self.reads_at_once();
        for _ in 0..reads {
            let mut bytes = Vec::new();
            self.conns[conn as usize].up.take_some(self.now, self.plan.read_bytes(), &mut bytes);
            if bytes.is_empty() {
                break;
            }
            let brain = &mut self.brain(gateway, shard).brain;
            let count = |stats: &Stats, reason: Reason| stats.rejected.values()[reason as usize];
            let before = brain.stats;
            brain.handle_data(now, id, &mut bytes, out);
            let after = &brain.stats;
            let [ahead, fast] =
                [Reason::SentAhead, Reason::RateLimited].map(|it| count(after, it) > count(&before, it));
            self.overflows.add_if(ahead, Overflow::AheadClosed);
            self.overflows.add_if(fast, Overflow::RateLimited);
            self.look_at_ahead(gateway, shard, id);
        }
        let up = &self.conns[conn as usize].up;
        if up.is_over(self.now) {
            self.server_ends(conn);
            self.brain(gateway, shard).brain.handle_closed(now, id, out);
        } else if up.has_come(self.now) {
            // The rest when what the shard says to this is carried out: it may not want it now.
            self.brain(gateway, shard).news.push_back(conn);
        }
    }

    /// How often a shell reads a connection before it carries out what the shard says to the first of it: once, and now and
    /// then more, as a ring does that had reads under way when it is told to pause.
    fn reads_at_once(&mut self) -> u64 {
        let storm = self.phase == crate::world::Phase::Storm;
        let ahead = self.plan.is_tiny() && storm && self.net.chance(150);
        if ahead { 2 + self.net.below(7) } else { 1 }
    }

    /// The gateway has the connection no more; what the kernel has goes out.
    pub(crate) fn server_ends(&mut self, conn: u32) {
        if self.gateways[self.conns[conn as usize].gateway as usize].alive {
            self.free_slot(conn);
        }
        let soon = self.now + self.net.around(500);
        let state = &mut self.conns[conn as usize];
        state.server_open = false;
        state.id = None;
        state.queue = Vec::new();
        if !state.half_open {
            let at = state.down.end(soon);
            self.at(at, Event::Down { conn });
        }
    }

    /// The kernel takes what it has room for.
    pub(super) fn flush(&mut self, now: Now, conn: u32, out: &mut Out) {
        let room_max = self.plan.socket_bytes();
        let state = &mut self.conns[conn as usize];
        let Some(id) = state.id else { return };
        let (gateway, shard) = (state.gateway, state.shard);
        let taken = room_max.saturating_sub(state.kernel).min(state.queue.len());
        if taken > 0 {
            let rest = state.queue.split_off(taken);
            let bytes = std::mem::replace(&mut state.queue, rest);
            state.kernel += taken;
            let left = state.queue.len();
            self.send_down(conn, bytes);
            self.brain(gateway, shard).brain.handle_sent(now, id, taken, left, out);
        }
        let state = &self.conns[conn as usize];
        let closes = state.closing_at.is_some_and(|at| state.queue.is_empty() || at <= self.now);
        if closes && state.id == Some(id) {
            self.server_ends(conn);
            self.brain(gateway, shard).brain.handle_closed(now, id, out);
        }
    }

    /// Bytes leave for the device, whole or in pieces.
    pub(super) fn send_down(&mut self, conn: u32, mut bytes: Vec<u8>) {
        if self.conns[conn as usize].half_open {
            return;
        }
        while !bytes.is_empty() {
            let rest = bytes.split_off(self.piece(bytes.len()));
            let at = self.now + self.latency(Fault::Delay, 300);
            let at = self.conns[conn as usize].down.push(at, bytes);
            self.at(at, Event::Down { conn });
            bytes = rest;
        }
    }

    /// How much of a write arrives in one piece.
    pub(crate) fn piece(&mut self, len: usize) -> usize {
        if len > 1 && self.net.chance(self.plan.fault(Fault::Split)) {
            1 + self.net.below(len as u64 - 1) as usize
        } else {
            len
        }
    }

    /// How long something is on its way.
    pub(crate) fn latency(&mut self, fault: Fault, usual_us: u64) -> u64 {
        let calm = self.phase != crate::world::Phase::Storm;
        let slow = !calm && self.net.chance(self.plan.fault(fault));
        self.net.around(if slow { usual_us * 100 } else { usual_us })
    }

    pub(super) fn queue(&mut self, gateway: u32, shard: u16, id: ConnId, bytes: &[u8]) {
        if let Some(conn) = self.conn_of(gateway, shard, id) {
            self.conns[conn as usize].queue.extend_from_slice(bytes);
            self.look_at_outbox(conn);
            self.brain(gateway, shard).news.push_back(conn);
        }
    }

    pub(super) fn set_paused(&mut self, gateway: u32, shard: u16, id: ConnId, paused: bool) {
        if let Some(conn) = self.conn_of(gateway, shard, id) {
            self.conns[conn as usize].paused = paused;
            if !paused {
                self.brain(gateway, shard).news.push_back(conn);
            }
        }
    }

    pub(crate) fn arrived_up(&mut self, conn: u32) -> bool {
        let state = &self.conns[conn as usize];
        let open = state.server_open && !state.half_open;
        if open {
            self.tell_shard(conn);
        }
        open
    }

    /// For a reader: who is where.
    pub(crate) fn tell_conn(&mut self, conn: u32, words: impl FnOnce() -> String) {
        let Conn { device, gateway, shard, .. } = self.conns[conn as usize];
        let user = self.devices[device as usize].name;
        self.trace.tell(self.now, || {
            format!("u{user} d{device} (gateway {gateway}.{shard}, connection {conn}): {}", words())
        });
    }
}
