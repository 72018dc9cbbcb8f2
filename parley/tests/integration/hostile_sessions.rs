//! Rows of hostile input: frames out of order, and whatever belongs to other people. What one may not have is refused as
//! if it did not exist.

use crate::common::device::{direct, text_frame};
use crate::common::raw::{Raw, message};
use crate::common::{Device, JSON, RKYV, Settings, random};
use crate::hostile::{Answer, MALLORY, Opening, Row, Table, hello};
use crate::refusals::about;
use parley_protocol::frame::{Change, DeviceEnd, History, Ping, Position};
use parley_protocol::wire::Encoding;
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, DeviceId, ErrorCode, UserId};

fn send_all(encoding: Encoding, frames: Vec<ClientFrame>) -> impl Fn(&mut Raw) + Sync {
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| message(encoding, frame)).collect();
    move |raw: &mut Raw| raw.send(&bytes)
}

#[test]
fn frames_out_of_order_are_closed_with_1008() {
    let mut table = Table::new(Settings::new());
    let target = table.server.target();
    let chat = direct(&table.alice, &table.bob);
    let mut rows = Vec::new();
    for encoding in [JSON, RKYV] {
        let early = [
            ("a ping", ClientFrame::Ping(Ping { nonce: 1 })),
            ("a message", text_frame(chat, ClientMsgId(random()), "early")),
            (
                "a request",
                ClientFrame::History(History { request_id: 1, chat_id: chat, before: None, after: None, limit: 0 }),
            ),
        ];
        for (name, frame) in early {
            // With a good `Hello` behind it, which comes too late.
            let late = [message(encoding, &frame), message(encoding, &hello(&target))].concat();
            let attack = move |raw: &mut Raw| raw.send(&late);
            let name = format!("{name} before Hello, {encoding:?}");
            rows.push(Row::new(name, Opening::Upgraded(encoding), attack, Answer::Close(1008), "not_hello"));
        }
        let target = target.clone();
        let second = move |raw: &mut Raw| raw.send(&message(encoding, &hello(&target)));
        let name = format!("a second Hello, {encoding:?}");
        rows.push(Row::new(name, Opening::Seated(encoding), second, Answer::Close(1008), "hello_twice"));
    }
    let target = target.clone();
    let both = move |raw: &mut Raw| raw.send(&message(JSON, &hello(&target)).repeat(2));
    rows.push(Row::new("two Hellos in one packet", Opening::Upgraded(JSON), both, Answer::Close(1008), "hello_twice"));
    table.run(&rows);
    table.ends_well();
}

