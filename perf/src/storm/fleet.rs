//! All sessions of a storm: they log in, and whatever ends one, it comes back as docs/PROTOCOL.md asks: after the delay
//! that it was told, at once, or later and later. Told of bytes and times; says what is to be sent: no socket, no
//! clock.

use super::flow::Flow;
use crate::device::{Beats, Identity, Pass, Said, feed, hear};
use crate::frames::Encoder;
use crate::idle::fleet::{hint, is_final, short};
use crate::idle::plan::Sources;
use crate::idle::session::{Heard, Stage, next};
use crate::net::frame::{Op, write_frame};
use crate::net::{Closed, KEY, Url};
use crate::report::{histogram, micros};
use crate::rings::{Action, Client};
use crate::schedule::Random;
use hdrhistogram::Histogram;
use parley_protocol::wire::Encoding;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::ErrorKind;
use std::rc::Rc;

/// Connects of one turn at most, so that reading goes on.
const OPENS_PER_TURN_MAX: u32 = 256;
/// The first wait of a session that is to come later, at most; it doubles ...
const LATER_NS: u64 = 1_000_000_000;
/// ... up to a minute.
const DOUBLINGS_MAX: u8 = 6;
/// Ends that are told in words.
const REASONS_MAX: u32 = 5;

/// What is kept of a session.
#[derive(Clone, Debug, Default)]
struct Session {
    stage: Stage,
    /// 0 before the first `Welcome`.
    user: u64,
    ticket: Box<str>,
    mark: Option<u64>,
    partial: Vec<u8>,
    /// Attempts that failed since it was last in.
    tries: u8,
    /// A `Reconnect` said so.
    delay_ms: Option<u32>,
    /// When its connection ended.
    away_ns: Option<u64>,
    /// When it comes back, once its socket is vacant.
    due_ns: u64,
}

/// What became of the sessions.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Seated now.
    pub(crate) seated: u32,
    /// Since `begin`: ends of seated sessions, by reason.
    pub(crate) ended: BTreeMap<String, u64>,
    /// Since `begin`: attempts to come back, and those that failed, by reason.
    pub(crate) attempts: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    /// From the end of a connection to the next `Welcome`.
    pub(crate) away_us: Histogram<u64>,
    /// Of sessions that were told: the delay.
    pub(crate) delay_us: Histogram<u64>,
}

/// The sessions.
pub(crate) struct Fleet<'a> {
    encoder: &'a Encoder,
    identity: Identity,
    sources: Sources,
    upgrade: Rc<[u8]>,
    sessions: Vec<Session>,
    /// Who connects when.
    due: BinaryHeap<Reverse<(u64, u32)>>,
    /// Connects under way, and how many there may be.
    in_flight: u32,
    window: u32,
    beats: Beats,
    random: Random,
    pub(crate) flow: Flow<'a>,
    pub(crate) tally: Tally,
    told: u32,
    /// The time of this turn.
    now_ns: u64,
    pub(crate) failure: Option<String>,
}

impl<'a> Fleet<'a> {
    /// All sessions come at once, `window` at a time.
    pub(crate) fn new(
        encoder: &'a Encoder,
        identity: Identity,
        url: &Url,
        sessions: u32,
        window: u32,
        beats: Beats,
        flow: Flow<'a>,
    ) -> Self {
        Self {
            encoder,
            sources: Sources::new(url.address, identity.run),
            random: Random::new(identity.run),
            identity,
            upgrade: url.upgrade(KEY, Encoding::Rkyv.subprotocol()).into_bytes().into(),
            sessions: vec![Session::default(); sessions as usize],
            due: (0..sessions).map(|conn| Reverse((0, conn))).collect(),
            in_flight: 0,
            window,
            beats,
            flow,
            tally: Tally {
                seated: 0,
                ended: BTreeMap::new(),
                attempts: 0,
                refused: BTreeMap::new(),
                away_us: histogram(),
                delay_us: histogram(),
            },
            told: 0,
            now_ns: 0,
            failure: None,
        }
    }

    /// From now on everybody comes when its own time has come, and what happens is counted.
    pub(crate) fn begin(&mut self) {
        self.window = u32::MAX;
        self.tally.ended.clear();
        self.tally.refused.clear();
        self.tally.attempts = 0;
        self.tally.away_us.reset();
    }

    /// Ends every connection, as a network that fails.
    pub(crate) fn cut(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        for conn in 0..self.sessions.len() as u32 {
            if self.sessions[conn as usize].stage == Stage::Seated {
                self.over(conn, &Closed::Eof, now_ns);
                actions.push(Action::End { conn });
            }
        }
    }

