//! A session's bytes: input to frames, frames to its outbox, its end. A frame that finds no room parks, what follows it
//! waits, and nothing of it is lost. What a frame means is next door, in `requests`.

use super::active::{Parked, Wait};
use super::requests::Taken;
use super::session::{Flag, Lobby, Moment, Stage};
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

impl Shard {
    pub(super) fn session_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let (pause, most) = (self.options.ahead_bytes_pause, self.options.ahead_bytes_max);
        let Some(session) = self.conns.session(conn) else { return };
        session.heard = Moment::new(now.mono_ms);
        if session.is(Flag::Closing) {
            return;
        }
        let busy = session.busy_mut(conn.slot, &mut self.actives);
        if let Some(parked) = busy.and_then(|active| active.parked.as_mut()) {
            if parked.waits() + data.len() > most && !planted::has(Bug::AheadUnbounded) {
                if planted::has(Bug::AheadForgotten) {
                    return;
                }
                let what = "too much sent ahead";
                return self.reject(conn, close::STALLED_READER, what, Reason::SentAhead, out);
            }
            parked.stash.extend_from_slice(data);
            if parked.waits() > pause && !std::mem::replace(&mut parked.paused, true) {
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
        let session = self.conns.session(conn).filter(|session| !session.is(Flag::Closing))?;
        let encoding = session.encoding;
        let kept = session.busy_mut(conn.slot, &mut self.actives).and_then(|active| active.decoder.take());
        let mut decoder = kept.unwrap_or_else(|| Decoder::new(self.options.frame_bytes_max as u32));
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
            if self.session(conn).is_none_or(|session| session.is(Flag::Closing)) {
                return None;
            }
        };
        let session = self.conns.session(conn)?;
        if !decoder.is_idle() {
            session.active(conn.slot, &mut self.actives).decoder = Some(decoder);
        }
        waits
    }

    /// Puts a frame aside until there is room for it, with what came after it.
    fn park(&mut self, conn: ConnId, mut parked: Box<Parked>, out: &mut Out) {
        if parked.waits() > self.options.ahead_bytes_pause && !std::mem::replace(&mut parked.paused, true) {
            self.stats.pauses_total += 1;
            out.push(Output::Pause(conn));
        }
        self.stats.parks_total += 1;
        if let Wait::Credit(shard) = parked.wait {
            self.waiting[shard as usize].push_back(conn);
        }
        if let Some(session) = self.conns.session(conn) {
            session.active(conn.slot, &mut self.actives).parked = Some(parked);
        }
    }

    /// What a session's parked frame waits for.
    fn waits(&mut self, conn: ConnId) -> Option<Wait> {
        self.session(conn)?.busy()?.parked.as_ref().map(|parked| parked.wait)
    }

