//! Who was removed gets the removal as the last event, then nothing, and keeps reading what came before it. Who comes
//! back reads from the return on; the time in between stays closed.

use crate::common::device::direct;
use crate::common::{JSON, RKYV, Server};
use parley_protocol::ErrorCode;
use parley_protocol::frame::{Change, ChatRef, Interval};
use parley_protocol::{ClientFrame, Role, ServerFrame};

#[test]
fn the_removal_is_the_last_event_and_history_up_to_it_stays() {
    let server = Server::up();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let mut bob_phone = server.device_from_start("bob", JSON);
    let carol = server.device("carol", JSON);
    let chat = alice.create_group("", &[bob.user_id, carol.user_id]).expect("created").chat_id;
    alice.post_all(chat, ["one".to_owned(), "two".to_owned()]);
    bob.wait_event(chat, 3);
    bob_phone.wait_event(chat, 3);
    bob_phone.sync();
    bob_phone.cut();

    alice.change(chat, Change::Remove { users: vec![bob.user_id] }).expect("the owner removes");
    alice.post_all(chat, ["without bob".to_owned(), "still without".to_owned()]);
    // What is committed later in another chat comes later in the inbox: when it is here, nothing else is under way.
    let side = direct(&alice, &bob);
    alice.post(side, "sorry");
    bob_phone.reconnect();
    for device in [&mut bob, &mut bob_phone] {
        device.wait_event(side, 1);
        assert_eq!(device.seqs(chat), [1, 2, 3, 4], "{:?}", device.encoding);
        let history = device.history(chat, 0);
        assert_eq!(history.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let summary = device.chat(chat);
        assert_eq!((summary.role, summary.head_seq), (None, 4));
        assert_eq!(summary.intervals, [Interval { joined_seq: 1, left_seq: Some(4), history_from: 1 }]);
        assert_eq!(summary.last.map(|event| event.seq), Some(4));
    }
    // For everything but reading it is a chat that does not exist.
    assert_eq!(bob.refused(chat, Change::Leave {}), ErrorCode::NoSuchChat);
    bob.say(&ClientFrame::Subscribe(ChatRef { chat_id: chat }));
    let error = bob.wait_for("a refusal", |frame| match frame {
        ServerFrame::Error(error) if error.chat_id == Some(chat) => Some(error.clone()),
        _ => None,
    });
    assert_eq!(error.code, ErrorCode::NoSuchChat);
    assert_eq!(bob.members(chat).expect_err("members are for members").code, ErrorCode::NoSuchChat);
}

#[test]
fn who_comes_back_reads_from_the_return_on() {
    let server = Server::up();
    let mut alice = server.device("alice", RKYV);
    let mut bob = server.device("bob", JSON);
    let chat = alice.create_group("", &[bob.user_id]).expect("created").chat_id;
    alice.post(chat, "first time");
    alice.change(chat, Change::Remove { users: vec![bob.user_id] }).expect("removed at 3");
    alice.post_all(chat, ["secret".to_owned(), "secret too".to_owned()]);
    alice.change(chat, Change::Add { users: vec![bob.user_id] }).expect("back at 6");
    alice.post(chat, "second time");
    bob.wait_event(chat, 7);
    assert_eq!(bob.seqs(chat), [1, 2, 3, 6, 7]);
    let summary = bob.chat(chat);
    assert_eq!(summary.role, Some(Role::Member));
    assert_eq!(
        summary.intervals,
        [
            Interval { joined_seq: 1, left_seq: Some(3), history_from: 1 },
            Interval { joined_seq: 6, left_seq: None, history_from: 6 },
        ]
    );
    let history = bob.history(chat, 0);
    assert_eq!(history.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3, 6, 7]);
    let (page, more) = bob.history_page(chat, Some(7), None, 2).expect("a page over the gap");
    assert_eq!((page.iter().map(|event| event.seq).collect::<Vec<_>>(), more), (vec![3, 6], true));
    bob.post(chat, "thanks");
    // Unread starts anew: what was said meanwhile is not there to be read.
    assert_eq!(summary.unread, bob.chat(chat).unread);
}
