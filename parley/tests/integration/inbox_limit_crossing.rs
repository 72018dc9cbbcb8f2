//! A group that grows above the inbox limit and shrinks below it, while devices are away or look on: nothing is lost,
//! whichever way a device syncs.

use crate::common::device::direct;
use crate::common::{Device, JSON, RKYV, Server, Settings};
use parley_protocol::frame::{Change, ChatRef};
use parley_protocol::{ChatId, ClientFrame, ServerFrame, UserId};

/// Four members are one too many.
fn server() -> Server {
    let settings = Settings::new().both("chat", "inbox_fanout_members_max", 3).gateway("chat.head_interval_ms", 50);
    Server::up_with(settings)
}

fn texts(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{what} {index}")).collect()
}

fn add(device: &mut Device, chat: ChatId, user: UserId) {
    device.change(chat, Change::Add { users: vec![user] }).expect("added");
}

fn remove(device: &mut Device, chat: ChatId, user: UserId) {
    device.change(chat, Change::Remove { users: vec![user] }).expect("removed");
}

/// Fills the holes of a chat from history, as the protocol asks: below the newest event, and below the head.
fn fill(device: &mut Device, chat: ChatId) {
    for event in device.history(chat, 0) {
        device.events.insert((chat, event.seq), event);
    }
}

#[test]
fn up_and_down_again_while_a_device_is_away() {
    let server = server();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device_from_start("bob", RKYV);
    let carol = server.device("carol", JSON);
    let dave = server.device("dave", JSON);
    let chat = alice.create_group("", &[bob.user_id, carol.user_id]).expect("created").chat_id;
    bob.wait_event(chat, 1);
    bob.sync();
    bob.cut();
    alice.post_all(chat, texts("small", 2)); // 2, 3
    add(&mut alice, chat, dave.user_id); // 4: the event that crosses reaches everybody
    alice.post_all(chat, texts("large", 3)); // 5, 6, 7: in nobody's inbox
    remove(&mut alice, chat, dave.user_id); // 8: and back
    alice.post_all(chat, texts("small again", 2)); // 9, 10
    bob.reconnect();
    assert_eq!(bob.arrived(chat), [2, 3, 4, 8, 9, 10], "by the inbox");
    let summary = bob.chat(chat);
    assert_eq!((summary.head_seq, summary.large, summary.unread), (10, false, 7));
    let hole = bob.history_page(chat, None, Some(4), 0).expect("history").0;
    assert_eq!(hole.iter().map(|event| event.seq).take(3).collect::<Vec<_>>(), [5, 6, 7], "by (chat, seq)");
    fill(&mut bob, chat);
    assert_eq!(bob.seqs(chat), (1..=10).collect::<Vec<u64>>());
}

#[test]
fn a_device_that_comes_back_to_a_large_chat_compares_heads() {
    let server = server();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device_from_start("bob", JSON);
    let carol = server.device("carol", JSON);
    let dave = server.device("dave", JSON);
    let chat = alice.create_group("", &[bob.user_id, carol.user_id]).expect("created").chat_id;
    bob.wait_event(chat, 1);
    bob.sync();
    bob.cut();
    alice.post(chat, "small"); // 2
    add(&mut alice, chat, dave.user_id); // 3
    alice.post_all(chat, texts("large", 5)); // 4 to 8
    bob.reconnect();
    assert_eq!(bob.arrived(chat), [2, 3]);
    let summary = bob.chat(chat);
    assert_eq!((summary.head_seq, summary.large, summary.unread), (8, true, 6));
    assert_eq!(summary.last.as_ref().map(|event| event.seq), Some(8));
    fill(&mut bob, chat);
    assert_eq!(bob.seqs(chat), (1..=8).collect::<Vec<u64>>());
    // Down again while it is away, with its mark from above the limit.
    bob.sync();
    bob.cut();
    alice.post(chat, "large still"); // 9
    remove(&mut alice, chat, dave.user_id); // 10
    alice.post(chat, "small"); // 11
    bob.reconnect();
    assert_eq!(bob.arrived(chat), [10, 11]);
    fill(&mut bob, chat);
    assert_eq!(bob.seqs(chat), (1..=11).collect::<Vec<u64>>());
}

