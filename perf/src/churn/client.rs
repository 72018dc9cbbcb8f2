//! The client's side of a churn: each slot is a device that connects, is let in and leaves, over and over, so many at a
//! time. Told of bytes and times; says what is to be sent. No socket, no clock.

use crate::baseline_handshake::Steps;
use crate::device::{Identity, Pass, Said, feed, hear};
use crate::frames::Encoder;
use crate::idle::fleet::{hint, is_final, short};
use crate::idle::plan::Sources;
use crate::idle::session::{Heard, Stage, next};
use crate::net::{Closed, KEY, Url};
use crate::report::{histogram, micros};
use crate::rings::{Action, Client};
use hdrhistogram::Histogram;
use parley_protocol::wire::Encoding;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::rc::Rc;

/// A device that was refused so often in a row ends the run.
const TRIES_MAX: u8 = 10;
/// A refused device comes again after this.
const RETRY_NS: u64 = 50_000_000;

/// Who comes, and how it is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With the ticket of the `Welcome` before.
    Resume,
    /// With a token that nobody has seen yet.
    Fresh,
    /// To the raw server: bytes for bytes.
    Raw(Steps),
}

/// How many come, how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) devices: u32,
    /// Between a connect and the end of its socket at a time.
    pub(crate) window: u32,
    /// Connects a second; `None`: as many as the window allows.
    pub(crate) rate: Option<u32>,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    stage: Stage,
    begun_ns: u64,
    /// Bytes that are not a whole answer yet (of the raw server only their number counts).
    partial: Vec<u8>,
    got: usize,
    tries: u8,
    done: bool,
}

/// The devices of a run, from one way to the next.
pub(crate) struct Devices {
    identity: Identity,
    /// The ticket of each, once it was let in.
    pub(crate) tickets: Vec<Rc<str>>,
    nonce: u64,
}

impl Devices {
    pub(crate) fn new(identity: Identity, count: u32) -> Self {
        Self { identity, tickets: vec!["".into(); count as usize], nonce: 0 }
    }
}

/// All devices, on one way.
pub(crate) struct ChurnClient<'a> {
    devices: &'a mut Devices,
    encoder: &'a Encoder,
    way: Way,
    pace: Pace,
    begun_ns: u64,
    opened: u64,
    in_flight: u32,
    slots: Vec<Slot>,
    ready: VecDeque<u32>,
    /// (when, who): refused ones.
    retries: VecDeque<(u64, u32)>,
    /// Nobody comes twice.
    once: bool,
    upgrade: Rc<[u8]>,
    sources: Sources,
    asks: [Rc<[u8]>; 2],
    /// Let in since `begin`.
    pub(crate) done: u64,
    pub(crate) refused: BTreeMap<String, u64>,
    pub(crate) latency_us: Histogram<u64>,
    /// The bytes of the last whole exchange.
    pub(crate) steps: Steps,
    pub(crate) failure: Option<String>,
}

impl<'a> ChurnClient<'a> {
    /// From `now_ns` on. With `once`, each device comes once.
    pub(crate) fn new(
        devices: &'a mut Devices,
        encoder: &'a Encoder,
        url: &Url,
        way: Way,
        pace: Pace,
        once: bool,
        now_ns: u64,
    ) -> Self {
        let upgrade: Rc<[u8]> = url.upgrade(KEY, Encoding::Rkyv.subprotocol()).into_bytes().into();
        let steps = if let Way::Raw(steps) = way { steps } else { Steps { asks: [upgrade.len(), 0], answers: [0; 2] } };
        Self {
            encoder,
            way,
            pace,
            begun_ns: now_ns,
            opened: 0,
            in_flight: 0,
            slots: vec![Slot::default(); pace.devices as usize],
            ready: (0..pace.devices).collect(),
            retries: VecDeque::new(),
            once,
            upgrade,
            sources: Sources::new(url.address, devices.identity.run),
            asks: steps.asks.map(|bytes| vec![b'q'; bytes].into()),
            devices,
            done: 0,
            refused: BTreeMap::new(),
            latency_us: histogram(),
            steps,
            failure: None,
        }
    }

    /// What came so far was warm-up.
    pub(crate) fn begin(&mut self) {
        self.done = 0;
        self.latency_us.reset();
        self.refused.clear();
    }

    /// Whether nobody is left to come, and all are gone.
    pub(crate) fn is_over(&self) -> bool {
        self.in_flight == 0 && self.ready.is_empty() && self.retries.is_empty()
    }

