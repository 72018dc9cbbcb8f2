//! The attacks: each a thread that does one hostile thing at a given strength until it is stopped, and counts how often
//! the server gave the answer that it should.

use super::client::{Client, device, hello, now_unix_s};
use crate::frames::Encoder;
use crate::net::Url;
use crate::net::frame::{Op, write_frame};
use crate::tokens::Tokens;
use clap::ValueEnum;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientMsgId};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const MASK: [u8; 4] = [0x55, 0x1f, 0x83, 0xc6];
/// Bytes of a message to those who never read.
const SPOKEN_BYTES: usize = 4 << 10;
/// An attacker that is late sends so many at once, at most: it is a rate, not a burst.
const BURST_MAX: u64 = 256;
/// The longest pause of an attacker, so that it ends soon after it is stopped.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Of those that come through sessions: connections that ping, and that never read.
const SESSIONS: usize = 8;
const HEADER_BYTES: usize = 1 << 20;

/// What is done to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Connections that are reset at once.
    Connects,
    /// Connections that send one byte of their upgrade a second.
    SlowHandshakes,
    /// Sessions that send pings and read no pong.
    Pings,
    /// Sessions that read nothing of what is sent to their user.
    NeverReading,
    /// Connections that upgrade and send a frame without a mask.
    BadFrames,
    /// Upgrades with 1 MB of headers.
    Headers,
    /// Logins with a token whose signature is wrong.
    BadTokens,
}

/// How hard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strength {
    /// Messages a second of the honest load, for the report.
    pub(crate) honest_rate: u64,
    /// Connects a second, of the attacks that connect.
    pub(crate) connects_per_s: u64,
    /// Upgrades with 1 MB of headers a second.
    pub(crate) headers_per_s: u64,
    /// Pings a second, over all pinging sessions.
    pub(crate) pings_per_s: u64,
    /// Messages a second to those who never read.
    pub(crate) spoken_per_s: u64,
    /// Slow handshakes at a time.
    pub(crate) held: usize,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Connects,
        Self::SlowHandshakes,
        Self::Pings,
        Self::NeverReading,
        Self::BadFrames,
        Self::Headers,
        Self::BadTokens,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::SlowHandshakes => "slow-handshakes",
            Self::Pings => "pings",
            Self::NeverReading => "never-reading",
            Self::BadFrames => "bad-frames",
            Self::Headers => "headers",
            Self::BadTokens => "bad-tokens",
        }
    }

    /// In words.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Connects => "a flood of connects",
            Self::SlowHandshakes => "handshakes at one byte a second",
            Self::Pings => "a flood of pings whose pongs nobody reads",
            Self::NeverReading => "clients that never read",
            Self::BadFrames => "frames without a mask",
            Self::Headers => "1 MB of headers each",
            Self::BadTokens => "tokens with a wrong signature",
        }
    }

    /// What is counted.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::SlowHandshakes => "bytes",
            Self::Pings => "pings",
            Self::NeverReading => "messages",
            Self::BadFrames => "frames",
            Self::Headers => "heads",
            Self::BadTokens => "logins",
        }
    }
}

/// A running attack.
pub(crate) struct Attack {
    began: Instant,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: JoinHandle<Result<(), String>>,
    kind: Kind,
}

/// What an attacker's thread has.
struct Attacker {
    url: Url,
    encoder: Encoder,
    strength: Strength,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// What signs the tokens of attackers with sessions.
    tokens: Arc<Tokens>,
}

impl Attack {
    pub(crate) fn start(kind: Kind, strength: Strength, url: &Url, tokens: &Tokens) -> Result<Self, String> {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let attacker = Attacker {
            url: url.clone(),
            encoder: Encoder::new(Encoding::Rkyv, SPOKEN_BYTES, MASK),
            strength,
            stop: stop.clone(),
            done: done.clone(),
            tokens: Arc::new(tokens.clone()),
        };
        let thread = std::thread::Builder::new()
            .name(kind.name().to_owned())
            .spawn(move || attacker.run(kind))
            .map_err(|error| format!("no thread for an attack: {error}"))?;
        Ok(Self { began: Instant::now(), stop, done, thread, kind })
    }

    /// Ends it: how many attacks a second there were. An error if there were none, or the server did not answer as it
    /// should.
    pub(crate) fn stop(self) -> Result<f64, String> {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f64();
        let what = self.kind.what();
        match self.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("{what}: {error}")),
            Err(_) => return Err(format!("{what}: the attacker panicked")),
        }
        match self.done.load(Ordering::Relaxed) {
            0 => Err(format!("{what}: nothing came through, so this measured nothing")),
            done => Ok(done as f64 / seconds),
        }
    }
}

