//! Two people talk, live: every device of both gets every message, `Sent` comes with the durable ids, marks reach the
//! other side, and unread is what the protocol says it is.

use crate::common::device::{direct, text_frame, text_of};
use crate::common::{JSON, RKYV, Server, random};
use parley_protocol::wire::Encoding;
use parley_protocol::{ClientFrame, ClientMsgId, ServerFrame};

fn message_reaches_every_device(encoding: Encoding, other: Encoding) {
    let server = Server::up();
    let mut alice = server.device("alice", encoding);
    let mut alice_phone = server.device("alice", other);
    let mut bob = server.device("bob", encoding);
    let mut bob_phone = server.device("bob", other);
    assert_eq!(alice.user_id, alice_phone.user_id, "one name is one user");
    let chat = direct(&alice, &bob);

    let sender = alice.user_id;
    let sent = alice.post(chat, "hello bob");
    assert_eq!((sent.chat_id, sent.seq), (chat, 1));
    for device in [&mut alice, &mut alice_phone, &mut bob, &mut bob_phone] {
        let event = device.wait_event(chat, 1);
        assert_eq!((event.message_id, event.client_msg_id), (sent.message_id, sent.client_msg_id));
        assert_eq!((event.sender, event.ordinal, event.sender_sent), (sender, 1, 1));
        assert_eq!(text_of(&event), "hello bob");
    }
    // The other way, and in order.
    let texts: Vec<String> = (0..200).map(|index| format!("answer {index}")).collect();
    let all = bob.post_all(chat, texts.clone());
    assert_eq!(all.iter().map(|sent| sent.seq).collect::<Vec<_>>(), (2..202).collect::<Vec<u64>>());
    for device in [&mut alice, &mut alice_phone, &mut bob, &mut bob_phone] {
        let last = device.wait_event(chat, 201);
        assert_eq!((last.ordinal, last.sender_sent), (201, 200));
        assert_eq!(device.arrived(chat), (1..202).collect::<Vec<u64>>(), "no gap, no double, in order");
    }
}

#[test]
fn a_message_reaches_every_device_in_json() {
    message_reaches_every_device(JSON, RKYV);
}

#[test]
fn a_message_reaches_every_device_in_rkyv() {
    message_reaches_every_device(RKYV, JSON);
}

/// Whoever asks the log right after `Sent` finds the message there, and so does a server that was killed after it.
#[test]
fn sent_comes_after_the_commit() {
    let mut server = Server::up();
    let mut alice = server.device("alice", RKYV);
    let bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    for round in 0..3 {
        let sent = alice.post(chat, &format!("round {round}"));
        server.kill_gateway();
        server.start();
        alice.reconnect();
        let history = alice.history(chat, 0);
        let last = history.last().expect("what was acknowledged is there");
        assert_eq!((last.seq, last.message_id), (sent.seq, sent.message_id));
        assert_eq!(history.len(), round + 1);
    }
}

#[test]
fn marks_reach_the_other_side_and_lower_ones_do_nothing() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let mut bob_phone = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post_all(chat, (0..5).map(|index| format!("message {index}")));
    bob.wait_event(chat, 5);
    bob.delivered(chat, 3);
    alice.wait_receipt(chat, bob.user_id, 3, 0);
    bob.delivered(chat, 5);
    alice.wait_receipt(chat, bob.user_id, 5, 0);
    // Read implies delivered, and reaches the reader's other devices as own state.
    bob.read(chat, 4);
    alice.wait_receipt(chat, bob.user_id, 5, 4);
    for device in [&mut bob, &mut bob_phone] {
        let own = device.wait_own(chat, |own| own.read_seq == 4);
        assert_eq!((own.read_ordinal, own.read_sent), (4, 0));
    }
    bob.read(chat, 2);
    bob.read(chat, 5);
    alice.wait_receipt(chat, bob.user_id, 5, 5);
    bob_phone.wait_own(chat, |own| own.read_seq == 5);
    assert!(!bob_phone.queue.iter().any(|frame| matches!(frame, ServerFrame::Own(own) if own.read_seq < 4)));
    let members = alice.members(chat).expect("a member may ask");
    let marks = members.iter().find(|member| member.user_id == bob.user_id).expect("bob is in the chat");
    assert_eq!((marks.delivered_seq, marks.read_seq), (5, 5));
}

#[test]
fn unread_counts_what_others_wrote_above_the_read_mark() {
    let server = Server::up();
    let mut alice = server.device("alice", RKYV);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post_all(chat, (0..3).map(|index| format!("a{index}")));
    bob.post(chat, "b0");
    alice.post(chat, "a3");
    assert_eq!(bob.chat(chat).unread, 4, "one's own messages do not count");
    assert_eq!(alice.chat(chat).unread, 1);
    bob.read(chat, 4);
    bob.wait_own(chat, |own| own.read_seq == 4);
    let summary = bob.chat(chat);
    assert_eq!((summary.unread, summary.head_seq, summary.head_ordinal), (1, 5, 5));
    assert_eq!((summary.own.read_seq, summary.own.read_ordinal, summary.own.read_sent), (4, 4, 1));
    assert_eq!(summary.last.as_ref().map(text_of).as_deref(), Some("a3"));
    assert_eq!((summary.members, summary.large), (2, false));
    bob.post(chat, "b1");
    assert_eq!(bob.chat(chat).unread, 1, "writing is not reading, and adds nothing to read");
    bob.read(chat, 6);
    bob.wait_own(chat, |own| own.read_seq == 6);
    assert_eq!(bob.chat(chat).unread, 0);
    // The device derives the same number from what it holds.
    alice.wait_event(chat, 6);
    let newest = &alice.events[&(chat, 6)];
    assert_eq!(parley_protocol::event::unread(newest.ordinal, 4, 0, 0), alice.chat(chat).unread);
}

#[test]
fn a_payload_and_its_fields_come_as_they_went() {
    let server = Server::up();
    let mut alice = server.device("alice", RKYV);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    alice.post(chat, "first");
    let body = parley_protocol::MessageBody {
        content_type: "application/octet-stream".into(),
        payload: (0..=255).cycle().take(16 * 1024).collect(),
        reply_to: Some(1),
        mentions: vec![bob.user_id],
        expires_at_ms: Some(1_900_000_000_000),
        attachments: vec![parley_protocol::Attachment {
            reference: "media/77".into(),
            content_type: "image/png".into(),
            size_bytes: 48_213,
            name: "cat.png".into(),
        }],
        extensions: vec![parley_protocol::Extension { tag: 32_768, value: vec![1, 2, 3] }],
    };
    let envelope = parley_protocol::Body::Message(body).to_envelope();
    let send = parley_protocol::frame::Send { chat_id: chat, client_msg_id: ClientMsgId(random()), envelope };
    alice.command(&ClientFrame::Send(send.clone())).expect("it is within the limits");
    // The other encoding, from the log as well as live.
    assert_eq!(bob.wait_event(chat, 2).envelope, send.envelope);
    assert_eq!(bob.history(chat, 1)[0].envelope, send.envelope);
    let empty = text_frame(chat, ClientMsgId(random()), "");
    alice.command(&empty).expect("an empty text is a text");
    assert_eq!(text_of(&bob.wait_event(chat, 3)), "");
}
