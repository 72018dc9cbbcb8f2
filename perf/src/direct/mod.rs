//! The scenario `direct`: pairs of users talk, every user on one device. Decides what to send and judges what comes;
//! bytes and sockets are the net's, the truth is the ledger's.

mod run;
#[cfg(test)]
mod tests;
mod verify;
mod watch;

pub(crate) use crate::report::Report;
pub(crate) use run::{Loop, Settings, run};
pub(crate) use watch::{Stretch, Watch};

use crate::frames::{Encoder, Incoming, read};
use crate::ledger::{Ledger, Step};
use crate::net::{Clock, Closed, Handler, Wires};
use crate::report::Measures;
use crate::schedule::Schedule;
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientMsgId, ErrorCode, UserId};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Messages written per turn at most, so that reading goes on when the generator is late.
const SENDS_PER_TURN_MAX: usize = 4_096;
/// A refused slot of the closed loop tries again after this.
const RETRY_NS: u64 = 100_000_000;
/// Below the server's heartbeat interval of 25 s.
const IDLE_NS: u64 = 20_000_000_000;
/// How often idle connections are looked for.
const IDLE_SCAN_NS: u64 = 1_000_000_000;
/// Reasons of disconnects that are printed.
const REASONS_MAX: u64 = 5;

/// What decides when the next message goes out.
#[derive(Clone, Debug)]
pub(crate) enum Load {
    /// By the clock.
    Open(Schedule),
    /// As many per user as are not complete.
    Closed {
        /// In flight per user.
        window: u32,
    },
}

/// Coalescing of delivered marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MarkOptions {
    /// The oldest unmarked message waits so long at most.
    pub(crate) interval_ns: u64,
    /// Unmarked messages at most; 0 sends no marks at all.
    pub(crate) messages_max: u32,
}

/// A device: a user on one connection, with its one chat.
#[derive(Clone, Copy, Debug)]
struct Device {
    chat: ChatId,
    /// The newest event of the peer.
    newest_seq: u64,
    /// When the oldest event without a mark came; meaningful while `unmarked > 0`.
    unmarked_since_ns: u64,
    unmarked: u32,
}

/// The state of a run.
pub(crate) struct Direct<'a> {
    encoder: &'a Encoder,
    encoding: Encoding,
    clock: Clock,
    /// High bits of every `client_msg_id`: other runs' messages are told apart.
    run: u64,
    load: Load,
    marks: MarkOptions,
    devices: Vec<Device>,
    /// (when the mark is due, device), in order: the interval is the same for all.
    marks_due: VecDeque<(u64, u32)>,
    /// Senders with a free slot (closed loop).
    free: VecDeque<u32>,
    /// (when, sender): slots of refused messages.
    retries: VecDeque<(u64, u32)>,
    idle_scan_ns: u64,
    sending: bool,
    pub(crate) ledger: Ledger,
    pub(crate) measures: Measures,
    watch: Option<Arc<Watch>>,
    pub(crate) refusals: HashMap<ErrorCode, u64>,
    pub(crate) disconnected: u64,
    pub(crate) marks_sent: u64,
    pub(crate) receipts: u64,
    pub(crate) foreign: u64,
    pub(crate) failure: Option<String>,
}

impl<'a> Direct<'a> {
    /// Users `2n` and `2n + 1` are a pair; both hold their connection of the same number.
    pub(crate) fn new(
        encoder: &'a Encoder,
        settings: &Settings,
        clock: Clock,
        users: &[UserId],
        load: Load,
        measures: Measures,
    ) -> Result<Self, String> {
        let device = |(index, user): (usize, &UserId)| {
            let peer = users.get(index ^ 1).ok_or("the number of users is odd")?;
            let chat = ChatId::direct(*user, *peer).ok_or("two users have one id")?;
            Ok(Device { chat, newest_seq: 0, unmarked_since_ns: 0, unmarked: 0 })
        };
        let devices = users.iter().enumerate().map(device).collect::<Result<Vec<_>, &str>>()?;
        let free = match load {
            Load::Open(_) => VecDeque::new(),
            // Round by round, so that no user begins with a burst.
            Load::Closed { window } => (0..window).flat_map(|_| 0..devices.len() as u32).collect(),
        };
        Ok(Self {
            encoder,
            encoding: settings.encoding,
            clock,
            run: settings.run,
            load,
            marks: settings.marks,
            ledger: Ledger::new(devices.len() as u32),
            devices,
            marks_due: VecDeque::new(),
            free,
            retries: VecDeque::new(),
            idle_scan_ns: 0,
            sending: true,
            measures,
            watch: settings.watch.clone(),
            refusals: HashMap::new(),
            disconnected: 0,
            marks_sent: 0,
            receipts: 0,
            foreign: 0,
            failure: None,
        })
    }

