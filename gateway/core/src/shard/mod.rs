//! One shard: its lobby, the sessions and user homes seated here, the chat homes that it owns, its link. Events come in
//! by [`Brain`], outputs leave as data. A file each for what happens in the lobby, to a client's frames, to streams, in
//! chat homes, and between shards.

mod active;
mod alarms;
mod away;
mod channels;
mod chats;
mod frames;
mod home;
mod inbound;
mod invariants;
mod lobby;
mod requests;
mod session;
mod stream;
mod streams;
mod table;

pub use session::{Out, Seat};

use crate::authority::Authority;
use crate::brain::Brain;
use crate::link::{Link, LinkEvent, Retry, State};
use crate::mesh::{Credits, Fanout, Mesh, Origin};
use crate::options::Options;
use crate::output::{ConnId, HaltReason, Output};
use crate::planted::{self, Bug};
use crate::stats::Stats;
use crate::time::Now;
use active::Actives;
use alarms::{Alarms, Armed, Timer};
use core::net::SocketAddr;
use hashbrown::HashMap;
use parley_protocol::close;
use parley_protocol::link::MarkUpdate;
use parley_protocol::partition::{PARTITIONS, split_mix_64};
use parley_protocol::{ChatId, ClientMsgId, UserId};
use session::{Conn, Flag, Session};
use std::collections::{BTreeSet, VecDeque};
use table::{Table, Users};

/// Room for due timers that is kept between two turns.
const DUE_KEPT_MAX: usize = 1024;

/// What the asker of a link request wants to see again with its answer.
#[derive(Debug)]
enum Tag {
    Login {
        conn: ConnId,
    },
    Open {
        partition: u16,
    },
    LoadChat {
        chat_id: ChatId,
    },
    /// The same of a channel: who of these is in it still.
    LoadChannel {
        chat_id: ChatId,
        suspects: Vec<UserId>,
    },
    /// Whether who subscribes is in the channel.
    Seat {
        origin: Origin,
        chat_id: ChatId,
    },
    /// `concerned`: in a channel, whose membership it changes.
    Command {
        origin: Origin,
        chat_id: ChatId,
        client_msg_id: ClientMsgId,
        concerned: Vec<UserId>,
    },
    Create {
        conn: ConnId,
        client_msg_id: ClientMsgId,
    },
    Marks {
        chat_id: ChatId,
        marks: Vec<MarkUpdate>,
    },
    Mute {
        conn: ConnId,
        user_id: UserId,
        chat_id: ChatId,
    },
    Inbox {
        conn: ConnId,
    },
    Page {
        conn: ConnId,
        request_id: u32,
        chat_id: Option<ChatId>,
    },
    Renew {
        conn: ConnId,
        expires_at_ms: u64,
    },
}

/// Whether a partition's barrier stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    Closed,
    Asked,
    Open,
}

/// Sessions that look at a chat.
#[derive(Debug, Default)]
struct Subscribers {
    conns: Vec<ConnId>,
    /// Where each stands in `conns`: one of a hundred thousand goes without a look at the others.
    places: HashMap<ConnId, u32>,
    /// The chat home's count of this shard's subscriptions.
    generation: u32,
}

impl Subscribers {
    fn add(&mut self, conn: ConnId) {
        if self.places.insert(conn, self.conns.len() as u32).is_none() {
            self.conns.push(conn);
        }
    }

    fn remove(&mut self, conn: ConnId) {
        let Some(place) = self.places.remove(&conn) else { return };
        self.conns.swap_remove(place as usize);
        if let Some(moved) = self.conns.get(place as usize) {
            self.places.insert(*moved, place);
        }
    }
}

/// What the mesh had no room for, per target.
#[derive(Debug, Default)]
struct Owed {
    /// Ordered, so that what leaves has an order: the simulator repeats a run from its seed.
    nudges: BTreeSet<UserId>,
    nudge_all: bool,
    others: VecDeque<Fanout>,
}

impl Owed {
    fn is_empty(&self) -> bool {
        self.nudges.is_empty() && !self.nudge_all && self.others.is_empty()
    }
}

