//! Error frames: each bound has its code, the session goes on, and a chat that one is not in answers exactly as one that
//! does not exist.

use crate::common::device::{direct, payload_frame, text_frame};
use crate::common::{Device, JSON, RKYV, Server, Settings, random};
use parley_protocol::frame::{
    Change, ChatRef, Chats, Error, GroupChange, GroupCreate, History, Members, Mute, Position, Profiles, Resolve, Send,
};
use parley_protocol::wire::Encoding;
use parley_protocol::{
    Attachment, Body, ChatId, ClientFrame, ClientMsgId, ErrorCode, Extension, MessageBody, ServerFrame, UserId,
};

/// The error that a frame is answered with.
fn refusal(device: &mut Device, frame: &ClientFrame) -> Error {
    device.queue.clear();
    device.say(frame);
    let error = device.wait_for(&format!("the refusal of {frame:?}"), |frame| match frame {
        ServerFrame::Error(error) => Some(error.clone()),
        _ => None,
    });
    assert_eq!(
        (error.client_msg_id, error.request_id, error.chat_id),
        (frame.client_msg_id(), frame.request_id(), frame.chat_id()),
        "an error names what it answers"
    );
    error
}

/// What tells causes apart, without what was asked.
fn look(error: &Error) -> (ErrorCode, String, Option<u32>) {
    (error.code, error.message.clone(), error.retry_after_ms)
}

pub(crate) fn about(chat_id: ChatId) -> Vec<ClientFrame> {
    let client_msg_id = ClientMsgId(random());
    vec![
        text_frame(chat_id, client_msg_id, "may I?"),
        ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change: Change::Leave {} }),
        ClientFrame::GroupChange(GroupChange {
            chat_id,
            client_msg_id: ClientMsgId(random()),
            change: Change::Rename { title: "mine".into() },
        }),
        ClientFrame::Delivered(Position { chat_id, seq: 1 }),
        ClientFrame::Read(Position { chat_id, seq: 1 }),
        ClientFrame::Mute(Mute { chat_id, until_ms: 1 }),
        ClientFrame::Subscribe(ChatRef { chat_id }),
        ClientFrame::History(History { request_id: 1, chat_id, before: None, after: None, limit: 0 }),
        ClientFrame::History(History { request_id: 2, chat_id, before: None, after: Some(0), limit: 5 }),
        ClientFrame::Members(Members { request_id: 3, chat_id, after: None, limit: 0 }),
    ]
}

#[test]
fn another_s_chat_answers_as_one_that_does_not_exist() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let group = alice.create_group("ours", &[bob.user_id]).expect("created").chat_id;
    let pair = direct(&alice, &bob);
    alice.post(pair, "for two");
    for encoding in [JSON, RKYV] {
        let mut mallory = server.device("mallory", encoding);
        let no_group = ChatId::group(1 << 40);
        let nobody = UserId(1 << 60);
        let no_pair = ChatId::direct(nobody, UserId(nobody.0 + 1)).expect("two ids");
        let with_nobody = ChatId::direct(mallory.user_id, nobody).expect("two ids");
        let malformed = ChatId(7);
        for (index, frame) in about(no_group).iter().enumerate() {
            let reference = refusal(&mut mallory, frame);
            assert_eq!(reference.code, ErrorCode::NoSuchChat, "{frame:?}");
            for chat in [group, pair, no_pair, with_nobody, malformed] {
                let frame = &about(chat)[index];
                assert_eq!(look(&refusal(&mut mallory, frame)), look(&reference), "{frame:?}");
            }
        }
        assert!(mallory.chats().is_empty());
    }
    assert_eq!(alice.history(group, 0).len(), 2);
    bob.wait_event(pair, 1);
    bob.sync();
    assert_eq!((alice.closed, bob.closed), (None, None));
}

fn with_body(chat_id: ChatId, body: Body) -> ClientFrame {
    ClientFrame::Send(Send { chat_id, client_msg_id: ClientMsgId(random()), envelope: body.to_envelope() })
}

