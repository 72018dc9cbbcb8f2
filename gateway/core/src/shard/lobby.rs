//! The lobby: a connection from its accept to its session. Bounded in number, bytes and seconds; whoever does not get
//! through costs a table entry and a timer.

use super::session::{Conn, Lobby, Seat, Stage};
use super::{Out, Shard, Tag, Timer};
use crate::authority::Ticket;
use crate::http::{self, HEADERS_MAX, Limits, Reject, Upgrade};
use crate::options::Options;
use crate::output::{ConnId, Output};
use crate::stats::Reason;
use crate::time::Now;
use crate::ws::{self, Decoder, Event};
use core::net::SocketAddr;
use parley_protocol::frame::Hello;
use parley_protocol::link::{Ask, Reply};
use parley_protocol::wire::{self, Encoding};
use parley_protocol::{ClientFrame, close, limits, partition};

/// Pings of a client that has not said `Hello`: nobody counts what it does not read, so there are few.
const PINGS_MAX: u8 = 16;

impl Shard {
    pub(super) fn enter_lobby(&mut self, now: Now, conn: ConnId, peer: SocketAddr, out: &mut Out) {
        if self.draining || self.halted || self.lobby_count >= self.options.lobby_connections_max {
            self.stats.lobby_rejected_total += 1;
            self.stats.rejected.add(Reason::LobbyFull);
            out.push(Output::Abort(conn));
            return;
        }
        let lobby = Lobby {
            conn,
            loopback: peer.ip().to_canonical().is_loopback(),
            pings: 0,
            stage: Stage::Head,
            deadline_ms: now.mono_ms + self.options.handshake_timeout_ms,
            input: Vec::new(),
            bearer: None,
            encoding: Encoding::Json,
            decoder: Decoder::new(self.options.frame_bytes_max as u32),
        };
        self.conns.put(conn, Conn::Lobby(Box::new(lobby)));
        self.lobby_count += 1;
        self.timers.arm(now.mono_ms + self.options.handshake_timeout_ms, Timer::Lobby(conn));
    }

    pub(super) fn lobby(&mut self, conn: ConnId) -> Option<&mut Lobby> {
        self.conns.lobby(conn)
    }

    pub(super) fn lobby_data(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let input_max = self.options.frame_bytes_max;
        let Some(lobby) = self.lobby(conn) else { return };
        match &mut lobby.stage {
            Stage::Head => self.lobby_head(now, conn, data, out),
            Stage::Hello => self.lobby_hello(now, conn, data, out),
            Stage::Login { seat } if seat.rest.len() + data.len() <= input_max => seat.rest.extend_from_slice(data),
            Stage::Login { .. } => {
                self.reject(conn, 1008, "wait for Welcome before sending more", Reason::SentAhead, out);
            }
            Stage::Closing => {}
        }
    }

    fn lobby_head(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let hello_timeout_ms = self.options.hello_timeout_ms;
        let Some(lobby) = self.lobby(conn) else { return };
        // What follows a whole head is at most one read; the head itself is judged by its own limit.
        let mut input = std::mem::take(&mut lobby.input);
        input.extend_from_slice(data);
        let accepted = match judge_head(&self.options, &input) {
            Ok(Some(accepted)) => accepted,
            Ok(None) => {
                if let Some(lobby) = self.lobby(conn) {
                    lobby.input = input;
                }
                return;
            }
            Err(reject) => return self.refuse(conn, reject, out),
        };
        let Some(lobby) = self.lobby(conn) else { return };
        lobby.encoding = accepted.encoding;
        lobby.bearer = accepted.bearer;
        lobby.stage = Stage::Hello;
        lobby.deadline_ms = now.mono_ms + hello_timeout_ms;
        let subprotocol = accepted.encoding.subprotocol();
        out.send_with(conn, |arena| http::write_accept(arena, &accepted.key, Some(subprotocol)));
        let rest = &mut input[accepted.consumed..];
        if !rest.is_empty() {
            self.lobby_hello(now, conn, rest, out);
        }
    }

    /// Answers the head with an HTTP status and closes.
    fn refuse(&mut self, conn: ConnId, reject: Reject, out: &mut Out) {
        self.stats.lobby_rejected_total += 1;
        self.stats.rejected.add(reject.cause());
        if let Some(lobby) = self.lobby(conn) {
            lobby.stage = Stage::Closing;
            out.send_with(conn, |arena| http::write_reject(arena, reject.status, reject.reason));
            out.push(Output::Close(conn));
        }
    }

