//! How attacks go: each a thread that does one hostile thing at a given rate until it is stopped, counts it, and
//! compares what the server answers with what its row says.

use super::cast::{Cast, MALLORY, MASK};
use super::client::{Client, now_unix_ms};
use super::table::{Act, Answer, Opening, Row, Unit};
use crate::frames::Encoder;
use crate::net::frame::{self, Op, write_frame};
use crate::scrape;
use crate::tokens::claims;
use parley_protocol::close::STALLED_READER;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode, ServerFrame};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An attacker that is late sends so many at once, at most: it is a rate, not a burst.
const BURST_MAX: u64 = 256;
/// The longest pause of an attacker, so that it ends soon after it is stopped.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Of those that come through sessions: connections that ask, ping, or never read.
const SESSIONS: u64 = 8;
/// Who holds tokens that expire.
const BRIEF_USERS: u64 = 64;
const PING_BYTES: usize = 125;
/// More than the kernels of both ends keep for a connection.
const FLOOD_BYTES: usize = 24 << 20;
/// Of one message of a flood.
const FLOOD_UNIT_BYTES: usize = 16 << 10;
/// Messages of a flood without an answer.
const SPOKEN_AT_ONCE: usize = 32;
/// How often held connections are looked at.
const SWEEP: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// Under which they are counted.
const STALLED: &str = "stalled_reader";
/// How long a server that has closed may take for its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A running attack.
pub(crate) struct Attack {
    began: Instant,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
}

/// What an attacker's thread has.
struct Attacker {
    cast: Arc<Cast>,
    row: &'static Row,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
}

impl Attack {
    pub(crate) fn start(row: &'static Row, cast: &Arc<Cast>) -> Result<Self, String> {
        let attacker = Attacker::new(row, cast);
        let (stop, done) = (attacker.stop.clone(), attacker.done.clone());
        let thread = std::thread::Builder::new()
            .name(row.name.to_owned())
            .spawn(move || attacker.run())
            .map_err(|error| format!("no thread for an attack: {error}"))?;
        Ok(Self { began: Instant::now(), stop, done, thread })
    }

    /// Ends it: how many attacks a second there were, and what was wrong with the answers, if anything was.
    pub(crate) fn stop(self) -> (f64, Result<(), String>) {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64();
        let ended = self.thread.join().unwrap_or_else(|_| Err("the attacker panicked".to_owned()));
        let done = self.done.load(Ordering::Relaxed);
        let ended = ended.and(if done > 0 { Ok(()) } else { Err("nothing came through".to_owned()) });
        (done as f64 / seconds, ended)
    }
}

/// Carries an attack out once, and waits for the refusal, however long the server takes for it.
pub(crate) fn prove(row: &'static Row, cast: &Arc<Cast>) -> Result<(), String> {
    Attacker::new(row, cast).prove()
}

/// A connection that waits for its end.
struct Held {
    client: Client,
    sent: usize,
    next: Instant,
}

impl Attacker {
    fn new(row: &'static Row, cast: &Arc<Cast>) -> Self {
        Self { cast: cast.clone(), row, stop: Arc::default(), done: Arc::default() }
    }

    fn run(&self) -> Result<(), String> {
        match self.row.act {
            Act::Reset => self.paced(1, || Client::connect(&self.cast.url).map(drop)),
            Act::Once(opening, bytes, answer) => {
                let bytes = bytes(&self.cast);
                self.paced(1, || self.once(opening, &bytes, answer))
            }
            Act::Held(opening, bytes, answer) => self.hold(opening, &bytes(&self.cast), answer),
            Act::Ask(frames, code) => {
                let (frames, mut next) = (self.ask_bytes(&frames(&self.cast)), 0);
                let mut sessions = self.sessions()?;
                self.paced(frames.1, || {
                    next = (next + 1) % sessions.len();
                    ask(&mut sessions[next], &frames, code)
                })
            }
            Act::Pings => self.pings(),
            Act::NeverReading => self.never_reading(),
        }
    }

    fn prove(&self) -> Result<(), String> {
        match self.row.act {
            Act::Reset => Client::connect(&self.cast.url).map(drop),
            Act::Once(opening, bytes, answer) => self.once(opening, &bytes(&self.cast), answer),
            Act::Held(opening, bytes, answer) => self.hold_one(opening, &bytes(&self.cast), answer),
            Act::Ask(frames, code) => {
                let frames = self.ask_bytes(&frames(&self.cast));
                ask(&mut self.cast.seated(MALLORY)?.0, &frames, code)
            }
            Act::Pings | Act::NeverReading => self.stall(),
        }
    }

