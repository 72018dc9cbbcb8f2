//! The fleet told of bytes by hand.

use super::fleet::Fleet;
use super::flow::Flow;
use crate::chat_server::welcome;
use crate::device::{Beats, Identity};
use crate::frames::Encoder;
use crate::net::{Closed, Url};
use crate::rings::{Action, Client};
use crate::tokens::Tokens;
use parley_protocol::frame::{Mark, Reconnect};
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{ClientFrame, ServerFrame, UserId};

const SECOND_NS: u64 = 1_000_000_000;
const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn fleet(encoder: &Encoder, sessions: u32) -> Fleet<'_> {
    let identity = Identity { tokens: Tokens::new(&[1; 32], "test"), run: 7, now_unix_s: 1_000 };
    let url = Url::parse("ws://127.0.0.1:7400/ws").unwrap();
    let beats = Beats::new(u64::MAX / 2, sessions);
    Fleet::new(encoder, identity, &url, sessions, 2, beats, Flow::new(encoder, 7, 2))
}

fn framed(frame: &ServerFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_server_frame(Encoding::Rkyv, frame, &mut payload);
    assert!(payload.len() < 126);
    [vec![0x82, payload.len() as u8], payload].concat()
}

/// Who is opened by a turn at this time.
fn opened(fleet: &mut Fleet<'_>, now_ns: u64) -> Vec<u32> {
    let mut actions = Vec::new();
    fleet.tick(now_ns, &mut actions);
    actions.iter().filter_map(|it| if let Action::Open { conn, .. } = it { Some(*conn) } else { None }).collect()
}

/// Takes a session from its connect to its seat; the `Hello` that it said.
fn seat(fleet: &mut Fleet<'_>, conn: u32, ticket: &str, now_ns: u64) -> parley_protocol::frame::Hello {
    let mut actions = Vec::new();
    fleet.connected(conn, now_ns, &mut actions);
    fleet.data(conn, ACCEPTED, now_ns, &mut actions);
    let Some(Action::Send { bytes, .. }) = actions.last() else { panic!("{actions:?}") };
    let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
    let Ok(ClientFrame::Hello(hello)) = decode_client_frame(Encoding::Rkyv, &bytes[head..]) else { panic!() };
    let mut answer = welcome(UserId(u64::from(conn) + 1));
    answer.resume = ticket.to_owned();
    fleet.data(conn, &framed(&ServerFrame::Welcome(answer)), now_ns, &mut actions);
    hello
}

const CLOSED: &[u8] = &[0x88, 2, 0x0f, 0xa0];

#[test]
fn a_session_comes_back_when_it_was_told_to_with_its_ticket_and_its_mark() {
    let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
    let mut fleet = fleet(&encoder, 3);
    assert_eq!(opened(&mut fleet, 0).len(), 2, "so many at a time at first");
    assert!(seat(&mut fleet, 0, "t0", 0).token.is_some());
    let mark = framed(&ServerFrame::Mark(Mark { inbox_seq: 41, head: 50 }));
    let told = Reconnect { delay_ms: 1_500, resume: "t1".to_owned(), resume_expires_at_ms: 0 };
    fleet.begin();
    let mut actions = Vec::new();
    fleet.tick(SECOND_NS, &mut Vec::new());
    fleet.data(0, &[&mark, &framed(&ServerFrame::Reconnect(told))[..], CLOSED].concat(), SECOND_NS, &mut actions);
    assert_eq!(actions, [Action::End { conn: 0 }]);
    assert_eq!((fleet.tally.seated, fleet.tally.ended["4000"]), (0, 1));
    fleet.vacant(0, SECOND_NS);
    assert_eq!(opened(&mut fleet, SECOND_NS * 5 / 2 - 1), [0; 0]);
    assert_eq!(opened(&mut fleet, SECOND_NS * 5 / 2), [0]);
    let hello = seat(&mut fleet, 0, "t2", SECOND_NS * 3);
    assert_eq!((hello.token, hello.resume.as_deref(), hello.mark), (None, Some("t1"), Some(41)));
    assert!((1_990_000..=2_010_000).contains(&fleet.tally.away_us.max()), "{}", fleet.tally.away_us.max());
}

#[test]
fn one_that_was_in_comes_back_at_once_and_one_that_is_refused_later_and_later() {
    let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
    let mut fleet = fleet(&encoder, 2);
    opened(&mut fleet, 0);
    (0..2).for_each(|conn| drop(seat(&mut fleet, conn, "t", 0)));
    fleet.begin();
    fleet.tick(SECOND_NS, &mut Vec::new());
    fleet.ended(0, Closed::Eof);
    fleet.vacant(0, SECOND_NS);
    let mut now_ns = SECOND_NS;
    let mut waits = Vec::new();
    for _ in 0..9 {
        let begun_ns = now_ns;
        while opened(&mut fleet, now_ns).is_empty() {
            now_ns += SECOND_NS / 1_000;
        }
        waits.push(now_ns - begun_ns);
        fleet.ended(0, Closed::Io(std::io::ErrorKind::ConnectionRefused.into()));
        fleet.vacant(0, now_ns);
    }
    assert_eq!(waits[0], 0);
    let most = |tries: usize| (SECOND_NS << (tries - 1).min(6)).min(60 * SECOND_NS) + SECOND_NS / 1_000;
    assert!((1..9).all(|tries| waits[tries] <= most(tries)), "{waits:?}");
    assert!(waits[5..].iter().any(|wait| *wait > 2 * SECOND_NS), "{waits:?}");
    assert_eq!((fleet.tally.refused["ConnectionRefused"], fleet.tally.seated, &fleet.failure), (9, 1, &None));
}

#[test]
fn a_cut_ends_all_and_a_refusal_for_good_ends_the_run() {
    let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
    let mut fleet = fleet(&encoder, 2);
    opened(&mut fleet, 0);
    (0..2).for_each(|conn| drop(seat(&mut fleet, conn, "t", 0)));
    fleet.begin();
    let mut actions = Vec::new();
    fleet.cut(SECOND_NS, &mut actions);
    assert_eq!(actions, [Action::End { conn: 0 }, Action::End { conn: 1 }]);
    (0..2).for_each(|conn| fleet.vacant(conn, SECOND_NS));
    assert_eq!(opened(&mut fleet, SECOND_NS).len(), 2, "all of them at once");
    fleet.ended(1, Closed::Close { code: 4010, reason: String::new() });
    assert!(fleet.failure.as_ref().is_some_and(|why| why.contains("4010")));
}