    /// From now on nothing new is sent; marks and heartbeats go on.
    pub(crate) fn stop_sending(&mut self) {
        self.sending = false;
    }

    /// Queues all that is due.
    pub(crate) fn tick(&mut self, now_ns: u64, wires: &mut Wires) {
        if self.sending {
            self.send_due(now_ns, wires);
        }
        while let Some((due_ns, device)) = self.marks_due.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.marks_due.pop_front();
            // A mark that went out with a message meanwhile leaves its entry here behind.
            let state = &self.devices[device as usize];
            if state.unmarked > 0 && state.unmarked_since_ns + self.marks.interval_ns <= due_ns {
                self.mark(device, wires);
            }
        }
        if now_ns >= self.idle_scan_ns + IDLE_SCAN_NS {
            self.idle_scan_ns = now_ns;
            for conn in 0..self.devices.len() as u32 {
                if wires.is_open(conn) && now_ns.saturating_sub(wires.last_write_ns(conn)) > IDLE_NS {
                    let encoder = self.encoder;
                    wires.out(conn).into_iter().for_each(|out| encoder.ping(0, out));
                }
            }
        }
    }

    fn send_due(&mut self, now_ns: u64, wires: &mut Wires) {
        while let Some((_, sender)) = self.retries.front().copied().filter(|(due_ns, _)| *due_ns <= now_ns) {
            self.retries.pop_front();
            self.free.push_back(sender);
        }
        for _ in 0..SENDS_PER_TURN_MAX {
            let next = match &mut self.load {
                Load::Open(schedule) => schedule.due(now_ns),
                Load::Closed { .. } => self.free.pop_front().map(|sender| (sender, now_ns)),
            };
            let Some((sender, scheduled_ns)) = next else { return };
            self.send(sender, scheduled_ns, now_ns, wires);
        }
    }

    fn send(&mut self, sender: u32, scheduled_ns: u64, now_ns: u64, wires: &mut Wires) {
        // A message that a closed connection owes counts as offered and stays unanswered.
        let index = self.ledger.sent(sender, scheduled_ns);
        self.measures.sent(scheduled_ns, now_ns);
        self.watch.iter().for_each(|watch| watch.sent(scheduled_ns));
        let device = self.devices[sender as usize];
        let Some(out) = wires.out(sender) else { return };
        let name = ClientMsgId(u128::from(self.run) << 64 | u128::from(index));
        self.encoder.send(device.chat, name, out);
        // A mark that is half due goes along: it saves a packet and a system call on both sides.
        if device.unmarked > 0 && device.unmarked_since_ns + self.marks.interval_ns / 2 <= now_ns {
            self.mark(sender, wires);
        }
    }

    fn mark(&mut self, device: u32, wires: &mut Wires) {
        let state = &mut self.devices[device as usize];
        state.unmarked = 0;
        if let Some(out) = wires.out(device) {
            self.encoder.delivered(state.chat, state.newest_seq, out);
            self.marks_sent += 1;
        }
    }

    /// When `tick` has something to do next, at the latest.
    pub(crate) fn next_ns(&self) -> u64 {
        let send = match &self.load {
            _ if !self.sending => None,
            Load::Open(schedule) => schedule.next_at_ns(),
            Load::Closed { .. } if !self.free.is_empty() => Some(0),
            Load::Closed { .. } => self.retries.front().map(|(due_ns, _)| *due_ns),
        };
        let mark = self.marks_due.front().map(|(due_ns, _)| *due_ns);
        let scan = self.idle_scan_ns + IDLE_SCAN_NS;
        send.unwrap_or(scan).min(mark.unwrap_or(scan)).min(scan)
    }

    /// The index of a message of this run.
    fn index(&mut self, name: ClientMsgId) -> Option<u64> {
        let ours = (name.0 >> 64) as u64 == self.run;
        self.foreign += u64::from(!ours);
        ours.then_some(name.0 as u64)
    }

    fn complete(&mut self, sender: u32, now_ns: u64) {
        self.measures.complete(now_ns);
        if let Load::Closed { .. } = self.load {
            self.free.push_back(sender);
        }
    }

    fn on_sent(&mut self, conn: u32, name: ClientMsgId, seq: u64, now_ns: u64) {
        let Some(index) = self.index(name) else { return };
        if let Step::First { sender, sent_at_ns, complete } = self.ledger.acked(conn, index, seq) {
            self.measures.acked(sent_at_ns, now_ns);
            if complete {
                self.complete(sender, now_ns);
            }
        }
    }

    fn on_event(&mut self, conn: u32, name: ClientMsgId, seq: u64, now_ns: u64, wires: &mut Wires) {
        let Some(index) = self.index(name) else { return };
        let Step::First { sender, sent_at_ns, complete } = self.ledger.received(conn, index, seq) else { return };
        self.measures.delivered(sent_at_ns, now_ns);
        self.watch.iter().for_each(|watch| watch.delivered(sent_at_ns, now_ns));
        if complete {
            self.complete(sender, now_ns);
        }
        if self.marks.messages_max == 0 {
            return;
        }
        let device = &mut self.devices[conn as usize];
        device.newest_seq = device.newest_seq.max(seq);
        if device.unmarked == 0 {
            device.unmarked_since_ns = now_ns;
            self.marks_due.push_back((now_ns + self.marks.interval_ns, conn));
        }
        device.unmarked += 1;
        if device.unmarked >= self.marks.messages_max {
            self.mark(conn, wires);
        }
    }

    fn on_error(&mut self, conn: u32, code: ErrorCode, message: String, name: Option<ClientMsgId>, now_ns: u64) {
        let count = self.refusals.entry(code).or_default();
        *count += 1;
        if *count == 1 {
            eprintln!("refused: {code:?}: {message} (further ones of this kind are only counted)");
        }
        let Some(index) = name.and_then(|name| self.index(name)) else { return };
        if self.ledger.refused(conn, index) && matches!(self.load, Load::Closed { .. }) {
            self.retries.push_back((now_ns + RETRY_NS, conn));
        }
    }
}

impl Handler for Direct<'_> {
    fn opened(&mut self, _conn: u32, _wires: &mut Wires) {}

    fn message(&mut self, conn: u32, payload: &[u8], now_ns: u64, wires: &mut Wires) {
        match read(self.encoding, payload) {
            Ok(Incoming::Event { name, seq, .. }) => self.on_event(conn, name, seq, now_ns, wires),
            Ok(Incoming::Sent { name, seq, .. }) => self.on_sent(conn, name, seq, now_ns),
            Ok(Incoming::Error { code, message, name }) => self.on_error(conn, code, message, name, now_ns),
            Ok(Incoming::Receipt) => self.receipts += 1,
            Ok(Incoming::Welcome { .. } | Incoming::Pong { .. } | Incoming::Reconnect | Incoming::Other) => {}
            Err(error) => {
                self.failure.get_or_insert(format!("user {conn} got a frame that does not decode: {error}"));
            }
        }
    }

    fn closed(&mut self, conn: u32, why: Closed) {
        self.disconnected += 1;
        if self.disconnected <= REASONS_MAX {
            let at_s = self.clock.now_ns() as f64 / 1e9;
            eprintln!("user {conn} was disconnected at {at_s:.1} s: {why}");
        }
    }
}