#[test]
fn subscribed_devices_get_every_event_and_the_others_the_head() {
    let server = server();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let mut carol = server.device("carol", JSON);
    let mut dave = server.device("dave", RKYV);
    let ids = [bob.user_id, carol.user_id, dave.user_id];
    let chat = alice.create_group("", &ids).expect("created").chat_id;
    for device in [&mut bob, &mut carol, &mut dave] {
        device.wait_event(chat, 1);
    }
    bob.subscribe(chat);
    let head = bob.wait_for("the head", |frame| match frame {
        ServerFrame::Head(head) if head.chat_id == chat => Some(*head),
        _ => None,
    });
    assert_eq!((head.seq, head.ordinal), (1, 0));
    alice.post_all(chat, texts("large", 100)); // 2 to 101
    bob.wait_event(chat, 101);
    assert_eq!(bob.arrived(chat), (1..=101).collect::<Vec<u64>>(), "subscribed: every event");
    carol.wait_for("the newest head", |frame| match frame {
        ServerFrame::Head(head) if head.chat_id == chat && head.seq == 101 => Some(()),
        _ => None,
    });
    let side = direct(&alice, &carol);
    alice.post(side, "later than all of it");
    carol.wait_event(side, 1);
    assert_eq!(carol.arrived(chat), [1], "not subscribed: no events");
    let heads = carol.queue.iter().filter(|frame| matches!(frame, ServerFrame::Head(_))).count();
    assert!(heads < 100, "heads are coalesced, {heads} came for 100 events");
    // Unsubscribed again: heads only. The head stands for what was sent before it.
    bob.say(&ClientFrame::Unsubscribe(ChatRef { chat_id: chat }));
    bob.sync();
    alice.post(chat, "not for bob"); // 102
    bob.wait_for("the head of what it does not get", |frame| match frame {
        ServerFrame::Head(head) if head.chat_id == chat && head.seq == 102 => Some(()),
        _ => None,
    });
    assert!(!bob.arrived(chat).contains(&102));
}

/// A chat that crosses under the eyes of subscribers: the crossing event comes once, and nothing is missing.
#[test]
fn crossing_both_ways_live() {
    let server = server();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", RKYV);
    let mut bob_phone = server.device("bob", JSON);
    let carol = server.device("carol", JSON);
    let mut dave = server.device("dave", RKYV);
    let chat = alice.create_group("", &[bob.user_id, carol.user_id]).expect("created").chat_id;
    bob.subscribe(chat);
    bob.wait_for("the head", |frame| matches!(frame, ServerFrame::Head(_)).then_some(()));
    let mut head = 1;
    for round in 0..5 {
        alice.post_all(chat, texts(&format!("small {round}"), 5));
        add(&mut alice, chat, dave.user_id);
        dave.wait_event(chat, head + 6);
        alice.post_all(chat, texts(&format!("large {round}"), 5));
        remove(&mut alice, chat, dave.user_id);
        dave.wait_event(chat, head + 12);
        head += 12;
    }
    alice.post(chat, "end");
    head += 1;
    bob.wait_event(chat, head);
    assert_eq!(bob.arrived(chat), (1..=head).collect::<Vec<u64>>(), "subscribed all the time: everything, once");
    bob_phone.wait_event(chat, head);
    fill(&mut bob_phone, chat);
    assert_eq!(bob_phone.seqs(chat), (1..=head).collect::<Vec<u64>>());
    // Dave was a member only while the chat was large: the events that let him in and out, and nothing after.
    let side = direct(&alice, &dave);
    alice.post(side, "bye");
    dave.wait_event(side, 1);
    assert_eq!(dave.seqs(chat), (0..5).flat_map(|round| [round * 12 + 7, round * 12 + 13]).collect::<Vec<u64>>());
}

#[test]
fn a_removed_subscriber_gets_the_removal_and_nothing_more() {
    let server = server();
    let mut alice = server.device("alice", JSON);
    let mut bob = server.device("bob", JSON);
    let others = [server.device("carol", JSON), server.device("dave", JSON), server.device("erin", JSON)];
    let mut ids: Vec<UserId> = others.iter().map(|device| device.user_id).collect();
    ids.push(bob.user_id);
    let chat = alice.create_group("", &ids).expect("created").chat_id;
    bob.wait_event(chat, 1);
    bob.subscribe(chat);
    bob.wait_for("the head", |frame| matches!(frame, ServerFrame::Head(_)).then_some(()));
    alice.post(chat, "for bob too"); // 2
    remove(&mut alice, chat, bob.user_id); // 3; four are left: still large
    alice.post_all(chat, texts("not for bob", 20));
    let side = direct(&alice, &bob);
    alice.post(side, "bye");
    bob.wait_event(side, 1);
    bob.sync();
    assert_eq!(bob.arrived(chat), [1, 2, 3]);
    assert_eq!(bob.history(chat, 0).len(), 3);
}