#[test]
fn what_is_other_people_s_does_not_exist() {
    let mut table = Table::new(Settings::new());
    let mallory = table.server.device(MALLORY, JSON);
    let (alice, bob) = (&mut table.alice, &table.bob);
    let group = alice.create_group("ours", &[bob.user_id]).expect("created").chat_id;
    let left = alice.create_group("no longer", &[bob.user_id, mallory.user_id]).expect("created").chat_id;
    alice.change(left, Change::Remove { users: vec![mallory.user_id] }).expect("removed");
    let pair = direct(alice, bob);
    let nobody = UserId(1 << 60);
    let chats = [
        ("a group of others", group),
        ("a group that does not exist", ChatId::group(1 << 40)),
        ("the pair of others", pair),
        ("a pair of nobodies", ChatId::direct(nobody, UserId(nobody.0 + 1)).expect("two ids")),
        ("a pair with nobody", ChatId::direct(mallory.user_id, nobody).expect("two ids")),
        ("an id that is none", ChatId(7)),
    ];
    let mut rows = Vec::new();
    for encoding in [JSON, RKYV] {
        // Each kind of request asks about all of the chats: the answers may not differ.
        for index in 0..about(group).len() {
            let frames: Vec<_> = chats.iter().map(|(_, chat)| about(*chat).swap_remove(index)).collect();
            let name = format!("{}, {encoding:?}", kind_of(index, &frames[0]));
            let answer = Answer::Errors(ErrorCode::NoSuchChat, frames.len());
            rows.push(Row::new(name, Opening::Seated(encoding), send_all(encoding, frames), answer, "no_such_chat"));
        }
        for (name, chat) in chats {
            let frames = history_positions(chat);
            let answer = Answer::Errors(ErrorCode::NoSuchChat, frames.len());
            let name = format!("history positions of {name}, {encoding:?}");
            rows.push(Row::new(name, Opening::Seated(encoding), send_all(encoding, frames), answer, "no_such_chat"));
        }
        // Reading what came before is all that is left of a chat: for the rest it does not exist either.
        let frames: Vec<_> =
            about(left).into_iter().filter(|frame| !matches!(frame, ClientFrame::History(_))).collect();
        let frames: Vec<_> = frames.into_iter().filter(|frame| !is_mark(frame)).collect();
        let answer = Answer::Errors(ErrorCode::NoSuchChat, frames.len());
        let name = format!("a group that one was removed from, {encoding:?}");
        rows.push(Row::new(name, Opening::Seated(encoding), send_all(encoding, frames), answer, "no_such_chat"));
        rows.extend(other_ids(encoding, alice, bob));
    }
    drop(mallory);
    table.run(&rows);
    // Nothing of all that left a trace.
    assert_eq!(table.alice.history(group, 0).len(), 2);
    assert_eq!(table.alice.history(left, 0).len(), 3);
    table.ends_well();
}

fn kind_of(index: usize, frame: &ClientFrame) -> String {
    let text = format!("{frame:?}");
    let kind = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    format!("request {index}, a {kind}, about any chat that is not mine")
}

fn is_mark(frame: &ClientFrame) -> bool {
    matches!(frame, ClientFrame::Delivered(_) | ClientFrame::Read(_) | ClientFrame::Mute(_))
}

fn history_positions(chat_id: ChatId) -> Vec<ClientFrame> {
    let positions = [
        (None, Some(0)),
        (None, Some(1)),
        (Some(1), None),
        (Some(2), None),
        (None, Some(1 << 50)),
        (Some(1 << 50), None),
    ];
    let history =
        |(request_id, (before, after))| ClientFrame::History(History { request_id, chat_id, before, after, limit: 1 });
    (1..).zip(positions).map(history).collect()
}

/// Ids of devices, and positions, whether they exist or not.
fn other_ids(encoding: Encoding, alice: &mut Device, bob: &Device) -> Vec<Row<'static>> {
    let devices = [alice.device_id, bob.device_id, DeviceId(1), DeviceId(u128::MAX)];
    let end = |device_id| ClientFrame::DeviceEnd(DeviceEnd { device_id });
    let frames = devices.map(end).to_vec();
    let answer = Answer::Errors(ErrorCode::Forbidden, frames.len());
    let name = format!("the end of others' devices, {encoding:?}");
    let ends = Row::new(name, Opening::Seated(encoding), send_all(encoding, frames), answer, "forbidden");
    // A chat of mallory's own, so that positions in it are what is refused.
    let mallory = alice.resolve(&[MALLORY])[0].0;
    let own = alice.create_group("with mallory", &[mallory]).expect("created").chat_id;
    let at = |seq| Position { chat_id: own, seq };
    let frames: Vec<_> = [3, 1_000, 1 << 52]
        .into_iter()
        .flat_map(|seq| [ClientFrame::Read(at(seq)), ClientFrame::Delivered(at(seq))])
        .collect();
    let answer = Answer::Errors(ErrorCode::NoSuchSeq, frames.len());
    let name = format!("marks above the head of a chat, {encoding:?}");
    let marks = Row::new(name, Opening::Seated(encoding), send_all(encoding, frames), answer, "no_such_seq");
    vec![ends, marks]
}
