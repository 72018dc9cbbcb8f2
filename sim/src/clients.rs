//! Devices on the network: they connect, say, read, come back, as `docs/PROTOCOL.md` asks of a client.

mod hearing;

use crate::device::{Device, Page};
use crate::network::{client_frame, server_frame};
use crate::plan::Fault;
use crate::world::{Conn, Event, Phase, Seen, World, short};
use parley_protocol::close::{self, ClientAction};
use parley_protocol::frame::{self, ClientFrame, Hello};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ChatId, UserId, limits};

/// Silence after which a device gives its connection up, microseconds: two heartbeats.
const DEAF_US: u64 = 3_500_000;
/// Silence after which what a device hears may have waited for it, microseconds.
const SILENCE_US: u64 = 1_000_000;
/// A device says something at least this often.
const PING_US: u64 = 1_300_000;
/// A device looks at its clock about twice in this time.
const LOOK_US: u64 = 1_000_000;
/// Marks that a device says by itself at a time: with its pages and a sign of life, what the narrowest rate limit allows.
const MARKS_MAX: usize = 4;

impl World {
    pub(crate) fn wake_device(&mut self, device: u32, at: u64) {
        let at = at.max(self.now);
        let state = &mut self.devices[device as usize];
        if state.wake.is_none_or(|wake| at < wake) {
            state.wake = Some(at);
            self.at(at, Event::Device { device });
        }
    }

    /// A device looks at its clock: it comes online, says that it is alive, sends again, gives up.
    pub(crate) fn device_wakes(&mut self, device: u32) -> bool {
        let state = &mut self.devices[device as usize];
        if state.wake != Some(self.now) {
            return false;
        }
        state.wake = None;
        if state.retired {
            return false;
        }
        let Some(conn) = state.conn else {
            if state.offline_until <= self.now {
                self.connect(device);
            } else {
                let at = state.offline_until;
                self.wake_device(device, at);
            }
            return true;
        };
        let next = self.now + LOOK_US / 2;
        if self.now > state.heard_at + DEAF_US && state.stopped_reading_until <= self.now {
            self.tell_conn(conn, || "hears nothing and gives up".to_owned());
            self.leave(device, true);
            self.wake_device(device, self.now + 1_000);
            return true;
        }
        if state.stopped_reading_until != 0 && state.stopped_reading_until <= self.now {
            state.stopped_reading_until = 0;
            self.at(self.now, Event::Down { conn });
        }
        if state_is_live(&self.devices[device as usize]) {
            self.keep_up(device);
        }
        self.wake_device(device, next);
        true
    }

    /// What a device with a session does by itself.
    fn keep_up(&mut self, device: u32) {
        let now = self.now;
        let again: Vec<ClientFrame> = self.devices[device as usize]
            .kept
            .iter_mut()
            .filter_map(|kept| kept.again_at.take_if(|at| *at <= now).map(|_| kept.frame.clone()))
            .collect();
        again.into_iter().for_each(|frame| self.say(device, frame));
        if self.now >= self.devices[device as usize].said_at + PING_US {
            self.say(device, ClientFrame::Ping(frame::Ping { nonce: 0 }));
        }
        self.read_again(device);
        self.say_marks(device);
        self.fill(device);
    }

    /// A device that has caught up knows which of its read marks never arrived: it will say them again.
    fn read_again(&mut self, device: u32) {
        let state = &mut self.devices[device as usize];
        if !state.caught_up || std::mem::replace(&mut state.read_again, true) {
            return;
        }
        let behind = state.chats.iter().filter(|(_, chat)| chat.own.map_or(0, |own| own.read_seq) < chat.wants_read);
        state.unsaid_reads = behind.map(|(chat_id, _)| *chat_id).collect();
    }

