//! All members of the chat: log in, join, look at it, talk, and receive. Told of bytes and times; says what is to be
//! sent. No socket, no clock.

use super::chat::Founding;
use super::fills::Fills;
use super::ledger::{Ledger, Reached, Step};
use super::measured::Measured;
use super::pace::Pace;
use crate::frames::Encoder;
use crate::idle::fleet::{Identity, hint, is_final, short};
use crate::idle::logins::{Logins, TRIES_MAX};
use crate::idle::plan::{Hearts, Sources};
use crate::idle::session::{Heard, Sessions, Stage, next};
use crate::net::frame::{Op, write_frame};
use crate::net::{Closed, KEY, Url};
use crate::rings::{Action, Client};
use parley_protocol::frame::{ChatRef, History, HistoryPage};
use parley_protocol::limits::HISTORY_PAGE_MAX;
use parley_protocol::wire::{Encoding, decode_server_frame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, Envelope, ErrorCode, Event, ServerFrame, UserId};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::ErrorKind;
use std::rc::Rc;

/// Of one turn at most, each.
const SENDS_PER_TURN_MAX: usize = 4_096;
const BEATS_PER_TURN_MAX: usize = 4_096;
/// Subscriptions without an answer.
const SUBSCRIBING_MAX: u32 = 512;
/// An event that a head tells of may still be on its way for so long.
const HEAD_GRACE_NS: u64 = 500_000_000;
/// Ends of sessions and refusals that are told in words.
const REASONS_MAX: u64 = 5;
/// Of the one request that a member has under way.
const REQUEST: u32 = 1;

/// How far the chat is.
#[derive(Debug)]
enum Phase {
    LogIn,
    /// The first member makes it.
    Found(Founding),
    /// All members subscribe.
    Subscribe {
        chat_id: ChatId,
        asked: u32,
        answered: u32,
        told: Vec<bool>,
        head: u64,
    },
    Talk {
        chat_id: ChatId,
    },
}

/// The members.
pub(super) struct Crowd<'a> {
    encoder: &'a Encoder,
    envelope: Envelope,
    identity: Identity,
    sources: Sources,
    upgrade: Rc<[u8]>,
    members: u32,
    sessions: Sessions,
    pub(super) logins: Logins,
    hearts: Hearts,
    /// Bytes of frames that are not whole yet, for those that have some.
    partial: HashMap<u32, Vec<u8>>,
    phase: Phase,
    fills: Fills,
    /// (when, who, the head): what is missed then, if it did not come.
    heads: VecDeque<(u64, u32, u64)>,
    pub(super) pace: Option<Pace>,
    pub(super) ledger: Ledger,
    pub(super) measured: Measured,
    /// Events that are not what was sent.
    pub(super) altered: u64,
    /// Events of other runs and from before the run.
    pub(super) foreign: u64,
    pub(super) logged_in: u64,
    pub(super) ended: BTreeMap<String, u64>,
    refusals: HashMap<ErrorCode, u64>,
    pub(super) failure: Option<String>,
}

impl<'a> Crowd<'a> {
    pub(super) fn new(
        encoder: &'a Encoder,
        identity: Identity,
        url: &Url,
        members: u32,
        logins: Logins,
        hearts: Hearts,
    ) -> Self {
        Self {
            encoder,
            envelope: encoder.envelope(),
            sources: Sources::new(url.address, identity.run),
            identity,
            upgrade: url.upgrade(KEY, Encoding::Rkyv.subprotocol()).into_bytes().into(),
            members,
            sessions: Sessions::new(members),
            logins,
            hearts,
            partial: HashMap::new(),
            phase: Phase::LogIn,
            fills: Fills::new(members),
            heads: VecDeque::new(),
            pace: None,
            ledger: Ledger::new(members, 0),
            measured: Measured::never(members),
            altered: 0,
            foreign: 0,
            logged_in: 0,
            ended: BTreeMap::new(),
            refusals: HashMap::new(),
            failure: None,
        }
    }

