//! A session's input: bytes to frames, frames to requests. A frame that finds no room parks, its socket is not read
//! until there is some, and nothing of it is lost.

use super::session::{Conn, Lobby, Parked, Session, Stage, Wait};
use super::streams::flush_beside;
use super::{Out, Shard, Tag, Timer};
use crate::fan;
use crate::mesh::{HomeAsk, Mesh, Origin};
use crate::output::{ConnId, Output};
use crate::time::Now;
use crate::ws::{self, Decoder, Event};
use parley_protocol::check::check_envelope;
use parley_protocol::frame::{self, Pong, ServerFrame};
use parley_protocol::link::{Action, Ask, Command};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ChatId, ClientFrame, ErrorCode, UserId, close, limits, partition};

/// What a parked session may send ahead before its socket is not read any more. Parking is short and most clients send
/// little: stopping to read, and starting again, costs more than keeping a few frames.
const STASH_BYTES_PAUSE: usize = 8 << 10;
/// What may come after that: the shell had read it already when it heard of the pause. A client that sends more than this
/// beyond its `requests_in_flight_max` is closed.
const STASH_BYTES_MAX: usize = 1 << 20;

/// What became of a frame.
enum Taken {
    Done,
    /// It needs room that is not there.
    Wait(ClientFrame, Wait),
}

