//! One session, from its connect to its end: what is kept of it, and what its bytes say. No socket, no clock.

use crate::net::frame::{self, Op};
use crate::net::{Closed, check_upgrade};
use parley_protocol::{ChatId, UserId};

/// Head of the answer to an upgrade.
const UPGRADE_BYTES_MAX: usize = 16 << 10;

/// Where a session stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not begun, or to be begun again.
    #[default]
    Vacant,
    Connecting,
    /// The upgrade was sent.
    Upgrading,
    /// `Hello` was sent.
    Greeting,
    /// `Welcome` came.
    Seated,
    /// It was seated, and is over: it does not come back.
    Ended,
}

/// What is kept of a session. There are a million of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Session {
    /// 0 before the first `Welcome`.
    user: u64,
    pub(crate) stage: Stage,
    /// Attempts to log in that failed.
    pub(crate) tries: u8,
    /// The last ping has no answer yet.
    pub(crate) awaits_pong: bool,
}

impl Session {
    pub(crate) fn seat(&mut self, user: UserId) {
        *self = Self { user: user.0, stage: Stage::Seated, tries: self.tries, awaits_pong: false };
    }

    /// Who it is, once it was seated.
    pub(crate) fn user(&self) -> Option<UserId> {
        (self.user != 0).then_some(UserId(self.user))
    }

    /// Between its connect and its `Welcome`.
    pub(crate) fn is_logging_in(&self) -> bool {
        matches!(self.stage, Stage::Connecting | Stage::Upgrading | Stage::Greeting)
    }
}

/// All sessions; `n` and `n ^ 1` are a pair.
#[derive(Debug)]
pub(crate) struct Sessions(Vec<Session>);

impl Sessions {
    pub(crate) fn new(count: u32) -> Self {
        Self(vec![Session::default(); count as usize])
    }

    pub(crate) fn get(&self, conn: u32) -> &Session {
        &self.0[conn as usize]
    }

    pub(crate) fn get_mut(&mut self, conn: u32) -> &mut Session {
        &mut self.0[conn as usize]
    }

    pub(crate) fn is_seated(&self, conn: u32) -> bool {
        self.get(conn).stage == Stage::Seated
    }

    /// The chat of a session with its peer, once both were seated.
    pub(crate) fn chat(&self, conn: u32) -> Option<ChatId> {
        let (user, peer) = (self.get(conn).user, self.0.get((conn ^ 1) as usize)?.user);
        if user == 0 || peer == 0 { None } else { ChatId::direct(UserId(user), UserId(peer)) }
    }
}

/// What a server said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Heard<'a> {
    /// The WebSocket is open.
    Upgraded,
    Message(&'a [u8]),
    Ping(&'a [u8]),
    Pong,
}

/// The first thing that lies whole in `bytes`, and how many of them it is; `None` while nothing does.
pub(crate) fn next(stage: Stage, bytes: &[u8]) -> Result<Option<(Heard<'_>, usize)>, Closed> {
    if stage == Stage::Upgrading {
        let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") else {
            let endless = "the server answers the upgrade without end";
            return if bytes.len() > UPGRADE_BYTES_MAX { Err(Closed::Broken(endless)) } else { Ok(None) };
        };
        let head = end + 4;
        check_upgrade(&bytes[..head]).map_err(|answer| {
            let body = String::from_utf8_lossy(&bytes[head..]);
            Closed::Refused(format!("{answer} {}", body.trim()).trim().to_owned())
        })?;
        return Ok(Some((Heard::Upgraded, head)));
    }
    let Some(frame) = frame::parse(bytes).map_err(Closed::Broken)? else { return Ok(None) };
    let heard = match frame.op {
        Op::Binary => Heard::Message(frame.payload),
        Op::Text => return Err(Closed::Broken("the server sent text on parley.v1.rkyv")),
        Op::Ping => Heard::Ping(frame.payload),
        Op::Pong => Heard::Pong,
        Op::Close => {
            let code = frame.payload.first_chunk::<2>().map_or(1005, |code| u16::from_be_bytes(*code));
            let reason = frame.payload.get(2..).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            return Err(Closed::Close { code, reason });
        }
    };
    Ok(Some((heard, frame.bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                              Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn a_session_is_small() {
        assert_eq!(size_of::<Session>(), 16);
    }

    #[test]
    fn an_answer_to_the_upgrade_is_taken_when_it_is_whole() {
        for cut in [0, 1, ACCEPTED.len() - 1] {
            assert!(matches!(next(Stage::Upgrading, &ACCEPTED[..cut]), Ok(None)), "{cut} bytes");
        }
        let more = [ACCEPTED, &[0x82, 0]].concat();
        assert_eq!(next(Stage::Upgrading, &more).unwrap(), Some((Heard::Upgraded, ACCEPTED.len())));
        let refused = b"HTTP/1.1 503 Service Unavailable\r\n\r\nlater\n";
        let error = next(Stage::Upgrading, refused).unwrap_err();
        assert!(matches!(error, Closed::Refused(what) if what == "HTTP/1.1 503 Service Unavailable later"));
        assert!(next(Stage::Upgrading, &vec![b'a'; UPGRADE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn frames_are_told_apart_and_a_close_ends_the_session_with_its_code() {
        assert_eq!(next(Stage::Seated, &[0x82, 2, 5, 6, 0x82]).unwrap(), Some((Heard::Message(&[5, 6]), 4)));
        assert_eq!(next(Stage::Seated, &[0x89, 1, 7]).unwrap(), Some((Heard::Ping(&[7]), 3)));
        assert_eq!(next(Stage::Seated, &[0x8a, 0]).unwrap(), Some((Heard::Pong, 2)));
        assert!(matches!(next(Stage::Seated, &[0x82, 2, 5]), Ok(None)));
        let close = next(Stage::Greeting, &[0x88, 4, 0x0f, 0xa2, b'o', b'h']).unwrap_err();
        assert!(matches!(close, Closed::Close { code: 4002, reason } if reason == "oh"));
        assert!(matches!(next(Stage::Seated, &[0x88, 0]), Err(Closed::Close { code: 1005, .. })));
        assert!(next(Stage::Seated, &[0x81, 0]).is_err(), "text");
        assert!(next(Stage::Seated, &[0x02, 0]).is_err(), "a fragment");
    }

    #[test]
    fn a_pair_has_one_chat_once_both_are_known() {
        let mut sessions = Sessions::new(4);
        sessions.get_mut(2).seat(UserId(9));
        assert_eq!((sessions.chat(2), sessions.is_seated(2), sessions.is_seated(3)), (None, true, false));
        sessions.get_mut(3).seat(UserId(5));
        assert_eq!(sessions.chat(2), ChatId::direct(UserId(5), UserId(9)));
        assert_eq!(sessions.chat(2), sessions.chat(3));
    }
}