    /// Everybody is there and looks at the chat.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Talk { .. })
    }

    /// What it does before it talks, and how much of that is done: it must rise.
    pub(super) fn progress(&self) -> (String, u64) {
        let all = u64::from(self.members);
        let (what, done) = match &self.phase {
            Phase::LogIn => ("logged in", self.logged_in),
            Phase::Found(founding) => ("in the chat", all - founding.waiting() as u64),
            Phase::Subscribe { answered, .. } => ("subscribed", u64::from(*answered)),
            Phase::Talk { .. } => ("ready", all),
        };
        let before = match self.phase {
            Phase::LogIn => 0,
            Phase::Found(_) => 1,
            Phase::Subscribe { .. } => 2,
            Phase::Talk { .. } => 3,
        };
        (format!("{done} of {all} members {what}"), before * (all + 1) + done)
    }

    pub(super) fn pages(&self) -> u64 {
        self.fills.pages
    }

    pub(super) fn disconnected(&self) -> u64 {
        self.ended.values().sum()
    }

    /// Queues all that is due.
    pub(super) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        while let Some(conn) = self.logins.next(now_ns) {
            self.sessions.get_mut(conn).stage = Stage::Connecting;
            actions.push(Action::Open { conn, source: self.sources.of(conn) });
        }
        self.beat(now_ns, actions);
        match &mut self.phase {
            Phase::LogIn if self.logins.is_done() => {
                let others: Vec<UserId> = (1..self.members).filter_map(|conn| self.sessions.get(conn).user()).collect();
                self.phase = Phase::Found(Founding::new(self.identity.run, &others));
            }
            Phase::LogIn => {}
            Phase::Found(founding) => {
                if let Some(frame) = founding.next() {
                    self.say(0, &frame, actions);
                }
            }
            Phase::Subscribe { .. } => self.subscribe(actions),
            Phase::Talk { chat_id } => {
                let chat_id = *chat_id;
                self.send_due(chat_id, now_ns, actions);
                self.fill(chat_id, now_ns, actions);
            }
        }
    }

    /// When `tick` has something to do next, but for logins.
    pub(super) fn next_ns(&self) -> u64 {
        let send = self.pace.as_ref().and_then(Pace::next_ns);
        let head = self.heads.front().map(|(due_ns, ..)| *due_ns);
        send.into_iter().chain(head).fold(self.hearts.next_at_ns(), u64::min)
    }

    fn say(&self, conn: u32, frame: &ClientFrame, actions: &mut Vec<Action>) {
        let mut bytes = Vec::new();
        self.encoder.frame(frame, &mut bytes);
        actions.push(Action::Send { conn, bytes: bytes.into() });
    }

    fn beat(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        let mut ping: Option<Rc<[u8]>> = None;
        for _ in 0..BEATS_PER_TURN_MAX {
            let Some(conn) = self.hearts.due(now_ns) else { return };
            if self.sessions.is_seated(conn) {
                let encoder = self.encoder;
                let bytes = ping.get_or_insert_with(|| {
                    let mut bytes = Vec::new();
                    encoder.ping(0, &mut bytes);
                    bytes.into()
                });
                actions.push(Action::Send { conn, bytes: bytes.clone() });
            }
        }
    }

    fn subscribe(&mut self, actions: &mut Vec<Action>) {
        let Phase::Subscribe { chat_id, asked, answered, head, .. } = &mut self.phase else { return };
        let (from, to) = (*asked, self.members.min(*answered + SUBSCRIBING_MAX));
        let (chat_id, head, all) = (*chat_id, *head, *answered == self.members);
        *asked = to.max(from);
        for conn in from..to {
            self.say(conn, &ClientFrame::Subscribe(ChatRef { chat_id }), actions);
        }
        if all {
            self.ledger = Ledger::new(self.members, head);
            self.phase = Phase::Talk { chat_id };
        }
    }

    fn send_due(&mut self, chat_id: ChatId, now_ns: u64, actions: &mut Vec<Action>) {
        for _ in 0..SENDS_PER_TURN_MAX {
            let Some((sender, scheduled_ns)) = self.pace.as_mut().and_then(|pace| pace.due(now_ns)) else { return };
            // A message that an ended session owes counts as offered and stays unanswered.
            let index = self.ledger.sent(sender, scheduled_ns);
            self.measured.sent(scheduled_ns, now_ns);
            let mut bytes = Vec::new();
            let name = ClientMsgId(u128::from(self.identity.run) << 64 | u128::from(index));
            self.encoder.send(chat_id, name, &mut bytes);
            actions.push(Action::Send { conn: sender, bytes: bytes.into() });
        }
    }

    fn fill(&mut self, chat_id: ChatId, now_ns: u64, actions: &mut Vec<Action>) {
        while let Some((_, conn, head)) = self.heads.front().copied().filter(|(due_ns, ..)| *due_ns <= now_ns) {
            self.heads.pop_front();
            if self.ledger.head(conn, head) {
                self.fills.wanted(conn);
            }
        }
        while let Some(conn) = self.fills.next(now_ns) {
            let Some((from, _)) = self.ledger.missing(conn).filter(|_| self.sessions.is_seated(conn)) else {
                self.fills.done(conn);
                continue;
            };
            let history =
                History { request_id: REQUEST, chat_id, before: None, after: Some(from - 1), limit: HISTORY_PAGE_MAX };
            self.say(conn, &ClientFrame::History(history), actions);
        }
    }

    /// The index of a message of this run.
    fn index(&self, name: ClientMsgId) -> Option<u64> {
        ((name.0 >> 64) as u64 == self.identity.run).then_some(name.0 as u64)
    }

    fn reached(&mut self, reached: Reached, now_ns: u64) {
        self.measured.reached(reached.members, reached.sent_at_ns, now_ns);
        if reached.complete {
            self.pace.iter_mut().for_each(Pace::complete);
        }
    }

    /// Takes what lies whole in `bytes`; how many of them that were.
    fn take(&mut self, conn: u32, bytes: &[u8], now_ns: u64, actions: &mut Vec<Action>) -> Result<usize, Closed> {
        let mut taken = 0;
        loop {
            // Nearly all frames by far: what somebody else was shown before.
            while let Some((len, reached)) = self.ledger.expected(conn, &bytes[taken..]) {
                taken += len;
                self.reached(reached, now_ns);
            }
            let Some((heard, used)) = next(self.sessions.get(conn).stage, &bytes[taken..])? else { return Ok(taken) };
            match heard {
                Heard::Upgraded => {
                    self.sessions.get_mut(conn).stage = Stage::Greeting;
                    self.say(conn, &self.identity.hello(conn), actions);
                }
                Heard::Message(payload) => {
                    self.on_message(conn, payload, &bytes[taken..taken + used], now_ns)?;
                }
                Heard::Ping(payload) => {
                    let mut pong = Vec::new();
                    write_frame(Op::Pong, [0; 4], payload, &mut pong);
                    actions.push(Action::Send { conn, bytes: pong.into() });
                }
                Heard::Pong => {}
            }
            taken += used;
        }
    }

    fn on_message(&mut self, conn: u32, payload: &[u8], frame: &[u8], now_ns: u64) -> Result<(), Closed> {
        let undecodable = |_| Closed::Broken("the server sent a frame that does not decode");
        match decode_server_frame(Encoding::Rkyv, payload).map_err(undecodable)? {
            ServerFrame::Event(event) => self.on_event(conn, &event, frame, now_ns),
            ServerFrame::Sent(sent) => {
                if let Phase::Found(founding) = &mut self.phase {
                    if let Some(chat_id) = founding.sent(&sent) {
                        let told = vec![false; self.members as usize];
                        self.phase = Phase::Subscribe { chat_id, asked: 0, answered: 0, told, head: 0 };
                    }
                } else if let Some(index) = self.index(sent.client_msg_id)
                    && let Some((sent_at_ns, everywhere)) = self.ledger.acked(conn, index, sent.seq)
                {
                    self.measured.acked(sent_at_ns, now_ns);
                    if everywhere {
                        self.pace.iter_mut().for_each(Pace::complete);
                    }
                }
            }
            ServerFrame::Head(at) => match &mut self.phase {
                Phase::Subscribe { chat_id, asked, answered, told, head }
                    if at.chat_id == *chat_id && conn < *asked =>
                {
                    *answered += u32::from(!std::mem::replace(&mut told[conn as usize], true));
                    *head = at.seq.max(*head);
                }
                Phase::Talk { chat_id } if at.chat_id == *chat_id => {
                    self.heads.push_back((now_ns + HEAD_GRACE_NS, conn, at.seq));
                }
                _ => {}
            },
            ServerFrame::HistoryPage(page) => self.on_page(conn, &page, now_ns),
            ServerFrame::Welcome(welcome) if self.sessions.get(conn).stage == Stage::Greeting => {
                self.sessions.get_mut(conn).seat(welcome.user_id);
                self.logins.seated();
                self.logged_in += 1;
            }
            ServerFrame::Error(error) => self.on_error(conn, error, now_ns),
            _ => {}
        }
        Ok(())
    }

    fn on_event(&mut self, conn: u32, event: &Event, frame: &[u8], now_ns: u64) {
        let Phase::Talk { chat_id } = self.phase else { return };
        let index = self.index(event.client_msg_id).filter(|_| event.chat_id == chat_id);
        match self.ledger.event(conn, index, event.seq, frame) {
            Step::Reached(reached) => {
                self.altered += u64::from(event.envelope != self.envelope);
                self.reached(reached, now_ns);
            }
            Step::Foreign => self.foreign += 1,
            Step::Broken => {}
        }
        if self.ledger.missing(conn).is_some() {
            self.fills.wanted(conn);
        }
    }

    fn on_page(&mut self, conn: u32, page: &HistoryPage, now_ns: u64) {
        self.fills.done(conn);
        self.fills.pages += 1;
        let mut found = false;
        for event in &page.events {
            if let Some(reached) = self.ledger.filled(conn, self.index(event.client_msg_id), event.seq) {
                found = true;
                self.altered += u64::from(event.envelope != self.envelope);
                self.reached(reached, now_ns);
            }
        }
        // A page without anything that is missed would come again and again: it stays lost.
        if found && self.ledger.missing(conn).is_some() {
            self.fills.wanted(conn);
        }
    }

    fn on_error(&mut self, conn: u32, error: parley_protocol::frame::Error, now_ns: u64) {
        let count = self.refusals.entry(error.code).or_default();
        *count += 1;
        if *count == 1 {
            let (code, message) = (error.code, &error.message);
            eprintln!("refused: {code:?}: {message} (further ones of this kind are only counted)");
        }
        if !self.is_ready() {
            let hint = if error.code == ErrorCode::GroupFull { "; see group_members_max" } else { "" };
            let what = format!("member {conn} was refused: {:?}: {}{hint}", error.code, error.message);
            self.failure.get_or_insert(what);
        } else if error.request_id == Some(REQUEST) {
            self.fills.refused(conn, now_ns);
        } else if let Some(index) = error.client_msg_id.and_then(|name| self.index(name))
            && self.ledger.refused(conn, index)
        {
            self.pace.iter_mut().for_each(|pace| pace.refused(now_ns));
        }
    }

    /// A session is over, whoever ended it. Its socket is not vacant yet.
    fn over(&mut self, conn: u32, why: &Closed) {
        self.partial.remove(&conn);
        let session = self.sessions.get_mut(conn);
        if session.is_logging_in() {
            session.tries = session.tries.saturating_add(1);
            // A server that was never there will not come.
            let absent =
                self.logged_in == 0 && matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
            if session.tries > TRIES_MAX || absent || is_final(why) {
                self.failure.get_or_insert(format!("member {conn} could not log in: {why}{}", hint(why)));
            }
            session.stage = Stage::Vacant;
        } else if session.stage == Stage::Seated {
            session.stage = Stage::Ended;
            if self.disconnected() < REASONS_MAX {
                eprintln!("member {conn} was disconnected: {why}");
            }
            *self.ended.entry(short(why)).or_default() += 1;
        }
    }
}

impl Client for Crowd<'_> {
    fn connected(&mut self, conn: u32, _now_ns: u64, actions: &mut Vec<Action>) {
        self.sessions.get_mut(conn).stage = Stage::Upgrading;
        actions.push(Action::Send { conn, bytes: self.upgrade.clone() });
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        let partial = if self.partial.is_empty() { None } else { self.partial.remove(&conn) };
        let taken = match partial {
            None => self.take(conn, data, now_ns, actions).map(|taken| data[taken..].to_vec()),
            Some(mut partial) => {
                partial.extend_from_slice(data);
                self.take(conn, &partial, now_ns, actions).map(|taken| partial.split_off(taken))
            }
        };
        match taken {
            Ok(rest) if rest.is_empty() => {}
            Ok(rest) => {
                self.partial.insert(conn, rest);
            }
            Err(why) => {
                self.over(conn, &why);
                actions.push(Action::End { conn });
            }
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        self.over(conn, &why);
    }

    fn vacant(&mut self, conn: u32, now_ns: u64) {
        let session = self.sessions.get(conn);
        if session.stage == Stage::Vacant {
            self.logins.refused(conn, session.tries, now_ns);
        }
    }
}
