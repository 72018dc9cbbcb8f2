//! All sessions of a run: logs them in, keeps their hearts beating, lets them talk, and counts what ends. Told of bytes
//! and times; says what is to be sent. No socket, no clock.

use super::logins::{Logins, TRIES_MAX};
use super::plan::{Hearts, Sources};
use super::session::{Heard, Sessions, Stage, next};
use super::talk::Talk;
use crate::frames::{Encoder, Incoming, read};
use crate::net::frame::{Op, write_frame};
use crate::net::{Closed, KEY, Url};
use crate::report::histogram;
use crate::rings::{Action, Client};
use crate::tokens::Tokens;
use hdrhistogram::Histogram;
use parley_protocol::frame::Hello;
use parley_protocol::limits::PROTOCOL_VERSION;
use parley_protocol::wire::Encoding;
use parley_protocol::{ClientFrame, DeviceId, close};
use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::rc::Rc;

/// Pings of one turn at most: what a generator that was held up owes goes out in several.
const BEATS_PER_TURN_MAX: usize = 4_096;
/// Ends of sessions that are told in words.
const REASONS_MAX: u64 = 5;

/// The unit of a ping's nonce: its 32 bits wrap after twelve hours.
const TICK_NS: u64 = 10_000;

fn ticks(now_ns: u64) -> u32 {
    (now_ns / TICK_NS) as u32
}

/// Who the sessions are.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) tokens: Tokens,
    /// High bits of the device ids.
    pub(crate) run: u64,
    /// When tokens are signed, Unix seconds.
    pub(crate) now_unix_s: u64,
}

impl Identity {
    /// The first frame of a session, with a token of its own.
    pub(crate) fn hello(&self, conn: u32) -> ClientFrame {
        ClientFrame::Hello(Hello {
            version: PROTOCOL_VERSION,
            device_id: DeviceId(u128::from(self.run) << 64 | u128::from(conn)),
            token: Some(self.tokens.sign(&format!("perf-{conn}"), self.now_unix_s)),
            resume: None,
            mark: None,
            kinds_known: Vec::new(),
            client: concat!("parley-perf/", env!("CARGO_PKG_VERSION")).to_owned(),
            act_for: None,
        })
    }
}

/// What became of the sessions.
#[derive(Debug)]
pub(crate) struct Tally {
    /// Seated now.
    pub(crate) sessions: u32,
    /// Seated at any time.
    pub(crate) logins: u64,
    /// Sessions that ended though they were to stay, by close code or in a word.
    pub(crate) ended: BTreeMap<String, u64>,
    pub(crate) heartbeats: u64,
    /// Pings without an answer when the next one was due.
    pub(crate) heartbeats_unanswered: u64,
    pub(crate) heartbeat_us: Histogram<u64>,
}

impl Tally {
    /// Sessions that ended.
    pub(crate) fn disconnected(&self) -> u64 {
        self.ended.values().sum()
    }

    /// Those that the server took for dead.
    pub(crate) fn heartbeat_timeouts(&self) -> u64 {
        self.ended.get(&close::HEARTBEAT_TIMEOUT.to_string()).copied().unwrap_or(0)
    }
}

/// The sessions.
pub(crate) struct Fleet<'a> {
    encoder: &'a Encoder,
    identity: Identity,
    sources: Sources,
    /// The same for all.
    upgrade: Rc<[u8]>,
    sessions: Sessions,
    pub(crate) logins: Logins,
    hearts: Hearts,
    pub(crate) talk: Talk<'a>,
    /// Bytes of frames that are not whole yet, for the few that have some.
    partial: HashMap<u32, Vec<u8>>,
    pub(crate) tally: Tally,
    /// What makes the run pointless.
    pub(crate) failure: Option<String>,
}

impl<'a> Fleet<'a> {
    pub(crate) fn new(
        encoder: &'a Encoder,
        identity: Identity,
        url: &Url,
        sessions: u32,
        logins: Logins,
        hearts: Hearts,
        talk: Talk<'a>,
    ) -> Self {
        Self {
            encoder,
            sources: Sources::new(url.address, identity.run),
            identity,
            upgrade: url.upgrade(KEY, Encoding::Rkyv.subprotocol()).into_bytes().into(),
            sessions: Sessions::new(sessions),
            logins,
            hearts,
            talk,
            partial: HashMap::new(),
            tally: Tally {
                sessions: 0,
                logins: 0,
                ended: BTreeMap::new(),
                heartbeats: 0,
                heartbeats_unanswered: 0,
                heartbeat_us: histogram(),
            },
            failure: None,
        }
    }

