//! A device that comes back: what it says in `Hello`, and what it reads of the answers. No socket, no clock.

use crate::frames::Encoder;
use crate::idle::plan::Hearts;
use crate::net::Closed;
use crate::rings::Action;
use crate::tokens::Tokens;
use parley_protocol::event::ArchivedEvent;
use parley_protocol::frame::{
    ArchivedMark, ArchivedReconnect, ArchivedSent, ArchivedServerFrame, ArchivedTruncated, ArchivedWelcome, ChatList,
    Hello, HistoryPage,
};
use parley_protocol::limits::PROTOCOL_VERSION;
use parley_protocol::wire::{Encoding, decode_server_frame};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, DeviceId, ErrorCode, ServerFrame, UserId};
use std::rc::Rc;

/// What a device shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pass<'a> {
    Token(&'a str),
    Ticket(&'a str),
}

/// Who all the devices of a run are.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) tokens: Tokens,
    /// High bits of the device ids.
    pub(crate) run: u64,
    /// When tokens are signed, Unix seconds.
    pub(crate) now_unix_s: u64,
}

impl Identity {
    /// A token for the user of device `number`. Names have one length, so that all frames of a kind have one.
    pub(crate) fn token(&self, number: u32, nonce: u64) -> String {
        // Another moment makes another token.
        self.tokens.sign(&format!("perf-{number:08}"), self.now_unix_s + nonce)
    }

    /// The first frame of a session, framed and masked.
    pub(crate) fn hello(&self, encoder: &Encoder, number: u32, pass: Pass<'_>, mark: Option<u64>) -> Rc<[u8]> {
        let (token, resume) = match pass {
            Pass::Token(token) => (Some(token.to_owned()), None),
            Pass::Ticket(ticket) => (None, Some(ticket.to_owned())),
        };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            device_id: DeviceId(u128::from(self.run) << 64 | u128::from(number)),
            token,
            resume,
            mark,
            kinds_known: Vec::new(),
            client: concat!("parley-perf/", env!("CARGO_PKG_VERSION")).to_owned(),
            act_for: None,
        };
        let mut bytes = Vec::new();
        encoder.frame(&ClientFrame::Hello(hello), &mut bytes);
        bytes.into()
    }
}

/// What a device hears, as far as it matters to one that comes back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    Welcome { user: UserId, ticket: &'a str },
    Mark { inbox_seq: u64, head: u64 },
    Truncated { mark: u64 },
    Reconnect { delay_ms: u32, ticket: &'a str },
    Event { chat: ChatId, name: ClientMsgId, seq: u64 },
    Sent { name: ClientMsgId, seq: u64 },
    Error { code: ErrorCode, message: String, name: Option<ClientMsgId> },
    Chats(ChatList),
    History(HistoryPage),
    Other,
}

/// Reads a frame of `parley.v1.rkyv`, in place where it is one of those that come often.
pub(crate) fn hear(payload: &[u8]) -> Result<Said<'_>, String> {
    let frame = rkyv::access::<ArchivedServerFrame, rkyv::rancor::Error>(payload).map_err(|error| error.to_string())?;
    Ok(match frame {
        ArchivedServerFrame::Event(ArchivedEvent { chat_id, client_msg_id, seq, .. }) => {
            Said::Event { chat: chat_id.into(), name: client_msg_id.into(), seq: seq.to_native() }
        }
        ArchivedServerFrame::Sent(ArchivedSent { client_msg_id, seq, .. }) => {
            Said::Sent { name: client_msg_id.into(), seq: seq.to_native() }
        }
        ArchivedServerFrame::Welcome(ArchivedWelcome { user_id, resume, .. }) => {
            Said::Welcome { user: user_id.into(), ticket: resume.as_str() }
        }
        ArchivedServerFrame::Mark(ArchivedMark { inbox_seq, head }) => {
            Said::Mark { inbox_seq: inbox_seq.to_native(), head: head.to_native() }
        }
        ArchivedServerFrame::Truncated(ArchivedTruncated { mark }) => Said::Truncated { mark: mark.to_native() },
        ArchivedServerFrame::Reconnect(ArchivedReconnect { delay_ms, resume, .. }) => {
            Said::Reconnect { delay_ms: delay_ms.to_native(), ticket: resume.as_str() }
        }
        _ => match decode_server_frame(Encoding::Rkyv, payload).map_err(|error| error.to_string())? {
            ServerFrame::Error(error) => {
                Said::Error { code: error.code, message: error.message, name: error.client_msg_id }
            }
            ServerFrame::ChatList(list) => Said::Chats(list),
            ServerFrame::HistoryPage(page) => Said::History(page),
            _ => Said::Other,
        },
    })
}

/// Pings of one turn at most.
const BEATS_PER_TURN_MAX: usize = 1_024;
/// Below the gateway's timeout of 60 s.
const HEARTBEAT_NS: u64 = 25_000_000_000;