impl Shard {
    pub(super) fn session_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        session.heard_ms = now.mono_ms;
        if session.closing {
            return;
        }
        if let Some(parked) = &mut session.parked {
            if parked.stash.len() - parked.at + data.len() > STASH_BYTES_MAX {
                return self.close(conn, close::STALLED_READER, "too much sent ahead", out);
            }
            parked.stash.extend_from_slice(data);
            let waits = parked.stash.len() - parked.at;
            if waits > STASH_BYTES_PAUSE && !std::mem::replace(&mut parked.paused, true) {
                self.stats.pauses_total += 1;
                out.push(Output::Pause(conn));
            }
            return;
        }
        if let Some((frame, wait, at)) = self.session_input(now, conn, data, out) {
            let stash = data[at..].to_vec();
            self.park(conn, Box::new(Parked { frame, wait, stash, at: 0, paused: false }), out);
        }
    }

    /// Acts on what came until it is used up, or a frame has to wait: then with how far it came.
    fn session_input(
        &mut self,
        now: Now,
        conn: ConnId,
        data: &mut [u8],
        out: &mut Out,
    ) -> Option<(ClientFrame, Wait, usize)> {
        let session = self.session(conn)?;
        let encoding = session.encoding;
        let mut decoder = std::mem::replace(&mut session.decoder, Decoder::new(0));
        let mut at = 0;
        let waits = loop {
            let event = match decoder.next(data, &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => break None,
                Err(error) => {
                    self.violation(conn, error.close_code(), error.reason(), out);
                    return None;
                }
            };
            let frame = match event {
                Event::Ping(payload) => {
                    self.answer_ping(conn, payload, out);
                    continue;
                }
                Event::Pong(_) => continue,
                Event::Close { code, .. } => {
                    self.close(conn, code.unwrap_or(1000), "", out);
                    return None;
                }
                Event::Text(text) if encoding == Encoding::Json => wire::decode_client_frame(encoding, text.as_bytes()),
                Event::Binary(bytes) if encoding == Encoding::Rkyv => wire::decode_client_frame(encoding, bytes),
                _ => {
                    self.violation(conn, 1003, "this subprotocol does not use this kind of message", out);
                    return None;
                }
            };
            let Ok(frame) = frame else {
                self.violation(conn, 1007, "the message is not a frame of the subprotocol", out);
                return None;
            };
            self.stats.client_frames_total += 1;
            if let Taken::Wait(frame, wait) = self.take_frame(now, conn, frame, out) {
                break Some((frame, wait, at));
            }
            if self.session(conn).is_none_or(|session| session.closing) {
                return None;
            }
        };
        self.session(conn)?.decoder = decoder;
        waits
    }

    /// Puts a frame aside until there is room for it, with what came after it.
    fn park(&mut self, conn: ConnId, mut parked: Box<Parked>, out: &mut Out) {
        if parked.stash.len() - parked.at > STASH_BYTES_PAUSE && !std::mem::replace(&mut parked.paused, true) {
            self.stats.pauses_total += 1;
            out.push(Output::Pause(conn));
        }
        self.stats.parks_total += 1;
        if let Wait::Credit(shard) = parked.wait {
            self.waiting[shard as usize].push_back(conn);
        }
        if let Some(session) = self.session(conn) {
            session.parked = Some(parked);
        }
    }

    /// Goes on with a session whose frame may have room now.
    pub(super) fn unpark(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let Some(mut parked) = self.session(conn).and_then(|session| session.parked.take()) else { return };
        match self.take_frame(now, conn, parked.frame, out) {
            Taken::Wait(frame, wait) => {
                parked.frame = frame;
                parked.wait = wait;
                return self.park(conn, parked, out);
            }
            Taken::Done => {}
        }
        let at = parked.at;
        match self.session_input(now, conn, &mut parked.stash[at..], out) {
            Some((frame, wait, came)) => {
                let Parked { mut stash, paused, .. } = *parked;
                let mut at = at + came;
                // What was acted on goes when it is the larger half: each byte moves at most once for each that goes.
                if at > stash.len() / 2 {
                    stash.drain(..at);
                    at = 0;
                }
                self.park(conn, Box::new(Parked { frame, wait, stash, at, paused }), out);
            }
            None if parked.paused => out.push(Output::Resume(conn)),
            None => {}
        }
    }

    fn answer_ping(&mut self, conn: ConnId, payload: &[u8], out: &mut Out) {
        self.send_mark(conn, out);
        let outbox_bytes_max = self.options.outbox_bytes_max;
        let Some(session) = self.session(conn) else { return };
        // Pongs that nobody reads are not worth memory: the next ping asks again (RFC 6455, section 5.5.3).
        if session.queued < outbox_bytes_max {
            session.queued += out.send_with(conn, |arena| ws::encode_frame(arena, ws::Opcode::Pong, payload));
        }
    }

    /// Acts on one frame, or says what it waits for.
    fn take_frame(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let (outbox_bytes_max, requests_max) = (self.options.outbox_bytes_max, self.options.requests_in_flight_max);
        let Some(session) = self.session(conn) else { return Taken::Done };
        if session.closing || session.draining {
            return Taken::Done;
        }
        if session.queued > outbox_bytes_max {
            return Taken::Wait(frame, Wait::Outbox);
        }
        if session.requests >= requests_max {
            return Taken::Wait(frame, Wait::Answers);
        }
        if let Err((code, message)) = frame.check() {
            self.error(conn, frame.error(code, message), out);
            return Taken::Done;
        }
        match frame {
            ClientFrame::Send(_) | ClientFrame::GroupChange(_) => self.command(now, conn, frame, out),
            ClientFrame::GroupCreate(_) => self.create_group(now, conn, frame, out),
            ClientFrame::Delivered(at) => {
                let (chat_id, delivered_seq) = (at.chat_id, at.seq);
                self.ask_home(now, conn, HomeAsk::Marks { chat_id, delivered_seq, read_seq: 0 }, frame, out)
            }
            ClientFrame::Read(at) => {
                let (chat_id, read_seq) = (at.chat_id, at.seq);
                self.ask_home(now, conn, HomeAsk::Marks { chat_id, delivered_seq: 0, read_seq }, frame, out)
            }
            ClientFrame::Subscribe(chat) => self.subscribe(now, conn, chat.chat_id, frame, out),
            ClientFrame::Unsubscribe(chat) => {
                self.unsubscribe(now, conn, chat.chat_id, out);
                Taken::Done
            }
            ClientFrame::Ping(ping) => {
                self.send_mark(conn, out);
                self.send(conn, &ServerFrame::Pong(Pong { nonce: ping.nonce }), out);
                Taken::Done
            }
            ClientFrame::Renew(_) => self.renew(now, conn, frame, out),
            ClientFrame::DeviceEnd(_) => self.device_end(conn, frame, out),
            ClientFrame::Hello(_) => {
                self.violation(conn, 1008, "Hello comes once", out);
                Taken::Done
            }
            _ => self.ask_page(now, conn, frame, out),
        }
    }

    /// A command for a chat's log, through its home.
    fn command(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let payload_bytes_max = self.options.payload_bytes_max;
        if let ClientFrame::Send(send) = &frame
            && let Err((code, message)) = check_envelope(&send.envelope, payload_bytes_max)
        {
            self.error(conn, frame.error(code, message), out);
            return Taken::Done;
        }
        let chat_id = frame.chat_id().expect("commands for homes name their chat");
        let target = partition::shard(partition::of_chat(chat_id), self.options.shards);
        // Judged before the credit is taken, and the rate last: a frame that waits is not charged twice.
        if !self.credits.take(target) {
            return Taken::Wait(frame, Wait::Credit(target));
        }
        if let Err(refused) = self.charge(now, conn, &frame) {
            self.credits.give(target);
            self.error(conn, refused, out);
            return Taken::Done;
        }
        let Some(session) = self.session(conn) else { return Taken::Done };
        session.requests += 1;
        let sender = session.user_id;
        let (client_msg_id, action) = match frame {
            ClientFrame::Send(send) => (send.client_msg_id, Action::Send(send.envelope)),
            ClientFrame::GroupChange(change) => (change.client_msg_id, Action::Change(change.change)),
            _ => unreachable!("take_frame sends these two here"),
        };
        let command = Command { chat_id: Some(chat_id), sender, client_msg_id, action };
        self.ask_shard(target, conn, sender, HomeAsk::Command(command), out);
        Taken::Done
    }

    fn create_group(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let own = self.options.shard;
        if !self.credits.take(own) {
            return Taken::Wait(frame, Wait::Credit(own));
        }
        if let Err(refused) = self.charge(now, conn, &frame) {
            self.credits.give(own);
            self.error(conn, refused, out);
            return Taken::Done;
        }
        let ClientFrame::GroupCreate(create) = frame else { return Taken::Done };
        let Some(session) = self.session(conn) else { return Taken::Done };
        session.requests += 1;
        let command = Command {
            chat_id: None,
            sender: session.user_id,
            client_msg_id: create.client_msg_id,
            action: Action::Create { title: create.title, members: create.members },
        };
        self.link.ask(Ask::Command(command), Tag::Create { conn, client_msg_id: create.client_msg_id });
        Taken::Done
    }

    /// Charges a request to the session's rate, or makes the refusal.
    fn charge(&mut self, now: Now, conn: ConnId, frame: &ClientFrame) -> Result<(), frame::Error> {
        let (per_s, burst) = (self.options.rate_per_s, self.options.rate_burst);
        let Some(session) = self.session(conn) else { return Ok(()) };
        session.rate.take(now.mono_ms, per_s, burst).map_err(|retry_after_ms| frame::Error {
            retry_after_ms: Some(retry_after_ms),
            ..frame.error(ErrorCode::RateLimited, "too fast")
        })
    }

    fn ask_home(&mut self, now: Now, conn: ConnId, ask: HomeAsk, frame: ClientFrame, out: &mut Out) -> Taken {
        let target = partition::shard(partition::of_chat(ask.chat_id()), self.options.shards);
        if !self.credits.take(target) {
            return Taken::Wait(frame, Wait::Credit(target));
        }
        if let Err(refused) = self.charge(now, conn, &frame) {
            self.credits.give(target);
            self.error(conn, refused, out);
            return Taken::Done;
        }
        let Some(session) = self.session(conn) else { return Taken::Done };
        session.requests += 1;
        let user_id = session.user_id;
        self.ask_shard(target, conn, user_id, ask, out);
        Taken::Done
    }

    fn ask_shard(&mut self, target: u16, conn: ConnId, user_id: UserId, ask: HomeAsk, out: &mut Out) {
        let origin = Origin { shard: self.options.shard, conn, user_id };
        let message = Mesh::Ask { origin, ask };
        if target == self.options.shard {
            self.local.push_back(message);
        } else {
            out.push(Output::Mesh { shard: target, message });
        }
    }

    fn subscribe(&mut self, now: Now, conn: ConnId, chat_id: ChatId, frame: ClientFrame, out: &mut Out) -> Taken {
        let subscriptions_max = self.options.subscriptions_max;
        let Some(session) = self.session(conn) else { return Taken::Done };
        if session.subscriptions.len() >= subscriptions_max && !session.subscriptions.contains(&chat_id) {
            self.error(conn, frame.error(ErrorCode::TooMany, "unsubscribe from another chat first"), out);
            return Taken::Done;
        }
        self.ask_home(now, conn, HomeAsk::Subscribe { chat_id }, frame, out)
    }

    /// Reads that go straight to the storage tier.
    fn ask_page(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let own = self.options.shard;
        if !self.credits.take(own) {
            return Taken::Wait(frame, Wait::Credit(own));
        }
        if let Err(refused) = self.charge(now, conn, &frame) {
            self.credits.give(own);
            self.error(conn, refused, out);
            return Taken::Done;
        }
        let Some(session) = self.session(conn) else { return Taken::Done };
        let user_id = session.user_id;
        let page = |limit: u32, max: u32| if limit == 0 { max } else { limit.min(max) };
        let ask = match &frame {
            ClientFrame::Chats(chats) => {
                let limit = page(chats.limit, limits::CHATS_PAGE_MAX);
                Ask::Chats { user_id, after: chats.after, limit }
            }
            ClientFrame::History(history) => Ask::History {
                user_id,
                chat_id: history.chat_id,
                before: history.before,
                after: history.after,
                limit: page(history.limit, limits::HISTORY_PAGE_MAX),
            },
            ClientFrame::Members(members) => Ask::Members {
                user_id,
                chat_id: members.chat_id,
                after: members.after,
                limit: page(members.limit, limits::MEMBERS_PAGE_MAX),
            },
            ClientFrame::Resolve(resolve) => Ask::Resolve { names: resolve.names.clone() },
            ClientFrame::Profiles(profiles) => Ask::Profiles { users: profiles.users.clone() },
            ClientFrame::Mute(mute) => Ask::Mute { chat_id: mute.chat_id, user_id, until_ms: mute.until_ms },
            _ => unreachable!("take_frame sends only reads and mutes here"),
        };
        session.requests += 1;
        let tag = match frame.request_id() {
            Some(request_id) => Tag::Page { conn, request_id, chat_id: frame.chat_id() },
            None => Tag::Mute { conn, chat_id: frame.chat_id().expect("a mute names its chat") },
        };
        self.link.ask(ask, tag);
        Taken::Done
    }

    fn renew(&mut self, now: Now, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let own = self.options.shard;
        if !self.credits.take(own) {
            return Taken::Wait(frame, Wait::Credit(own));
        }
        let ClientFrame::Renew(renew) = &frame else { return Taken::Done };
        let Some(session) = self.session(conn) else { return Taken::Done };
        let (loopback, acting) = (session.loopback, session.acting);
        let identity = match self.authority.verify_token(&renew.token, now, loopback) {
            Ok(identity) if identity.service == acting || !acting => identity,
            Ok(_) => {
                self.credits.give(own);
                self.error(conn, frame.error(ErrorCode::BadToken, "this session needs a service token"), out);
                return Taken::Done;
            }
            Err(reason) => {
                self.credits.give(own);
                self.error(conn, frame.error(ErrorCode::BadToken, reason), out);
                return Taken::Done;
            }
        };
        let expires_at_ms = identity.expires_at_ms;
        if acting {
            self.credits.give(own);
            self.renewed(conn, expires_at_ms, out);
            return Taken::Done;
        }
        if let Some(session) = self.session(conn) {
            session.requests += 1;
        }
        // Whether the new token is for the same user, the storage tier knows.
        let ask = Ask::LookUp { issuer: identity.issuer, subject: identity.subject };
        self.link.ask(ask, Tag::Renew { conn, expires_at_ms });
        Taken::Done
    }

    fn device_end(&mut self, conn: ConnId, frame: ClientFrame, out: &mut Out) -> Taken {
        let ClientFrame::DeviceEnd(end) = &frame else { return Taken::Done };
        let Some(session) = self.session(conn) else { return Taken::Done };
        if !session.acting {
            self.error(conn, frame.error(ErrorCode::Forbidden, "only services end devices"), out);
            return Taken::Done;
        }
        let user_id = session.user_id;
        for other in self.sessions_of(user_id) {
            let ended = self.session(other).is_some_and(|it| it.device_id == end.device_id && !it.acting);
            if ended {
                self.close(other, close::ENDED, "ended", out);
            }
        }
        Taken::Done
    }

    /// A request of a session was answered.
    pub(super) fn request_done(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        session.requests = session.requests.saturating_sub(1);
        if session.requests == 0 && session.draining {
            return self.see_off(now, conn, out);
        }
        if session.parked.as_ref().is_some_and(|parked| parked.wait == Wait::Answers) {
            self.unpark(now, conn, out);
        }
    }

    /// A credit of a shard came back: the session that waits longest may go on.
    pub(super) fn credit_back(&mut self, now: Now, shard: u16, out: &mut Out) {
        self.credits.give(shard);
        // Whoever is woken may turn out to need something else: the credit is offered on until it is taken.
        while self.credits.is_free(shard) {
            let Some(conn) = self.waiting[shard as usize].pop_front() else { return };
            let waits = self.session(conn).and_then(|session| session.parked.as_ref()).map(|parked| parked.wait);
            if waits == Some(Wait::Credit(shard)) {
                self.unpark(now, conn, out);
            }
        }
    }

    /// The kernel took bytes: there may be room again.
    pub(super) fn outbox_moved(&mut self, now: Now, conn: ConnId, bytes: usize, queued: usize, out: &mut Out) {
        let room = self.options.outbox_bytes_max / 2;
        let Some(session) = self.session(conn) else { return };
        session.queued = queued;
        session.took |= bytes > 0;
        if queued > room || session.closing {
            return;
        }
        if session.stream.is_behind() {
            self.want_read(conn);
        }
        let Some(session) = self.session(conn) else { return };
        if session.parked.as_ref().is_some_and(|parked| parked.wait == Wait::Outbox) {
            self.unpark(now, conn, out);
        }
    }

    /// Queues a frame for one session.
    pub(super) fn send(&mut self, conn: ConnId, frame: &ServerFrame, out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        if !session.closing {
            let encoding = session.encoding;
            session.queued += out.send_with(conn, |arena| fan::append(frame, encoding, arena));
            flush_beside(session, out);
        }
    }

    pub(super) fn error(&mut self, conn: ConnId, error: frame::Error, out: &mut Out) {
        self.stats.errors_total += 1;
        self.send(conn, &ServerFrame::Error(error), out);
    }

    /// The client broke the protocol.
    fn violation(&mut self, conn: ConnId, code: u16, reason: &str, out: &mut Out) {
        self.stats.closed_violation_total += 1;
        self.close(conn, code, reason, out);
    }

    /// Sends a close frame and ends the connection; it is forgotten when the shell says that it is closed.
    pub(super) fn close(&mut self, conn: ConnId, code: u16, reason: &str, out: &mut Out) {
        match self.conns.get_mut(conn.slot as usize) {
            Some(Conn::Session(session)) if session.conn == conn && !session.closing => {
                session.closing = true;
                session.parked = None;
            }
            Some(Conn::Lobby(lobby)) if lobby.conn == conn && !matches!(lobby.stage, Stage::Closing) => {
                let Lobby { stage, .. } = &mut **lobby;
                // Before the upgrade there is no WebSocket to close.
                let upgraded = !matches!(stage, Stage::Head);
                *stage = Stage::Closing;
                self.stats.lobby_rejected_total += 1;
                if !upgraded {
                    return out.push(Output::Close(conn));
                }
            }
            _ => return,
        }
        out.send_with(conn, |arena| ws::encode_close(arena, code, reason));
        out.push(Output::Close(conn));
    }

    /// The regular look at a session: silence, a reader that takes nothing, an expired token.
    pub(super) fn watch(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let (silent_ms, stalled_ms) = (self.options.heartbeat_timeout_ms, self.options.stalled_reader_ms);
        let grace_ms = self.options.expiry_grace_ms;
        let Some(session) = self.session(conn) else { return };
        if session.closing {
            return;
        }
        // A paused socket's silence is the server's doing.
        if session.parked.is_some() {
            session.heard_ms = now.mono_ms;
        }
        // A stall is counted from the first look that found bytes waiting and none taken since the look before.
        let moves = session.queued == 0 || std::mem::take(&mut session.took);
        let stalled_since = (!moves).then(|| session.stalled_since_ms.unwrap_or(now.mono_ms));
        session.stalled_since_ms = stalled_since;
        let silent_at = session.heard_ms + silent_ms;
        let stalled_at = stalled_since.unwrap_or(now.mono_ms) + stalled_ms;
        let expired_at = session.token_expires_at_ms.saturating_add(grace_ms);
        if now.mono_ms >= stalled_at {
            self.stats.closed_stalled_total += 1;
            return self.close(conn, close::STALLED_READER, "stalled reader", out);
        }
        if now.mono_ms >= silent_at {
            self.stats.closed_silent_total += 1;
            return self.close(conn, close::HEARTBEAT_TIMEOUT, "heartbeat timeout", out);
        }
        if now.unix_ms >= expired_at {
            return self.close(conn, close::TOKEN_EXPIRED, "token expired", out);
        }
        let next = silent_at.min(stalled_at) - now.mono_ms;
        self.timers.arm(now.mono_ms + next.min(expired_at - now.unix_ms).max(1), Timer::Watch(conn));
    }

    pub(super) fn watch_first(&mut self, now: Now, session: &Session) {
        let expires_in = session.token_expires_at_ms.saturating_add(self.options.expiry_grace_ms);
        let expires_in = expires_in.saturating_sub(now.unix_ms).max(1);
        let next = self.options.heartbeat_timeout_ms.min(self.options.stalled_reader_ms).min(expires_in);
        self.timers.arm(now.mono_ms + next, Timer::Watch(session.conn));
    }
}