    fn lobby_hello(&mut self, now: Now, conn: ConnId, data: &mut [u8], out: &mut Out) {
        let Some(lobby) = self.lobby(conn) else { return };
        let encoding = lobby.encoding;
        let mut decoder = std::mem::replace(&mut lobby.decoder, Decoder::new(0));
        let mut at = 0;
        let frame = loop {
            let bytes = match decoder.next(data, &mut at) {
                Err(error) => break Err((error.close_code(), error.reason(), Some(error.into()))),
                Ok(None) => {
                    if let Some(lobby) = self.lobby(conn) {
                        lobby.decoder = decoder;
                    }
                    return;
                }
                Ok(Some(Event::Ping(payload))) => {
                    let Some(lobby) = self.lobby(conn) else { return };
                    lobby.pings += 1;
                    if lobby.pings > PINGS_MAX {
                        break Err((1008, "say Hello", Some(Reason::HelloPings)));
                    }
                    out.send_with(conn, |arena| ws::encode_frame(arena, ws::Opcode::Pong, payload));
                    continue;
                }
                Ok(Some(Event::Pong(_))) => continue,
                Ok(Some(Event::Close { code, .. })) => break Err((code.unwrap_or(1000), "", None)),
                Ok(Some(Event::Text(text))) if encoding == Encoding::Json => text.as_bytes(),
                Ok(Some(Event::Binary(bytes))) if encoding == Encoding::Rkyv => &*bytes,
                Ok(Some(_)) => {
                    let what = "this subprotocol does not use this kind of message";
                    break Err((1003, what, Some(Reason::MessageKind)));
                }
            };
            break match wire::decode_client_frame(encoding, bytes) {
                Ok(frame) => Ok(frame),
                Err(_) => Err((1007, "the message is not a frame of the subprotocol", Some(Reason::Undecodable))),
            };
        };
        match frame {
            Ok(ClientFrame::Hello(hello)) => match ClientFrame::Hello(hello.clone()).check() {
                Ok(()) => self.hello(now, conn, hello, data[at..].to_vec(), out),
                Err((_, message)) => self.reject(conn, 1008, message, Reason::HelloBounds, out),
            },
            Ok(_) => self.reject(conn, 1008, "the first frame is Hello", Reason::NotHello, out),
            Err((code, reason, Some(cause))) => self.reject(conn, code, reason, cause, out),
            Err((code, reason, None)) => self.close(conn, code, reason, out),
        }
    }

    fn hello(&mut self, now: Now, conn: ConnId, hello: Hello, rest: Vec<u8>, out: &mut Out) {
        if hello.version != limits::PROTOCOL_VERSION {
            let what = "this server speaks version 1";
            return self.reject(conn, close::VERSION, what, Reason::ProtocolVersion, out);
        }
        let Some(lobby) = self.lobby(conn) else { return };
        let (encoding, loopback, bearer) = (lobby.encoding, lobby.loopback, lobby.bearer.take());
        let mut seat = Seat {
            user_id: parley_protocol::UserId(0),
            name: String::new(),
            device_id: hello.device_id,
            encoding,
            mark: hello.mark,
            acting: false,
            development: false,
            token_expires_at_ms: 0,
            loopback,
            rest,
        };
        if let (Some(ticket), None) = (&hello.resume, hello.act_for) {
            let ticket = self.authority.verify_ticket(ticket, hello.device_id, now, loopback);
            if let Some(Ticket { user_id, name, expires_at_ms, development, .. }) = ticket {
                seat.user_id = user_id;
                seat.name = name;
                seat.token_expires_at_ms = expires_at_ms;
                seat.development = development;
                self.stats.resumes_total += 1;
                return self.give_seat(conn, seat, out);
            }
            self.stats.rejected.add(Reason::Ticket);
        }
        let Some(token) = hello.token.or(bearer) else {
            let what = "no valid token or ticket";
            return match hello.resume {
                // Counted above, as the ticket that it was.
                Some(_) if hello.act_for.is_none() => self.close(conn, close::UNAUTHENTICATED, what, out),
                _ => self.reject(conn, close::UNAUTHENTICATED, what, Reason::NoCredentials, out),
            };
        };
        let identity = match self.authority.verify_token(&token, now, loopback) {
            Ok(identity) => identity,
            Err(reason) => return self.reject(conn, close::UNAUTHENTICATED, &reason, Reason::Token, out),
        };
        seat.token_expires_at_ms = identity.expires_at_ms;
        seat.development = identity.development;
        if let Some(user_id) = hello.act_for {
            if !identity.service {
                let what = "act_for needs a service token";
                return self.reject(conn, close::FORBIDDEN, what, Reason::Forbidden, out);
            }
            seat.user_id = user_id;
            seat.acting = true;
            return self.give_seat(conn, seat, out);
        }
        self.stats.logins_total += 1;
        let ask = Ask::Login { issuer: identity.issuer, subject: identity.subject, name: identity.name };
        if let Some(lobby) = self.lobby(conn) {
            lobby.stage = Stage::Login { seat: Box::new(seat) };
        }
        self.ask(ask, Tag::Login { conn });
    }