/// One shard's whole state.
pub struct Shard {
    options: Options,
    authority: Box<dyn Authority>,
    conns: Table,
    actives: Actives,
    lobby_count: usize,
    users: Users,
    chats: HashMap<ChatId, home::ChatHome>,
    /// The order in which chat homes are looked at for eviction.
    chat_clock: VecDeque<ChatId>,
    barriers: Vec<Barrier>,
    /// Chats whose home waits for its partition's barrier.
    behind_barrier: HashMap<u16, Vec<ChatId>>,
    /// Sessions here that look at a large chat.
    subscribers: HashMap<ChatId, Subscribers>,
    link: Link<Tag>,
    link_events: VecDeque<LinkEvent<Tag>>,
    link_heard_ms: u64,
    /// What is asked of the storage tier, and how long it has been away.
    away: away::Away,
    /// Why the storage tier takes no commands; empty while it does.
    storage_reason: String,
    /// Counts the links that were connected.
    link_count: u32,
    credits: Credits,
    /// Sessions that wait for a credit, per target.
    waiting: Vec<VecDeque<ConnId>>,
    reads_under_way: usize,
    /// Sessions that wait to read their inbox.
    readers: VecDeque<ConnId>,
    owed: Vec<Owed>,
    owed_armed: bool,
    /// The next slot to nudge, while everybody is.
    nudge_walk: Option<u32>,
    timers: Alarms,
    due: VecDeque<Armed>,
    /// Messages of this shard to itself.
    local: VecDeque<Mesh>,
    draining: bool,
    halted: bool,
    /// Counted for operators.
    pub stats: Stats,
}

impl Shard {
    /// A shard that has not begun. The first call of `handle_timer`, due at once, connects the link.
    pub fn new(options: Options, authority: Box<dyn Authority>, now: Now) -> Self {
        let shards = options.shards.max(1);
        let mut timers = Alarms::new(now.mono_ms);
        if options.shard == 0 {
            timers.arm(now.mono_ms, Timer::Link);
        }
        timers.arm(now.mono_ms + options.link_refuse_after_ms, Timer::LinkAway);
        Self {
            link: Link::new(options.gateway, options.shard, shards, options.link_window, options.link_writers),
            link_events: VecDeque::new(),
            link_heard_ms: 0,
            away: away::Away::since(now.mono_ms),
            storage_reason: String::new(),
            link_count: 0,
            credits: Credits::new(shards, options.mesh_requests_max),
            waiting: (0..shards).map(|_| VecDeque::new()).collect(),
            owed: (0..shards).map(|_| Owed::default()).collect(),
            owed_armed: false,
            nudge_walk: None,
            barriers: vec![Barrier::Closed; PARTITIONS as usize],
            behind_barrier: HashMap::new(),
            conns: Table::new(),
            actives: Actives::default(),
            lobby_count: 0,
            users: Users::default(),
            chats: HashMap::new(),
            chat_clock: VecDeque::new(),
            subscribers: HashMap::new(),
            reads_under_way: 0,
            readers: VecDeque::new(),
            timers,
            due: VecDeque::new(),
            local: VecDeque::new(),
            draining: false,
            halted: false,
            stats: Stats::default(),
            options,
            authority,
        }
    }

    /// The link is open.
    pub fn is_ready(&self) -> bool {
        self.link.state() == State::Up
    }

    /// Which of the writers the link is to, or is tried next.
    pub fn link_writer(&self) -> u16 {
        self.link.writer()
    }

    /// Why the storage tier takes no commands, as it said last; empty while it does.
    pub fn storage_reason(&self) -> &str {
        &self.storage_reason
    }

    fn session(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.conns.session(conn)
    }

    /// Ends every event: messages to this shard itself, requests that wait to leave, gauges.
    fn settle(&mut self, now: Now, out: &mut Out) {
        loop {
            while let Some(message) = self.local.pop_front() {
                self.take_mesh(now, self.options.shard, message, out);
            }
            self.start_reads(now);
            // What was refused while the link is away. Each may let another frame of its session go on, no more.
            if self.link_events.is_empty() {
                break;
            }
            self.take_link_events(now, out);
        }
        self.let_go(now);
        if self.link.wants_transmit() {
            let link = &mut self.link;
            out.link_send_with(|arena| link.transmit(arena));
        }
        self.stats.lobby_connections = self.lobby_count as u64;
        self.stats.user_homes = self.users.len() as u64;
        self.stats.chat_homes = self.chats.len() as u64;
        self.stats.link_unanswered = self.link.unanswered() as u64;
        self.stats.link_up = u64::from(self.link.state() == State::Up);
    }