fn bounds_have_codes(encoding: Encoding) {
    let server = Server::up();
    let mut alice = server.device("alice", encoding);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let group = alice.create_group("", &[bob.user_id]).expect("created").chat_id;
    let largest = vec![b'x'; 16_384];
    alice.command(&payload_frame(chat, ClientMsgId(random()), &largest)).expect("as large as allowed");
    let text = || MessageBody { content_type: "text/plain".into(), payload: b"hi".to_vec(), ..Default::default() };
    let message = |change: &dyn Fn(&mut MessageBody)| {
        let mut body = text();
        change(&mut body);
        with_body(chat, Body::Message(body))
    };
    let attachment =
        || Attachment { reference: "r".into(), content_type: "t".into(), size_bytes: 1, name: String::new() };
    let change =
        |change| ClientFrame::GroupChange(GroupChange { chat_id: group, client_msg_id: ClientMsgId(random()), change });
    let create = |title: String, members: Vec<UserId>| {
        ClientFrame::GroupCreate(GroupCreate { client_msg_id: ClientMsgId(random()), title, members })
    };
    let history =
        |before, after, limit| ClientFrame::History(History { request_id: 7, chat_id: chat, before, after, limit });
    let users = |count: u64| (1..=count).map(UserId).collect::<Vec<_>>();
    use ErrorCode::{BadFrame, NoSuchSeq, NoSuchUser, TooLarge, UnsupportedKind};
    let table: Vec<(ErrorCode, ClientFrame)> = vec![
        (TooLarge, payload_frame(chat, ClientMsgId(random()), &vec![b'x'; 16_385])),
        (UnsupportedKind, with_body(chat, Body::Title(parley_protocol::body::TitleBody { title: "t".into() }))),
        (UnsupportedKind, with_body(chat, Body::Delete(parley_protocol::body::DeleteBody { target_seq: 1 }))),
        (UnsupportedKind, with_body(chat, Body::Unknown { kind: 900, base64: vec![1] })),
        (BadFrame, message(&|body| body.content_type = String::new())),
        (BadFrame, message(&|body| body.content_type = "c".repeat(128))),
        (BadFrame, message(&|body| body.mentions = users(65))),
        (BadFrame, message(&|body| body.attachments = vec![attachment(); 17])),
        (BadFrame, message(&|body| body.extensions = vec![Extension { tag: 1, value: vec![] }; 17])),
        (BadFrame, message(&|body| body.extensions = vec![Extension { tag: 1, value: vec![0; 4_097] }])),
        (BadFrame, message(&|body| body.expires_at_ms = Some(1 << 53))),
        (BadFrame, message(&|body| body.reply_to = Some(u64::MAX))),
        (BadFrame, create("t".repeat(257), vec![])),
        (BadFrame, create("two\nlines".into(), vec![])),
        (BadFrame, create(String::new(), users(1_025))),
        (NoSuchUser, create(String::new(), vec![UserId(1 << 60)])),
        (BadFrame, change(Change::Add { users: vec![] })),
        (BadFrame, change(Change::Remove { users: users(1_025) })),
        (BadFrame, change(Change::Rename { title: "t".repeat(257) })),
        (BadFrame, history(None, None, 201)),
        (BadFrame, history(Some(5), Some(1), 10)),
        (BadFrame, ClientFrame::Chats(Chats { request_id: 8, after: None, limit: 101 })),
        (BadFrame, ClientFrame::Members(Members { request_id: 9, chat_id: group, after: None, limit: 501 })),
        (BadFrame, ClientFrame::Resolve(Resolve { request_id: 10, names: vec!["n".into(); 129] })),
        (BadFrame, ClientFrame::Resolve(Resolve { request_id: 11, names: vec!["n".repeat(65)] })),
        (BadFrame, ClientFrame::Resolve(Resolve { request_id: 12, names: vec![String::new()] })),
        (BadFrame, ClientFrame::Profiles(Profiles { request_id: 13, users: users(129) })),
        (BadFrame, ClientFrame::Mute(Mute { chat_id: chat, until_ms: 1 << 53 })),
        (NoSuchSeq, ClientFrame::Read(Position { chat_id: chat, seq: 1_000 })),
        (NoSuchSeq, ClientFrame::Delivered(Position { chat_id: chat, seq: 1_000 })),
    ];
    for (code, frame) in &table {
        let error = refusal(&mut alice, frame);
        assert_eq!(error.code, *code, "{} for {frame:?}", error.message);
        assert!(!error.message.is_empty() && error.retry_after_ms.is_none());
    }
    // Flags are the server's; JSON cannot say an unknown id, rkyv can.
    let ClientFrame::Send(mut send) = message(&|_| {}) else { unreachable!("a send") };
    send.envelope.flags = 1;
    assert_eq!(refusal(&mut alice, &ClientFrame::Send(send)).code, BadFrame);
    if encoding == RKYV {
        assert_eq!(refusal(&mut alice, &create(String::new(), vec![UserId(0)])).code, BadFrame);
        let mut send =
            Send { chat_id: chat, client_msg_id: ClientMsgId(random()), envelope: Body::Message(text()).to_envelope() };
        send.envelope.body = vec![0xff; 7];
        assert_eq!(refusal(&mut alice, &ClientFrame::Send(send)).code, BadFrame, "a body that is none");
    }
    // The session went on, and nothing of all that was stored.
    alice.post(chat, "still here");
    assert_eq!(bob.history(chat, 0).len(), 2);
    assert_eq!(bob.history(group, 0).len(), 1);
}

