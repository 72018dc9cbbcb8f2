//! Delivery rule 1: commands are judged against the committed state plus everything numbered before them, durable or
//! not; what was numbered on top of a failed group falls with it.

mod common;

use common::{defaults, message, one, refused};
use parley_protocol::frame::Change;
use parley_protocol::link::{Action as Act, Ask, Reply};
use parley_protocol::{ChatId, Envelope, ErrorCode, UserId, body};
use storage_core::store::Outcome;

#[test]
fn a_direct_chat_begins_with_its_first_message() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let state = world.load(chat);
    assert_eq!((state.head_seq, state.members.len()), (0, 2));
    let first = world.send(chat, users[0], "hello");
    assert_eq!((first.event.seq, first.event.ordinal, first.event.sender_sent), (1, 1, 1));
    let second = world.send(chat, users[1], "hello yourself");
    assert_eq!((second.event.seq, second.event.ordinal, second.event.sender_sent), (2, 2, 1));
    assert!(second.event.message_id > first.event.message_id);
    assert_eq!(world.load(chat).head_seq, 2);
}

#[test]
fn who_is_not_in_a_chat_hears_what_a_stranger_hears() {
    let mut world = defaults();
    let users = world.users(3);
    let direct = ChatId::direct(users[0], users[1]).unwrap();
    let nobody = ChatId::direct(users[0], UserId(77)).unwrap();
    let group = world.group(users[0], &[users[1]], "");
    for chat in [direct, group, ChatId::group(99), ChatId(3), ChatId(0)] {
        let ask = world.send_ask(chat, users[2], "let me in");
        assert_eq!(world.ask(ask), refused(ErrorCode::NoSuchChat));
        assert_eq!(world.change(chat, users[2], Change::Leave {}), refused(ErrorCode::NoSuchChat));
    }
    let ask = world.send_ask(nobody, users[0], "anyone?");
    assert_eq!(world.ask(ask), refused(ErrorCode::NoSuchChat));
    assert_eq!(world.ask(Ask::LoadChat { chat_id: nobody }), refused(ErrorCode::NoSuchChat));
    assert_eq!(world.ask(Ask::LoadChat { chat_id: ChatId::group(99) }), refused(ErrorCode::NoSuchChat));
}

#[test]
fn only_well_formed_messages_are_taken() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    let mut send = |envelope: Envelope| {
        let ask = world.command(Some(chat), users[0], Act::Send(envelope));
        world.ask(ask)
    };
    let delete = body::Body::Delete(body::DeleteBody { target_seq: 1 }).to_envelope();
    assert_eq!(send(delete), refused(ErrorCode::UnsupportedKind));
    assert_eq!(send(Envelope { flags: 1, ..message("x") }), refused(ErrorCode::BadFrame));
    assert_eq!(send(Envelope { body: vec![9; 5], ..message("x") }), refused(ErrorCode::BadFrame));
    assert_eq!(send(message(&"x".repeat(16 * 1024 + 1))), refused(ErrorCode::TooLarge));
    assert_eq!(one(send(message(&"x".repeat(16 * 1024)))).event.seq, 1);
}

#[test]
fn a_removal_in_flight_refuses_what_comes_after_it() {
    let mut world = defaults();
    let users = world.users(2);
    let group = world.group(users[0], &[users[1]], "");
    world.store.manual = true;
    let removal = world.command(Some(group), users[0], Act::Change(Change::Remove { users: vec![users[1]] }));
    let removal = world.put(1, removal);
    world.run();
    let late = world.send_ask(group, users[1], "am I still here?");
    let late = world.put(1, late);
    world.run();
    assert_eq!((world.reply(removal), world.reply(late)), (None, None), "nothing leaves before it is durable");
    world.store.answer(Outcome::Durable);
    world.run();
    assert!(matches!(world.reply(removal), Some(Reply::Durable(_))));
    assert_eq!(world.reply(late), Some(refused(ErrorCode::NoSuchChat)));
}

#[test]
fn what_is_numbered_on_top_of_a_failed_group_falls_with_it() {
    let mut world = defaults();
    let users = world.users(2);
    let chat = ChatId::direct(users[0], users[1]).unwrap();
    world.send(chat, users[0], "one");
    world.store.manual = true;
    let asks: Vec<Ask> = (0..3).map(|at| world.send_ask(chat, users[0], &format!("{at}"))).collect();
    let mut numbers = Vec::new();
    for ask in &asks {
        numbers.push(world.put(1, ask.clone()));
        world.run();
    }
    assert_eq!(world.store.commits.len(), 2, "two groups are in flight, the third message is gathered");
    let first = world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    for no in &numbers {
        assert_eq!(world.reply(*no), Some(Reply::Failed));
    }
    assert_eq!(world.writer.status().reason.as_deref(), Some("no room"));
    let refused_now = world.ask(asks[0].clone());
    assert_eq!(refused_now, Reply::Failed, "not ready: nothing is numbered");
    world.tick(5_000);
    assert!(world.store.commits.len() == 1, "no probe before the store has answered for all in flight");
    world.store.answer(Outcome::Failed("no room".to_owned()));
    world.run();
    world.tick(1_000);
    let probe = world.store.answer(Outcome::Durable);
    assert_eq!(probe.no, first.no, "the failed number is used again");
    assert!(probe.appends.is_empty());
    world.run();
    assert!(world.writer.status().ready);
    world.store.manual = false;
    let again = one(world.ask(asks[2].clone()));
    assert_eq!((again.event.seq, again.event.ordinal, again.event.sender_sent), (2, 2, 2));
    assert_eq!(common::targets(&again), vec![(users[0], 2), (users[1], 2)]);
}

#[test]
fn the_users_of_a_new_group_exist_and_are_few_enough() {
    let mut world = defaults();
    let users = world.users(3);
    let mut create = |owner: UserId, members: Vec<UserId>| {
        let ask = world.command(None, owner, Act::Create { title: String::new(), members });
        world.ask(ask)
    };
    assert_eq!(create(users[0], vec![UserId(5)]), refused(ErrorCode::NoSuchUser));
    assert_eq!(create(UserId(5), vec![users[0]]), refused(ErrorCode::NoSuchUser));
    assert_eq!(create(users[0], (1..=100).map(UserId).collect()), refused(ErrorCode::GroupFull));
    let Reply::Durable(made) = create(users[0], vec![users[1], users[1], users[0]]) else { panic!() };
    assert_eq!(common::targets(&made[0]), vec![(users[0], 1), (users[1], 1)]);
}

#[test]
fn a_titled_group_has_two_events_in_one_answer() {
    let mut world = defaults();
    let users = world.users(2);
    let create = Act::Create { title: "Lunch".to_owned(), members: vec![users[1]] };
    let ask = world.command(None, users[0], create);
    let Reply::Durable(made) = world.ask(ask.clone()) else { panic!() };
    let kinds: Vec<_> = made.iter().map(|made| (made.event.seq, made.event.envelope.kind)).collect();
    assert_eq!(kinds, vec![(1, body::kind::MEMBERSHIP), (2, body::kind::TITLE)]);
    let first = &made[0].event;
    let again = Reply::Duplicate { chat_id: first.chat_id, message_id: first.message_id, seq: 1 };
    assert_eq!(world.ask(ask), again);
}