    /// What a session has for being busy goes when it is not.
    fn let_go(&mut self, now: Now) {
        while let Some(slot) = self.actives.next_touched() {
            if let Some(session) = self.conns.session_at_mut(slot) {
                session.rest(now.mono_ms, self.options.rate_per_s, &mut self.actives);
            }
        }
    }

    /// This gateway may not go on: sessions are told to come back elsewhere, and the process ends.
    fn halt(&mut self, reason: HaltReason, out: &mut Out) {
        if self.halted || (reason == HaltReason::Fenced && planted::has(Bug::FencedLivesOn)) {
            return;
        }
        self.halted = true;
        for slot in 0..self.conns.len() {
            if let Some(conn) = self.conns.conn_at(slot) {
                self.close(conn, close::RETRY_LATER, "retry later", out);
            }
        }
        out.push(Output::Halt(reason));
    }

    fn connect_link(&mut self, out: &mut Out) {
        // Only shard 0 asks for an epoch; the others wait until they hear which one it is.
        let may_ask = self.options.shard == 0 || self.link.home_epoch() != 0;
        if self.link.state() == State::Down && may_ask && !self.halted {
            self.link.connecting();
            out.push(Output::LinkConnect { writer: self.link.writer() });
        }
    }

    fn link_lost(&mut self, now: Now) {
        let pause = match self.link.handle_down() {
            Retry::Now => 0,
            Retry::Paused => self.link_pause_ms(),
        };
        self.link_away(now);
        self.timers.arm(now.mono_ms + pause, Timer::Link);
    }

    /// The pause after a round through the writers: twice the one before, up to the longest.
    fn link_pause_ms(&self) -> u64 {
        let exponent = self.link.failures().min(16);
        let longest = self.options.link_retry_max_ms.max(1);
        let pause = (self.options.link_retry_min_ms.max(1) << exponent >> 1).clamp(1, longest);
        if self.link.writers() == 1 {
            return pause;
        }
        // Not all shards of all gateways at the same moment: up to a quarter less, by who it is and which round.
        let who = self.options.gateway as u64 ^ u64::from(self.options.shard) << 32 ^ u64::from(self.link.failures());
        pause - split_mix_64(who) % (pause / 4 + 1)
    }

    /// How long the link may owe something and say nothing. With several writers a hello is not waited for as long as an
    /// answer; each round that none says anything, it is waited for longer, as they may just be slow.
    fn link_patience_ms(&self) -> u64 {
        let idle_ms = self.options.link_idle_ms;
        if self.link.state() == State::Up || self.link.writers() == 1 {
            return idle_ms;
        }
        (self.options.link_hello_ms.max(1) << self.link.silent_rounds().min(16)).min(idle_ms)
    }

    /// A link that owes answers and says nothing is closed: the requests are sent again on the next one.
    fn link_idle(&mut self, now: Now, link_count: u32, out: &mut Out) {
        if link_count != self.link_count || !matches!(self.link.state(), State::Greeting | State::Up) {
            return;
        }
        let owes = self.link.state() == State::Greeting || self.link.unanswered() > 0;
        if !owes {
            self.link_heard_ms = now.mono_ms;
        }
        let dead_at = self.link_heard_ms + self.link_patience_ms();
        if now.mono_ms >= dead_at {
            self.link.distrust();
            out.push(Output::LinkClose);
        } else {
            self.timers.arm(dead_at, Timer::LinkIdle(link_count));
        }
    }

    /// The other shards need not find out one by one that another writer is active now.
    fn tell_writer(&mut self, now: Now, out: &mut Out) {
        let (writer, writer_epoch, here) = (self.link.writer(), self.link.writer_epoch(), self.options.shard);
        if self.link.writers() == 1 {
            return;
        }
        for shard in (0..self.options.shards).filter(|shard| *shard != here) {
            self.fan_out(now, shard, Fanout::Writer { writer, writer_epoch }, out);
        }
    }

