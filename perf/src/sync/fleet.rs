//! Devices that were away and writers that wrote to them meanwhile, in three acts: all log in and the devices leave,
//! the writers write, the devices come back and catch up. Told of bytes and times; says what is to be sent.

use crate::device::{Beats, Identity, Pass, Said, feed, hear};
use crate::frames::Encoder;
use crate::idle::fleet::{hint, is_final, short};
use crate::idle::plan::Sources;
use crate::idle::session::{Heard, Stage, next};
use crate::net::frame::{Op, write_frame};
use crate::net::{Closed, KEY, Url};
use crate::report::{histogram, micros};
use crate::rings::{Action, Client};
use hdrhistogram::Histogram;
use parley_protocol::frame::{ChatList, Chats, History, HistoryPage};
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, UserId};
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::rc::Rc;

/// A refused message, or a refused way in, is tried again after this.
const RETRY_NS: u64 = 100_000_000;
/// A connection that was refused so often in a row ends the run.
const TRIES_MAX: u8 = 20;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// All log in; devices leave once their mark came.
    Leave,
    /// Writers write what the devices miss.
    Write,
    /// Devices come back.
    Return,
}

/// How many, and how they come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    pub(crate) devices: u32,
    pub(crate) writers: u32,
    /// Entries that each device misses.
    pub(crate) missed: u32,
    /// The first devices so many, who come back without a mark and fill from history.
    pub(crate) truncated: u32,
    /// Ways in, or ways back until caught up, at a time.
    pub(crate) window: u32,
    /// Messages of a writer without an answer.
    pub(crate) in_flight: u32,
}

#[derive(Clone, Debug, Default)]
struct Session {
    stage: Stage,
    user: u64,
    ticket: Box<str>,
    mark: Option<u64>,
    partial: Vec<u8>,
    tries: u8,
    begun_ns: u64,
    /// Messages of its chat that it has, without a hole.
    have: u32,
    /// It got a `Truncated`, and fills from history.
    fills: bool,
    /// It has left, or is back and has caught up.
    through: bool,
}

/// A writer's messages: to its devices in turn, round by round.
#[derive(Clone, Debug, Default)]
struct Pen {
    begun: u64,
    answered: u64,
    in_flight: u32,
    again: VecDeque<u64>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) seated: u32,
    /// Sessions that are through with this act.
    pub(crate) through: u32,
    pub(crate) answered: u64,
    /// Messages that came, each once, by stream and by history.
    pub(crate) streamed: u64,
    pub(crate) filled: u64,
    /// Entries that a device has already.
    pub(crate) doubled: u64,
    /// Entries whose predecessor did not come.
    pub(crate) holes: u64,
    /// What was missing when the server said that all had come.
    pub(crate) lost: u64,
    pub(crate) truncated: u32,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) caught_up_us: Histogram<u64>,
}