    /// The storage tier said who the user is.
    pub(super) fn logged_in(&mut self, conn: ConnId, reply: Reply, out: &mut Out) {
        let Some(lobby) = self.lobby(conn) else { return };
        let stage = std::mem::replace(&mut lobby.stage, Stage::Closing);
        match (stage, reply) {
            (Stage::Login { mut seat }, Reply::LoggedIn(user)) => {
                seat.user_id = user.user_id;
                seat.name = user.name;
                self.give_seat(conn, *seat, out);
            }
            (Stage::Login { .. }, _) => {
                lobby.stage = Stage::Hello;
                let what = "the storage tier cannot answer now";
                self.reject(conn, close::RETRY_LATER, what, Reason::LoginUnavailable, out);
            }
            (stage, _) => lobby.stage = stage,
        }
    }

    fn give_seat(&mut self, conn: ConnId, seat: Seat, out: &mut Out) {
        let shard = partition::shard(partition::of_user(seat.user_id), self.options.shards);
        self.conns.free(conn.slot);
        self.lobby_count -= 1;
        out.push(Output::Seat { conn, shard, seat });
    }

    pub(super) fn lobby_deadline(&mut self, now: Now, conn: ConnId, out: &mut Out) {
        let Some(lobby) = self.lobby(conn) else { return };
        if now.mono_ms < lobby.deadline_ms {
            let deadline_ms = lobby.deadline_ms;
            return self.timers.arm(deadline_ms, Timer::Lobby(conn));
        }
        match lobby.stage {
            Stage::Head => {
                self.refuse(conn, Reject { status: 408, reason: "the request head took too long" }, out);
            }
            Stage::Hello => {
                self.reject(conn, close::UNAUTHENTICATED, "no Hello in time", Reason::NoHello, out);
            }
            Stage::Login { .. } => {
                let what = "the storage tier does not answer";
                self.reject(conn, close::RETRY_LATER, what, Reason::LoginUnavailable, out);
            }
            // The shell bounds how long a close may take.
            Stage::Closing => {}
        }
    }
}

/// What a good head says.
struct Accepted {
    encoding: Encoding,
    bearer: Option<String>,
    key: [u8; 24],
    consumed: usize,
}

/// Judges a head as far as it came: `None` while it is incomplete.
fn judge_head(options: &Options, input: &[u8]) -> Result<Option<Accepted>, Reject> {
    let head_limits =
        Limits { head_bytes_max: options.head_bytes_max, headers_max: HEADERS_MAX, path: Some(options.path.as_str()) };
    let request = match http::parse_upgrade(input, &head_limits) {
        Upgrade::Incomplete => return Ok(None),
        Upgrade::Request(request) => request,
        Upgrade::Reject(reject) => return Err(reject),
    };
    let refuse = |status, reason| Err(Reject { status, reason });
    if request.origin.is_some_and(|origin| !origin_allowed(&options.origins, origin)) {
        return refuse(403, "this Origin is not allowed: operators list it in lobby.origins");
    }
    let mut offered = request.protocols().filter_map(|name| match name {
        limits::SUBPROTOCOL_RKYV => Some(Encoding::Rkyv),
        limits::SUBPROTOCOL_JSON => Some(Encoding::Json),
        _ => None,
    });
    let Some(encoding) = offered.next() else {
        return refuse(400, "offer parley.v1.json or parley.v1.rkyv in Sec-WebSocket-Protocol");
    };
    let bearer = match request.authorization.map(bearer) {
        Some(None) => return refuse(401, "Authorization must be: Bearer TOKEN"),
        Some(Some(token)) => Some(token.to_owned()),
        None => None,
    };
    Ok(Some(Accepted { encoding, bearer, key: request.key, consumed: request.consumed }))
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// An origin is allowed when it is listed to the letter, or when everything is.
fn origin_allowed(allowed: &[String], origin: &str) -> bool {
    allowed.iter().any(|entry| entry == "*" || entry.eq_ignore_ascii_case(origin))
}
