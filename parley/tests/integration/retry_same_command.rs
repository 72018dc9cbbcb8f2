//! A command that is sent again under its `client_msg_id` gets the ids of the first one and takes effect once: at once,
//! from another device, after a crash of the gateway, after a crash of the storage-writer.

use crate::common::device::{direct, text_frame, text_of};
use crate::common::{Device, JSON, RKYV, Server, random};
use parley_protocol::frame::{Change, GroupChange, GroupCreate, Sent};
use parley_protocol::{ChatId, ClientFrame, ClientMsgId, ErrorCode};
use std::time::Duration;

/// Sends a command until it is answered for good, as a client does that keeps what has no answer.
fn persist(device: &mut Device, frame: &ClientFrame) -> Sent {
    loop {
        match device.command(frame) {
            Ok(sent) => return sent,
            Err(error) if error.code == ErrorCode::Unavailable => {
                let wait = error.retry_after_ms.expect("unavailable says when to come again");
                std::thread::sleep(Duration::from_millis(wait.min(200).into()));
            }
            Err(error) => panic!("{}: {error:?}", device.name),
        }
    }
}

fn message(chat: ChatId, text: &str) -> ClientFrame {
    text_frame(chat, ClientMsgId(random()), text)
}

/// The chat holds exactly these texts.
fn assert_texts(device: &mut Device, chat: ChatId, texts: &[&str]) {
    let history = device.history(chat, 0);
    assert_eq!(history.iter().map(text_of).collect::<Vec<_>>(), texts);
}

#[test]
fn at_once_and_from_another_device() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut phone = server.device("alice", RKYV);
    let mut bob = server.device("bob", JSON);
    let chat = direct(&alice, &bob);
    let frame = message(chat, "once");
    let first = alice.command(&frame).expect("taken");
    assert_eq!(alice.command(&frame).expect("a retry"), first);
    assert_eq!(phone.command(&frame).expect("a retry of another device"), first);
    // Twice on the way at the same time.
    let twice = message(chat, "twice");
    alice.say(&twice);
    alice.say(&twice);
    let id = twice.client_msg_id().expect("a command");
    assert_eq!(alice.answer(id).expect("the first"), alice.answer(id).expect("the second"));
    // The name belongs to its sender: the other's command of the same name is another one.
    let same_name = text_frame(chat, first.client_msg_id, "bob's own");
    assert_ne!(bob.command(&same_name).expect("taken").seq, first.seq);
    assert_texts(&mut alice, chat, &["once", "twice", "bob's own"]);
    bob.wait_event(chat, 3);
    assert_eq!(bob.arrived(chat), [1, 2, 3], "retries reach nobody twice");
}

#[test]
fn after_a_crash_of_the_gateway() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", RKYV);
    let mut bob = server.device_from_start("bob", JSON);
    let chat = direct(&alice, &bob);
    let answered = message(chat, "answered");
    let first = alice.command(&answered).expect("taken");
    let unanswered = message(chat, "on the way");
    alice.say(&unanswered);
    server.kill_gateway();
    server.start();
    alice.reconnect();
    assert_eq!(persist(&mut alice, &answered), first);
    let second = persist(&mut alice, &unanswered);
    assert_eq!(second.seq, 2);
    assert_texts(&mut alice, chat, &["answered", "on the way"]);
    bob.reconnect();
    bob.wait_event(chat, 2);
    assert_eq!(bob.seqs(chat), [1, 2]);
    server.stop();
    server.check_store();
}

/// The gateway and its sessions live on; what it had under way is resent over the new link.
#[test]
fn after_a_crash_of_the_writer() {
    let mut server = Server::apart();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let chat = direct(&alice, &bob);
    let answered = message(chat, "answered");
    let first = alice.command(&answered).expect("taken");
    let unanswered = message(chat, "on the way");
    alice.say(&unanswered);
    server.kill_writer();
    let into_the_void = message(chat, "nobody there");
    alice.say(&into_the_void);
    server.start();
    assert_eq!(persist(&mut alice, &answered), first);
    assert_eq!(persist(&mut alice, &unanswered).seq, 2);
    assert_eq!(persist(&mut alice, &into_the_void).seq, 3);
    assert_texts(&mut alice, chat, &["answered", "on the way", "nobody there"]);
    bob.wait_event(chat, 3);
    assert_eq!(bob.arrived(chat), [1, 2, 3], "the session that lived on has no gap and no double");
    server.stop();
    server.check_store();
}

#[test]
fn groups_are_created_and_changed_once() {
    let mut server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let create = ClientFrame::GroupCreate(GroupCreate {
        client_msg_id: ClientMsgId(random()),
        title: "once".into(),
        members: vec![bob.user_id],
    });
    let created = alice.command(&create).expect("created");
    let chat = created.chat_id;
    let change =
        |change| ClientFrame::GroupChange(GroupChange { chat_id: chat, client_msg_id: ClientMsgId(random()), change });
    let rename = change(Change::Rename { title: "twice".into() });
    let renamed = alice.command(&rename).expect("renamed");
    let leave = change(Change::Leave {});
    let left = bob.command(&leave).expect("left");
    for crash in [false, true] {
        if crash {
            server.kill_gateway();
            server.start();
            alice.reconnect();
            bob.reconnect();
        }
        assert_eq!(alice.command(&create).expect("a retry"), created);
        assert_eq!(alice.command(&rename).expect("a retry"), renamed);
        // Who left is no member any more, and still learns that it is done.
        assert_eq!(bob.command(&leave).expect("a retry of the one who left"), left);
    }
    assert_eq!(alice.chats().iter().filter(|chat| chat.members == 1).count(), 1);
    assert_eq!(alice.history(chat, 0).len(), 4, "created, titled, renamed, left");
}