/// The hearts of all sessions.
pub(crate) struct Beats(Hearts);

impl Beats {
    pub(crate) fn new(now_ns: u64, sessions: u32) -> Self {
        Self(Hearts::new(now_ns + HEARTBEAT_NS / 2, HEARTBEAT_NS, sessions))
    }

    /// Pings of those whose time has come and who are `seated`.
    pub(crate) fn tick(
        &mut self,
        encoder: &Encoder,
        now_ns: u64,
        seated: impl Fn(u32) -> bool,
        actions: &mut Vec<Action>,
    ) {
        let mut ping: Option<Rc<[u8]>> = None;
        for _ in 0..BEATS_PER_TURN_MAX {
            let Some(conn) = self.0.due(now_ns) else { return };
            if seated(conn) {
                let bytes = ping.get_or_insert_with(|| {
                    let mut bytes = Vec::new();
                    encoder.ping(0, &mut bytes);
                    bytes.into()
                });
                actions.push(Action::Send { conn, bytes: bytes.clone() });
            }
        }
    }

    /// When the next one is due.
    pub(crate) fn next_ns(&self) -> u64 {
        self.0.next_at_ns()
    }
}

/// Hands what came, after what was left of it before, to `take`, which says how many bytes of it were whole.
pub(crate) fn feed(
    partial: &mut Vec<u8>,
    data: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<usize, Closed>,
) -> Result<(), Closed> {
    if partial.is_empty() {
        let taken = take(data)?;
        partial.extend_from_slice(&data[taken..]);
    } else {
        partial.extend_from_slice(data);
        let taken = take(partial)?;
        partial.drain(..taken);
    }
    if partial.is_empty() {
        // Of very many devices few have something.
        *partial = Vec::new();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_server::welcome;
    use parley_protocol::frame::{Mark, Reconnect, Truncated};
    use parley_protocol::wire::{decode_client_frame, encode_server_frame};

    fn heard(frame: &ServerFrame, expected: &Said<'_>) {
        let mut bytes = Vec::new();
        encode_server_frame(Encoding::Rkyv, frame, &mut bytes);
        assert_eq!(hear(&bytes).as_ref(), Ok(expected));
    }

    #[test]
    fn what_a_returning_device_needs_is_read() {
        let mut answer = welcome(UserId(9));
        answer.resume = "ticket".to_owned();
        heard(&ServerFrame::Welcome(answer), &Said::Welcome { user: UserId(9), ticket: "ticket" });
        heard(&ServerFrame::Mark(Mark { inbox_seq: 3, head: 5 }), &Said::Mark { inbox_seq: 3, head: 5 });
        heard(&ServerFrame::Truncated(Truncated { mark: 7 }), &Said::Truncated { mark: 7 });
        let reconnect = Reconnect { delay_ms: 150, resume: "t2".to_owned(), resume_expires_at_ms: 1 };
        heard(&ServerFrame::Reconnect(reconnect), &Said::Reconnect { delay_ms: 150, ticket: "t2" });
        let list = ChatList { request_id: 1, chats: Vec::new(), more: false };
        heard(&ServerFrame::ChatList(list.clone()), &Said::Chats(list));
        assert!(hear(&[1, 2, 3]).is_err());
    }

    #[test]
    fn what_is_not_whole_is_kept_for_the_next_bytes() {
        let (mut partial, mut heard) = (Vec::new(), Vec::new());
        for data in [&b"ab"[..], b"cde", b"f"] {
            // Wholes are of three bytes.
            let take = |bytes: &[u8]| {
                heard.extend(bytes.chunks_exact(3).map(<[u8]>::to_vec));
                Ok(bytes.len() / 3 * 3)
            };
            feed(&mut partial, data, take).unwrap();
        }
        assert_eq!((heard, partial.len()), (vec![b"abc".to_vec(), b"def".to_vec()], 0));
    }

    #[test]
    fn a_device_shows_a_ticket_or_a_token_that_is_never_the_same() {
        let identity = Identity { tokens: Tokens::new(&[1; 32], "test"), run: 7, now_unix_s: 1_000 };
        assert_ne!(identity.token(1, 0), identity.token(1, 1));
        assert_eq!(identity.token(1, 0).len(), identity.token(99_999, 0).len());
        let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
        for (pass, mark) in [(Pass::Token("a.b.c"), None), (Pass::Ticket("t"), Some(4))] {
            let bytes = identity.hello(&encoder, 3, pass, mark);
            let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
            let Ok(ClientFrame::Hello(hello)) = decode_client_frame(Encoding::Rkyv, &bytes[head..]) else {
                panic!("not a Hello")
            };
            let shown = (hello.token.as_deref(), hello.resume.as_deref());
            let expected = match pass {
                Pass::Token(token) => (Some(token), None),
                Pass::Ticket(ticket) => (None, Some(ticket)),
            };
            assert_eq!((shown, hello.mark, hello.device_id.0), (expected, mark, 7 << 64 | 3));
        }
    }
}