    /// Says a few of the marks that never arrived; the rest with the next look at the clock.
    fn say_marks(&mut self, device: u32) {
        if self.is_quiet(device) {
            return;
        }
        let mut left = MARKS_MAX;
        while left > 0
            && let Some(chat_id) = self.devices[device as usize].unsaid_reads.pop_first()
        {
            let seq = self.devices[device as usize].chats.get(&chat_id).map_or(0, |chat| chat.wants_read);
            if seq > 0 {
                self.say(device, ClientFrame::Read(frame::Position { chat_id, seq }));
                left -= 1;
            }
        }
        for position in self.unstored_deliveries(&self.devices[device as usize]).into_iter().take(left) {
            self.say(device, ClientFrame::Delivered(position));
        }
    }

    /// Whether a device waits, as the server asked of it.
    fn is_quiet(&self, device: u32) -> bool {
        self.now < self.devices[device as usize].quiet_until
    }

    /// Asks for what is missing.
    pub(crate) fn fill(&mut self, device: u32) {
        let limit = self.plan.page();
        let state = &mut self.devices[device as usize];
        if !state.welcome || state.pages.len() >= 3 || self.now < state.quiet_until {
            return;
        }
        if let Some(after) = state.listing
            && !state.pages.values().any(|page| *page == Page::Chats)
        {
            let request_id = state.request_id(Page::Chats);
            let chats = frame::Chats { request_id, after, limit: limit.min(limits::CHATS_PAGE_MAX) };
            self.say(device, ClientFrame::Chats(chats));
        }
        let state = &mut self.devices[device as usize];
        let asked = |state: &Device, chat_id: &ChatId| {
            state.pages.values().any(|page| matches!(page, Page::Fill { chat_id: other, .. } if other == chat_id))
        };
        let Some(chat_id) = state.holes.iter().find(|chat_id| !asked(state, chat_id)).copied() else {
            if state.refreshing && state.listing.is_none() && state.holes.is_empty() {
                state.refreshing = false;
            }
            return;
        };
        let (after, upto) = state.chats.get(&chat_id).map_or((0, 0), |chat| (chat.complete_to, chat.known_to()));
        let request_id = state.request_id(Page::Fill { chat_id, upto });
        let history = frame::History { request_id, chat_id, before: None, after: Some(after), limit };
        self.say(device, ClientFrame::History(history));
    }