    /// Another shard's link is open. Epochs only rise: whoever is linked to an older one is linked to nobody's writer.
    fn follow_writer(&mut self, writer: u16, writer_epoch: u64, out: &mut Out) {
        if writer_epoch <= self.link.writer_epoch() {
            return;
        }
        match self.link.state() {
            State::Connecting | State::Greeting if self.link.writer() == writer => {}
            State::Down => {
                self.link.follow(writer);
                self.connect_link(out);
            }
            State::Connecting => self.link.follow(writer),
            State::Greeting | State::Up => {
                self.link.follow(writer);
                out.push(Output::LinkClose);
            }
        }
    }

    fn take_link_events(&mut self, now: Now, out: &mut Out) {
        while let Some(event) = self.link_events.pop_front() {
            match event {
                LinkEvent::Up { again } => {
                    self.stats.link_opened_total += 1;
                    self.away = away::Away::default();
                    self.tell_writer(now, out);
                    if self.options.shard == 0 && !again {
                        let epoch = self.link.home_epoch();
                        (1..self.options.shards).for_each(|shard| self.fan_out(now, shard, Fanout::Epoch(epoch), out));
                    }
                    if again && !planted::no_nudge(Bug::RelinkUntold) {
                        // Answers may have been lost with the old link, and with them what they made known.
                        (0..self.options.shards).for_each(|shard| self.fan_out(now, shard, Fanout::NudgeAll, out));
                    }
                }
                LinkEvent::Answer { tag, resent, reply } => self.take_answer(now, tag, resent, reply, out),
                LinkEvent::Status { ready, reason } => {
                    self.stats.storage_ready = u64::from(ready);
                    self.storage_reason = reason;
                }
                LinkEvent::Fenced => self.halt(HaltReason::Fenced, out),
                LinkEvent::Rejected(_) => self.halt(HaltReason::LinkVersion, out),
                LinkEvent::NotActive(_) => out.push(Output::LinkClose),
            }
        }
    }

    fn fire(&mut self, now: Now, timer: Timer, out: &mut Out) {
        match timer {
            Timer::Lobby(conn) => self.lobby_deadline(now, conn, out),
            Timer::Watch(conn) => self.watch(now, conn, out),
            Timer::Mark(conn) => self.mark_due(now, conn, out),
            Timer::Beside(conn) => self.beside_due(conn, out),
            Timer::Hole(conn) => self.hole_due(conn),
            Timer::HeadCheck(conn) => self.head_check(now, conn),
            Timer::Receipts(chat_id) => self.receipts_due(now, chat_id),
            Timer::Heads(chat_id) => self.heads_due(now, chat_id, out),
            Timer::Reload(chat_id) => self.reload_due(chat_id),
            Timer::Link => self.connect_link(out),
            Timer::LinkIdle(link_count) => self.link_idle(now, link_count, out),
            Timer::LinkAway => self.away_due(now, out),
            Timer::Owed => self.pay_owed(now, out),
            Timer::NudgeWalk => self.walk_nudges(now),
            Timer::DrainEnd => self.end_drain(now, out),
        }
    }

    fn end_drain(&mut self, now: Now, out: &mut Out) {
        for slot in 0..self.conns.len() {
            if let Some(conn) = self.conns.conn_at(slot)
                && self.session(conn).is_some_and(|session| session.is(Flag::Draining))
            {
                self.see_off(now, conn, out);
            }
        }
    }
}

/// A connection that got its seat in this turn leaves at the turn's end: what it sent meanwhile goes with it.
fn follow_seat(conn: ConnId, data: &[u8], out: &mut Out) {
    let seat = out.items.iter_mut().rev().find_map(|output| match output {
        Output::Seat { conn: leaving, seat, .. } if *leaving == conn => Some(seat),
        _ => None,
    });
    if let Some(seat) = seat {
        seat.rest.extend_from_slice(data);
    }
}

impl Brain for Shard {
    type Mesh = Mesh;
    type Seat = Seat;

    fn handle_accept(&mut self, now: Now, conn: ConnId, peer: SocketAddr, out: &mut Out) {
        self.enter_lobby(now, conn, peer, out);
        self.settle(now, out);
    }

