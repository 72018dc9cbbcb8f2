//! A session's bytes: input to frames, frames to its outbox, its end. A frame that finds no room parks, what follows it
//! waits, and nothing of it is lost. What a frame means is next door, in `requests`.

use super::requests::Taken;
use super::session::{Conn, Lobby, Parked, Session, Stage, Wait};
use super::streams::flush_beside;
use super::{Out, Shard, Timer};
use crate::fan;
use crate::output::{ConnId, Output};
use crate::planted::{self, Bug};
use crate::stats::Reason;
use crate::time::Now;
use crate::ws::{self, Decoder, Event};
use parley_protocol::frame::{self, ServerFrame};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, close};

/// What a parked session may send ahead before its socket is not read any more. Parking is short and most clients send
/// little: stopping to read, and starting again, costs more than keeping a few frames.
const STASH_BYTES_PAUSE: usize = 8 << 10;
/// What may come after that: the shell had read it already when it heard of the pause. A client that sends more than this
/// beyond its `requests_in_flight_max` is closed.
const STASH_BYTES_MAX: usize = 1 << 20;

impl Shard {
    pub(super) fn session_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let Some(session) = self.session(conn) else { return };
        session.heard_ms = now.mono_ms;
        if session.closing {
            return;
        }
        if let Some(parked) = &mut session.parked {
            if parked.stash.len() - parked.at + data.len() > STASH_BYTES_MAX {
                let what = "too much sent ahead";
                return self.reject(conn, close::STALLED_READER, what, Reason::SentAhead, out);
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
        let session = self.session(conn).filter(|session| !session.closing)?;
        let encoding = session.encoding;
        let mut decoder = std::mem::replace(&mut session.decoder, Decoder::new(0));
        let mut at = 0;
        let waits = loop {
            let event = match decoder.next(data, &mut at) {
                Ok(Some(event)) => event,
                Ok(None) => break None,
                Err(error) => {
                    self.violation(conn, error.close_code(), error.reason(), error.into(), out);
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
                    let what = "this subprotocol does not use this kind of message";
                    self.violation(conn, 1003, what, Reason::MessageKind, out);
                    return None;
                }
            };
            let Ok(frame) = frame else {
                let what = "the message is not a frame of the subprotocol";
                self.violation(conn, 1007, what, Reason::Undecodable, out);
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
        let waits = self.session(conn).and_then(|session| session.parked.as_ref()).map(|parked| parked.wait);
        if planted::has(Bug::ParkedNeverResumed) && matches!(waits, Some(Wait::Outbox | Wait::Answers)) {
            return;
        }
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
        // What this turn queued so far is not in the shell's number: only what was taken is subtracted.
        session.queued = session.queued.saturating_sub(bytes).max(queued);
        session.took |= bytes > 0;
        if session.queued > room || session.closing {
            return;
        }
        if session.stream.is_behind() && !planted::has(Bug::SlowNeverResumed) {
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
        self.stats.rejected.add(error.code.into());
        self.send(conn, &ServerFrame::Error(error), out);
    }

    /// The client broke the protocol.
    pub(super) fn violation(&mut self, conn: ConnId, code: u16, reason: &str, cause: Reason, out: &mut Out) {
        self.stats.closed_violation_total += 1;
        self.reject(conn, code, reason, cause, out);
    }

    /// A close that is counted as a refusal.
    pub(super) fn reject(&mut self, conn: ConnId, code: u16, reason: &str, cause: Reason, out: &mut Out) {
        self.stats.rejected.add(cause);
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
            return self.reject(conn, close::STALLED_READER, "stalled reader", Reason::StalledReader, out);
        }
        if now.mono_ms >= silent_at {
            self.stats.closed_silent_total += 1;
            return self.reject(conn, close::HEARTBEAT_TIMEOUT, "heartbeat timeout", Reason::Silent, out);
        }
        if now.unix_ms >= expired_at {
            return self.reject(conn, close::TOKEN_EXPIRED, "token expired", Reason::TokenExpired, out);
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