    /// Connects and says hello.
    pub(crate) fn connect(&mut self, device: u32) {
        let Some(gateway) = self.choose_gateway() else {
            let later = self.now + 10_000 + self.net.around(100_000);
            return self.wake_device(device, later);
        };
        let shard = self.net.below(u64::from(self.plan.shards)) as u16;
        let conn = self.conns.len() as u32;
        let forged = self.devices[device as usize]
            .conn_mark(&mut self.people, self.plan.actions[crate::plan::Action::ForgedMark as usize]);
        let state = &mut self.devices[device as usize];
        state.disconnected();
        state.conn = Some(conn);
        (state.heard_at, state.said_at) = (self.now, self.now);
        let (mark, encoding) = (forged.or(state.mark), state.encoding);
        let ticket = state.ticket.clone().filter(|_| self.people.chance(700));
        let hello = Hello {
            version: limits::PROTOCOL_VERSION,
            device_id: state.id,
            token: Some(format!("u{}", state.name)),
            resume: ticket,
            mark,
            kinds_known: Vec::new(),
            client: "sim".to_owned(),
            act_for: None,
        };
        self.conns.push(Conn {
            device,
            gateway,
            shard,
            id: None,
            up: Default::default(),
            down: Default::default(),
            server_open: true,
            client_open: true,
            half_open: false,
            paused: false,
            closing_at: None,
            queue: Vec::new(),
            kernel: 0,
            input: Vec::new(),
            upgraded: false,
            opened_at: self.now,
            read_in: 0,
            answers: 0,
            seen: Seen { position: mark, mark: mark.unwrap_or(0), ..Seen::default() },
        });
        self.accept(conn);
        self.tell_conn(conn, || format!("connects with mark {mark:?}"));
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
             13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
            if encoding == Encoding::Json { limits::SUBPROTOCOL_JSON } else { limits::SUBPROTOCOL_RKYV }
        );
        let mut bytes = head.into_bytes();
        encode(encoding, &ClientFrame::Hello(hello), self.net.next() as u32, &mut bytes);
        self.send_up(conn, bytes);
        self.wake_device(device, self.now + LOOK_US / 2);
    }

    /// Leaves: with an end that the gateway sees, or without a word.
    pub(crate) fn leave(&mut self, device: u32, says_so: bool) {
        let Some(conn) = self.devices[device as usize].conn else { return };
        self.devices[device as usize].disconnected();
        let soon = self.now + self.net.around(300);
        let state = &mut self.conns[conn as usize];
        state.client_open = false;
        if says_so && !state.half_open {
            let at = state.up.end(soon);
            self.at(at, Event::Up { conn });
        } else {
            state.half_open = true;
        }
    }

    /// Says something, if it has a connection.
    pub(crate) fn say(&mut self, device: u32, frame: ClientFrame) {
        let Some(conn) = self.devices[device as usize].conn else { return };
        self.tell_conn(conn, || format!("says {}", tell_client_frame(&frame)));
        self.devices[device as usize].said_at = self.now;
        if let Some(id) = frame.client_msg_id() {
            let user = self.user_of(device);
            self.truth.asked.entry((user, id)).and_modify(|asked| asked.copies += 1);
            let kept = self.devices[device as usize].kept.iter_mut().find(|kept| kept.client_msg_id == id);
            kept.into_iter().for_each(|kept| _ = kept.said_at.get_or_insert(self.now));
        }
        let mut bytes = Vec::new();
        let encoding = self.devices[device as usize].encoding;
        encode(encoding, &frame, self.net.next() as u32, &mut bytes);
        self.send_up(conn, bytes);
    }

    fn send_up(&mut self, conn: u32, mut bytes: Vec<u8>) {
        if self.conns[conn as usize].half_open || self.conns[conn as usize].up.is_ending() {
            return;
        }
        while !bytes.is_empty() {
            let rest = bytes.split_off(self.piece(bytes.len()));
            let at = self.now + self.latency(Fault::Delay, 300);
            let at = self.conns[conn as usize].up.push(at, bytes);
            self.at(at, Event::Up { conn });
            bytes = rest;
        }
    }

    pub(crate) fn arrived_down(&mut self, conn: u32) -> bool {
        let state = &mut self.conns[conn as usize];
        if !state.client_open || state.half_open {
            return false;
        }
        let device = state.device;
        if self.devices[device as usize].stopped_reading_until > self.now {
            return false;
        }
        let mut bytes = Vec::new();
        state.down.take(self.now, &mut bytes);
        state.kernel = state.kernel.saturating_sub(bytes.len());
        state.input.extend_from_slice(&bytes);
        if !bytes.is_empty() {
            self.trace.note_bytes(&bytes);
            let state = &mut self.devices[device as usize];
            let before = std::mem::replace(&mut state.heard_at, self.now);
            if self.now > before + SILENCE_US {
                state.silence = Some((before, self.now));
            }
            // There is room again.
            self.tell_shard(conn);
        }
        self.understand(conn);
        let state = &self.conns[conn as usize];
        if state.client_open && state.down.is_over(self.now) {
            self.tell_conn(conn, || "is disconnected".to_owned());
            self.conns[conn as usize].client_open = false;
            self.devices[device as usize].disconnected();
            self.come_back(device, ClientAction::RetryNow);
        }
        true
    }

    fn come_back(&mut self, device: u32, action: ClientAction) {
        let pause = match action {
            ClientAction::RetryNow => self.net.around(20_000),
            ClientAction::RetryLater => 20_000 + self.net.around(150_000),
            ClientAction::Reauthenticate => {
                self.devices[device as usize].ticket = None;
                self.net.around(20_000)
            }
            ClientAction::Stop => return,
        };
        let state = &mut self.devices[device as usize];
        state.failures = (state.failures + 1).min(6);
        let pause = pause << (state.failures - 1);
        self.wake_device(device, self.now + pause);
    }

    fn understand(&mut self, conn: u32) {
        let mut input = std::mem::take(&mut self.conns[conn as usize].input);
        let mut at = 0;
        if !self.conns[conn as usize].upgraded {
            let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") else {
                self.conns[conn as usize].input = input;
                return;
            };
            if !input.starts_with(b"HTTP/1.1 101 ") {
                // Too many at once; or a shard that stood still, and found the deadline over.
                let busy = input.starts_with(b"HTTP/1.1 503 ") || input.starts_with(b"HTTP/1.1 408 ");
                let head = String::from_utf8_lossy(&input[..end]).into_owned();
                self.ensure(busy, "clients are served", || head);
                return;
            }
            self.conns[conn as usize].upgraded = true;
            at = end + 4;
        }
        while self.conns[conn as usize].client_open && self.violation.is_none() {
            let Some((kind, payload, len)) = server_frame(&input[at..]) else { break };
            at += len;
            let encoding = self.devices[self.conns[conn as usize].device as usize].encoding;
            match kind {
                8 => self.hear_close(conn, payload),
                kind if kind == opcode(encoding) => match wire::decode_server_frame(encoding, payload) {
                    Ok(frame) => self.hear(conn, frame),
                    Err(error) => self.fail("frames are understood", error.to_string()),
                },
                kind => self.fail("frames are understood", format!("a frame with opcode {kind}")),
            }
        }
        self.conns[conn as usize].input = input.split_off(at);
    }

    fn hear_close(&mut self, conn: u32, payload: &[u8]) {
        let code = payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
        self.tell_conn(conn, || format!("is closed with {code}"));
        let device = self.conns[conn as usize].device;
        let expected = [
            close::DRAINING,
            close::STALLED_READER,
            close::HEARTBEAT_TIMEOUT,
            close::RETRY_LATER,
            close::UNAUTHENTICATED,
            close::REPLACED,
        ];
        self.ensure(expected.contains(&code), "clients are served", || format!("closed with {code}"));
        self.leave(device, true);
        self.come_back(device, close::client_action(code));
        if code == close::REPLACED {
            // By a connection of its own that it has given up since.
            self.come_back(device, ClientAction::RetryLater);
        }
    }

    pub(crate) fn user_of(&self, device: u32) -> UserId {
        self.devices[device as usize].user.unwrap_or(UserId(0))
    }

    pub(crate) fn in_storm(&self) -> bool {
        self.phase == Phase::Storm
    }
}

fn state_is_live(device: &Device) -> bool {
    device.conn.is_some() && device.welcome
}

impl Device {
    /// Now and then a device that has nothing yet presents a mark that it was never issued.
    fn conn_mark(&self, people: &mut crate::random::Rng, chance: u32) -> Option<u64> {
        let fresh = self.mark.is_none() && self.chats.is_empty();
        (fresh && people.chance(chance * 20)).then(|| 1_000_000 + people.below(1_000))
    }
}

/// Text or binary (RFC 6455 section 5.2).
fn opcode(encoding: Encoding) -> u8 {
    match encoding {
        Encoding::Json => 1,
        Encoding::Rkyv => 2,
    }
}

fn encode(encoding: Encoding, frame: &ClientFrame, key: u32, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    wire::encode_client_frame(encoding, frame, &mut payload);
    client_frame(opcode(encoding), &payload, key, out);
}

fn tell_client_frame(frame: &ClientFrame) -> String {
    match frame {
        ClientFrame::Send(send) => format!("send {} to {}", send.client_msg_id, short(send.chat_id)),
        other => format!("{other:?}"),
    }
}