    fn handle_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        match self.conns.at(conn.slot) {
            Conn::Lobby(lobby) if lobby.conn == conn => self.lobby_data(now, conn, data, out),
            Conn::Session(session) if session.generation == conn.generation => {
                self.session_data(now, conn, data, out);
            }
            _ => follow_seat(conn, data, out),
        }
        self.settle(now, out);
    }

    fn handle_sent(&mut self, now: Now, conn: ConnId, bytes: usize, queued: usize, out: &mut Out) {
        self.outbox_moved(now, conn, bytes, queued, out);
        self.settle(now, out);
    }

    fn handle_closed(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        self.forget(now, conn, out);
        self.settle(now, out);
    }

    fn handle_seated(&mut self, now: Now, conn: ConnId, seat: Seat, out: &mut Out) {
        self.seat(now, conn, seat, out);
        self.settle(now, out);
    }

    fn handle_mesh(&mut self, now: Now, from: u16, message: Mesh, out: &mut Out) {
        self.take_mesh(now, from, message, out);
        self.settle(now, out);
    }

    fn handle_mesh_full(&mut self, now: Now, shard: u16, message: Mesh, _out: &mut Out) {
        if let Mesh::Fanout(fanout) = message {
            self.owe(now, shard, fanout);
        }
    }

    fn handle_link_up(&mut self, now: Now, out: &mut Out) {
        let link = &mut self.link;
        out.link_send_with(|arena| link.handle_up(arena));
        self.link_count = self.link_count.wrapping_add(1);
        self.link_heard_ms = now.mono_ms;
        self.timers.arm(now.mono_ms + self.link_patience_ms(), Timer::LinkIdle(self.link_count));
        self.settle(now, out);
    }

    fn handle_link_data(&mut self, now: Now, data: &mut [u8], out: &mut Out) {
        self.link_heard_ms = now.mono_ms;
        let mut events = std::mem::take(&mut self.link_events);
        let trusted = self.link.handle_data(data, &mut events);
        self.link_events = events;
        self.take_link_events(now, out);
        if trusted.is_err() {
            out.push(Output::LinkClose);
        }
        self.settle(now, out);
    }

    fn handle_link_down(&mut self, now: Now, out: &mut Out) {
        self.link_lost(now);
        if planted::has(Bug::OutcomeGuessed) || planted::has(Bug::ChangeGuessed) {
            self.link.guess_outcomes(&mut self.link_events);
            self.take_link_events(now, out);
        }
        self.settle(now, out);
    }

    fn handle_timer(&mut self, now: Now, out: &mut Out) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.fire(now.mono_ms, &mut due);
        for armed in due.drain(..) {
            let timer = self.timers.take(armed);
            self.fire(now, timer, out);
        }
        due.shrink_to(DUE_KEPT_MAX);
        self.due = due;
        self.settle(now, out);
    }

    fn next_timer(&self) -> Option<u64> {
        self.timers.next_ms()
    }

    fn handle_drain(&mut self, now: Now, out: &mut Out) {
        self.draining = true;
        self.timers.arm(now.mono_ms + self.options.drain_patience_ms, Timer::DrainEnd);
        for slot in 0..self.conns.len() {
            if let Conn::Lobby(lobby) = self.conns.at(slot) {
                let conn = lobby.conn;
                self.close(conn, close::DRAINING, "draining", out);
            } else if let Some(conn) = self.conns.conn_at(slot)
                && let Some(session) = self.session(conn)
            {
                session.replace(Flag::Draining, true);
                if session.busy().is_none_or(|active| active.requests == 0) {
                    self.see_off(now, conn, out);
                }
            }
        }
        self.settle(now, out);
    }

    fn is_drained(&self) -> bool {
        self.draining && self.stats.sessions == 0 && self.lobby_count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parley_protocol::DeviceId;
    use parley_protocol::wire::Encoding;

    #[test]
    fn what_comes_in_the_turn_of_the_seat_goes_with_it() {
        let conn = ConnId { slot: 3, generation: 7 };
        let seat = Seat {
            user_id: UserId(1),
            name: String::new(),
            device_id: DeviceId(1),
            encoding: Encoding::Json,
            mark: None,
            acting: false,
            development: false,
            token_expires_at_ms: 0,
            loopback: true,
            rest: b"fir".to_vec(),
        };
        let mut out = Out::default();
        out.push(Output::Seat { conn, shard: 0, seat });
        follow_seat(conn, b"st", &mut out);
        follow_seat(ConnId { slot: 3, generation: 6 }, b"another's", &mut out);
        let Some(Output::Seat { seat, .. }) = out.items.first() else { panic!("the seat is still there") };
        assert_eq!(seat.rest, b"first");
    }
}