    fn per_s(&self) -> u64 {
        let strength = &self.cast.strength;
        match self.row.unit {
            Unit::Connections => strength.connects_per_s,
            Unit::Sessions => strength.logins_per_s,
            Unit::Heavy => strength.heavy_per_s,
            Unit::Requests => strength.requests_per_s,
            Unit::Pings => strength.pings_per_s,
            Unit::Messages => strength.spoken_per_s,
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Does something that counts as `each` so often that the rate is the row's, one after the other; what it cannot
    /// keep up with it leaves out.
    fn paced(&self, each: usize, mut once: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let mut pace = Pace::new(self.per_s() / each as u64);
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if self.is_stopped() {
                    return Ok(());
                }
                once()?;
                self.done.fetch_add(each as u64, Ordering::Relaxed);
            }
            pace.rest();
        }
        Ok(())
    }

    fn open(&self, opening: Opening) -> Result<Client, String> {
        let url = &self.cast.url;
        match opening {
            Opening::Connected => Client::connect(url),
            Opening::Upgraded(encoding) => Client::upgraded(url, encoding),
            Opening::Seated => Ok(self.cast.seated(MALLORY)?.0),
            Opening::SeatedForNow => {
                // In whole seconds, and 300 ms from now at the least, for the login.
                let expires_s = (now_unix_ms() + 1_300) / 1_000;
                // A user has so many devices at a time.
                let name = format!("hostile-brief-{}", self.done.load(Ordering::Relaxed) % BRIEF_USERS);
                let tokens = &self.cast.tokens;
                let token = tokens.signed(tokens.header(), &claims(&name, expires_s));
                Ok(Client::seated(url, &self.cast.hello_with(token))?.0)
            }
        }
    }

    fn once(&self, opening: Opening, bytes: &[u8], answer: Answer) -> Result<(), String> {
        let mut client = self.open(opening)?;
        // The server may be done with it before all is sent; its answer counts.
        let _ = client.send(bytes);
        answer.check(&client.last_words()?)
    }

    /// Looks after one that waits; true once it got its answer.
    fn tend(held: &mut Held, bytes: &[u8], answer: Answer, now: Instant) -> Result<bool, String> {
        if held.client.is_over() {
            return answer.check(held.client.words()).map(|()| true);
        }
        if let Some(byte) = bytes.get(held.sent).filter(|_| now >= held.next) {
            // One that was closed meanwhile is told by its answer, at the next look.
            held.sent += held.client.try_send(&[*byte]).unwrap_or(0);
            held.next += SECOND;
        }
        Ok(false)
    }

    fn held(&self, opening: Opening) -> Result<Held, String> {
        let client = self.open(opening)?;
        client.nonblocking()?;
        Ok(Held { client, sent: 0, next: Instant::now() })
    }