impl Attacker {
    fn run(&self, kind: Kind) -> Result<(), String> {
        match kind {
            Kind::Connects => self.paced(self.strength.connects_per_s, || Client::connect(&self.url).map(drop)),
            Kind::SlowHandshakes => self.slow_handshakes(),
            Kind::Pings => self.pings(),
            Kind::NeverReading => self.never_reading(),
            Kind::BadFrames => self.paced(self.strength.connects_per_s, || {
                let mut client = Client::upgraded(&self.url)?;
                client.send(&[0x82, 1, 0])?;
                expect_close(&client.last_words()?, 1002)
            }),
            Kind::Headers => {
                let value = "v".repeat(HEADER_BYTES);
                let head =
                    Client::upgrade_request(&self.url).replace("\r\n\r\n", &format!("\r\nX-Long: {value}\r\n\r\n"));
                self.paced(self.strength.headers_per_s, || {
                    let mut client = Client::connect(&self.url)?;
                    // The server may be done with it before all is sent; its answer counts.
                    let _ = client.send(head.as_bytes());
                    let words = client.last_words()?;
                    let refused = words.starts_with(b"HTTP/1.1 431");
                    refused.then_some(()).ok_or_else(|| String::from_utf8_lossy(&words).into_owned())
                })
            }
            Kind::BadTokens => {
                let good = self.tokens.sign("hostile", now_unix_s());
                let cut = good.rfind('.').map_or(0, |dot| dot + 1);
                let bad = format!("{}{}", &good[..cut], "A".repeat(good.len() - cut));
                self.paced(self.strength.connects_per_s, || {
                    let mut client = Client::upgraded(&self.url)?;
                    client.send(&hello(&self.encoder, bad.clone(), device()?))?;
                    expect_close(&client.last_words()?, 4010)
                })
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Does something so many times a second, one after the other; what it cannot keep up with it leaves out.
    fn paced(&self, per_s: u64, mut once: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        let mut pace = Pace::new(per_s);
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if self.is_stopped() {
                    return Ok(());
                }
                once()?;
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            pace.rest();
        }
        Ok(())
    }

    fn slow_handshakes(&self) -> Result<(), String> {
        let head = Client::upgrade_request(&self.url);
        let mut held: Vec<(Client, usize)> = Vec::new();
        let mut pace = Pace::new(self.strength.held as u64);
        let mut next = 0;
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if held.len() < self.strength.held {
                    let client = Client::connect(&self.url)?;
                    client.nonblocking()?;
                    held.push((client, 0));
                }
                next = (next + 1) % held.len();
                let (client, sent) = &mut held[next];
                // The end of its time: the next one takes its place.
                if !client.discard() || client.try_send(&head.as_bytes()[*sent..=*sent]).is_err() {
                    held.swap_remove(next);
                    next = 0;
                    continue;
                }
                *sent = (*sent + 1) % (head.len() - 1);
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            pace.rest();
        }
        Ok(())
    }

    /// A session that reads nothing.
    fn deaf(&self, name: &str) -> Result<Client, String> {
        let (client, _) = Client::seated(&self.url, &self.tokens, &self.encoder, name)?;
        client.narrow()?;
        client.nonblocking()?;
        Ok(client)
    }

    fn pings(&self) -> Result<(), String> {
        const UNIT: usize = 32;
        let mut ping = Vec::new();
        write_frame(Op::Ping, MASK, &[b'p'; 125], &mut ping);
        let (unit, ping_bytes) = (ping.repeat(UNIT), ping.len());
        let mut deaf: Vec<(Client, usize)> = Vec::new();
        let mut pace = Pace::new((self.strength.pings_per_s / UNIT as u64).max(1));
        let mut next = 0;
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                if deaf.len() < SESSIONS {
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

    fn never_reading(&self) -> Result<(), String> {
        let (mut speaker, from) = Client::seated(&self.url, &self.tokens, &self.encoder, "hostile-speaker")?;
        let (first, to) = Client::seated(&self.url, &self.tokens, &self.encoder, "hostile-deaf")?;
        drop(first);
        let chat = ChatId::direct(from, to).ok_or("two users have one id")?;
        let mut deaf = Vec::new();
        for _ in 0..SESSIONS {
            deaf.push(self.deaf("hostile-deaf")?);
        }
        speaker.nonblocking()?;
        let name = u128::from(device()?.0 as u64) << 64;
        let (mut spoken, mut out) = (0, Vec::new());
        let mut pace = Pace::new(self.strength.spoken_per_s);
        while !self.is_stopped() {
            for _ in 0..pace.due() {
                self.encoder.send(chat, ClientMsgId(name | spoken), &mut out);
                spoken += 1;
            }
            let sent = speaker.try_send(&out)?;
            out.drain(..sent);
            if out.is_empty() {
                self.done.store(spoken as u64, Ordering::Relaxed);
            }
            if !speaker.discard() {
                return Err("the speaker, who is honest, was closed".to_owned());
            }
            pace.rest();
        }
        Ok(())
    }
}

/// The close frame at the end of what a server said.
fn expect_close(words: &[u8], code: u16) -> Result<(), String> {
    let [first, second] = code.to_be_bytes();
    let closed = words.windows(4).any(|window| window[0] == 0x88 && window[2..] == [first, second]);
    closed.then_some(()).ok_or_else(|| format!("expected close code {code}, got {words:?}"))
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
    fn every_attack_is_in_the_list_under_its_command_line_name() {
        let names: Vec<String> = Kind::value_variants()
            .iter()
            .filter_map(|kind| Some(kind.to_possible_value()?.get_name().to_owned()))
            .collect();
        assert_eq!(names, Kind::ALL.map(|kind| kind.name().to_owned()));
    }

    #[test]
    fn an_answer_that_is_not_the_expected_close_is_told() {
        assert!(expect_close(&[0x88, 4, 0x03, 0xea, b'n', b'o'], 1002).is_ok());
        assert!(expect_close(&[0x88, 2, 0x03, 0xe8], 1002).is_err());
        assert!(expect_close(&[], 1002).is_err());
    }
}