/// All of them: sessions 0 to devices - 1 are the devices, the writers come after.
pub(crate) struct Fleet<'a> {
    encoder: &'a Encoder,
    identity: Identity,
    cast: Cast,
    act: Act,
    sources: Sources,
    upgrade: Rc<[u8]>,
    sessions: Vec<Session>,
    pens: Vec<Pen>,
    ready: VecDeque<u32>,
    retries: VecDeque<(u64, u32)>,
    in_flight: u32,
    beats: Beats,
    pub(crate) tally: Tally,
    pub(crate) failure: Option<String>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(encoder: &'a Encoder, identity: Identity, url: &Url, cast: Cast, beats: Beats) -> Self {
        let all = cast.devices + cast.writers;
        Self {
            encoder,
            sources: Sources::new(url.address, identity.run),
            identity,
            cast,
            act: Act::Leave,
            upgrade: url.upgrade(KEY, Encoding::Rkyv.subprotocol()).into_bytes().into(),
            sessions: vec![Session::default(); all as usize],
            pens: vec![Pen::default(); cast.writers as usize],
            ready: (0..all).collect(),
            retries: VecDeque::new(),
            in_flight: 0,
            beats,
            tally: Tally {
                seated: 0,
                through: 0,
                answered: 0,
                streamed: 0,
                filled: 0,
                doubled: 0,
                holes: 0,
                lost: 0,
                truncated: 0,
                refused: BTreeMap::new(),
                caught_up_us: histogram(),
            },
            failure: None,
        }
    }

    /// How many are through with the act when it is over; of `Write`, how many messages are answered.
    pub(crate) fn goal(&self) -> u64 {
        let Cast { devices, writers, missed, .. } = self.cast;
        match self.act {
            Act::Leave => u64::from(devices + writers),
            Act::Write => u64::from(devices) * u64::from(missed),
            Act::Return => u64::from(devices),
        }
    }

    /// How far the act is.
    pub(crate) fn progress(&self) -> u64 {
        if self.act == Act::Write { self.tally.answered } else { u64::from(self.tally.through) }
    }

    /// Whether it is over, with nobody on the way.
    pub(crate) fn is_over(&self) -> bool {
        self.progress() >= self.goal() && self.in_flight == 0
    }

    /// The next act.
    pub(crate) fn begin(&mut self, act: Act) {
        self.act = act;
        self.tally.through = 0;
        self.tally.refused.clear();
        if act == Act::Return {
            self.ready = (0..self.cast.devices).collect();
            for (conn, session) in (0_u32..).zip(&mut self.sessions[..self.cast.devices as usize]) {
                session.through = false;
                session.fills = false;
                if conn < self.cast.truncated {
                    session.mark = None;
                }
            }
        }
    }

    /// The writers leave: who comes back is alone with the server.
    pub(crate) fn dismiss(&mut self, actions: &mut Vec<Action>) {
        for conn in self.cast.devices..self.sessions.len() as u32 {
            self.sessions[conn as usize].stage = Stage::Ended;
            self.tally.seated -= 1;
            actions.push(Action::End { conn });
        }
    }

    pub(crate) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let seated = |conn: u32| self.sessions[conn as usize].stage == Stage::Seated;
        self.beats.tick(self.encoder, now_ns, seated, actions);
        while let Some((_, conn)) = self.retries.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.retries.pop_front();
            if self.act == Act::Write {
                self.write(conn, actions);
            } else {
                self.ready.push_back(conn);
            }
        }
        while self.in_flight < self.cast.window && self.act != Act::Write {
            let Some(conn) = self.ready.pop_front() else { break };
            self.in_flight += 1;
            let session = &mut self.sessions[conn as usize];
            session.stage = Stage::Connecting;
            session.begun_ns = now_ns;
            actions.push(Action::Open { conn, source: self.sources.of(conn) });
        }
        if self.act == Act::Write && self.tally.answered == 0 {
            // Whoever has something under way goes on by its answers.
            (self.cast.devices..self.sessions.len() as u32).for_each(|conn| self.write(conn, actions));
        }
    }

    /// The device that a writer's message goes to.
    fn reader(&self, conn: u32, message: u64) -> u32 {
        let Cast { devices, writers, .. } = self.cast;
        let writer = conn - devices;
        let own = u64::from((devices - writer).div_ceil(writers));
        writer + writers * (message % own) as u32
    }

    /// How many messages a writer has to write.
    fn messages(&self, conn: u32) -> u64 {
        let Cast { devices, writers, missed, .. } = self.cast;
        u64::from((devices - (conn - devices)).div_ceil(writers)) * u64::from(missed)
    }

    fn write(&mut self, conn: u32, actions: &mut Vec<Action>) {
        let all = self.messages(conn);
        loop {
            let pen = &mut self.pens[(conn - self.cast.devices) as usize];
            if pen.in_flight >= self.cast.in_flight {
                return;
            }
            let message = match pen.again.pop_front() {
                Some(message) => message,
                None if pen.begun < all => {
                    pen.begun += 1;
                    pen.begun - 1
                }
                None => return,
            };
            pen.in_flight += 1;
            let reader = self.sessions[self.reader(conn, message) as usize].user;
            let Some(chat) = ChatId::direct(UserId(self.sessions[conn as usize].user), UserId(reader)) else { return };
            let name = u128::from(self.identity.run) << 64 | u128::from(conn) << 40 | u128::from(message);
            let mut bytes = Vec::new();
            self.encoder.send(chat, ClientMsgId(name), &mut bytes);
            actions.push(Action::Send { conn, bytes: bytes.into() });
        }
    }

    /// A writer's message that an answer names.
    fn message_of(&self, conn: u32, name: ClientMsgId) -> Option<u64> {
        let ours = (name.0 >> 64) as u64 == self.identity.run && (name.0 as u64) >> 40 == u64::from(conn);
        (ours && conn >= self.cast.devices).then_some(name.0 as u64 & ((1 << 40) - 1))
    }

    fn take(&mut self, conn: u32, bytes: &[u8], now_ns: u64, actions: &mut Vec<Action>) -> Result<usize, Closed> {
        let mut taken = 0;
        while let Some((heard, used)) = next(self.sessions[conn as usize].stage, &bytes[taken..])? {
            taken += used;
            match heard {
                Heard::Upgraded => {
                    let session = &mut self.sessions[conn as usize];
                    session.stage = Stage::Greeting;
                    let token;
                    let pass = if session.ticket.is_empty() {
                        token = self.identity.token(conn, 0);
                        Pass::Token(&token)
                    } else {
                        Pass::Ticket(&session.ticket)
                    };
                    let bytes = self.identity.hello(self.encoder, conn, pass, session.mark);
                    actions.push(Action::Send { conn, bytes });
                }
                Heard::Message(payload) => self.on_message(conn, payload, now_ns, actions)?,
                Heard::Ping(payload) => {
                    let mut pong = Vec::new();
                    write_frame(Op::Pong, [0; 4], payload, &mut pong);
                    actions.push(Action::Send { conn, bytes: pong.into() });
                }
                Heard::Pong => {}
            }
        }
        Ok(taken)
    }

    fn on_message(&mut self, conn: u32, payload: &[u8], now_ns: u64, actions: &mut Vec<Action>) -> Result<(), Closed> {
        let undecodable = |_| Closed::Broken("the server sent a frame that does not decode");
        let session = &mut self.sessions[conn as usize];
        match hear(payload).map_err(undecodable)? {
            Said::Welcome { user, ticket } if session.stage == Stage::Greeting => {
                session.stage = Stage::Seated;
                (session.ticket, session.user, session.tries) = (ticket.into(), user.0, 0);
                self.tally.seated += 1;
            }
            Said::Mark { inbox_seq, head } => {
                session.mark = Some(inbox_seq);
                if inbox_seq == head && !session.fills {
                    self.caught_up(conn, now_ns, actions);
                }
            }
            Said::Truncated { mark } => {
                session.mark = Some(mark);
                self.on_truncated(conn, now_ns, actions);
            }
            Said::Event { seq, .. } if conn < self.cast.devices => self.entry(conn, seq, false),
            Said::Sent { name, .. } if self.message_of(conn, name).is_some() => {
                let pen = &mut self.pens[(conn - self.cast.devices) as usize];
                (pen.in_flight, pen.answered) = (pen.in_flight - 1, pen.answered + 1);
                self.tally.answered += 1;
                self.write(conn, actions);
            }
            Said::Error { code, message, name } => {
                let Some(index) = name.and_then(|name| self.message_of(conn, name)) else {
                    self.failure.get_or_insert(format!("session {conn} was refused: {code:?}: {message}"));
                    return Ok(());
                };
                let pen = &mut self.pens[(conn - self.cast.devices) as usize];
                pen.in_flight -= 1;
                pen.again.push_back(index);
                *self.tally.refused.entry(format!("{code:?}")).or_default() += 1;
                self.retries.push_back((now_ns + RETRY_NS, conn));
            }
            Said::Chats(list) => self.on_chats(conn, &list, now_ns, actions),
            Said::History(page) => self.on_history(conn, &page, now_ns, actions),
            _ => {}
        }
        Ok(())
    }

    /// An event of a device's one chat, whose numbers are dense from 1.
    fn entry(&mut self, conn: u32, seq: u64, from_history: bool) {
        let have = &mut self.sessions[conn as usize].have;
        if seq <= u64::from(*have) {
            self.tally.doubled += 1;
            return;
        }
        self.tally.holes += seq - u64::from(*have) - 1;
        *have = seq as u32;
        *(if from_history { &mut self.tally.filled } else { &mut self.tally.streamed }) += 1;
    }

    fn ask(&self, conn: u32, frame: &ClientFrame, actions: &mut Vec<Action>) {
        let mut bytes = Vec::new();
        self.encoder.frame(frame, &mut bytes);
        actions.push(Action::Send { conn, bytes: bytes.into() });
    }

    fn on_truncated(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>) {
        if self.act != Act::Return {
            // A new device, which has nothing yet and misses nothing.
            return self.caught_up(conn, now_ns, actions);
        }
        self.tally.truncated += 1;
        self.sessions[conn as usize].fills = true;
        self.ask(conn, &ClientFrame::Chats(Chats { request_id: 1, after: None, limit: 0 }), actions);
    }

    fn history(&self, conn: u32, chat_id: ChatId, actions: &mut Vec<Action>) {
        let after = Some(u64::from(self.sessions[conn as usize].have));
        self.ask(
            conn,
            &ClientFrame::History(History { request_id: 2, chat_id, before: None, after, limit: 0 }),
            actions,
        );
    }

    fn on_chats(&mut self, conn: u32, list: &ChatList, now_ns: u64, actions: &mut Vec<Action>) {
        let have = u64::from(self.sessions[conn as usize].have);
        match list.chats.iter().find(|chat| chat.head_seq > have) {
            Some(chat) => self.history(conn, chat.chat_id, actions),
            None => self.caught_up(conn, now_ns, actions),
        }
    }

    fn on_history(&mut self, conn: u32, page: &HistoryPage, now_ns: u64, actions: &mut Vec<Action>) {
        page.events.iter().for_each(|event| self.entry(conn, event.seq, true));
        if page.more && !page.events.is_empty() {
            self.history(conn, page.chat_id, actions);
        } else {
            self.caught_up(conn, now_ns, actions);
        }
    }

    /// The server says that nothing is left.
    fn caught_up(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>) {
        let is_device = conn < self.cast.devices;
        let session = &mut self.sessions[conn as usize];
        if session.through {
            return;
        }
        session.through = true;
        self.in_flight -= 1;
        self.tally.through += 1;
        match self.act {
            Act::Leave if is_device => {
                session.stage = Stage::Ended;
                self.tally.seated -= 1;
                actions.push(Action::End { conn });
            }
            Act::Leave | Act::Write => {}
            Act::Return => {
                self.tally.lost += u64::from(self.cast.missed.saturating_sub(session.have));
                self.tally.caught_up_us.saturating_record(micros(session.begun_ns, now_ns));
            }
        }
    }

    /// A connection is over that was to stay.
    fn over(&mut self, conn: u32, why: &Closed) {
        let session = &mut self.sessions[conn as usize];
        session.partial = Vec::new();
        if session.stage == Stage::Seated {
            self.failure.get_or_insert(format!("session {conn} ended: {why}"));
            return;
        }
        session.tries += 1;
        session.stage = Stage::Vacant;
        let absent =
            self.tally.seated == 0 && matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
        if absent || session.tries >= TRIES_MAX || is_final(why) {
            self.failure.get_or_insert(format!("session {conn} was not let in: {why}{}", hint(why)));
        }
        *self.tally.refused.entry(short(why)).or_default() += 1;
    }
}

impl Client for Fleet<'_> {
    fn connected(&mut self, conn: u32, _now_ns: u64, actions: &mut Vec<Action>) {
        self.sessions[conn as usize].stage = Stage::Upgrading;
        actions.push(Action::Send { conn, bytes: self.upgrade.clone() });
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        let mut partial = std::mem::take(&mut self.sessions[conn as usize].partial);
        let taken = feed(&mut partial, data, |bytes| self.take(conn, bytes, now_ns, actions));
        let session = &mut self.sessions[conn as usize];
        if session.stage != Stage::Ended {
            session.partial = partial;
        }
        if let Err(why) = taken {
            self.over(conn, &why);
            actions.push(Action::End { conn });
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        if self.sessions[conn as usize].stage != Stage::Ended {
            self.over(conn, &why);
        }
    }

    fn vacant(&mut self, conn: u32, now_ns: u64) {
        if self.sessions[conn as usize].stage == Stage::Vacant {
            self.in_flight -= 1;
            self.retries.push_back((now_ns + RETRY_NS, conn));
        }
    }
}