    fn hold(&self, opening: Opening, bytes: &[u8], answer: Answer) -> Result<(), String> {
        let mut all: Vec<Held> = Vec::new();
        let mut pace = Pace::new(self.per_s());
        let mut swept = Instant::now();
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if all.len() < self.cast.strength.held && !self.is_stopped() {
                    all.push(self.held(opening)?);
                    self.done.fetch_add(1, Ordering::Relaxed);
                }
            }
            let now = Instant::now();
            if now.duration_since(swept) >= SWEEP {
                swept = now;
                let mut index = 0;
                while let Some(held) = all.get_mut(index) {
                    if Self::tend(held, bytes, answer, now)? {
                        all.swap_remove(index);
                    } else {
                        index += 1;
                    }
                }
            }
            pace.rest();
        }
        Ok(())
    }

    fn hold_one(&self, opening: Opening, bytes: &[u8], answer: Answer) -> Result<(), String> {
        let mut held = self.held(opening)?;
        let until = Instant::now() + self.cast.patience;
        while !Self::tend(&mut held, bytes, answer, Instant::now())? {
            if Instant::now() > until {
                return Err(format!("expected {answer:?}, got nothing within {:?}", self.cast.patience));
            }
            std::thread::sleep(SWEEP);
        }
        Ok(())
    }

    fn sessions(&self) -> Result<Vec<Client>, String> {
        (0..SESSIONS).map(|_| Ok(self.cast.seated(MALLORY)?.0)).collect()
    }

    /// The frames, encoded, and how many they are.
    fn ask_bytes(&self, frames: &[ClientFrame]) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        frames.iter().for_each(|frame| self.cast.encoder.frame(frame, &mut out));
        (out, frames.len())
    }

    /// A session that reads nothing.
    fn deaf(&self, name: &str) -> Result<Client, String> {
        let (client, _) = self.cast.seated(name)?;
        client.narrow()?;
        client.nonblocking()?;
        Ok(client)
    }

    fn pings(&self) -> Result<(), String> {
        const UNIT: usize = 32;
        let (unit, ping_bytes) = pings(UNIT);
        let mut deaf: Vec<(Client, usize)> = Vec::new();
        let mut pace = Pace::new(self.per_s() / UNIT as u64);
        let mut next = 0;
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if deaf.len() < SESSIONS as usize {
                    deaf.push((self.deaf(&format!("hostile-ping-{next}"))?, 0));
                }
                next = (next + 1) % deaf.len();
                let (client, at) = &mut deaf[next];
                // A write may end within a ping: the next one goes on there.
                match client.try_send(&unit[*at..]) {
                    Ok(sent) => {
                        *at = (*at + sent) % unit.len();
                        self.done.fetch_add((sent / ping_bytes) as u64, Ordering::Relaxed);
                    }
                    Err(_) => {
                        deaf.swap_remove(next);
                        next = 0;
                    }
                }
            }
            pace.rest();
        }
        Ok(())
    }

    /// Who speaks to those who do not read, and the chat with them.
    fn speaker(&self, to: &str) -> Result<(Client, ChatId), String> {
        let (speaker, from) = self.cast.seated("hostile-speaker")?;
        let (_, to) = self.cast.seated(to)?;
        Ok((speaker, ChatId::direct(from.user_id, to.user_id).ok_or("two users have one id")?))
    }

    fn never_reading(&self) -> Result<(), String> {
        let (mut speaker, chat) = self.speaker("hostile-deaf")?;
        let _deaf = (0..SESSIONS).map(|_| self.deaf("hostile-deaf")).collect::<Result<Vec<_>, _>>()?;
        speaker.nonblocking()?;
        let (mut spoken, mut out) = (0, Vec::new());
        let mut pace = Pace::new(self.per_s());
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                self.cast.encoder.send(chat, name(spoken), &mut out);
                spoken += 1;
            }
            let sent = speaker.try_send(&out)?;
            out.drain(..sent);
            if out.is_empty() {
                self.done.store(spoken, Ordering::Relaxed);
            }
            if !speaker.discard() {
                return Err(closed(&speaker));
            }
            pace.rest();
        }
        Ok(())
    }

    /// One that reads nothing until the server counts it as given up, and then all that is there: it must end in the
    /// close of a stalled reader. At once, as the server waits a moment only for that to be read.
    fn stall(&self) -> Result<(), String> {
        let _one = self.cast.stalling.lock().map_err(|_| "another attacker panicked")?;
        let before = scrape::rejected(self.cast.admin, STALLED)?;
        let mut flood = self.flood()?;
        let until = Instant::now() + self.cast.patience;
        while scrape::rejected(self.cast.admin, STALLED)? == before {
            if Instant::now() > until {
                return Err(format!("no stalled reader was counted within {:?}", self.cast.patience));
            }
            flood.go_on()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        flood.deaf.blocking(LAST_WORDS)?;
        Answer::Close(STALLED_READER).check(&flood.deaf.last_words()?)
    }

    fn flood(&self) -> Result<Flood, String> {
        if let Act::Pings = self.row.act {
            let deaf = self.deaf("hostile-ping-once")?;
            let (out, message_bytes) = pings(FLOOD_BYTES / PING_BYTES);
            return Ok(Flood { deaf, speaker: None, out, message_bytes });
        }
        let to = "hostile-deaf-once";
        let (speaker, chat) = self.speaker(to)?;
        let deaf = self.deaf(to)?;
        let encoder = Encoder::new(Encoding::Rkyv, FLOOD_UNIT_BYTES, MASK);
        let mut out = Vec::new();
        for number in 0..(FLOOD_BYTES / FLOOD_UNIT_BYTES) as u64 {
            encoder.send(chat, name(number), &mut out);
        }
        let message_bytes = out.len() / (FLOOD_BYTES / FLOOD_UNIT_BYTES);
        Ok(Flood { deaf, speaker: Some(speaker), out, message_bytes })
    }
}

/// More than the kernels keep, for one that does not read it.
struct Flood {
    deaf: Client,
    /// Who says it, and waits for its answers, being honest; without one the deaf one asks for it.
    speaker: Option<Client>,
    /// What is not sent yet; where somebody speaks, whole messages of this many bytes.
    out: Vec<u8>,
    message_bytes: usize,
}

