//! The delivery protocol, rule by rule where the gateway has a part in it, with the shipping cores of both ends.

mod world;

use parley_protocol::frame::{ClientFrame, GroupChange, GroupCreate, Position, ServerFrame};
use parley_protocol::{ErrorCode, frame};
use world::{World, options};

fn two(shards: u16) -> (World, u64, u64) {
    let mut world = World::new(&options(shards), storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let bob = world.connect("bob", 2, None);
    (world, alice, bob)
}

#[test]
fn a_message_is_sent_once_and_reaches_both_ends() {
    for shards in [1, 2, 5] {
        let (mut world, alice, bob) = two(shards);
        let chat = world.direct(alice, bob);
        for n in 1..=20 {
            let frame = world.text(chat, &format!("m{n}"));
            world.say(alice, frame);
        }
        let expected: Vec<String> = (1..=20).map(|n| format!("m{n}")).collect();
        assert_eq!(world.texts(bob), expected);
        assert_eq!(world.texts(alice), expected, "the sender's own device too");
        let seqs: Vec<u64> = world.client(alice).sent().iter().map(|sent| sent.seq).collect();
        assert_eq!(seqs, (1..=20).collect::<Vec<_>>());
        world.sleep(2_100);
        assert_eq!(world.client(bob).mark(), Some(20));
    }
}

#[test]
fn a_device_that_was_away_gets_what_it_missed_and_nothing_twice() {
    let (mut world, alice, bob) = two(2);
    let chat = world.direct(alice, bob);
    let first = world.text(chat, "before");
    world.say(alice, first);
    world.sleep(2_100);
    let mark = world.client(bob).mark();
    world.drop_client(bob);
    for n in 0..700 {
        let frame = world.text(chat, &format!("away{n}"));
        world.say(alice, frame);
    }
    let back = world.connect("bob", 2, mark);
    let live = world.text(chat, "live");
    world.say(alice, live);
    let mut expected: Vec<String> = (0..700).map(|n| format!("away{n}")).collect();
    expected.push("live".to_owned());
    assert_eq!(world.texts(back), expected);
}

#[test]
fn a_retry_gets_the_first_ids() {
    let (mut world, alice, bob) = two(2);
    let chat = world.direct(alice, bob);
    let frame = world.text(chat, "once");
    world.say(alice, frame.clone());
    world.say(alice, frame.clone());
    world.restart_writer();
    world.sleep(100);
    world.say(alice, frame);
    world.sleep(3_000);
    let sent = world.client(alice).sent();
    assert_eq!(sent.len(), 3);
    assert!(sent.iter().all(|other| *other == sent[0]));
    assert_eq!(world.texts(bob), ["once"]);
}

#[test]
fn what_was_asked_before_a_cut_is_answered_after_it() {
    let (mut world, alice, bob) = two(2);
    let chat = world.direct(alice, bob);
    let first = world.text(chat, "first");
    world.say(alice, first);
    world.writer_stopped = true;
    let frame = world.text(chat, "through the cut");
    world.say(alice, frame);
    (0..2).for_each(|shard| world.cut_link(0, shard));
    world.sleep(500);
    assert_eq!(world.client(alice).sent().len(), 1, "not acknowledged before it is durable");
    world.writer_stopped = false;
    world.sleep(5_000);
    assert_eq!(world.client(alice).sent().len(), 2);
    assert_eq!(world.texts(bob), ["first", "through the cut"]);
}

#[test]
fn fan_out_without_room_is_made_good_by_a_nudge() {
    let (mut world, alice, bob) = two(4);
    let chat = world.direct(alice, bob);
    world.gateways[0].fanout_room = 0;
    for n in 0..5 {
        let frame = world.text(chat, &format!("m{n}"));
        world.say(alice, frame);
    }
    world.sleep(200);
    world.gateways[0].fanout_room = usize::MAX;
    world.sleep(1_000);
    assert_eq!(world.texts(bob).len(), 5);
}

#[test]
fn a_gateway_that_was_replaced_acknowledges_nothing() {
    let (mut world, alice, bob) = two(2);
    let chat = world.direct(alice, bob);
    let first = world.text(chat, "first");
    world.say(alice, first);
    world.gateways[0].stopped = true;
    let second = world.add_gateway(&options(2));
    world.sleep(500);
    let bob2 = world.connect_to(second, "bob", 2, Some(0));
    assert_eq!(world.texts(bob2), ["first"]);
    world.gateways[0].stopped = false;
    let late = world.text(chat, "late");
    world.say(alice, late);
    world.sleep(5_000);
    assert!(world.gateways[0].halted.is_some());
    assert_eq!(world.client(alice).sent().len(), 1);
    assert_eq!(world.client(alice).closed, Some(4003));
    assert!(world.gateways[second].halted.is_none());
    assert_eq!(world.texts(bob2), ["first"]);
}

#[test]
fn receipts_and_read_marks_reach_the_others_and_ones_own_devices() {
    let (mut world, alice, bob) = two(3);
    let bobs_phone = world.connect("bob", 3, None);
    let chat = world.direct(alice, bob);
    let frame = world.text(chat, "read me");
    world.say(alice, frame);
    world.say(bob, ClientFrame::Delivered(Position { chat_id: chat, seq: 1 }));
    world.say(bob, ClientFrame::Read(Position { chat_id: chat, seq: 1 }));
    world.sleep(3_000);
    let bob_id = world.user(bob);
    let receipt = world.client(alice).frames.iter().rev().find_map(|frame| match frame {
        ServerFrame::Receipt(receipt) => Some(*receipt),
        _ => None,
    });
    assert_eq!(receipt.map(|it| (it.user_id, it.delivered_seq, it.read_seq)), Some((bob_id, 1, 1)));
    for device in [bob, bobs_phone] {
        let own =
            world.client(device).frames.iter().any(|frame| matches!(frame, ServerFrame::Own(own) if own.read_seq == 1));
        assert!(own);
    }
}

#[test]
fn a_group_tells_its_members_and_refuses_strangers() {
    let (mut world, alice, bob) = two(3);
    let carol = world.connect("carol", 4, None);
    let members = vec![world.user(bob)];
    let client_msg_id = world.msg_id();
    world.say(alice, ClientFrame::GroupCreate(GroupCreate { client_msg_id, title: "climbing".into(), members }));
    let chat_id = world.client(alice).sent()[0].chat_id;
    let frame = world.text(chat_id, "hello group");
    world.say(bob, frame);
    assert_eq!(world.texts(alice), ["hello group"]);
    let intruder = world.text(chat_id, "let me in");
    world.say(carol, intruder);
    assert_eq!(world.client(carol).errors(), [ErrorCode::NoSuchChat]);
    let client_msg_id = world.msg_id();
    let users = vec![world.user(bob)];
    let change = frame::Change::Remove { users };
    world.say(alice, ClientFrame::GroupChange(GroupChange { chat_id, client_msg_id, change }));
    let after = world.text(chat_id, "without bob");
    world.say(alice, after);
    assert_eq!(world.texts(bob), ["hello group"]);
    let events = world.client(bob).frames.iter().filter(|frame| matches!(frame, ServerFrame::Event(_))).count();
    assert_eq!(events, 4, "added, titled, the message, removed");
}

#[test]
fn a_credit_that_is_missing_parks_the_sender_and_loses_nothing() {
    let narrow = gateway_core::options::Options { mesh_requests_max: 2, requests_in_flight_max: 4, ..options(3) };
    let mut world = World::new(&narrow, storage_core::Options::default());
    let alice = world.connect("alice", 1, None);
    let bob = world.connect("bob", 2, None);
    let chat = world.direct(alice, bob);
    world.writer_stopped = true;
    for n in 0..50 {
        let frame = world.text(chat, &format!("m{n}"));
        world.say_quietly(alice, frame);
    }
    world.settle();
    world.writer_stopped = false;
    world.settle();
    world.sleep(2_100);
    let expected: Vec<String> = (0..50).map(|n| format!("m{n}")).collect();
    assert_eq!(world.texts(bob), expected);
    assert_eq!(world.client(alice).sent().len(), 50);
}

#[test]
fn marks_of_a_message_whose_answer_was_lost_are_taken() {
    let (mut world, alice, bob) = two(2);
    let chat = world.direct(alice, bob);
    let first = world.text(chat, "first");
    world.say(alice, first);
    let frame = world.text(chat, "lost answer");
    world.say_and_lose_the_answer(alice, frame);
    world.sleep(5_000);
    assert_eq!(world.texts(bob), ["first", "lost answer"]);
    world.say(bob, ClientFrame::Read(Position { chat_id: chat, seq: 2 }));
    world.sleep(3_000);
    assert!(world.client(bob).errors().is_empty());
    assert!(world.client(bob).frames.iter().any(|frame| matches!(frame, ServerFrame::Own(own) if own.read_seq == 2)));
}

#[test]
fn queues_of_4_under_load_from_all_to_all_lose_nothing_and_never_wait() {
    let narrow = gateway_core::options::Options { mesh_requests_max: 4, requests_in_flight_max: 8, ..options(4) };
    let mut world = World::new(&narrow, storage_core::Options::default());
    let users: Vec<u64> = (0..16).map(|n| world.connect(&format!("user{n}"), n + 1, None)).collect();
    world.gateways[0].fanout_room = 1;
    for round in 0..5 {
        for (from, a) in users.iter().enumerate() {
            for b in users.iter().filter(|b| *b != a) {
                let chat = world.direct(*a, *b);
                let frame = world.text(chat, &format!("{from} in round {round}"));
                world.say_quietly(*a, frame);
            }
        }
        world.settle();
    }
    world.gateways[0].fanout_room = usize::MAX;
    world.sleep(5_000);
    for user in &users {
        assert_eq!(world.client(*user).sent().len(), 5 * 15, "every command is acknowledged");
        assert_eq!(world.texts(*user).len(), 2 * 5 * 15, "one's own and the others', each once");
    }
}