    /// Queues all that is due.
    pub(crate) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        self.now_ns = now_ns;
        for _ in 0..OPENS_PER_TURN_MAX {
            let Some(Reverse((due_ns, conn))) = self.due.peek().copied() else { break };
            if due_ns > now_ns || self.in_flight >= self.window {
                break;
            }
            self.due.pop();
            self.in_flight += 1;
            self.tally.attempts += 1;
            self.sessions[conn as usize].stage = Stage::Connecting;
            actions.push(Action::Open { conn, source: self.sources.of(conn) });
        }
        let seated = |conn: u32| self.sessions[conn as usize].stage == Stage::Seated;
        self.beats.tick(self.encoder, now_ns, seated, actions);
        self.flow.tick(now_ns, actions);
    }

    /// When `tick` has something to do next.
    pub(crate) fn next_ns(&self) -> u64 {
        let connect = self.due.peek().filter(|_| self.in_flight < self.window).map(|Reverse((due_ns, _))| *due_ns);
        [connect, self.flow.next_ns()].into_iter().flatten().fold(self.beats.next_ns(), u64::min)
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
                session.ticket = ticket.into();
                session.user = user.0;
                session.tries = 0;
                if let Some(away_ns) = session.away_ns.take() {
                    self.tally.away_us.saturating_record(micros(away_ns, now_ns));
                }
                self.in_flight -= 1;
                self.tally.seated += 1;
                self.flow.seated(conn, user, actions);
            }
            Said::Mark { inbox_seq, .. } | Said::Truncated { mark: inbox_seq } => session.mark = Some(inbox_seq),
            Said::Reconnect { delay_ms, ticket } => {
                session.ticket = ticket.into();
                session.delay_ms = Some(delay_ms);
                self.tally.delay_us.saturating_record((u64::from(delay_ms) * 1_000).max(1));
            }
            Said::Event { name, seq, .. } => self.flow.on_event(conn, name, seq, now_ns),
            Said::Sent { name, seq } => self.flow.on_sent(conn, name, seq, actions),
            Said::Error { code, message, name } => self.flow.on_error(conn, code, &message, name, now_ns),
            _ => {}
        }
        Ok(())
    }

    /// A connection is over, whoever ended it. Its socket is not vacant yet.
    fn over(&mut self, conn: u32, why: &Closed, now_ns: u64) {
        let first = self.tally.seated == 0 && self.sessions[conn as usize].user == 0;
        let session = &mut self.sessions[conn as usize];
        session.partial = Vec::new();
        let was_in = session.stage == Stage::Seated;
        if was_in {
            session.away_ns = Some(now_ns);
            self.tally.seated -= 1;
            self.flow.gone(conn);
            *self.tally.ended.entry(short(why)).or_default() += 1;
        } else {
            self.in_flight -= 1;
            *self.tally.refused.entry(short(why)).or_default() += 1;
        }
        let absent = first && matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
        if absent || is_final(why) {
            self.failure.get_or_insert(format!("session {conn} cannot come back: {why}{}", hint(why)));
        }
        if self.told < REASONS_MAX {
            self.told += 1;
            eprintln!("session {conn}: {why} (further ones are only counted)");
        }
        session.stage = Stage::Vacant;
        // At once after a session that was in, and as it was told; else later and later.
        let wait_ns = match session.delay_ms.take() {
            Some(delay_ms) => u64::from(delay_ms) * 1_000_000,
            None if was_in => 0,
            None => {
                let most_ns = LATER_NS << session.tries.min(DOUBLINGS_MAX);
                session.tries = session.tries.saturating_add(1);
                u64::from(self.random.below((most_ns.min(60 * LATER_NS) / 1_000) as u32)) * 1_000
            }
        };
        session.due_ns = now_ns + wait_ns;
    }
}

impl Client for Fleet<'_> {
    fn connected(&mut self, conn: u32, _now_ns: u64, actions: &mut Vec<Action>) {
        self.sessions[conn as usize].stage = Stage::Upgrading;
        actions.push(Action::Send { conn, bytes: self.upgrade.clone() });
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        if self.sessions[conn as usize].stage == Stage::Vacant {
            return;
        }
        let mut partial = std::mem::take(&mut self.sessions[conn as usize].partial);
        let taken = feed(&mut partial, data, |bytes| self.take(conn, bytes, now_ns, actions));
        self.sessions[conn as usize].partial = partial;
        if let Err(why) = taken {
            self.over(conn, &why, now_ns);
            actions.push(Action::End { conn });
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        // As of this turn.
        if self.sessions[conn as usize].stage != Stage::Vacant {
            let now_ns = self.now_ns;
            self.over(conn, &why, now_ns);
        }
    }

    fn vacant(&mut self, conn: u32, _now_ns: u64) {
        self.due.push(Reverse((self.sessions[conn as usize].due_ns, conn)));
    }
}