impl Flood {
    /// Sends as much as is taken now, but for a bounded time.
    fn go_on(&mut self) -> Result<(), String> {
        let until = Instant::now() + SWEEP;
        let mut sent = 0;
        while sent < self.out.len() && Instant::now() < until {
            // The server may have closed the deaf one meanwhile, which is what it should.
            let more = match &mut self.speaker {
                Some(speaker) => {
                    let left = &self.out[sent..];
                    let window = &left[..left.len().min(self.message_bytes * SPOKEN_AT_ONCE)];
                    speak(speaker, window, window.len() / self.message_bytes)?;
                    window.len()
                }
                None => self.deaf.try_send(&self.out[sent..]).unwrap_or(0),
            };
            sent += more;
            if more == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.out.drain(..sent);
        Ok(())
    }
}

/// Sends messages and reads their answers.
fn speak(speaker: &mut Client, bytes: &[u8], messages: usize) -> Result<(), String> {
    speaker.send(bytes)?;
    let mut answered = 0;
    while answered < messages {
        answered += usize::from(matches!(speaker.next()?, ServerFrame::Sent(_)));
    }
    Ok(())
}

fn closed(speaker: &Client) -> String {
    format!("the speaker, who is honest, was closed: {}", String::from_utf8_lossy(speaker.words()))
}

/// So many pings in a row, and the bytes of one.
fn pings(count: usize) -> (Vec<u8>, usize) {
    let mut ping = Vec::new();
    write_frame(Op::Ping, MASK, &[b'p'; PING_BYTES], &mut ping);
    (ping.repeat(count), ping.len())
}

/// A name for a command that no other run gives.
fn name(number: u64) -> ClientMsgId {
    ClientMsgId(u128::from(now_unix_ms()) << 64 | u128::from(number))
}

/// Sends all of it, and reads as many errors, all of this code.
fn ask(session: &mut Client, (bytes, count): &(Vec<u8>, usize), code: ErrorCode) -> Result<(), String> {
    session.send(bytes)?;
    let mut refused = 0;
    while refused < *count {
        match session.next()? {
            ServerFrame::Error(error) if error.code == code => refused += 1,
            ServerFrame::Mark(_) | ServerFrame::Truncated(_) => {}
            other => return Err(format!("expected {code:?}, got {other:?}")),
        }
    }
    Ok(())
}

impl Answer {
    /// What a server said before it ended the connection must end in this answer.
    fn check(self, words: &[u8]) -> Result<(), String> {
        let wrong = |got: String| Err(format!("expected {self:?}, got {got}"));
        match self {
            Self::Status(status) => {
                let line = words.split(|byte| *byte == b'\r').next().unwrap_or_default();
                let is = line.starts_with(format!("HTTP/1.1 {status} ").as_bytes());
                if is { Ok(()) } else { wrong(String::from_utf8_lossy(line).into_owned()) }
            }
            Self::Close(code) => {
                let mut rest = words;
                while let Some(found) = frame::parse(rest)? {
                    if found.op == Op::Close {
                        let is = found.payload.starts_with(&code.to_be_bytes());
                        return if is { Ok(()) } else { wrong(format!("a close with {:?}", found.payload)) };
                    }
                    rest = &rest[found.bytes..];
                }
                wrong(format!("{} bytes without a close", words.len()))
            }
        }
    }
}

/// So many times a second.
struct Pace {
    began: Instant,
    per_s: u64,
    given: u64,
}

impl Pace {
    fn new(per_s: u64) -> Self {
        Self { began: Instant::now(), per_s: per_s.max(1), given: 0 }
    }

    /// How many are due now.
    fn due(&mut self) -> u64 {
        let all = (self.began.elapsed().as_nanos() * u128::from(self.per_s) / 1_000_000_000) as u64;
        let due = (all - self.given).min(BURST_MAX);
        // Beyond a burst it is given up, not saved.
        self.given = all;
        due
    }

    /// Until the next one is due.
    fn rest(&self) {
        let next = Duration::from_nanos(((u128::from(self.given) + 1) * 1_000_000_000 / u128::from(self.per_s)) as u64);
        std::thread::sleep(next.saturating_sub(self.began.elapsed()).min(PAUSE_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_the_expected_close_is_told() {
        let close = Answer::Close(1002);
        assert!(close.check(&[0x88, 4, 0x03, 0xea, b'n', b'o']).is_ok());
        assert!(close.check(&[0x8a, 1, 7, 0x88, 2, 0x03, 0xea]).is_ok(), "behind a pong");
        assert!(close.check(&[0x88, 2, 0x03, 0xe8]).is_err());
        assert!(close.check(&[0x8a, 4, 0x88, 2, 0x03, 0xea]).is_err(), "inside a pong");
        assert!(close.check(&[]).is_err());
    }

    #[test]
    fn an_answer_that_is_not_the_expected_status_is_told() {
        assert!(Answer::Status(431).check(b"HTTP/1.1 431 Too Large\r\n\r\n").is_ok());
        assert!(Answer::Status(431).check(b"HTTP/1.1 400 Bad\r\nX: 431 \r\n\r\n").is_err());
        assert!(Answer::Status(408).check(b"").is_err());
    }
}