#[test]
fn bounds_have_codes_in_json() {
    bounds_have_codes(JSON);
}

#[test]
fn bounds_have_codes_in_rkyv() {
    bounds_have_codes(RKYV);
}

#[test]
fn who_is_too_fast_is_told_when_to_come_again() {
    let server = Server::up_with(Settings::new().gateway("chat.rate_per_s", 1).gateway("chat.rate_burst", 3));
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let frames: Vec<_> =
        (0..10).map(|index| text_frame(chat, ClientMsgId(random()), &format!("fast {index}"))).collect();
    for frame in &frames {
        alice.say(frame);
    }
    let mut late = Vec::new();
    for frame in &frames {
        match alice.answer(frame.client_msg_id().expect("a command")) {
            Ok(_) => {}
            Err(error) => {
                assert_eq!((error.code, error.chat_id), (ErrorCode::RateLimited, Some(chat)));
                late.push((frame, error.retry_after_ms.expect("when to try again")));
            }
        }
    }
    assert!(!late.is_empty(), "ten at once are more than three");
    let taken = frames.len() - late.len();
    // After the time that was named the same frame is taken; another session is not slowed down.
    bob.post(chat, "bob has a rate of his own");
    let (frame, wait_ms) = late[0];
    std::thread::sleep(std::time::Duration::from_millis(u64::from(wait_ms) + 50));
    alice.command(frame).expect("after the wait it is taken");
    assert_eq!(bob.history(chat, 0).len(), taken + 2);
}

#[test]
fn as_many_subscriptions_as_allowed() {
    let server = Server::up_with(Settings::new().gateway("session.subscriptions_max", 1));
    let mut alice = server.device("alice", JSON);
    let first = alice.create_group("first", &[]).expect("created").chat_id;
    let second = alice.create_group("second", &[]).expect("created").chat_id;
    let head_of = |device: &mut Device, chat: ChatId| {
        device.subscribe(chat);
        device.wait_for("a head", |frame| match frame {
            ServerFrame::Head(head) if head.chat_id == chat => Some(head.seq),
            _ => None,
        })
    };
    assert_eq!(head_of(&mut alice, first), 2);
    assert_eq!(head_of(&mut alice, first), 2, "twice is harmless");
    assert_eq!(refusal(&mut alice, &ClientFrame::Subscribe(ChatRef { chat_id: second })).code, ErrorCode::TooMany);
    alice.say(&ClientFrame::Unsubscribe(ChatRef { chat_id: first }));
    assert_eq!(head_of(&mut alice, second), 2);
}