    /// Queues all that is due.
    pub(crate) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        while let Some(conn) = self.logins.next(now_ns) {
            self.sessions.get_mut(conn).stage = Stage::Connecting;
            actions.push(Action::Open { conn, source: self.sources.of(conn) });
        }
        self.beat(now_ns, actions);
        self.talk.tick(now_ns, &self.sessions, actions);
    }

    fn beat(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        // One ping for all of a turn; its nonce says when it was sent.
        let mut ping: Option<Rc<[u8]>> = None;
        for _ in 0..BEATS_PER_TURN_MAX {
            let Some(conn) = self.hearts.due(now_ns) else { return };
            let session = self.sessions.get_mut(conn);
            if session.stage != Stage::Seated {
                continue;
            }
            self.tally.heartbeats += 1;
            self.tally.heartbeats_unanswered += u64::from(session.awaits_pong);
            session.awaits_pong = true;
            let encoder = self.encoder;
            let bytes = ping.get_or_insert_with(|| {
                let mut bytes = Vec::new();
                encoder.ping(ticks(now_ns), &mut bytes);
                bytes.into()
            });
            actions.push(Action::Send { conn, bytes: bytes.clone() });
        }
    }

    /// When `tick` has something to do next, but for logins.
    pub(crate) fn next_ns(&self) -> u64 {
        self.hearts.next_at_ns().min(self.talk.next_ns().unwrap_or(u64::MAX))
    }

    fn hello(&self, conn: u32) -> Rc<[u8]> {
        let mut bytes = Vec::new();
        self.encoder.frame(&self.identity.hello(conn), &mut bytes);
        bytes.into()
    }

    /// Takes what lies whole in `bytes`; how many of them that were.
    fn take(&mut self, conn: u32, bytes: &[u8], now_ns: u64, actions: &mut Vec<Action>) -> Result<usize, Closed> {
        let mut taken = 0;
        while let Some((heard, used)) = next(self.sessions.get(conn).stage, &bytes[taken..])? {
            taken += used;
            match heard {
                Heard::Upgraded => {
                    self.sessions.get_mut(conn).stage = Stage::Greeting;
                    actions.push(Action::Send { conn, bytes: self.hello(conn) });
                }
                Heard::Message(payload) => self.on_message(conn, payload, now_ns)?,
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

    fn on_message(&mut self, conn: u32, payload: &[u8], now_ns: u64) -> Result<(), Closed> {
        let undecodable = |_| Closed::Broken("the server sent a frame that does not decode");
        match read(Encoding::Rkyv, payload).map_err(undecodable)? {
            Incoming::Welcome { user_id } if self.sessions.get(conn).stage == Stage::Greeting => {
                self.sessions.get_mut(conn).seat(user_id);
                self.logins.seated();
                self.tally.sessions += 1;
                self.tally.logins += 1;
            }
            Incoming::Pong { nonce } => {
                self.sessions.get_mut(conn).awaits_pong = false;
                let apart = u64::from(ticks(now_ns).wrapping_sub(nonce));
                self.tally.heartbeat_us.saturating_record((apart * TICK_NS / 1_000).max(1));
            }
            Incoming::Sent { name, seq, .. } => self.talk.on_sent(conn, name, seq, now_ns),
            Incoming::Event { name, seq, .. } => self.talk.on_event(conn, name, seq, now_ns),
            Incoming::Error { code, message, name } => self.talk.on_error(conn, code, &message, name),
            Incoming::Welcome { .. } | Incoming::Receipt | Incoming::Reconnect | Incoming::Other => {}
        }
        Ok(())
    }

    /// A session is over, whoever ended it. Its socket is not vacant yet.
    fn over(&mut self, conn: u32, why: &Closed) {
        self.partial.remove(&conn);
        let session = self.sessions.get_mut(conn);
        if session.is_logging_in() {
            session.tries = session.tries.saturating_add(1);
            // A server that was never there will not come.
            let absent = self.tally.logins == 0
                && matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
            if session.tries > TRIES_MAX || absent || is_final(why) {
                let hint = hint(why);
                self.failure.get_or_insert(format!("session {conn} could not log in: {why}{hint}"));
            }
            session.stage = Stage::Vacant;
        } else if session.stage == Stage::Seated {
            session.stage = Stage::Ended;
            self.tally.sessions -= 1;
            if self.tally.disconnected() < REASONS_MAX {
                eprintln!("session {conn} ended: {why}");
            }
            *self.tally.ended.entry(short(why)).or_default() += 1;
        }
    }
}

impl Client for Fleet<'_> {
    fn connected(&mut self, conn: u32, _now_ns: u64, actions: &mut Vec<Action>) {
        self.sessions.get_mut(conn).stage = Stage::Upgrading;
        actions.push(Action::Send { conn, bytes: self.upgrade.clone() });
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        let taken = match self.partial.remove(&conn) {
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

/// Whether trying again is of no use.
pub(crate) fn is_final(why: &Closed) -> bool {
    match why {
        Closed::Io(error) => !matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::TimedOut
                | ErrorKind::AddrInUse
                | ErrorKind::AddrNotAvailable
        ),
        Closed::Refused(answer) => !answer.starts_with("HTTP/1.1 5"),
        // Going away, failed, restarting, overloaded; draining, stalled, silent, cannot serve now.
        Closed::Close { code, .. } => !matches!(code, 1001 | 1005 | 1011..=1013 | 4000..=4003),
        Closed::Broken(_) => true,
        Closed::Eof | Closed::Stalled => false,
    }
}

pub(crate) fn hint(why: &Closed) -> &'static str {
    match why {
        Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
            "; nothing listens there: start a server, or let --spawn do it"
        }
        Closed::Close { code: close::UNAUTHENTICATED, .. } => "; is --data the data directory of this server?",
        _ => "",
    }
}

/// The reason as a name in the report.
pub(crate) fn short(why: &Closed) -> String {
    match why {
        Closed::Close { code, .. } => code.to_string(),
        Closed::Io(error) => format!("{:?}", error.kind()),
        Closed::Eof => "hung_up".to_owned(),
        Closed::Broken(_) => "broken".to_owned(),
        Closed::Refused(_) | Closed::Stalled => "refused".to_owned(),
    }
}