    /// Goes on with a session whose frame may have room now.
    pub(super) fn unpark(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        if planted::has(Bug::ParkedNeverResumed) && matches!(self.waits(conn), Some(Wait::Outbox | Wait::Answers)) {
            return;
        }
        let busy = self.conns.session(conn).and_then(|session| session.busy_mut(conn.slot, &mut self.actives));
        let Some(mut parked) = busy.and_then(|active| active.parked.take()) else { return };
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
            None if parked.paused && planted::has(Bug::PauseNotLifted) => {}
            None if parked.paused => out.push(Output::Resume(conn)),
            None => {}
        }
    }

    fn answer_ping(&mut self, conn: ConnId, payload: &[u8], out: &mut Out) {
        self.send_mark(conn, out);
        let outbox_bytes_max = self.options.outbox_bytes_max;
        let Some(session) = self.session(conn) else { return };
        // Pongs that nobody reads are not worth memory: the next ping asks again (RFC 6455, section 5.5.3).
        if (session.queued as usize) < outbox_bytes_max {
            session.queue(out.send_with(conn, |arena| ws::encode_frame(arena, ws::Opcode::Pong, payload)));
        }
    }

    /// A request of a session was answered.
    pub(super) fn request_done(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let Some(session) = self.conns.session(conn) else { return };
        let requests = session.busy_mut(conn.slot, &mut self.actives).map_or(0, |active| {
            active.requests = active.requests.saturating_sub(1);
            active.requests
        });
        if requests == 0 && session.is(Flag::Draining) {
            return self.see_off(now, conn, out);
        }
        if self.waits(conn) == Some(Wait::Answers) {
            self.unpark(now, conn, out);
        }
    }

    /// A credit of a shard came back: the session that waits longest may go on.
    pub(super) fn credit_back(&mut self, now: Now, shard: u16, out: &mut Out) {
        self.credits.give(shard);
        // Whoever is woken may turn out to need something else: the credit is offered on until it is taken.
        while self.credits.is_free(shard) {
            let Some(conn) = self.waiting[shard as usize].pop_front() else { return };
            if self.waits(conn) == Some(Wait::Credit(shard)) {
                self.unpark(now, conn, out);
            }
        }
    }

    /// The kernel took bytes: there may be room again.
    pub(super) fn outbox_moved(&mut self, now: Now, conn: ConnId, bytes: usize, queued: usize, out: &mut Out) {
        let room = self.options.outbox_bytes_max / 2;
        let Some(session) = self.session(conn) else { return };
        // What this turn queued so far is not in the shell's number: only what was taken is subtracted.
        let left = (session.queued as usize).saturating_sub(bytes).max(queued);
        session.queued = u32::try_from(left).unwrap_or(u32::MAX);
        session.replace(Flag::Took, session.is(Flag::Took) || bytes > 0);
        if left > room || session.is(Flag::Closing) {
            return;
        }
        if session.stream.is_behind() && !planted::has(Bug::SlowNeverResumed) {
            self.want_read(conn);
        }
        if self.waits(conn) == Some(Wait::Outbox) {
            self.unpark(now, conn, out);
        }
    }

    /// Queues a frame for one session.
    pub(super) fn send(&mut self, conn: ConnId, frame: &ServerFrame, out: &mut Out) {
        let Some(session) = self.conns.session(conn) else { return };
        if !session.is(Flag::Closing) {
            let encoding = session.encoding;
            session.queue(out.send_with(conn, |arena| fan::append(frame, encoding, arena)));
            flush_beside(conn, session, &mut self.actives, out);
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
        if let Some(session) = self.conns.session(conn) {
            if session.replace(Flag::Closing, true) {
                return;
            }
            if let Some(active) = session.busy_mut(conn.slot, &mut self.actives) {
                active.parked = None;
            }
        } else if let Some(Lobby { stage, .. }) = self.conns.lobby(conn)
            && !matches!(stage, Stage::Closing)
        {
            // Before the upgrade there is no WebSocket to close.
            let upgraded = !matches!(stage, Stage::Head);
            *stage = Stage::Closing;
            self.stats.lobby_rejected_total += 1;
            if !upgraded {
                return out.push(Output::Close(conn));
            }
        } else {
            return;
        }
        out.send_with(conn, |arena| ws::encode_close(arena, code, reason));
        out.push(Output::Close(conn));
    }

    /// The regular look at a session: silence, a reader that takes nothing, an expired token.
    pub(super) fn watch(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let (silent_ms, stalled_ms) = (self.options.heartbeat_timeout_ms, self.options.stalled_reader_ms);
        let grace_ms = self.options.expiry_grace_ms;
        let Some(session) = self.conns.session(conn) else { return };
        if session.is(Flag::Closing) {
            return;
        }
        // A paused socket's silence is the server's doing.
        if session.busy().is_some_and(|active| active.parked.is_some()) {
            session.heard = Moment::new(now.mono_ms);
        }
        // A stall is counted from the first look that found bytes waiting and none taken since the look before.
        let moves = session.queued == 0 || session.replace(Flag::Took, false);
        let stalled_since = (!moves).then(|| {
            let active = session.active(conn.slot, &mut self.actives);
            *active.stalled_since_ms.get_or_insert(now.mono_ms)
        });
        if moves && let Some(active) = session.busy_mut(conn.slot, &mut self.actives) {
            active.stalled_since_ms = None;
        }
        let silent_at = now.mono_ms - session.heard.ago_ms(now.mono_ms) + silent_ms;
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

    pub(super) fn watch_first(&mut self, now: Now, conn: ConnId, token_expires_at_ms: u64) {
        let expires_in = token_expires_at_ms.saturating_add(self.options.expiry_grace_ms);
        let expires_in = expires_in.saturating_sub(now.unix_ms).max(1);
        let next = self.options.heartbeat_timeout_ms.min(self.options.stalled_reader_ms).min(expires_in);
        self.timers.arm(now.mono_ms + next, Timer::Watch(conn));
    }
}
