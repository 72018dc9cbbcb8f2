//! Devices on the network: they connect, read, answer, come back, as `docs/PROTOCOL.md` asks of a client; and the oracles
//! that look over their shoulders.

use crate::device::{Device, Held, Kept, Page};
use crate::network::{client_frame, server_frame};
use crate::plan::Fault;
use crate::world::{Conn, Event, Phase, Seen, World, short};
use parley_protocol::close::{self, ClientAction};
use parley_protocol::frame::{self, ClientFrame, Hello, ServerFrame};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ChatId, ErrorCode, OwnState, UserId, limits};
use storage_core::store::EntryRow;

/// Silence after which a device gives its connection up, microseconds: two heartbeats.
const DEAF_US: u64 = 3_500_000;
/// A device says something at least this often.
const PING_US: u64 = 1_300_000;
/// A device looks at its clock about twice in this time.
const LOOK_US: u64 = 1_000_000;

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
        self.fill(device);
    }

    /// A device that has caught up knows which of its read marks never arrived: it says them again.
    fn read_again(&mut self, device: u32) {
        if !self.devices[device as usize].caught_up
            || std::mem::replace(&mut self.devices[device as usize].read_again, true)
        {
            return;
        }
        let state = &self.devices[device as usize];
        let behind = state.chats.iter().filter(|(_, chat)| chat.own.map_or(0, |own| own.read_seq) < chat.wants_read);
        let behind: Vec<_> = behind.map(|(chat_id, chat)| (*chat_id, chat.wants_read)).collect();
        for (chat_id, seq) in behind {
            self.say(device, ClientFrame::Read(frame::Position { chat_id, seq }));
        }
    }

    /// Asks for what is missing.
    pub(crate) fn fill(&mut self, device: u32) {
        let limit = self.plan.page();
        let state = &mut self.devices[device as usize];
        if !state.welcome || state.pages.len() >= 3 {
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
        let asked = |state: &Device, chat_id: &ChatId| state.pages.values().any(|page| *page == Page::Fill(*chat_id));
        let Some(chat_id) = state.holes.iter().find(|chat_id| !asked(state, chat_id)).copied() else {
            if state.refreshing && state.listing.is_none() && state.holes.is_empty() {
                state.refreshing = false;
            }
            return;
        };
        let after = state.chats.get(&chat_id).map_or(0, |chat| chat.complete_to);
        let request_id = state.request_id(Page::Fill(chat_id));
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
        let mark = forged.or(state.mark);
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
            seen: Seen { position: mark, mark: mark.unwrap_or(0), ..Seen::default() },
        });
        self.accept(conn);
        self.tell_conn(conn, || format!("connects with mark {mark:?}"));
        let head = format!(
            "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: \
             13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
            limits::SUBPROTOCOL_RKYV
        );
        let mut bytes = head.into_bytes();
        encode(&ClientFrame::Hello(hello), self.net.next() as u32, &mut bytes);
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
        encode(&frame, self.net.next() as u32, &mut bytes);
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
            self.devices[device as usize].heard_at = self.now;
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
            let Some((opcode, payload, len)) = server_frame(&input[at..]) else { break };
            at += len;
            match opcode {
                2 => match wire::decode_server_frame(Encoding::Rkyv, payload) {
                    Ok(frame) => self.hear(conn, frame),
                    Err(error) => self.fail("frames are understood", error.to_string()),
                },
                8 => self.hear_close(conn, payload),
                _ => {}
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

    /// A frame arrives.
    fn hear(&mut self, conn: u32, frame: ServerFrame) {
        let device = self.conns[conn as usize].device;
        self.tell_conn(conn, || format!("hears {}", tell_server_frame(&frame)));
        match frame {
            ServerFrame::Welcome(welcome) => self.hear_welcome(device, welcome),
            ServerFrame::Sent(sent) => {
                let user = self.user_of(device);
                let verdict = self.truth.acknowledged(user, &sent);
                self.judge(verdict);
                self.devices[device as usize].kept.retain(|kept| kept.client_msg_id != sent.client_msg_id);
            }
            ServerFrame::Error(error) => self.hear_error(device, &error),
            ServerFrame::Event(event) => {
                self.look_at_event(conn, &event);
                self.devices[device as usize].store(&event, true);
                self.fill(device);
            }
            ServerFrame::Own(own) => self.hear_own(conn, own),
            ServerFrame::Receipt(receipt) => self.hear_receipt(conn, receipt),
            ServerFrame::Head(head) => {
                let user = self.user_of(device);
                // Nobody wrote in a direct chat yet: both may look at it.
                let unwritten = head.seq == 0 && head.chat_id.peer_of(user).is_some();
                let may = unwritten || self.truth.may_read(user, head.chat_id, head.seq);
                self.ensure(may, "nobody receives what they may not", || format!("{user} gets {head:?}"));
                let chat = self.devices[device as usize].chats.entry(head.chat_id).or_default();
                if head.seq > chat.complete_to {
                    self.devices[device as usize].holes.insert(head.chat_id);
                    self.fill(device);
                }
            }
            ServerFrame::Mark(mark) => self.hear_mark(conn, mark),
            ServerFrame::Truncated(truncated) => self.hear_truncated(conn, truncated.mark),
            ServerFrame::ChatList(list) => self.hear_chats(device, &list),
            ServerFrame::HistoryPage(page) => self.hear_history(device, &page),
            ServerFrame::MemberPage(page) => {
                self.devices[device as usize].pages.remove(&page.request_id);
                let user = self.user_of(device);
                let knows = self.truth.chats.get(&page.chat_id).is_none_or(|chat| chat.members.contains_key(&user));
                let own = page.chat_id.peer_of(user).is_some();
                self.ensure(knows || own, "nobody receives what they may not", || format!("{user} gets {page:?}"));
            }
            ServerFrame::Reconnect(reconnect) => {
                self.devices[device as usize].ticket = Some(reconnect.resume);
            }
            ServerFrame::Users(_) | ServerFrame::Pong(_) | ServerFrame::Renewed(_) => {}
        }
    }

    pub(crate) fn user_of(&self, device: u32) -> UserId {
        self.devices[device as usize].user.unwrap_or(UserId(0))
    }

    fn hear_welcome(&mut self, device: u32, welcome: frame::Welcome) {
        let state = &mut self.devices[device as usize];
        let name = state.name;
        state.ticket = Some(welcome.resume);
        state.welcome = true;
        state.failures = 0;
        let known = *state.user.get_or_insert(welcome.user_id);
        let same = *self.users[name].get_or_insert(welcome.user_id);
        self.ensure(known == same && same == welcome.user_id, "one user", || {
            format!("u{name} is {same}, then {}", welcome.user_id)
        });
        // Everything without an answer again, oldest first, unchanged.
        let kept: Vec<_> = self.devices[device as usize].kept.iter().map(|kept| kept.frame.clone()).collect();
        for frame in kept {
            self.say(device, frame);
        }
        let state = &mut self.devices[device as usize];
        if state.refreshing || state.chats.values().any(|chat| chat.large) {
            state.listing = Some(None);
        }
        self.fill(device);
    }

    fn hear_error(&mut self, device: u32, error: &frame::Error) {
        let passing = matches!(error.code, ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::TooMany);
        let later = self.now + 1_000 * u64::from(error.retry_after_ms.unwrap_or(50).min(200)) + self.net.around(20_000);
        let user = self.user_of(device);
        let bad = matches!(error.code, ErrorCode::BadFrame | ErrorCode::Damaged | ErrorCode::TooLarge);
        self.ensure(!bad, "clients are served", || format!("{error:?}"));
        let state = &mut self.devices[device as usize];
        if let Some(id) = error.client_msg_id {
            if passing {
                state
                    .kept
                    .iter_mut()
                    .filter(|kept| kept.client_msg_id == id)
                    .for_each(|kept| kept.again_at = Some(later));
                return self.wake_device(device, later);
            }
            let Some(at) = state.kept.iter().position(|kept| kept.client_msg_id == id) else { return };
            let Some(kept) = state.kept.remove(at) else { return };
            return self.refused(user, &kept, error.code);
        }
        if let Some(page) = error.request_id.and_then(|id| state.pages.remove(&id)) {
            match page {
                Page::Fill(chat_id) if !passing => {
                    state.holes.remove(&chat_id);
                    let may = self.truth.chats.get(&chat_id).and_then(|chat| chat.members.get(&user));
                    let served = may.is_none_or(|member| member.spans.is_empty());
                    self.ensure(served, "history inside an interval is served", || format!("{user}: {error:?}"));
                }
                // Again with the next look at the clock.
                _ => {}
            }
        } else if let Some(chat_id) = error.chat_id {
            state.subscribed.remove(&chat_id);
            if passing {
                state.read_again = false;
            } else if let Some(chat) = state.chats.get_mut(&chat_id) {
                chat.wants_read = 0;
            }
        }
    }

    /// Oracle: who is told that a command will never be done finds it nowhere. A command that was sent more than once may
    /// be refused once and done once, but not refused when all of it was sent after it was done.
    fn refused(&mut self, user: UserId, kept: &Kept, code: ErrorCode) {
        let id = kept.client_msg_id;
        let Some(asked) = self.truth.asked.get_mut(&(user, id)) else { return };
        asked.refused = asked.copies == 1;
        let asked = asked.clone();
        let place = self.truth.place(user, id, asked.chat_id);
        let logged = place.and_then(|(chat_id, seq)| self.truth.chats.get(&chat_id)?.at(seq));
        let before = logged.is_some_and(|logged| kept.said_at.is_some_and(|said| logged.at < said));
        self.ensure(!asked.refused || place.is_none(), "refused is refused", || {
            format!("{user} is told {code:?} of {id}, which is at {place:?}")
        });
        self.ensure(!before, "a retry gets the first answer", || {
            format!("{user} is told {code:?} of {id}, which was at {place:?} before it was sent")
        });
    }

    /// Oracles: nobody receives what they may not; a stream is the inbox, in order, without a hole or a double.
    fn look_at_event(&mut self, conn: u32, event: &parley_protocol::Event) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let (chat_id, seq) = (event.chat_id, event.seq);
        self.look_at_content(user, event);
        let Some(inbox) = self.truth.inboxes.get(&user) else { return };
        let Some(number) = inbox.number(chat_id, seq) else { return };
        let position = self.conns[conn as usize].seen.position;
        let Some(position) = position else {
            return self.fail("a stream begins with its mark", format!("{user}: {} {seq} comes first", short(chat_id)));
        };
        let between = inbox.event_between(position, number);
        self.ensure(number > position, "a stream has no doubles", || {
            format!("{user}: {} {seq} is entry {number}, after {position}", short(chat_id))
        });
        self.ensure(between.is_none(), "a stream has no holes", || {
            format!("{user}: {} {seq} is entry {number}, after {position}; {between:?} was left out", short(chat_id))
        });
        self.conns[conn as usize].seen.position = Some(number.max(position));
    }

    fn look_at_content(&mut self, user: UserId, event: &parley_protocol::Event) {
        let (chat_id, seq) = (event.chat_id, event.seq);
        let may = self.truth.may_read(user, chat_id, seq);
        self.ensure(may, "nobody receives what they may not", || format!("{user} gets {} {seq}", short(chat_id)));
        let logged = self.truth.chats.get(&chat_id).and_then(|chat| chat.at(seq));
        let held = Held::of(event);
        let same = logged.is_some_and(|logged| {
            let logged = Held {
                message_id: logged.message_id.0,
                ordinal: logged.ordinal,
                sender: logged.sender,
                sender_sent: logged.sender_sent,
                kind: logged.kind,
                digest: logged.digest,
            };
            logged == held
        });
        self.ensure(same, "what is received is what is stored", || format!("{user} gets {event:?}"));
    }

    fn hear_own(&mut self, conn: u32, own: OwnState) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        // It stands for the newest entry of its kind that was durable when it left; no later one than now.
        if let Some(inbox) = self.truth.inboxes.get(&user) {
            let row = EntryRow::Own { chat_id: own.chat_id };
            let newest = inbox.rows.iter().rposition(|other| *other == row).map_or(0, |at| at as u64 + 1);
            // A mute that changes nothing is answered without an entry.
            self.conns[conn as usize].seen.owns.insert(own.chat_id, newest);
        }
        let durable = self.truth.chats.get(&own.chat_id).and_then(|chat| chat.members.get(&user));
        let durable = durable.map(|member| member.marks);
        let above = durable.is_none_or(|marks| own.read_seq > marks.read_seq);
        self.ensure(!above, "what is received is what is stored", || format!("{user} gets {own:?} of {durable:?}"));
        self.devices[device as usize].take_own(own);
    }

    /// Oracle: marks never fall.
    fn hear_receipt(&mut self, conn: u32, receipt: frame::Receipt) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let is_or_was = self.truth.chats.get(&receipt.chat_id).is_some_and(|chat| chat.members.contains_key(&user));
        self.ensure(is_or_was, "nobody receives what they may not", || format!("{user} gets {receipt:?}"));
        let now = (receipt.delivered_seq, receipt.read_seq);
        let key = (receipt.chat_id, receipt.user_id);
        let before = self.devices[device as usize].receipts.insert(key, now);
        self.ensure(before.is_none_or(|before| before.0 <= now.0 && before.1 <= now.1), "marks never fall", || {
            format!("{user} sees {before:?}, then {receipt:?}")
        });
    }

    /// Oracle: everything up to a mark was put into the stream before it.
    fn hear_mark(&mut self, conn: u32, mark: frame::Mark) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let seen = &self.conns[conn as usize].seen;
        let (position, last) = (seen.position, seen.mark);
        let head = self.truth.inbox_head(user);
        self.ensure(mark.inbox_seq <= mark.head && mark.head <= head, "marks are below the head", || {
            format!("{user} gets {mark:?}, the head is {head}")
        });
        let Some(position) = position else {
            return self.fail("a stream begins with its mark", format!("{user}: {mark:?} without one"));
        };
        self.ensure(mark.inbox_seq >= last, "marks never fall", || format!("{user} gets {mark:?} after {last}"));
        if let Some(inbox) = self.truth.inboxes.get(&user) {
            let left_out = inbox.event_between(position, mark.inbox_seq + 1);
            let own = self.own_left_out(conn, user, mark.inbox_seq);
            self.ensure(left_out.is_none(), "a mark covers what came before it", || {
                format!("{user} gets {mark:?} at {position}; {left_out:?} did not come")
            });
            self.ensure(own.is_none(), "a mark covers what came before it", || {
                format!("{user} gets {mark:?}; the own state of entry {own:?} did not come")
            });
        }
        let seen = &mut self.conns[conn as usize].seen;
        seen.position = Some(position.max(mark.inbox_seq));
        seen.mark = mark.inbox_seq;
        let state = &mut self.devices[device as usize];
        state.take_mark(mark.inbox_seq);
        state.caught_up = mark.inbox_seq == mark.head;
        self.read_again(device);
    }

    /// An own state that should have come by `mark`, and is not superseded by a later entry.
    fn own_left_out(&self, conn: u32, user: UserId, mark: u64) -> Option<u64> {
        let seen = &self.conns[conn as usize].seen;
        let inbox = self.truth.inboxes.get(&user)?;
        (seen.mark + 1..=mark).find(|number| {
            let Some(EntryRow::Own { chat_id }) = inbox.rows.get(*number as usize - 1) else { return false };
            let row = EntryRow::Own { chat_id: *chat_id };
            let superseded = inbox.rows[*number as usize..].contains(&row);
            !superseded && seen.owns.get(chat_id).is_none_or(|newest| newest < number)
        })
    }

    fn hear_truncated(&mut self, conn: u32, mark: u64) {
        let device = self.conns[conn as usize].device;
        let user = self.user_of(device);
        let head = self.truth.inbox_head(user);
        self.ensure(mark <= head, "marks are below the head", || format!("{user} is truncated to {mark} of {head}"));
        let seen = &mut self.conns[conn as usize].seen;
        seen.position = Some(mark);
        seen.mark = mark;
        self.devices[device as usize].take_truncated(mark);
        self.fill(device);
    }

    /// Oracle: unread counts are right, whatever the moment of the read was.
    fn hear_chats(&mut self, device: u32, list: &frame::ChatList) {
        let user = self.user_of(device);
        let asked = self.devices[device as usize].pages.remove(&list.request_id).is_some();
        for summary in &list.chats {
            let Some(chat) = self.truth.chats.get(&summary.chat_id) else {
                return self.fail("what is received is what is stored", format!("{user} gets {summary:?}"));
            };
            let unread = chat.unread(user, summary.own.read_seq, summary.head_seq);
            let ordinal = chat.at(summary.head_seq).map(|logged| logged.ordinal);
            let may = chat.members.get(&user).is_some_and(|member| member.may_read(summary.head_seq));
            self.ensure(may, "nobody receives what they may not", || format!("{user} gets {summary:?}"));
            self.ensure(ordinal == Some(summary.head_ordinal), "what is received is what is stored", || {
                format!("{user} gets {summary:?}, the ordinal is {ordinal:?}")
            });
            self.ensure(unread == summary.unread, "unread is right", || {
                format!(
                    "{user} gets {} unread of {}, there are {unread}: {summary:?}",
                    summary.unread,
                    short(summary.chat_id)
                )
            });
            if let Some(event) = &summary.last {
                self.look_at_content(user, event);
            }
            if asked {
                self.devices[device as usize].take_summary(summary);
            }
        }
        let state = &mut self.devices[device as usize];
        if asked && state.listing.is_some() {
            state.listing = match (list.more, list.chats.last()) {
                (true, Some(last)) => Some(Some(last.chat_id)),
                _ => None,
            };
        }
        self.fill(device);
    }

    fn hear_history(&mut self, device: u32, page: &frame::HistoryPage) {
        let user = self.user_of(device);
        for event in &page.events {
            self.look_at_content(user, event);
            self.devices[device as usize].store(event, false);
        }
        let asked = self.devices[device as usize].pages.remove(&page.request_id);
        if asked == Some(Page::Fill(page.chat_id)) {
            let last = page.events.last().map(|event| event.seq);
            self.devices[device as usize].take_filled(page.chat_id, last, page.more);
        }
        self.fill(device);
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

fn encode(frame: &ClientFrame, key: u32, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    wire::encode_client_frame(Encoding::Rkyv, frame, &mut payload);
    client_frame(2, &payload, key, out);
}

fn tell_client_frame(frame: &ClientFrame) -> String {
    match frame {
        ClientFrame::Send(send) => format!("send {} to {}", send.client_msg_id, short(send.chat_id)),
        other => format!("{other:?}"),
    }
}

fn tell_server_frame(frame: &ServerFrame) -> String {
    match frame {
        ServerFrame::Event(event) => format!("{} seq {} of {}", short(event.chat_id), event.seq, event.sender),
        ServerFrame::HistoryPage(page) => {
            let seqs: Vec<_> = page.events.iter().map(|event| event.seq).collect();
            format!("history {} of {}: {seqs:?}, more: {}", page.request_id, short(page.chat_id), page.more)
        }
        ServerFrame::ChatList(list) => {
            let heads: Vec<_> = list.chats.iter().map(|chat| (short(chat.chat_id), chat.head_seq)).collect();
            format!("chats {}: {heads:?}, more: {}", list.request_id, list.more)
        }
        other => format!("{other:?}"),
    }
}
