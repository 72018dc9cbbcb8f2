//! The fleet told of bytes by hand.

use super::fleet::{Act, Cast, Fleet};
use crate::chat_server::welcome;
use crate::device::{Beats, Identity};
use crate::frames::Encoder;
use crate::net::Url;
use crate::rings::{Action, Client};
use crate::tokens::Tokens;
use parley_protocol::frame::{Mark, Sent, Truncated};
use parley_protocol::wire::{Encoding, decode_client_frame, encode_server_frame};
use parley_protocol::{Body, ClientFrame, Event, MessageBody, MessageId, ServerFrame, UserId};

const ACCEPTED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
/// Three devices, one of which comes back without a mark, and two writers.
const CAST: Cast = Cast { devices: 3, writers: 2, missed: 2, truncated: 1, window: 9, in_flight: 3 };

fn framed(frame: &ServerFrame) -> Vec<u8> {
    let mut payload = Vec::new();
    encode_server_frame(Encoding::Rkyv, frame, &mut payload);
    let mut bytes = vec![0x82];
    match payload.len() {
        len @ ..126 => bytes.push(len as u8),
        len => bytes.extend([126, (len >> 8) as u8, len as u8]),
    }
    [bytes, payload].concat()
}

/// What is sent among the actions, and who ends.
fn said(actions: &mut Vec<Action>) -> (Vec<(u32, ClientFrame)>, Vec<u32>) {
    let (mut frames, mut ends) = (Vec::new(), Vec::new());
    for action in actions.drain(..) {
        match action {
            Action::Send { conn, bytes } if bytes[0] == 0x82 => {
                let head = if bytes[1] & 0x7f == 126 { 8 } else { 6 };
                frames.push((conn, decode_client_frame(Encoding::Rkyv, &bytes[head..]).unwrap()));
            }
            Action::End { conn } => ends.push(conn),
            _ => {}
        }
    }
    (frames, ends)
}

fn seat(fleet: &mut Fleet<'_>, conn: u32, actions: &mut Vec<Action>) {
    fleet.connected(conn, 0, actions);
    fleet.data(conn, ACCEPTED, 0, actions);
    let mut answer = welcome(UserId(u64::from(conn) + 1));
    answer.resume = "t".to_owned();
    fleet.data(conn, &framed(&ServerFrame::Welcome(answer)), 0, actions);
}

fn event(seq: u64) -> Vec<u8> {
    let chat_id = parley_protocol::ChatId::direct(UserId(2), UserId(5)).unwrap();
    let body = Body::Message(MessageBody { content_type: "text/plain".into(), ..MessageBody::default() });
    framed(&ServerFrame::Event(Event {
        chat_id,
        seq,
        ordinal: seq,
        message_id: MessageId(seq),
        sender: UserId(5),
        sender_sent: seq,
        client_msg_id: parley_protocol::ClientMsgId(seq.into()),
        envelope: body.to_envelope(),
    }))
}

#[test]
fn devices_leave_writers_write_to_each_and_who_comes_back_shows_its_mark() {
    let encoder = Encoder::new(Encoding::Rkyv, 16, [0; 4]);
    let identity = Identity { tokens: Tokens::new(&[1; 32], "test"), run: 7, now_unix_s: 1_000 };
    let url = Url::parse("ws://127.0.0.1:7400/ws").unwrap();
    let mut fleet = Fleet::new(&encoder, identity, &url, CAST, Beats::new(u64::MAX / 2, 5));
    let mut actions = Vec::new();
    fleet.tick(0, &mut actions);
    for conn in 0..5 {
        seat(&mut fleet, conn, &mut actions);
        fleet.data(conn, &framed(&ServerFrame::Truncated(Truncated { mark: 10 })), 0, &mut actions);
    }
    assert_eq!(said(&mut actions).1, [0, 1, 2], "the devices leave, the writers stay");
    assert!(fleet.is_over());

    fleet.begin(Act::Write);
    fleet.tick(0, &mut actions);
    let sends = said(&mut actions).0;
    assert_eq!(sends.iter().map(|(conn, _)| *conn).collect::<Vec<_>>(), [3, 3, 3, 4, 4], "three in flight at most");
    let mut sent_to = Vec::new();
    let mut answer = |fleet: &mut Fleet<'_>, sends: Vec<(u32, ClientFrame)>, actions: &mut Vec<Action>| {
        for (conn, frame) in sends {
            let ClientFrame::Send(send) = frame else { panic!("{frame:?}") };
            sent_to.push(send.chat_id.peer_of(UserId(u64::from(conn) + 1)).unwrap().0);
            let (chat_id, client_msg_id) = (send.chat_id, send.client_msg_id);
            let sent = Sent { chat_id, client_msg_id, message_id: MessageId(1), seq: 1 };
            fleet.data(conn, &framed(&ServerFrame::Sent(sent)), 0, actions);
        }
    };
    answer(&mut fleet, sends, &mut actions);
    let rest = said(&mut actions).0;
    answer(&mut fleet, rest, &mut actions);
    sent_to.sort_unstable();
    assert_eq!((sent_to, fleet.is_over()), (vec![1, 1, 2, 2, 3, 3], true), "each device misses two");

    fleet.dismiss(&mut actions);
    fleet.begin(Act::Return);
    fleet.tick(0, &mut actions);
    (0..3).for_each(|conn| seat(&mut fleet, conn, &mut actions));
    let (hellos, ends) = said(&mut actions);
    let marks = hellos.iter().map(|(_, frame)| if let ClientFrame::Hello(hello) = frame { hello.mark } else { None });
    assert_eq!((marks.collect::<Vec<_>>(), ends), (vec![None, Some(10), Some(10)], vec![3, 4]));
    // The first has to start over: it lists its chats.
    fleet.data(0, &framed(&ServerFrame::Truncated(Truncated { mark: 12 })), 0, &mut actions);
    assert!(matches!(said(&mut actions).0[..], [(0, ClientFrame::Chats(_))]));
    assert_eq!(fleet.tally.through, 0);
    // The second gets a mark on the way, an entry twice, and is then told that all came; the third lacks one.
    let mark = |inbox_seq, head| framed(&ServerFrame::Mark(Mark { inbox_seq, head }));
    fleet.data(1, &[event(1), mark(11, 12)].concat(), 0, &mut actions);
    assert_eq!(fleet.tally.through, 0);
    fleet.data(1, &[event(1), event(2), mark(12, 12)].concat(), 5_000_000, &mut actions);
    fleet.data(2, &[event(1), mark(12, 12)].concat(), 0, &mut actions);
    let tally = &fleet.tally;
    assert_eq!((tally.through, tally.streamed, tally.doubled, tally.lost, tally.holes), (2, 3, 1, 1, 0));
    assert!((4_990..5_010).contains(&tally.caught_up_us.max()));
}