    /// Whoever may come now comes.
    pub(crate) fn tick(&mut self, now_ns: u64, actions: &mut Vec<Action>) {
        while let Some((_, conn)) = self.retries.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.retries.pop_front();
            self.ready.push_back(conn);
        }
        while self.in_flight < self.pace.window && self.next_ns() <= now_ns {
            let Some(conn) = self.ready.pop_front() else { return };
            self.opened += 1;
            self.in_flight += 1;
            let tries = self.slots[conn as usize].tries;
            self.slots[conn as usize] = Slot { stage: Stage::Connecting, begun_ns: now_ns, tries, ..Slot::default() };
            actions.push(Action::Open { conn, source: self.sources.of(conn) });
        }
    }

    /// When the rate allows the next one.
    pub(crate) fn next_ns(&self) -> u64 {
        let wait = |rate| u128::from(self.opened) * 1_000_000_000 / u128::from(rate);
        self.begun_ns + self.pace.rate.map_or(0, |rate| wait(rate) as u64)
    }

    fn let_in(&mut self, conn: u32, now_ns: u64, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[conn as usize];
        slot.done = true;
        slot.tries = 0;
        self.done += 1;
        self.latency_us.saturating_record(micros(slot.begun_ns, now_ns));
        actions.push(Action::End { conn });
    }

    fn refuse(&mut self, conn: u32, why: &Closed) {
        let slot = &mut self.slots[conn as usize];
        if slot.done {
            return;
        }
        slot.tries += 1;
        // A server that was never there will not come.
        let absent = self.done == 0 && matches!(why, Closed::Io(error) if error.kind() == ErrorKind::ConnectionRefused);
        if absent || slot.tries >= TRIES_MAX || is_final(why) {
            self.failure.get_or_insert(format!("device {conn} was not let in: {why}{}", hint(why)));
        }
        *self.refused.entry(short(why)).or_default() += 1;
    }

    fn hello(&mut self, conn: u32) -> Rc<[u8]> {
        let Devices { identity, tickets, nonce } = &mut *self.devices;
        let ticket = &tickets[conn as usize];
        *nonce += 1;
        let token;
        let pass = if self.way == Way::Resume {
            Pass::Ticket(ticket)
        } else {
            token = identity.token(conn, *nonce);
            Pass::Token(&token)
        };
        // Nothing was ever sent to it, and it says so: what is measured is the way in.
        let bytes = identity.hello(self.encoder, conn, pass, Some(0));
        self.steps.asks[1] = bytes.len();
        bytes
    }

    fn take(&mut self, conn: u32, bytes: &[u8], now_ns: u64, actions: &mut Vec<Action>) -> Result<usize, Closed> {
        let mut taken = 0;
        while let Some((heard, used)) = next(self.slots[conn as usize].stage, &bytes[taken..])? {
            taken += used;
            match heard {
                Heard::Upgraded => {
                    self.steps.answers[0] = used;
                    self.slots[conn as usize].stage = Stage::Greeting;
                    let hello = self.hello(conn);
                    actions.push(Action::Send { conn, bytes: hello });
                }
                Heard::Message(payload) if !self.slots[conn as usize].done => {
                    let undecodable = |_| Closed::Broken("the server sent a frame that does not decode");
                    if let Said::Welcome { ticket, .. } = hear(payload).map_err(undecodable)? {
                        self.steps.answers[1] = used;
                        self.devices.tickets[conn as usize] = ticket.into();
                        self.let_in(conn, now_ns, actions);
                    }
                }
                Heard::Message(_) | Heard::Ping(_) | Heard::Pong => {}
            }
        }
        Ok(taken)
    }

    fn take_raw(&mut self, conn: u32, bytes: &[u8], steps: Steps, now_ns: u64, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[conn as usize];
        slot.got += bytes.len();
        let first = slot.stage == Stage::Upgrading;
        if first && slot.got == steps.answers[0] {
            (slot.stage, slot.got) = (Stage::Greeting, 0);
            actions.push(Action::Send { conn, bytes: self.asks[1].clone() });
        } else if slot.got > steps.answers[usize::from(!first)] {
            self.failure.get_or_insert("the raw server says more than it was asked for".to_owned());
        } else if !first && slot.got == steps.answers[1] {
            self.let_in(conn, now_ns, actions);
        }
    }
}

impl Client for ChurnClient<'_> {
    fn connected(&mut self, conn: u32, _now_ns: u64, actions: &mut Vec<Action>) {
        self.slots[conn as usize].stage = Stage::Upgrading;
        let bytes = if let Way::Raw(_) = self.way { &self.asks[0] } else { &self.upgrade };
        actions.push(Action::Send { conn, bytes: bytes.clone() });
    }

    fn data(&mut self, conn: u32, data: &[u8], now_ns: u64, actions: &mut Vec<Action>) {
        if let Way::Raw(steps) = self.way {
            return self.take_raw(conn, data, steps, now_ns, actions);
        }
        let mut partial = std::mem::take(&mut self.slots[conn as usize].partial);
        let taken = feed(&mut partial, data, |bytes| self.take(conn, bytes, now_ns, actions));
        self.slots[conn as usize].partial = partial;
        if let Err(why) = taken {
            self.refuse(conn, &why);
            actions.push(Action::End { conn });
        }
    }

    fn ended(&mut self, conn: u32, why: Closed) {
        self.refuse(conn, &why);
    }

    fn vacant(&mut self, conn: u32, now_ns: u64) {
        self.in_flight -= 1;
        if !self.slots[conn as usize].done {
            self.retries.push_back((now_ns + RETRY_NS, conn));
        } else if !self.once {
            self.ready.push_back(conn);
        }
    }
}
